#!/bin/sh
# Finds a Python that has the requirements, or makes one.
#
#   sh scripts/setup.sh [requirements-dev.txt]
#
# The current python3 or python is used as it is when it satisfies the requirements (no network, nothing installed). Else .venv in
# the repository is used, and made or completed with pip where it has to be. The other scripts source this file: it goes to the
# repository's folder, sets $root, and offers find_python and setup, which set $PYTHON.

CDPATH='' # else cd may print where it went
started=$PWD
root=$(cd -- "$(dirname -- "$0")/.." && pwd) || exit 2
cd -- "$root" || exit 2

# threads that wait should sleep: spinning costs several times the run time when other work shares the CPUs
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

# fail MESSAGE: one line on stderr, exit code 2 (an error in what was given or installed)
fail() {
    echo "error: $1" >&2
    exit 2
}

# usage TEXT: what to write instead, on stderr, exit code 2
usage() {
    echo "usage: $1" >&2
    exit 2
}

# positive NUMBER: whether it is a whole number of at least 1
positive() {
    case $1 in
    '' | *[!0-9]* | 0*) return 1 ;;
    esac
}

# config_value KEY: the value of a key of the config, as far as a shell can read YAML: one word or quoted text on the key's line
config_value() {
    sed -n "s/^$1:[[:space:]]*//p" "$config" | sed "s/[[:space:]]#.*//; s/[[:space:]]*\$//; s/^['\"]//; s/['\"]\$//"
}

# run_settings ARGUMENT...: what a run is, from the environment, the config or the method's arguments (backbone=...)
run_settings() {
    method=${method:-unimatch_v2}
    split=${split:-366}
    given_config=$config given_exp=$exp
    choose_recipe "$@"
    save_path=${save_path:-exp/$dataset/$method/$exp/$split}
}

# choose_recipe ARGUMENT...: sets config, dataset and exp for $method, where the environment gave none
choose_recipe() {
    config=$given_config exp=$given_exp
    if [ -z "$config" ]; then
        config=configs/$method/${dataset:=pascal}.yaml # where the method has a recipe of its own
        [ -f "$config" ] || config=configs/$dataset.yaml
    fi
    [ -f "$config" ] || [ ! -f "$started/$config" ] ||
        fail "$config: no such config file in $root, where relative paths start; give config=$started/$config"
    [ -f "$config" ] || fail "$config: no such config file; name one with config=FILE, or with dataset=NAME one of those in configs/"
    dataset=${dataset:-$(config_value 'dataset\(_l\)*')}
    [ -n "$dataset" ] || fail "$config: found no line that begins with 'dataset:' and a name, expected one; write it so, or give dataset=NAME"
    backbone=$(config_value backbone)
    for argument; do
        case $argument in
        backbone=* | --set=backbone=*) backbone=${argument#*backbone=} ;;
        esac
    done
    exp=${exp:-$(printf %s "$backbone" | tr / _)}
}

# names_lists: whether the config names its own lists, as those of large-scale training do
names_lists() {
    grep -q '^labeled_id_path:' "$config" 2>/dev/null
}

# find_python FILE: sets PYTHON to the first Python that satisfies a requirements file; else returns 1, with the reason in $why
find_python() {
    why=
    for PYTHON in python3 python "$root/.venv/bin/python"; do
        command -v "$PYTHON" >/dev/null 2>&1 || continue
        if answer=$("$PYTHON" scripts/check_requirements.py "$1" 2>/dev/null); then
            return 0
        fi
        why="$why${why:+; }$PYTHON: ${answer:-does not run}"
    done
    PYTHON=
    return 1
}

# base_python: prints the first Python that is new enough to make .venv with
base_python() {
    for candidate in python3 python python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# make_venv: makes .venv, unless a usable one exists
make_venv() {
    if "$root/.venv/bin/python" -m pip --version >/dev/null 2>&1 &&
        "$root/.venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        return 0
    fi
    base=$(base_python) || fail "no Python 3.10 or newer found (${why:-neither python3 nor python exists}); install one and put it on PATH"
    echo "making $root/.venv with $base" >&2
    "$base" -m venv --clear "$root/.venv" >&2 ||
        fail "$base -m venv failed (above); on Debian and Ubuntu install the package python3-venv, or use a Python that has requirements.txt"
}

# setup FILE: sets PYTHON to a Python that satisfies a requirements file, installing into .venv when none does
setup() {
    find_python "$1" && return 0
    make_venv
    PYTHON=$root/.venv/bin/python
    echo "installing $1 into $root/.venv: a few minutes, once" >&2
    # constraints.txt is for Python 3.11 and newer: several of its versions do not exist for 3.10
    if "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        set -- "$1" -c constraints.txt
    fi
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$@" >&2 ||
        fail "pip could not install $1 into .venv (above); check the network and the free disk space, then start again"
    answer=$("$PYTHON" scripts/check_requirements.py "$1") || fail "$1 is not satisfied after pip installed it into .venv ($answer)"
}

case $0 in
*setup.sh)
    setup "${1:-requirements.txt}"
    "$PYTHON" -c 'import sys; print(sys.executable)'
    ;;
esac
