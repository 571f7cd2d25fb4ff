# Sourced by train.sh: several runs, one after the other, for lists of seeds, splits or methods. Uses its settings and "$@".

# check_files: every run's method and lists, before the first of them trains for hours
check_files() {
    set --
    for one_method in $method; do
        [ -f "$one_method.py" ] || fail "method: found '$one_method', but there is no $one_method.py; expected methods such as unimatch_v2"
        for one_split in $split; do
            set -- "$@" "splits/$dataset/$one_split/labeled.txt"
            [ "$one_method" = supervised ] || set -- "$@" "splits/$dataset/$one_split/unlabeled.txt"
        done
    done
    names_lists || "$PYTHON" -c '
from dataset.lists import read_lines
from util.error import run
run(lambda paths: [read_lines(path) for path in paths])' "$@" || exit
}

# sweep ARGUMENT...: trains every combination, and prints their table. Stops at the first run that fails, with its exit code. A finished
# run is started too: it alone knows whether these are its settings, and ends at once where they are.
sweep() {
    count=0
    for each in $method; do for each in $split; do count=$((count + 1)); done; done
    if [ -n "$given_path" ] && [ "$count" -gt 1 ]; then
        fail "save_path: found one folder for $count runs, expected none; each run gets exp/$dataset/METHOD/$exp/SPLIT"
    fi
    check_files
    logs=
    for one_method in $method; do
        for one_split in $split; do
            base=${given_path:-exp/$dataset/$one_method/$exp/$one_split}
            for seed in ${seeds:-none}; do
                folder=$base
                [ "$seed" = none ] || folder=$base/seed$seed
                logs="$logs$folder
"
                echo "$folder: training"
                [ "$seed" = none ] || set -- --set "seed=$seed" "$@"
                seeds='' dataset=$dataset method=$one_method split=$one_split exp=$exp config=$config save_path=$folder \
                    sh scripts/train.sh "$num_gpu" "$port" "$@" || exit
                [ "$seed" = none ] || shift 2
            done
        done
    done
    IFS='
'
    # shellcheck disable=SC2086 # one folder a line
    "$PYTHON" -m util.report $logs
}
