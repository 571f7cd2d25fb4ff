"""How far a command is: a bar on a terminal, elsewhere lines, at most one for each tenth of the work."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

LINES = 10
APART = 2.0  # seconds between two lines, at least; the last one always comes


class Progress:
    """with Progress(total, "image") as progress: ...; progress.update(n). shown=False: nothing, for all processes but the first."""

    def __init__(self, total: int, unit: str, shown: bool = True) -> None:
        self.total, self.unit = total, unit
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, unit=unit, disable=not (shown and terminal))
        self.lines = shown and not terminal
        self.done, self.started = 0, time.monotonic()
        self.told = self.started

    def update(self, count: int) -> None:
        before, self.done = self.done, self.done + count
        self.bar.update(count)
        now = time.monotonic()
        due = before * LINES // self.total < self.done * LINES // self.total and now - self.told >= APART
        if self.lines and (due or self.done == self.total):
            self.told, seconds = now, now - self.started
            left = seconds * (self.total - self.done) / self.done
            times = f"{tqdm.format_interval(seconds)} so far, about {tqdm.format_interval(left)} left"
            print(f"{self.done} of {self.total} {self.unit}s, {times}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
