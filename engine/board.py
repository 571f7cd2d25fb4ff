"""TensorBoard files of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from engine.resume import EVENTS_SUFFIX
from util.error import reason


class Board:
    """TensorBoard scalars of one start of a run, in a file of its own. folder None: nowhere, for all processes but the first.

    Readers drop what older files have from step `start` on. A disk that is full costs scalars, never the run.
    """

    def __init__(self, folder: Path | None, start: int, log: logging.Logger) -> None:
        self.folder, self.start, self.log = folder, start, log
        self.writer: SummaryWriter | None = None
        self.flush()

    def add(self, name: str, value: float, step: int) -> None:
        """Adds a scalar."""
        self._guard(lambda writer: writer.add_scalar(name, value, step))

    def text(self, name: str, text: str) -> None:
        """Adds a text, at the step of this start."""
        self._guard(lambda writer: writer.add_text(name, text, self.start))

    def draw(self, name: str, image: Image.Image, step: int) -> None:
        """Adds an RGB picture."""
        self._guard(lambda writer: writer.add_image(name, np.asarray(image), step, dataformats="HWC"))

    def flush(self) -> None:
        """Writes out what is waiting; begins another file where the last one could not be written."""
        if self.writer is None and self.folder is not None:
            # readers take files in the order of their names, which begin with the second: a start in the same one could come first
            while any(self.folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
                time.sleep(0.05)
            self.writer = SummaryWriter(str(self.folder), purge_step=self.start, filename_suffix=EVENTS_SUFFIX)
        self._guard(lambda writer: writer.flush())

    def close(self) -> None:
        """Writes out what is waiting; nothing can be added any more."""
        self._guard(lambda writer: writer.close())

    def _guard(self, action: Callable[[SummaryWriter], object]) -> None:
        if self.writer is None:
            return
        try:
            action(self.writer)
        except OSError as error:
            self.writer = None
            self.log.error(f"{self.folder}: TensorBoard scalars cannot be written ({reason(error)}); the next save tries again")
