#!/bin/sh
# Makes the table of speed and memory on an NVIDIA GPU: step, loop, samples, evaluation, memory, each beside the literal way.
#
#   sh scripts/gpu_table.sh [FILE] [arguments of python -m util.benchmark all...]
#
# Prints the table; FILE (default gpu_table.json) gets the figures with card and versions. Needs nothing but requirements.txt, no data and
# no weights. Exit code 1 when a goal is missed.

. "$(dirname -- "$0")/setup.sh"
setup requirements.txt
file=${1:-gpu_table.json}
[ $# -eq 0 ] || shift
exec "$PYTHON" -m util.benchmark all --device cuda --json "$file" "$@"
