"""The lines of a run as a sequence of sessions, each begun by a header: what every line says is put to the epoch it belongs to."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from scripts.report.lines import Line


@dataclass
class Session:
    """What was read between two headers.

    epochs: {epoch: {figure: percentage}}, of the epochs that were evaluated; intervals: seconds per iteration between two lines;
    guessed: how many epoch lines were lost and their epoch counted on from the one before (`_expected`); tests, tested: lines and figures
    of the final test; labeled_images: how many an epoch trains on; perturbed: whether its iteration lines are those of UniMatch V1.
    """

    header: dict[str, str] = field(default_factory=dict)
    loaded: bool = False
    first_epoch: int | None = None
    start: datetime | None = None
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    iterations: int = 0
    nan_iterations: int = 0
    intervals: list[float] = field(default_factory=list)
    guessed: int = 0
    perturbed: bool = False
    tests: list[str] = field(default_factory=list)
    tested: dict[str, float] = field(default_factory=dict)
    labeled_images: int | None = None
    _epoch: int | None = None
    _expected: int | None = None
    _previous: tuple[int, datetime] | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing of a run was read."""
        return not self.header and self.first_epoch is None and not self.iterations

    def _begin_epoch(self, epoch: int) -> None:
        if self.first_epoch is None:
            self.first_epoch = epoch
        self._epoch, self._expected, self._previous = epoch, None, None

    def take(self, line: Line) -> bool:
        """Takes a line of this session; False when nothing can be made of it."""
        self.start = self.start or line.time
        self.labeled_images = line.labeled_images or self.labeled_images
        if line.kind in ("header", "more"):
            self.header.update(line.header)
            self._expected = 0
        elif line.kind == "loaded":
            self.loaded, self._expected = True, (line.number or 0) + 1
            if line.index:  # in the middle of an epoch, whose line stands before the stop
                self._begin_epoch((line.number or 0) + 1)
        elif line.kind == "epoch":
            self._begin_epoch(line.number or 0)
        elif line.kind == "iter":
            self._take_iteration(line)
        elif line.kind == "test":
            self.tests.append(line.test)
            self.tested |= line.figures
        elif line.kind == "eval":
            return self._take_figures(line)
        return line.kind != "unread"

    def _take_iteration(self, line: Line) -> None:
        epoch = self._expected if line.number is None else line.number
        if epoch is None and self._epoch is not None and self._previous and line.index < self._previous[0]:
            epoch = self._epoch + 1  # counting began anew, so the lines between two epochs are lost
        if epoch is not None and epoch != self._epoch:
            self.guessed += line.number is None
            self._begin_epoch(epoch)
        self.iterations += 1
        self.nan_iterations += line.is_nan
        self.perturbed |= line.perturbed
        if self._previous and line.time:
            steps, seconds = line.index - self._previous[0], (line.time - self._previous[1]).total_seconds()
            if steps > 0 and seconds > 0:
                self.intervals.append(seconds / steps)
        self._previous = (line.index, line.time) if line.time else None

    def _take_figures(self, line: Line) -> bool:
        if line.number is not None and line.number != self._epoch:
            self._begin_epoch(line.number)
        if self._epoch is None:
            return False
        if self._expected is None:  # the first figure since the epoch began: one redone without a header starts afresh
            self.epochs[self._epoch] = {}
        self.epochs.setdefault(self._epoch, {}).update(line.figures)
        self._expected = self._epoch + 1
        return True


def read_sessions(lines: Iterable[tuple[str, Line]]) -> tuple[list[Session], list[str]]:
    """All sessions of a run's lines (each as it is, and what it says), and those, or ends of those, that nothing could be made of."""
    sessions, unread = [Session()], []
    for raw, line in lines:
        if line.kind == "blank":
            continue
        if line.kind == "header" and not sessions[-1].empty:
            sessions.append(Session())
        if line.kind == "unread" or not sessions[-1].take(line):
            unread.append(raw.strip())
        elif line.rest:
            unread.append(line.rest)
    return sessions, unread


def starts_again(session: Session, earlier: list[Session]) -> bool:
    """Whether a session is a new start rather than a continuation of the earlier ones (times distinguish
    parts that were pasted in the wrong order), and has come far enough to replace them: one evaluated epoch."""
    if session.first_epoch != 0 or session.loaded or not session.epochs or not any(part.epochs for part in earlier):
        return False
    starts = [part.start for part in earlier if part.start]
    return session.start is None or not starts or session.start >= max(starts)
