"""Files that are whole at any moment."""

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from util.files import sha256, write_atomic


def test_failed_write_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, lambda file: file.write(b"first"))

    def fail(file: BinaryIO) -> None:
        file.write(b"second")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() == b"first"
    assert sha256(path) == "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_is_whole_too(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no hard links, it is a copy."""

    def refuse(source: Path, target: Path) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path, best = tmp_path / "latest", tmp_path / "best"
    write_atomic(path, lambda file: file.write(b"one"), also=best)
    assert (path.stat().st_ino == best.stat().st_ino) is links
    write_atomic(path, lambda file: file.write(b"two"))
    assert (path.read_bytes(), best.read_bytes()) == (b"two", b"one")
    write_atomic(path, lambda file: file.write(b"three"), also=best)
    assert best.read_bytes() == b"three"
    assert len(list(tmp_path.iterdir())) == 2
