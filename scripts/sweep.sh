# Sourced by train.sh and slurm_train.sh: several runs, for lists of seeds, splits or methods. Uses their settings and $PYTHON.

# several: whether the settings ask for more than one run, or for a seed's folder
several() {
    case "${seeds:+several }$method:$split" in *' '*) ;; *) return 1 ;; esac
}

# once NAME WORD...: no word may occur twice, for the same run would count twice in the table
once() {
    list=$1 seen=' '
    shift
    for word; do
        case $seen in *" $word "*) fail "$list: found '$word' twice, expected it once" ;; esac
        seen="$seen$word "
    done
}

# check_runs: every run's method, split, seed and lists, before the first of them trains for hours
check_runs() {
    # shellcheck disable=SC2086 # lists of words
    once method $method && once split $split && once seeds $seeds
    for seed in $seeds; do
        case $seed in *[!0-9]*) fail "seeds: found '$seed', expected whole numbers, 0 or more" ;; esac
    done
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

# sweep ARGUMENT...: calls `start_one ARGUMENT...` for every combination, in its settings, $index (0, 1, ...) among them, and leaves their
# folders in $folders, one a line. Stops at the first that fails, with its exit code.
sweep() {
    count=0
    for each in $method; do for each in $split; do count=$((count + 1)); done; done
    if [ -n "$given_path" ] && [ "$count" -gt 1 ]; then
        fail "save_path: found one folder for $count runs, expected none; each run gets exp/$dataset/METHOD/$exp/SPLIT"
    fi
    check_runs
    folders= index=0 methods=$method
    for method in $methods; do
        choose_recipe "$@"
        for one_split in $split; do
            base=${given_path:-exp/$dataset/$method/$exp/$one_split}
            for seed in ${seeds:-none}; do
                folder=$base
                [ "$seed" = none ] || folder=$base/seed$seed
                folders="$folders$folder
"
                [ "$seed" = none ] || set -- --set "seed=$seed" "$@"
                (
                    seeds='' split=$one_split save_path=$folder
                    export seeds dataset method split exp config save_path
                    start_one "$@"
                ) || exit
                [ "$seed" = none ] || shift 2
                index=$((index + 1))
            done
        done
    done
    method=$methods
}
