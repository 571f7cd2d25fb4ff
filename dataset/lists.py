"""The format of a list: one image per line (spec.md 2.1)."""

import os
from pathlib import Path
from typing import NamedTuple

from util.error import UserError, reason
from util.files import write_atomic


class Entry(NamedTuple):
    """One line of a list. mask is None for `None` and in change detection, where `image` is the name of a pair."""

    image: str
    mask: str | None


def parse_line(line: str, where: str, task: str = "segmentation") -> Entry:
    """Reads `image mask` or `image`: one space between them, or one TAB when a path has spaces; for change detection one name.

    where: list and line number, for the UserError about a line that is something else.
    """
    if task == "change":
        if "\t" in line or " " in line:
            raise UserError(
                f"{where}: found {line!r}, expected one file name, found under A/, B/ and label/; is it a list of image-mask pairs "
                "for a segmentation data set?"
            )
        return Entry(line, None)
    fields = line.split("\t") if "\t" in line else line.split(" ")
    if len(fields) > 2 or not all(fields):
        raise UserError(f"{where}: found {line!r}, expected `image mask` (a TAB between them when a path has spaces)")
    return Entry(fields[0], None if len(fields) == 1 or fields[1] == "None" else fields[1])


def format_line(entry: Entry) -> str:
    """The inverse of `parse_line` for segmentation."""
    mask = "None" if entry.mask is None else entry.mask
    separator = "\t" if " " in entry.image + mask else " "
    return f"{entry.image}{separator}{mask}"


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a list that are not empty. Raises UserError for a list that is missing, empty or no text."""
    try:
        lines = [line.strip("\r") for line in Path(path).read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such list; get it with `python -m dataset.splits fetch` or write one with `make`") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a path with a zero byte
        raise UserError(f"{path}: not a list that can be read ({reason(error)}); expected a UTF-8 text with one image per line") from error
    if not lines:
        raise UserError(f"{path}: found an empty list, expected one image per line")
    return lines


def read_list(path: str | os.PathLike[str], task: str = "segmentation") -> list[Entry]:
    """The entries of a list. Raises UserError naming list and line."""
    return [parse_line(line, f"{path}:{number}", task) for number, line in enumerate(read_lines(path), 1)]


def write_lines(path: Path, lines: list[str]) -> None:
    """Writes a list atomically, every line ended."""
    write_atomic(path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))
