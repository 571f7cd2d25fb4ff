"""Requests to stop a run: SIGTERM and SIGUSR1 (a batch system's warning) and SIGINT (Ctrl-C)."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

REQUEUE = 75  # exit code of a run that was told to go, has saved, and wants to be started again (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C, as shells have it
_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")  # a system without one of them goes without


class StopSignals:
    """Inside `with`, the signals only set `caught`; the loop looks at it and saves first. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._old: dict[int, Any] = {}
        self._parent = os.getppid()

    @property
    def caught(self) -> bool:
        """Whether this process was asked to stop, or its launcher is gone and nobody would see it end."""
        return self._signal is not None or os.getppid() != self._parent

    @property
    def code(self) -> int:
        """Exit code for what was caught."""
        return INTERRUPTED if self._signal == signal.SIGINT else REQUEUE

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
            self._old = {number: signal.signal(number, self._catch) for number in numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def ignore_in_worker(worker: int = 0) -> None:
    """Start-up of a loader worker: the signals go to every process of a job, and the training process still needs its workers."""
    for name in _NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
