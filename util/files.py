"""Files that are whole at any moment, and sums that say which file it is."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomic(path: Path, write: Callable[[BinaryIO], Any], sync: bool = True, keep: Path | None = None) -> None:
    """Calls `write` on a temporary file beside `path`, flushes it to the disk, then renames; makes the folder where there is none.

    sync=False leaves the flushing to the system: for thousands of small files that a command can make again.
    keep: the name that the file it replaces gets. For a moment, between two renames, there is only that one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
