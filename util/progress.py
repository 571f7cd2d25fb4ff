"""How far a command is: a bar on a terminal, elsewhere a line from time to time."""

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm


def count(number: int, noun: str) -> str:
    """1 line, 2 lines."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """12 s, 3 min, 2 h 05 min, 1 d 4 h."""
    minutes, hours = round(seconds / 60), int((seconds + 30) // 3600)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


class Progress:
    """with Progress(total, "image") as progress: ...; progress.update(n).

    Lines such as "image 30 of 100, 2 min left" go to stderr, `apart` seconds apart, or a share of 1 / `lines` of the time that the whole
    will take where that is more; so what takes no time has none. shown=False: nothing, for all processes but the first.

    done: what was done earlier. title: stands before a line. where: says more in it, for example the epoch. leave: the bar stays.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        shown: bool = True,
        done: int = 0,
        title: str = "",
        where: Callable[[], str] | None = None,
        apart: float = 5.0,
        lines: int = 10,
        leave: bool = True,
    ) -> None:
        self.total, self.unit, self.title, self.where, self.apart, self.lines = total, unit, title, where, apart, lines
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total, unit=unit, initial=done, desc=title.strip("# :") or None, leave=leave, disable=not (shown and terminal)
        )
        self.prints = shown and not terminal
        self.before = self.done = done
        self.started = self.printed = time.monotonic()

    def update(self, count: int = 1) -> None:
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        each = (now - self.started) / max(1, self.done - self.before)  # seconds
        if self.prints and now - self.printed >= max(self.apart, each * (self.total - self.before) / self.lines):
            self.printed = now
            where = f", {self.where()}" if self.where else ""
            left = duration(each * (self.total - self.done))
            print(f"{self.title}{self.unit} {self.done} of {self.total}{where}, {left} left", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
