"""Files that cannot be read in the middle of an epoch: stop with the name, or replace and report; never hang, never a bare exception."""

import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unimatch_v2
from dataset.look import Job, inspect
from dataset.source import BadFileError, open_image, open_mask
from dataset.spec import get_spec
from engine import trainer as training
from tests.conftest import Tiny, make_tiny
from util import checkpoint
from util.error import UserError

QUICK = ("batch_size=1", "crop_size=14", "epochs=2")


@pytest.fixture
def broken(tmp_path: Path) -> Tiny:
    """An unlabelled JPEG is cut off, and a labelled one is empty."""
    tiny = make_tiny(tmp_path / "data")
    path = tiny.root / "images/9.jpg"
    path.write_bytes(path.read_bytes()[:900])
    (tiny.root / "images/2.jpg").write_bytes(b"")
    return tiny


def test_by_default_the_run_stops_with_the_files_name(broken: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images/(9|2)\.jpg: cannot be read as an image"):
        unimatch_v2.main(broken.args(tmp_path / "out", *QUICK))


def test_skip_replaces_the_same_way_each_time_counts_and_lists(broken: Tiny, tmp_path: Path) -> None:
    for workers in (0, 2):
        unimatch_v2.main(broken.args(tmp_path / f"out{workers}", *QUICK, "bad_images=skip", f"num_workers={workers}"))
    a, b = (checkpoint.load(tmp_path / f"out{workers}/latest.pth")["model"] for workers in (0, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    log = (tmp_path / "out0/train.log").read_text()
    assert log.count("3 samples of epoch 0 replaced, their files cannot be read:\n") == 1, "one unlabelled, the labelled one twice"
    assert log.count("3 samples of epoch 1 replaced") == 1
    assert log.count(f"\n  {broken.root}/images/9.jpg: cannot be read as an image") == 2
    assert len(re.findall(r"\n  \S+/images/2\.jpg: cannot be read as an image.* \(2 samples\)", log)) == 2


def test_an_interrupted_epoch_counts_each_of_them_once(broken: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = broken.args(tmp_path / "out", *QUICK, "bad_images=skip", "save_every=0")
    original = training.Learner.update
    for stop_at in (3, 7, 11):

        def update(self: Any, *rest: Any, stop_at: int = stop_at) -> Any:
            out = original(self, *rest)
            if self.it == stop_at:
                raise KeyboardInterrupt
            return out

        monkeypatch.setattr(training.Learner, "update", update)
        with pytest.raises(KeyboardInterrupt):
            unimatch_v2.main(args)
    monkeypatch.setattr(training.Learner, "update", original)
    unimatch_v2.main(args)
    assert (tmp_path / "out/train.log").read_text().count("3 samples of epoch 0 replaced") == 1


def test_skip_does_not_hide_that_everything_is_missing(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "data")
    for i in range(18):  # those to train on
        (tiny.root / f"images/{i}.jpg").unlink()
    with pytest.raises(UserError, match=r"no such file.*10 files in a row are bad"):
        unimatch_v2.main(tiny.args(tmp_path / "out", *QUICK, "bad_images=skip"))


def png(width: int, height: int) -> bytes:
    """A PNG whose header says a size and whose pixels are a few zero bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as an image"),
        (b"GIF89a", "cannot be read as an image"),
        (png(0, 10), "cannot be read as an image"),
        (png(50_000, 50_000), "found 2500 megapixels, expected at most 179 in one image; cut it into tiles"),
        (png(10, 10)[:40], "cannot be read as an image"),
        (png(4000, 4000), "cannot be read as an image"),
        (b"BM" + bytes(60), "cannot be read as an image"),
        (b"II*\x00" + b"\xff" * 60, "cannot be read as an image"),
    ],
)
def test_hostile_bytes(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(BadFileError) as error:
        open_image(str(tmp_path), "x.png")
    assert words in str(error.value)
    assert "x.png" in str(error.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "file").write_text("")
    for name, words in (
        ("loop.jpg", "symbolic links"),
        ("pipe.jpg", "not a file"),
        ("folder.jpg", "not a file"),
        ("file/x.jpg", "Not a directory"),
    ):
        with pytest.raises(BadFileError, match=words):
            open_image(str(tmp_path), name)
    with pytest.raises(UserError):
        open_image(str(tmp_path), "zero\0byte.jpg")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr", "HSV"])
def test_every_mode_of_an_image_becomes_rgb_and_a_mask_of_another_mode_is_told(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.full((4, 6), 3, np.uint16)) if mode == "I;16" else Image.new(mode, (6, 4))
    name = "x.tif"
    try:
        image.save(tmp_path / name)
        Image.open(tmp_path / name).load()
    except OSError:
        pytest.skip(f"Pillow cannot write TIFF of mode {mode}, or cannot read what it wrote")
    if mode in ("I", "F"):  # 0 to 1, 0 to 255, degrees: turned into 8 bits, most would be black
        with pytest.raises(BadFileError, match=r"x\.tif: found (values of 32 bits|floating).*, expected 8 or 16 .*; convert it"):
            open_image(str(tmp_path), name)
    else:
        assert (open_image(str(tmp_path), name).mode, open_image(str(tmp_path), name).size) == ("RGB", (6, 4))
    if mode in ("LA", "RGBA", "CMYK", "F", "YCbCr"):
        with pytest.raises(UserError, match="one channel"):
            open_mask(get_spec("demo"), str(tmp_path), name, (6, 4))
    else:
        assert open_mask(get_spec("demo"), str(tmp_path), name, (6, 4)).shape == (4, 6)


def test_a_gif_is_no_mask(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 5], [5, 255]], np.uint8)).save(tmp_path / "x.gif")
    with pytest.raises(UserError, match=r"x\.gif: found a GIF, whose values are renumbered"):
        open_mask(get_spec("pascal"), str(tmp_path), "x.gif", (2, 2))
    assert "found a GIF" in inspect(Job(str(tmp_path), ("x.gif",), "x.gif"), None).problem


@pytest.mark.parametrize("name", ["pascal", "levir"])
def test_a_mask_value_below_zero_is_told(name: str, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, -1]], np.int32)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif: .*-1"):
        open_mask(get_spec(name), str(tmp_path), "x.tif", (2, 1))
