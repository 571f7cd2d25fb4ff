"""Files that are whole at any moment, and sums that say which file it is."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from util.error import UserError, reason

ROOT = Path(__file__).resolve().parent.parent  # the repository's folder


def located(path: str) -> str:
    """A path that is relative to the current folder, or to the repository's folder where the current one has no such file."""
    inside = ROOT / path  # an absolute path is itself
    return str(inside) if path and not os.path.exists(path) and inside.exists() else path


def write_atomic(
    path: Path, write: Callable[[BinaryIO], Any], sync: bool = True, keep: Path | None = None, also: Path | None = None
) -> None:
    """Calls `write` on a temporary file beside `path`, flushes it to the disk, then renames; makes the folder where there is none.

    sync=False leaves the flushing to the system: for thousands of small files that a command can make again.
    keep: the name that the file it replaces gets. For a moment, between two renames, there is only that one.
    also: a second name, in the same folder, that the new file gets first; it takes no room where the system has hard links.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if also is not None:
            _link(temporary, also)
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _link(source: Path, path: Path) -> None:
    temporary = _temporary(path)
    try:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            with open(source, "rb") as old, open(temporary, "wb") as new:
                shutil.copyfileobj(old, new)
                new.flush()
                os.fsync(new.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def output(option: str, path: Path) -> Iterator[None]:
    """Inside, what cannot be written is a UserError that names `path` and the option of the command line that gave it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)}); make room, or give another {option}") from error


def check_output(option: str, path: Path, folder: bool = False) -> None:
    """Makes the folder that an output needs, and raises UserError where it could not be written: before the work, not after it."""
    with output(option, path):
        if path.is_dir() and not folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        parent = path if folder else path.parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass


def write_output(option: str, name: str | None, text: str) -> None:
    """Writes the file that an option of the command line names, if it names one. Raises UserError where it cannot be written."""
    if name:
        with output(option, Path(name)):
            write_atomic(Path(name), lambda file: file.write(text.encode()))


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
