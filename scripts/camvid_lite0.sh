#!/bin/sh
# Do unlabelled images help? Trains each method on CamVid with EfficientNet-Lite0 on five draws of three labelled photographs, on the
# CPU; prints means and paired differences with intervals, and leaves curves, a page and pictures of test photographs in exp/camvid_lite0.
# What came of it: docs/evidence.md.
#
#   sh scripts/camvid_lite0.sh
#   exp=camvid_lite0_short method=unimatch_v2 seeds="0 1 2" sh scripts/camvid_lite0.sh --set epochs=16 --set eval_every=4
#
# Needs data/camvid (docs/data.md), timm and pretrained/efficientnet_lite0.pth (python -m model.pretrained efficientnet_lite0).
# From the environment: method, seeds, exp (name of the runs' folder, another for other settings). Each method has the length that was best
# for it. Each seed has a draw of its own, splits/camvid/3_draw<seed>, and the 60 photographs of that draw that select the best epoch;
# best.pth is then scored on the test list.
# The same command continues where it was stopped; finished runs end at once. Several may share the work on one machine: give each a
# core (OMP_NUM_THREADS=1) and other seeds, and start the command at last without seeds.

. "$(dirname -- "$0")/setup.sh"
find_python requirements.txt || fail "no Python that satisfies requirements.txt (${why:-none found}); run: sh scripts/setup.sh"
exp=${exp:-camvid_lite0}
methods=${method:-supervised fixmatch unimatch_v1 unimatch_v2}
for seed in ${seeds:-0 1 2 3 4}; do
    for method in $methods; do
        case $method in supervised) epochs=16 ;; *) epochs=32 ;; esac
        dataset=camvid config=configs/camvid_lite0.yaml split=3_draw$seed method=$method seeds='' save_path=exp/$exp/$method/seed$seed \
            sh scripts/train.sh 1 0 --set "seed=$seed" --set "val_id_path=splits/camvid/3_draw$seed/select.txt" \
            --set "epochs=$epochs" --set "eval_every=$((epochs / 4))" "$@" || exit
    done
done
"$PYTHON" -m scripts.report compare --draws --html "exp/$exp/compare.html" --svg "exp/$exp/curves.svg" "exp/$exp" || exit
shown=${seeds:-0}
first=exp/$exp/supervised/seed${shown%% *}
last=exp/$exp/unimatch_v2/seed${shown%% *}
[ ! -f "$first/test.json" ] || [ ! -f "$last/test.json" ] ||
    "$PYTHON" -m scripts.side_by_side --rule difference --out "exp/$exp/pictures.png" "supervised=$first" "unimatch_v2=$last"
