# Sourced by train.sh: several runs, one after the other, for lists of seeds, splits or methods. Uses its settings and "$@".

# finished FOLDER: whether the run in it has done all its epochs
finished() {
    [ -e "$1/latest.pth" ] && "$PYTHON" -c '
import sys
from util import checkpoint
state = checkpoint.load(sys.argv[1])
sys.exit(state["epoch"] + 1 < state["config"]["epochs"])' "$1/latest.pth" 2>/dev/null
}

# sweep ARGUMENT...: trains every combination, and prints their table. Stops at the first run that fails, with its exit code.
sweep() {
    count=0
    for each in $method; do for each in $split; do count=$((count + 1)); done; done
    if [ -n "$given_path" ] && [ "$count" -gt 1 ]; then
        fail "save_path: found one folder for $count runs, expected none; each run gets exp/$dataset/METHOD/$exp/SPLIT"
    fi
    logs=
    for one_method in $method; do
        for one_split in $split; do
            base=${given_path:-exp/$dataset/$one_method/$exp/$one_split}
            for seed in ${seeds:-none}; do
                folder=$base
                [ "$seed" = none ] || folder=$base/seed$seed
                logs="$logs $folder"
                if finished "$folder"; then
                    echo "$folder: finished before, skipped"
                    continue
                fi
                echo "$folder: training"
                [ "$seed" = none ] || set -- --set "seed=$seed" "$@"
                seeds='' dataset=$dataset method=$one_method split=$one_split exp=$exp config=$config save_path=$folder \
                    sh scripts/train.sh "$num_gpu" "$port" "$@" || exit
                [ "$seed" = none ] || shift 2
            done
        done
    done
    # no run's folder has a space in its name: lists are split at spaces; only a save_path can
    if [ -n "$given_path" ]; then
        set -- "$given_path"
    else
        # shellcheck disable=SC2086
        set -- $logs
    fi
    "$PYTHON" -m util.report "$@"
}
