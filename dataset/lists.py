"""The format of a list: one image per line (docs/own-data.md)."""

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.splits.published import published_set
from util.error import UserError, reason
from util.files import write_atomic

IMAGE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAKE = "python -m dataset.splits make --config CONFIG"
_BLANK = re.compile(rb"^[ \t]*(?:\n|\Z)", re.MULTILINE)


class Entry(NamedTuple):
    """One line of a list. mask is None for `None` and in change detection, where `image` is the name of a pair."""

    image: str
    mask: str | None


def shown(line: str) -> str:
    """A line for a message: its beginning."""
    return repr(line) if len(line) <= 120 else f"{line[:120]!r}..."


def parse_line(line: str, where: str, task: str = "segmentation") -> Entry:
    """Reads `image mask` or `image`: one space between them, or one TAB when a path has spaces; for change detection one name, as it is.

    where: list and line number, for the UserError about a line that is something else.
    """
    if task == "change":
        if line != line.strip():
            raise UserError(f"{where}: found {shown(line)}, expected one file name without a blank before or behind it; remove the blank")
        if "\t" in line or any(word.lower().endswith(IMAGE_ENDINGS) for word in line.split(" ")[:-1]):
            raise UserError(
                f"{where}: found {shown(line)}, expected one file name, found under A/, B/ and label/; is it a list of image-mask pairs "
                "for a segmentation data set?"
            )
        return Entry(line, None)
    fields = line.split("\t") if "\t" in line else line.split(" ")
    parted = len(fields) == 2 and "\t" not in line and _like_one_path(*fields)
    if len(fields) > 2 or not all(fields) or parted:
        raise UserError(
            f"{where}: found {shown(line)}, expected `image mask` (a TAB between them, or behind the image, when a path has spaces)"
        )
    return Entry(fields[0], None if len(fields) == 1 or fields[1] == "None" else fields[1])


def _like_one_path(first: str, second: str) -> bool:
    """Whether two fields with a space between them look like one path with a space."""
    return second.lower().endswith(IMAGE_ENDINGS) and not first.lower().endswith(IMAGE_ENDINGS)


def format_line(entry: Entry) -> str:
    """The inverse of `parse_line` for segmentation."""
    mask = "None" if entry.mask is None else entry.mask
    separator = "\t" if " " in entry.image + mask or _like_one_path(entry.image, mask) else " "
    return f"{entry.image}{separator}{mask}"


def _read(path: str | os.PathLike[str]) -> bytes:
    """The lines that are not blank, with one line feed between them. Raises UserError for a list that is missing, empty or no text."""
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
        if not content.isascii():
            content.decode()
    except (FileNotFoundError, NotADirectoryError):
        name = published_set(path)
        advice = f"get it with `python -m dataset.splits fetch {name}`" if name else f"write one with `{MAKE} ...` (docs/own-data.md)"
        raise UserError(f"{_no_such_list(path)}; {advice}") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a path with a zero byte
        raise UserError(f"{path}: not a list that can be read ({reason(error)}); expected a UTF-8 text with one image per line") from error
    if b"\0" in content:
        raise UserError(f"{path}: found zero bytes, as UTF-16 has them, expected a UTF-8 text with one image per line; save it as UTF-8")
    content = content.removesuffix(b"\n")
    if _BLANK.search(content):
        content = b"\n".join(line for line in content.split(b"\n") if line.strip())
    if not content:
        raise UserError(f"{path}: found an empty list, expected one image per line; write one with `{MAKE} ...` (docs/own-data.md)")
    return content


def odd_name(path: str) -> str:
    """The likely error in a path of a list that leads to no file; "" where none is recognised."""
    return " (its folders are parted by \\, expected /)" if "\\" in path else ""


def _no_such_list(path: str | os.PathLike[str]) -> str:
    """The beginning of an error about a missing list, with the folder that a relative path was looked for in."""
    return f"{path}: no such list" + ("" if os.path.isabs(path) else f" in {os.getcwd()}")


