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

. "$(dirname -- "$0")/setup.sh"
if ! positive "$1"; then
    usage "sh scripts/train.sh <num_gpu> <port> [arguments for the method...] (num_gpu: found '$1', expected a number of at least 1)"
fi
if ! positive "$2" && [ "$2" != 0 ]; then
    usage "sh scripts/train.sh <num_gpu> <port> [arguments for the method...] (port: found '$2', expected a number, e.g. 29500)"
fi
num_gpu=$1 port=$2
shift 2
run_settings
find_python requirements.txt || fail "no Python that satisfies requirements.txt (${why:-none found}); run: sh scripts/setup.sh"

set -- --save-path "$save_path" --port "$port" "$@"
# a config may name its own lists, as those of large-scale training do
if ! grep -q '^labeled_id_path:' "$config" 2>/dev/null; then
    set -- --labeled-id-path "splits/$dataset/$split/labeled.txt" --unlabeled-id-path "splits/$dataset/$split/unlabeled.txt" "$@"
fi
exec "$PYTHON" -m util.launch \
    --nproc_per_node="$num_gpu" --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-localhost}" --master_port="$port" \
    "$method.py" --config="$config" "$@"
