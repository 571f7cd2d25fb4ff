"""Jobs on all cores: a process that is killed ends the command with a line, not with a wait for ever."""

import os
import signal

import pytest

from dataset import pool
from util.error import UserError


def job(number: int) -> int:
    if number == 40:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory is short
    return number


@pytest.fixture
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cores", lambda: 2)


@pytest.mark.usefixtures("_two_cores")
@pytest.mark.parametrize("jobs", [0, 3, 100], ids=["none", "in this process", "in several"])
def test_results_come_in_the_order_of_the_jobs(jobs: int) -> None:
    assert pool.parallel(job, range(100, 100 + jobs), "jobs", "job") == list(range(100, 100 + jobs))


def test_cores_are_those_of_the_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert pool.cores() == 1


@pytest.mark.usefixtures("_two_cores")
def test_a_killed_process_is_told() -> None:
    with pytest.raises(UserError, match=r"jobs: a process was ended .*memory"):
        pool.parallel(job, range(100), "jobs", "job")
