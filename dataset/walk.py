"""The images of a folder and all folders below it, as every command finds them."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dataset.lists import IMAGE_ENDINGS
from util.error import UserError, reason

HIDDEN = (".", "__MACOSX", "@eaDir")  # how the names of files begin that a system made, not a person


class Tree(NamedTuple):
    """The images of a folder, sorted, and the number of files of each other ending."""

    images: list[Path]
    others: Counter[str]

    def left_out(self) -> str:
        """The message about the other files; "" where there are none."""
        endings = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in sorted(self.others.items()))
        return f"left out by their ending: {endings}" if endings else ""


def folders(top: Path, without: Sequence[Path] = ()) -> Iterator[tuple[Path, list[str]]]:
    """The pairs (folder, names of its files) of a folder and those below it, without hidden ones and those of `without`.

    Symbolic links to folders are followed once all real ones are done, so that a folder counts once and under its own name. Raises
    UserError for a folder that may not be read.
    """
    seen = {os.path.realpath(folder) for folder in without}
    starts = [os.fspath(top)]
    while starts:
        links: list[str] = []
        for start in starts:
            for where, below, files in os.walk(start, onerror=_unreadable):
                real = os.path.realpath(where)
                below[:] = [] if real in seen else sorted(name for name in below if not name.startswith(HIDDEN))
                links += [path for path in (os.path.join(where, name) for name in below) if os.path.islink(path)]
                if real not in seen:
                    yield Path(where), sorted(name for name in files if not name.startswith(HIDDEN))
                seen.add(real)
        starts = links


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({reason(error)}); correct its permissions, or move it elsewhere") from error


def image_tree(top: Path, without: Sequence[Path] = ()) -> Tree:
    """The images below a folder, but for those below the folders `without`."""
    files = [where / name for where, names in folders(top, without) for name in names]
    images = sorted(path for path in files if path.suffix.lower() in IMAGE_ENDINGS)
    return Tree(images, Counter(path.suffix.lower() for path in files if path.suffix.lower() not in IMAGE_ENDINGS))
