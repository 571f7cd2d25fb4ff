"""Jobs on all cores: a process that is killed ends the command with a line, not with a wait for ever."""

import os
import signal
from pathlib import Path

import pytest

from util import pool
from util.error import UserError


def job(number: int) -> int:
    if number == 40:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory is short
    return number


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cores", lambda: 2)


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert pool.parallel(job, range(100, 200), "jobs", "job") == list(range(100, 200))


def test_a_killed_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"jobs: a process was ended .*memory"):
        pool.parallel(job, range(100), "jobs", "job")
