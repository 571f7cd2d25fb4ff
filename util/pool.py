"""Many small jobs on all cores, with a progress bar."""

import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """Number of cores that this process may use."""
    from util.dist import cpu_count  # here: PyTorch takes seconds to load, which commands on few files need not wait for

    return cpu_count()


def parallel(function: Callable[[Job], Result], jobs: Sequence[Job], what: str, unit: str = "img") -> list[Result]:
    """Results of `function` (importable, for the worker processes) in the order of the jobs. Its first exception is raised here."""
    bar = partial(tqdm, total=len(jobs), desc=what, unit=unit, leave=False, disable=None)
    if len(jobs) < 32 or cores() == 1:  # starting processes would cost more than they save
        return [function(job) for job in bar(jobs)]
    with multiprocessing.Pool(min(cores(), len(jobs))) as pool:
        return list(bar(pool.imap(function, jobs, chunksize=max(1, min(32, len(jobs) // (4 * cores()))))))
