#!/bin/sh
# Makes the table of speed and memory on an NVIDIA GPU in parts, each with a time limit: steps, memory, evaluation, samples, the loop.
#
#   sh scripts/gpu_table.sh [FOLDER] [arguments of python -m scripts.benchmark, such as --config configs/pascal.yaml]
#
# Prints each row as it is measured; FOLDER (default gpu_table) gets a file for each part, with card, versions and the rows so far,
# so that a part that fails or takes too long costs no other. What says most comes first, what has to be compiled last.
# Needs nothing but requirements.txt, no data and no weights; compiling needs Triton and a C compiler. Exit code 1 when a goal is
# missed, or a part failed or was stopped.
#
# All limits together are 15 minutes. An H100 with 16 cores needs 8 to 10 of them, an estimate that nobody has measured.

. "$(dirname -- "$0")/setup.sh"
case ${1:-} in -*) fail "gpu_table.sh: found '$1', expected the name of a folder before any option" ;; esac
setup requirements.txt
folder=${1:-gpu_table}
[ $# -eq 0 ] || shift
mkdir -p -- "$folder" || fail "$folder: cannot be made; give another folder"
status=0

# part SECONDS NAME ARGUMENT...: a command of the benchmark, which is stopped when its time is over
part() {
    limit=$1 name=$2
    shift 2
    printf '\n== %s, at most %s s\n' "$name" "$limit"
    timeout -k 5 "$limit" "$PYTHON" -m scripts.benchmark "$@" --device cuda --json "$folder/$name.json"
    code=$?
    [ $code -eq 0 ] || status=1
    case $code in 124 | 137) echo "stopped after $limit s" ;; esac
}

part 80 step_fp32 step --only fp32 "$@"
part 60 step_bf16 step --only bf16 "$@"
part 90 memory memory "$@"
part 120 eval eval "$@"
part 60 step_tf32 step --only tf32 "$@"
part 60 step_fp16 step --only fp16 "$@"
part 120 data data "$@"
part 150 step_bf16_compile step --only "bf16, compile" "$@"
part 160 loop loop "$@"
exit $status
