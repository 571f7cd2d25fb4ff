#!/bin/sh
# Trains on one machine, or on one node of several.
#
#   sh scripts/train.sh <num_gpu> <port> [arguments for the method...]
#   dataset=pascal method=unimatch_v2 split=366 sh scripts/train.sh 4 29500 --set epochs=30
#
# From the environment: config (configs/$method/$dataset.yaml where it exists, else configs/$dataset.yaml), dataset (the config's, else
# pascal), method (unimatch_v2: any file METHOD.py), split (366), exp (a folder name: the backbone), save_path
# (exp/$dataset/$method/$exp/$split); MAX_RESTARTS (0): how often workers that died are started again, from the last checkpoint;
# stage_data: a folder on a disk of this machine to copy the run's images and masks to before it starts, and to read them from
# (dataset/stage.py). Several machines: NNODES on each, NODE_RANK (0 to NNODES - 1) and MASTER_ADDR (the name or address of node 0,
# where the port has to be free), num_gpu then being the number on each, and a save path that all of them share:
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=node17 sh scripts/train.sh 2 29500
# Port 0: any free one. Relative paths start at the repository. The same command again continues an unfinished run. The exit code is
# the training's.
#
# Several runs, one after the other (finished ones end at once), at the end with their table (mean and deviation over seeds), paired
# differences, and a page of all, exp/$dataset/sweep.html, with exp given exp/$dataset/sweep_$exp.html:
#   dataset=pascal split="92 183" method="supervised unimatch_v2" seeds="0 1 2" sh scripts/train.sh 4 29500
# They go to exp/$dataset/METHOD/$exp/SPLIT, with seeds to seed0, seed1, ... below (or below save_path).

. "$(dirname -- "$0")/setup.sh"
form="sh scripts/train.sh <num_gpu> <port> [arguments for the method...]"
positive "$1" || usage "$form (num_gpu: found '$1', expected a number of at least 1)"
positive "$2" || [ "$2" = 0 ] || usage "$form (port: found '$2', expected a number, e.g. 29500)"
num_gpu=$1 port=$2
shift 2
positive "${NNODES:=1}" || fail "NNODES: found '$NNODES', expected the number of nodes, at least 1"
if [ "$NNODES" -gt 1 ] && { [ -z "$NODE_RANK" ] || [ -z "$MASTER_ADDR" ]; }; then
    fail "NNODES: found $NNODES without NODE_RANK (0 to $((NNODES - 1)), another on each node) and MASTER_ADDR (name or address of node 0); set both"
fi
for name in NODE_RANK MAX_RESTARTS; do
    eval "value=\${$name:-0}"
    [ "$value" = 0 ] || positive "$value" || fail "$name: found '$value', expected a number, 0 or more"
done
given_path=$save_path
run_settings "$@"
find_python requirements.txt || fail "no Python that satisfies requirements.txt (${why:-none found}); run: sh scripts/setup.sh"

. scripts/sweep.sh
if several; then
    # a finished run is started too: it alone knows whether these are its settings, and ends at once where they are
    start_one() {
        echo "$save_path: training"
        sh scripts/train.sh "$num_gpu" "$port" "$@"
    }
    sweep "$@"
    IFS='
'
    # shellcheck disable=SC2086 # one folder a line
    "$PYTHON" -m scripts.report $folders || exit
    echo
    page=exp/$dataset/sweep${given_exp:+_$given_exp}.html
    # shellcheck disable=SC2086
    "$PYTHON" -m scripts.report compare --html "$page" $folders || exit
    echo "Curves, and links to the pages of the runs: $page"
    exit
fi

set -- --save-path "$save_path" --port "$port" "$@"
if ! names_lists; then
    set -- --labeled-id-path "splits/$dataset/$split/labeled.txt" --unlabeled-id-path "splits/$dataset/$split/unlabeled.txt" "$@"
fi
set -- --config="$config" "$@"

if [ -n "$stage_data" ]; then
    settings=$("$PYTHON" -m dataset.stage "$stage_data" "$@") || exit
    IFS='
'
    for setting in $settings; do set -- "$@" --set "$setting"; done
    unset IFS
fi

exec "$PYTHON" -m engine.launch \
    --nproc_per_node="$num_gpu" --nnodes="$NNODES" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-localhost}" --master_port="$port" --max_restarts="${MAX_RESTARTS:-0}" \
    "$method.py" "$@"
