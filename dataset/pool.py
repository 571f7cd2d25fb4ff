"""Runs many small jobs on all cores, with a progress bar."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from tqdm import tqdm

from util.error import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """The number of cores that this process may use."""
    from util.dist import cpu_count  # here: PyTorch takes seconds to load, which commands on few files need not wait for

    return cpu_count()


def parallel(function: Callable[[Job], Result], jobs: Sequence[Job], what: str, unit: str = "img") -> list[Result]:
    """The results of `function` (importable, for the worker processes) in the order of the jobs. Its first exception is raised here."""
    bar = partial(tqdm, total=len(jobs), desc=what, unit=unit, leave=False, disable=None)
    if len(jobs) < 32 or cores() == 1:  # starting processes would cost more than they save
        return [function(job) for job in bar(jobs)]
    try:  # multiprocessing.Pool would wait for ever for the jobs of a process that was killed
        with ProcessPoolExecutor(cores()) as pool:
            return list(bar(pool.map(function, jobs, chunksize=max(1, min(32, len(jobs) // (4 * cores()))))))
    except BrokenProcessPool:
        raise UserError(f"{what}: a process was ended from outside, as for lack of memory; free some and start again") from None
