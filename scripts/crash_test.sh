#!/bin/sh
# Kills real runs at random moments and checks that starting them again ends in the same bits (tests/crash.py).
#
#   sh scripts/crash_test.sh [number of kills] [seed]
#
# Prints one line a kill and `N/N identical`; exits with 1 when a run ended otherwise.

. "$(dirname -- "$0")/setup.sh"
positive "${1:-50}" || fail "crash_test.sh: found '$1', expected a number of kills"
setup requirements-dev.txt
exec "$PYTHON" -m tests.crash "${1:-50}" "${2:-0}"
