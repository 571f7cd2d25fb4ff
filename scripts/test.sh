#!/bin/sh
# Runs ruff, mypy and the tests, after installing what they need where the current Python lacks it (scripts/setup.sh).
#
#   sh scripts/test.sh [arguments for pytest...]
#
# Two tests run at a time, for many of them leave a core idle; `-n 0` runs one, which --pdb needs.
# Stops at the first tool that fails, with its exit code.

. "$(dirname -- "$0")/setup.sh"
setup requirements-dev.txt
"$PYTHON" -m ruff check . || exit
"$PYTHON" -m ruff format --check . || exit
"$PYTHON" -m mypy || exit
exec "$PYTHON" -m pytest -n 2 --dist worksteal "$@"
