#!/bin/sh
# Makes the table of speed and memory on an NVIDIA GPU: step, memory, loop, evaluation, samples, each beside the literal way.
#
#   sh scripts/gpu_table.sh [FILE] [arguments of python -m scripts.benchmark all...]
#
# Prints the table, each row as it is measured; FILE (default gpu_table.json) gets the same figures with card and versions, anew with
# each row. What comes first says most, so a run that is cut short has lost the least. Needs nothing but requirements.txt, no data and no
# weights; compiling needs Triton and a C compiler. Exit code 1 when a goal is missed or a figure could not be measured.
#
# Takes 7 to 9 minutes on an H100 with 16 cores. That is an estimate, nobody has measured it:
#   step      fp32; bf16 with compile, of which compiling a minute; then every other precision,
#             and fp32 with compile, which compiles again                                           3 to 4 minutes
#   memory    four peaks at crop 798, the cost of activation checkpointing                         1 minute
#   eval      64 images, two models, four rounds of three ways                                     half a minute
#   data      one CPU core                                                                         1.5 minutes
#   loop      idle time, host reads; compiled too, mostly from the cache                           1 to 1.5 minutes
# Where less time is given, `python -m scripts.benchmark step --only "bf16, compile" --device cuda` measures one of them.

. "$(dirname -- "$0")/setup.sh"
case ${1:-} in -*) fail "gpu_table.sh: found '$1', expected the name of a file before any option" ;; esac
setup requirements.txt
file=${1:-gpu_table.json}
[ $# -eq 0 ] || shift
exec "$PYTHON" -m scripts.benchmark all --device cuda --json "$file" "$@"
