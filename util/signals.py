"""Requests to stop a run: SIGTERM and SIGUSR1 (a batch system's warning) and SIGINT (Ctrl-C).

A process learns of them by itself, from its launcher (a file with the signal's number, named in the environment), or because its
launcher is gone.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")
REQUEUE = 75  # exit code of a run that was asked to stop, has saved, and wants to be started again (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C, as shells have it
STOP_FILE = "UNIMATCH_STOP_FILE"  # environment: the file that the launcher writes
_NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class StopSignals:
    """Inside `with`, the signals only set `caught`; the loop looks at it and saves first. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._old: dict[int, Any] = {}
        self._file = os.environ.get(STOP_FILE)
        # only a launcher is missed: a run of its own outlives the shell that started it (nohup)
        self._parent = os.getppid() if self._file or "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def caught(self) -> bool:
        """Whether this process was asked to stop, or its launcher is gone and nobody would see it end."""
        if self._signal is None and self._file and os.path.exists(self._file):
            self._signal = int(Path(self._file).read_text() or signal.SIGTERM)
        return self._signal is not None or self._parent not in (None, os.getppid())

    @property
    def code(self) -> int:
        """Exit code for what was caught."""
        return INTERRUPTED if self._signal == signal.SIGINT else REQUEUE

    def until(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, as long as this process is not asked to stop."""
        return itertools.takewhile(lambda _: not self.caught, items)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def __enter__(self) -> StopSignals:
        self._old = set_handler(self._catch)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def set_handler(handler: Any) -> dict[int, Any]:
    """Handles the signals with `handler`, where this is possible at all: in the main thread. Returns the handlers before."""
    main = threading.current_thread() is threading.main_thread()
    return {number: signal.signal(number, handler) for number in _NUMBERS} if main else {}


def _start_worker(leaving: Any, worker: int) -> None:
    """A loader worker ignores the signals while its training process still needs it, and ends by them when that one is leaving."""
    set_handler(lambda *_: os._exit(0) if leaving.value else None)


_leaving = multiprocessing.RawValue("b", 0)
atexit.register(setattr, _leaving, "value", 1)  # runs before multiprocessing ends the workers with SIGTERM
# For DataLoader's worker_init_fn: the signals go to every process of a job.
start_worker = functools.partial(_start_worker, _leaving)
