"""PNG files give the same pixels, or the same error, with kornia-rs installed and without."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import source
from dataset.source import BadFileError, open_image, open_mask
from dataset.spec import get_spec
from tests.dataset import oracle

pytest.importorskip("kornia_rs", reason="kornia-rs is not installed: see requirements-extra.txt")
WIDTH, HEIGHT = 37, 23
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits: int, colour: int, extra: bytes = b"", lines: int = HEIGHT, filters: tuple[int, ...] = (0, 1, 2, 3, 4)) -> bytes:
    """A PNG of random bytes, every kind of line filter in turn."""
    rng = np.random.default_rng((bits, colour))
    width = (WIDTH * bits * CHANNELS[colour] + 7) // 8
    data = b"".join(bytes([filters[i % len(filters)]]) + rng.bytes(width) for i in range(lines))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def turned(data: bytes, place: int) -> bytes:
    """A bit changed on the way."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


RGB = png(8, 2)
PALETTE = chunk(b"PLTE", np.random.default_rng(0).bytes(768))
FILES = {
    "rgb": RGB, "grey": png(8, 0), "palette": png(8, 3, PALETTE), "rgba": png(8, 6), "grey and alpha": png(8, 4),
    "rgb of 16 bits": png(16, 2), "grey of 16 bits": png(16, 0), "grey of 4 bits": png(4, 0), "grey of 1 bit": png(1, 0),
    "rgb with a transparent colour": png(8, 2, chunk(b"tRNS", bytes(6))), "grey with one": png(8, 0, chunk(b"tRNS", bytes(2))),
    "rgb with gamma": png(8, 2, chunk(b"gAMA", struct.pack(">I", 45455))), "half": RGB[: len(RGB) // 2], "without its end": RGB[:-12],
    "cut before its end": RGB[:-20], "lines missing": png(8, 2, lines=HEIGHT // 2), "no such filter": png(8, 2, filters=(7,)),
    "pixels changed": turned(RGB, len(RGB) // 2), "header changed": turned(RGB, 20), "checksum changed": turned(RGB, len(RGB) - 14),
    "empty": b"",
}  # fmt: skip


def found(folder: Path, reader: object, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray | str]:
    """The file read as an image and as a mask: pixels, or what is said."""
    monkeypatch.setattr(source, "read_png", reader)
    out: list[np.ndarray | str] = []
    for read in (
        lambda: np.asarray(open_image(str(folder), "x.png")),
        lambda: open_mask(get_spec("coco"), str(folder), "x.png", (WIDTH, HEIGHT)),
    ):
        try:
            out.append(read())
        except source.UserError as error:
            out.append(str(error))
    return out


@pytest.mark.parametrize("name", FILES)
def test_both_decoders_agree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(FILES[name])
    for a, b in zip(found(tmp_path, source.read_png, monkeypatch), found(tmp_path, None, monkeypatch), strict=True):
        assert type(a) is type(b)
        assert np.array_equal(a, b)


def test_which_files_the_faster_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs and grey masks: without this, the comparison above could be of Pillow with itself."""
    read: list[str] = []
    decode = source.read_png

    def count(path: str, mode: str) -> np.ndarray:
        assert decode is not None
        pixels = decode(path, mode)
        read.append(mode)
        return pixels

    monkeypatch.setattr(source, "read_png", count)
    image = oracle.photograph(60, 40)
    image.save(tmp_path / "image.png")
    Image.new("L", (60, 40), 3).save(tmp_path / "mask.png")
    image.save(tmp_path / "image.jpg")
    assert np.array_equal(np.asarray(open_image(str(tmp_path), "image.png")), np.asarray(image))
    assert (open_mask(get_spec("coco"), str(tmp_path), "mask.png", (60, 40)) == 3).all()
    open_image(str(tmp_path), "image.jpg")
    assert read == ["rgb", "mono"]


def test_a_broken_file_is_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(FILES["half"])
    with pytest.raises(BadFileError, match="cannot be read as an image"):
        open_image(str(tmp_path), "x.png")
