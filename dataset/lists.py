"""Image lists: one line per image, kept as one block of bytes, so that long lists cost little and workers do not copy them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from util.error import UserError


@dataclass(frozen=True)
class Entry:
    """One line of a list. images: paths below the data root, one per date; mask: its path, None where there is none; name: the line."""

    images: tuple[str, ...]
    mask: str | None
    name: str


def split_line(line: str) -> list[str]:
    """The fields of a list line: separated by a tab where there is one (paths may then hold spaces), else by a space."""
    return [part for part in (line.split("\t") if "\t" in line else line.split(" ")) if part]


def parse_line(line: str, task: str) -> Entry:
    """Reads a line: `image mask` or `image` (segmentation), or one file name (change detection). Raises ValueError with the reason."""
    parts = split_line(line)
    if task == "change":
        if len(parts) != 1:
            raise ValueError("expected one file name, found in A/, B/ and label/")
        return Entry((f"A/{parts[0]}", f"B/{parts[0]}"), f"label/{parts[0]}", line)
    if len(parts) > 2:
        raise ValueError("expected `image mask`; separate paths that hold spaces with a tab")
    mask = parts[1] if len(parts) == 2 and parts[1] != "None" else None
    return Entry((parts[0],), mask, line)


class ImageList:
    """The lines of a list file. Raises UserError for a missing or empty file and for the first line that cannot be read.

    masks: every line must name a mask (labelled and validation lists).
    """

    def __init__(self, path: str | Path, task: str, masks: bool) -> None:
        self.path = str(path)
        self.task = task
        if not Path(path).is_file():
            raise UserError(f"{path}: no such list; fetch the published ones or make your own with `python -m dataset.splits`")
        data = Path(path).read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        lines = [line for raw in data.splitlines() if (line := raw.strip())]
        for number, line in enumerate(lines, start=1):
            try:
                entry = parse_line(line.decode("utf-8"), task)
            except ValueError as error:
                raise UserError(f"{path} line {number}: found {line[:80]!r}; {error}") from error
            if masks and entry.mask is None:
                raise UserError(f"{path} line {number}: {entry.name!r} has no mask; a labelled list needs `image mask` on every line")
        if not lines:
            raise UserError(f"{path}: the list is empty; expected a line per image")
        self._bytes = b"".join(lines)
        self._ends = np.cumsum([len(line) for line in lines])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Entry:
        start = int(self._ends[index - 1]) if index else 0
        return parse_line(self._bytes[start : int(self._ends[index])].decode("utf-8"), self.task)


def inside(root: str, path: str) -> str:
    """`path` below `root`. Raises UserError where it would leave the root: `..`, or an absolute path elsewhere."""
    base = os.path.normpath(root)
    full = os.path.normpath(os.path.join(base, path))
    if os.path.commonpath([os.path.abspath(base), os.path.abspath(full)]) != os.path.abspath(base):
        raise UserError(f"{path}: leads outside the data root {root}; correct the list, or set data_root to a folder that holds it")
    return full
