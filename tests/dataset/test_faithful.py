"""Images are read as they were written, or refused: TIFF of every layout against its own pixels, files of several pages."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.look import Job, inspect
from dataset.source import BadFileError, open_image, open_mask
from dataset.spec import get_spec
from tests.conftest import write_image
from tests.dataset.by_hand import tiff

HEIGHT, WIDTH = 10, 14


def pixels(channels: int, bits: int) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 1 << bits, (HEIGHT, WIDTH, channels))


def refused(folder: Path, name: str, words: str) -> None:
    """Training refuses an image; so does `check` where it reads its pixels."""
    with pytest.raises(BadFileError, match=words):
        open_image(str(folder), name)
    assert inspect(Job(str(folder), (name,), None, decode=True), None).problem


LAYOUTS = list(product((1, 3, 4), (8, 16), (1, 2), (False, True), "<>"))


@pytest.mark.parametrize(("channels", "bits", "planar", "deflate", "order"), LAYOUTS)
def test_tiff_of_every_layout(channels: int, bits: int, planar: int, deflate: bool, order: str, tmp_path: Path) -> None:
    """The upper 8 bits of the pixels, or one line that says why not; never other pixels."""
    stored = pixels(channels, bits)
    photometric = 1 if channels == 1 else 2
    (tmp_path / "x.tif").write_bytes(tiff([stored], bits, photometric, planar, deflate, order=order))
    if planar == 2 and not deflate and (bits == 16 or channels == 4):
        silent = bits == 16 and channels > 1  # Pillow gives noise; it refuses the others itself
        refused(tmp_path, "x.tif", "channels one after the other, of 16 bits" if silent else "cannot be read as an image")
        return
    expected = (stored >> (bits - 8))[..., :3]
    assert np.array_equal(np.asarray(open_image(str(tmp_path), "x.tif")), np.broadcast_to(expected, (HEIGHT, WIDTH, 3)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_grey_tiff_of_any_number_of_bits(bits: int, tmp_path: Path) -> None:
    """0 is black and the largest value white; the other way round where the file says so."""
    stored = pixels(1, bits)
    expected = stored * 255 // ((1 << bits) - 1) if bits <= 8 else stored >> (bits - 8)
    (tmp_path / "x.tif").write_bytes(tiff([stored], bits))
    assert np.array_equal(np.asarray(open_image(str(tmp_path), "x.tif"))[..., :1], expected)
    (tmp_path / "x.tif").write_bytes(tiff([stored], bits, photometric=0))
    if bits == 12:
        refused(tmp_path, "x.tif", "cannot be read as an image")  # Pillow does not know it
    else:
        assert np.array_equal(np.asarray(open_image(str(tmp_path), "x.tif"))[..., :1], 255 - expected)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_signed_values_have_no_known_black_and_white(bits: int, tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff([pixels(1, 7)], bits, sign=2))
    refused(tmp_path, "x.tif", f"found values of {bits} bits with a sign, expected 8 or 16 bits without sign; convert it to 8 bits")


def test_what_pillow_cannot_convert_is_told(tmp_path: Path) -> None:
    """Grey that is multiplied by its transparency."""
    (tmp_path / "x.tif").write_bytes(tiff([pixels(2, 8)], 8, extra=1))
    with pytest.raises(BadFileError, match="cannot be read as an image"):
        open_image(str(tmp_path), "x.tif")


@pytest.mark.parametrize("name", ["pages.tif", "moving.gif", "moving.png", "moving.webp"])
def test_several_pages_are_not_taken_for_the_first(name: str, tmp_path: Path) -> None:
    first, *rest = [Image.fromarray(np.full((HEIGHT, WIDTH), 60 * i, np.uint8)) for i in range(3)]
    first.save(tmp_path / name, save_all=True, append_images=rest)
    refused(tmp_path, name, r"3 pages, of which one would be read: save one page a file")
    with pytest.raises(BadFileError, match="3 pages"):
        open_mask(get_spec("demo"), str(tmp_path), name, (WIDTH, HEIGHT))


def test_smaller_copies_in_a_geotiff_are_no_pages(tmp_path: Path) -> None:
    """Overviews and transparency masks, the latter of a kind that Pillow cannot read."""
    stored = pixels(3, 8)
    (tmp_path / "x.tif").write_bytes(tiff([stored, stored[::2, ::2], stored[:4, :4]], 8, 2, subfiles=[0, 1, 1]))
    assert np.array_equal(np.asarray(open_image(str(tmp_path), "x.tif")), stored)
    content = bytearray(tiff([stored, stored], 8, 2, subfiles=[0, 4]))
    at = content.rindex(b"\x06\x01\x04\x00\x01\x00\x00\x00\x02") + 8  # its photometric interpretation
    content[at] = 4
    (tmp_path / "x.tif").write_bytes(content)
    assert np.array_equal(np.asarray(open_image(str(tmp_path), "x.tif")), stored)


def test_a_phones_photograph_with_a_second_picture_is_one_photograph(tmp_path: Path) -> None:
    """MPO: a JPEG with, behind it, a preview or another exposure."""
    write_image(tmp_path / "a.jpg", WIDTH, HEIGHT, 0)
    first = Image.open(tmp_path / "a.jpg")
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    with Image.open(tmp_path / "x.jpg") as image:
        assert getattr(image, "n_frames", 1) == 2
    assert open_image(str(tmp_path), "x.jpg").size == (WIDTH, HEIGHT)
