"""Photographs that viewers turn by their EXIF orientation: said wherever an upright mask could be laid over them."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from dataset.lists import ImageList
from dataset.semi import ValSet
from dataset.source import Source, open_image
from dataset.spec import get_spec
from dataset.splits.__main__ import main as splits
from scripts.preview import main as preview
from tests.conftest import Tiny, make_tiny
from util.error import UserError


def turn(path: Path, orientation: int) -> None:
    """Stores a photograph turned, with the orientation by which viewers turn it back."""
    with Image.open(path) as image:
        exif = image.getexif()
        exif[274] = orientation
        image.save(path, exif=exif)


@pytest.fixture
def square(tmp_path: Path) -> Tiny:
    """Two square labelled photographs, one of them with an EXIF orientation."""
    tiny = make_tiny(tmp_path / "data")
    for i in (0, 1):
        with Image.open(tiny.root / f"images/{i}.jpg") as image, Image.open(tiny.root / f"masks/{i}.png") as mask:
            image.resize((56, 56)).save(tiny.root / f"images/{i}.jpg")
            mask.resize((56, 56), Image.Resampling.NEAREST).save(tiny.root / f"masks/{i}.png")
    turn(tiny.root / "images/1.jpg", 3)
    return tiny


def test_check_says_it_even_of_a_square_one(square: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(square.root)
    lists = ["labeled_id_path", "unlabeled_id_path"]
    values = yaml.safe_load(square.config.read_text()) | {key: f"{square.root}/{key.split('_')[0]}.txt" for key in lists}
    square.config.write_text(yaml.safe_dump(values))
    splits(["check", "--config", "tiny.yaml"])
    out = capsys.readouterr().out
    assert f"hint: images with an EXIF orientation: 1, as {square.root}/images/1.jpg (3), by which viewers turn it" in out
    assert "exif_transpose" in out


def test_the_size_error_says_it(square: Tiny) -> None:
    turn(square.root / "images/18.jpg", 6)
    with Image.open(square.root / "images/18.jpg") as image:
        upright = ImageOps.exif_transpose(image).size
    Image.new("L", upright).save(square.root / "masks/18.png")
    source = Source(get_spec("demo"), str(square.root), ImageList(f"{square.root}/val.txt", "segmentation", masks=True))
    found = ValSet(source)[0]
    assert isinstance(found, UserError)
    assert "masks/18.png: mask is (43, 57), its image (57, 43)" in str(found)
    assert f"{square.root}/images/18.jpg has the EXIF orientation 6, by which viewers turn it" in str(found)


def test_preview_says_it(square: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = ["--labeled-id-path", f"{square.root}/labeled.txt", "--unlabeled-id-path", f"{square.root}/unlabeled.txt"]
    turn(square.root / "images/7.jpg", 8)
    preview(["--config", str(square.config), *lists, "--out", str(tmp_path / "out"), "--count", "12"])
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert sorted(line.split()[1] for line in notes) == [f"{square.root}/images/{i}.jpg" for i in (1, 7)]


def test_tiff_is_turned_by_its_reader(tmp_path: Path, square: Tiny) -> None:
    """Nothing to say there: what is read is what viewers show."""
    stored = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    Image.fromarray(stored).save(tmp_path / "x.tif", tiffinfo={274: 6})
    assert np.array_equal(np.asarray(open_image(str(tmp_path), "x.tif")), np.rot90(stored, -1))