def missing_validation(path: str | os.PathLike[str]) -> str:
    """The message for a validation list that does not exist."""
    name = published_set(path)
    advice = f"get it with `python -m dataset.splits fetch {name}`" if name else f"hold images out with `{MAKE} --val 1/8 ...`"
    return f"{_no_such_list(path)}, expected one to validate on; {advice}, or name one with val_id_path"


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a list that are not empty. Raises UserError for a list that is missing, empty or no text."""
    return _read(path).decode().split("\n")


def read_list(path: str | os.PathLike[str], task: str = "segmentation") -> list[Entry]:
    """The entries of a list. Raises UserError naming list and line."""
    return [parse_line(line, f"{path}:{number}", task) for number, line in enumerate(read_lines(path), 1)]


def write_lines(path: Path, lines: list[str]) -> None:
    """Writes a list atomically, every line ended."""
    write_atomic(path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))


def inside(root: str, path: str) -> str:
    """The path `path` below `root`. Raises UserError where it would leave the root: `..`, or an absolute path elsewhere."""
    base = os.path.abspath(root)
    full = os.path.normpath(os.path.join(base, path))
    if os.path.commonpath([base, full]) != base:
        raise UserError(f"{path}: leads outside the data root {root}; correct the list, or set data_root to a folder that holds it")
    return full


class ImageList:
    """The lines of a list file, kept as one block of bytes, so that a long list costs little and workers do not copy it.

    masks: every line must name a mask (labelled and validation lists). Raises UserError for a list that cannot be used.
    """

    def __init__(self, path: str, task: str, masks: bool) -> None:
        self.path = path
        self.task = task
        self._bytes = _read(path)
        text = np.frombuffer(self._bytes, np.uint8)
        self._ends = np.append(np.flatnonzero(text == ord("\n")), len(text))
        self.sha256 = hashlib.sha256(self._bytes).hexdigest()
        wanted = range(len(self)) if masks or task == "change" else self._unusual(text)
        for i in wanted:
            if self._parse(i, f"{path}:{i + 1}").mask is None and masks and task != "change":
                raise UserError(
                    f"{path}:{i + 1}: {shown(self._line(i))} has no mask; a labelled list needs `image mask` on every line "
                    "(only lists of change detection hold names alone)"
                )

    def _unusual(self, text: np.ndarray) -> list[int]:
        """The lines that are not `image.jpg mask` (or another image ending) with one space, found without a Python loop over all lines."""
        starts = np.append(0, self._ends[:-1] + 1)
        spaces, tabs = np.flatnonzero(text == ord(" ")), np.flatnonzero(text == ord("\t"))
        count = np.searchsorted(spaces, self._ends) - np.searchsorted(spaces, starts)
        tabbed = np.searchsorted(tabs, self._ends) > np.searchsorted(tabs, starts)
        outer = (text[starts] == ord(" ")) | (text[self._ends - 1] == ord(" "))
        unusual = (count != 1) | tabbed | outer
        usual = np.flatnonzero(~unusual)
        first = spaces[np.searchsorted(spaces, starts[usual])]  # behind the image, whose ending distinguishes it from a path with a space
        unusual[usual] = True
        for ending in IMAGE_ENDINGS:
            begin = first - len(ending)
            letters = [text[(begin + i).clip(0)] | 0x20 for i in range(len(ending))]  # lower case
            fits = np.all([letter == byte for letter, byte in zip(letters, ending.encode(), strict=True)], axis=0)
            unusual[usual[fits & (begin >= starts[usual])]] = False
        return np.flatnonzero(unusual).tolist()

    def _line(self, index: int) -> str:
        start = int(self._ends[index - 1]) + 1 if index else 0
        return self._bytes[start : int(self._ends[index])].decode()

    def _parse(self, index: int, where: str) -> Entry:
        return parse_line(self._line(index), where, self.task)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Entry:
        return self._parse(index, f"{self.path}:{index + 1}")
