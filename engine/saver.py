"""When and how a run writes its checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.resume import BEST, LATEST, PREVIOUS
from util import checkpoint
from util.error import UserError


class Saver:
    """Writes latest.pth, which is best.pth too where this is the best. Only the first process (`main`) writes.

    every: minutes between saves inside an epoch; None: five, or a hundred times what one takes, where that is more.
    """

    def __init__(self, folder: Path, every: float | None, log: logging.Logger, main: bool) -> None:
        self.folder, self.every, self.log, self.main = folder, every, log, main
        self.last, self.seconds = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time for a save inside an epoch."""
        wait = max(300.0, 100 * self.seconds) if self.every is None else 60 * self.every
        return self.main and time.monotonic() - self.last >= wait

    def save(self, state: Callable[[], dict[str, Any]], best: bool = False, required: bool = False) -> bool:
        """Saves what `state` returns. Returns whether it succeeded: an error of the disk is logged, and training continues; raised as a
        UserError if it is `required`.
        """
        if not self.main:
            return True
        begin, saved = time.monotonic(), True
        try:
            also = self.folder / BEST if best else None
            checkpoint.save(state(), self.folder / LATEST, keep=self.folder / PREVIOUS, also=also)
        except UserError as error:
            if required:
                raise
            saved = False
            lost = f"; {BEST} does not get this epoch, the best one so far" if best else ""
            self.log.error(f"{error}; the checkpoints before it stay, and the next save tries again: make room in {self.folder}{lost}")
        self.last = time.monotonic()
        self.seconds = self.last - begin
        return saved
