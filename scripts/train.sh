#!/bin/sh
# Trains on one machine, or on one node of several.
#
#   sh scripts/train.sh <num_gpu> <port> [arguments for the method...]
#   dataset=pascal method=unimatch_v2 split=366 sh scripts/train.sh 4 29500 --set epochs=30
#
# From the environment: dataset (pascal), method (unimatch_v2: any file METHOD.py), split (366), exp (dinov2_small: a folder name),
# config (configs/$dataset.yaml), save_path (exp/$dataset/$method/$exp/$split); NNODES (1), NODE_RANK (0) and MASTER_ADDR (localhost)
# for several machines, num_gpu then being the number on each. Port 0: any free one. Relative paths start at the repository.
# The same command again continues an unfinished run. The exit code is the training's.
#
# Several runs, one after the other, finished ones skipped, with their table (mean and deviation over seeds) at the end:
#   dataset=pascal split="92 183" method="supervised unimatch_v2" seeds="0 1 2" sh scripts/train.sh 4 29500
# They go to exp/$dataset/METHOD/$exp/SPLIT, with seeds to seed0, seed1, ... below (or below save_path).

. "$(dirname -- "$0")/setup.sh"
if ! positive "$1"; then
    usage "sh scripts/train.sh <num_gpu> <port> [arguments for the method...] (num_gpu: found '$1', expected a number of at least 1)"
fi
if ! positive "$2" && [ "$2" != 0 ]; then
    usage "sh scripts/train.sh <num_gpu> <port> [arguments for the method...] (port: found '$2', expected a number, e.g. 29500)"
fi
num_gpu=$1 port=$2
shift 2
given_path=$save_path
run_settings
find_python requirements.txt || fail "no Python that satisfies requirements.txt (${why:-none found}); run: sh scripts/setup.sh"

case "${seeds:+several }$method:$split" in
*' '*)
    . scripts/sweep.sh
    sweep "$@"
    exit
    ;;
esac

set -- --save-path "$save_path" --port "$port" "$@"
# a config may name its own lists, as those of large-scale training do
if ! grep -q '^labeled_id_path:' "$config" 2>/dev/null; then
    set -- --labeled-id-path "splits/$dataset/$split/labeled.txt" --unlabeled-id-path "splits/$dataset/$split/unlabeled.txt" "$@"
fi
exec "$PYTHON" -m util.launch \
    --nproc_per_node="$num_gpu" --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-localhost}" --master_port="$port" \
    "$method.py" --config="$config" "$@"
