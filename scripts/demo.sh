#!/bin/sh
# Trains supervised, FixMatch and UniMatch V2 on a small procedural data set with a small encoder from random weights, on the CPU,
# and shows what they learned: one table, and pictures of image, truth and predictions.
#
#   sh scripts/demo.sh
#   seed=1 epochs=20 sh scripts/demo.sh     # task=change: the pair data set, for change detection
#
# Makes a .venv when the current Python lacks the requirements (scripts/setup.sh). The same command continues where it was stopped.

. "$(dirname -- "$0")/setup.sh"
[ $# -eq 0 ] || fail "demo.sh: found '$1', expected no arguments; settings stand before the command, as in seed=1 epochs=20 sh scripts/demo.sh"
seed=${seed:-0}
case ${task:-segmentation} in
segmentation) dataset=demo split=1_10 ;;
change) dataset=demo_change split=1_20 ;;
*) fail "task: found '$task', expected segmentation or change" ;;
esac
config=configs/$dataset.yaml
# runs of other settings have folders of their own, so that none continues another
name=dinov2_tiny_seed$seed${epochs:+_epochs$epochs}
positive "${epochs:-1}" || fail "epochs: found '$epochs', expected a number of at least 1"
setup requirements.txt

# one core computes, the other one loads images
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
set --
for method in supervised fixmatch unimatch_v2; do
    folder=exp/$dataset/$method/$name/$split
    echo "== $method: $folder/train.log"
    "$PYTHON" $method.py --config "$config" --save-path "$folder" \
        --set device=cpu --set "seed=$seed" ${epochs:+--set "epochs=$epochs"} \
        --labeled-id-path "splits/$dataset/$split/labeled.txt" --unlabeled-id-path "splits/$dataset/$split/unlabeled.txt" || exit
    set -- "$@" "$method=$folder"
done
echo
"$PYTHON" -m scripts.side_by_side --out "exp/$dataset/$name.png" "$@"
