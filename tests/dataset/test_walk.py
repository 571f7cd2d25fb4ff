"""What commands find in a folder: nothing hidden, everything behind links, each file once, the rest counted."""

import os
import shutil
from pathlib import Path

import pytest

from dataset.find import find_images, find_pairs
from dataset.lists import read_list
from dataset.prepare.files import under
from dataset.splits.__main__ import main as splits
from dataset.splits.make import pair_folders
from dataset.walk import image_tree
from tests.conftest import write_image
from util.error import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs, one of them behind a link to a folder; and what systems and people leave beside them."""
    folder = tmp_path / "photos"
    write_image(folder / "0.jpg", 28, 28, 0)
    write_image(folder / "day/1.JPG", 28, 28, 1)
    write_image(tmp_path / "other disk/2.png", 28, 28, 2)
    (folder / "a link").symlink_to(tmp_path / "other disk")
    (folder / "again").symlink_to(folder / "day")
    (folder / "round").symlink_to(folder)
    for place in (".ipynb_checkpoints/0-checkpoint.jpg", "__MACOSX/0.jpg", "day/@eaDir/1.jpg"):
        (folder / place).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "0.jpg", folder / place)
    (folder / "._0.jpg").write_bytes(b"a Mac's notes about 0.jpg")
    for name in ("a.heic", "b.HEIC", "c.jfif", "d.jp2", "notes", ".DS_Store"):
        (folder / name).touch()
    return folder


NAMES = ["0.jpg", "a link/2.png", "day/1.JPG"]


def test_each_image_once_and_nothing_hidden(photos: Path) -> None:
    found = image_tree(photos)
    assert [path.relative_to(photos).as_posix() for path in found.images] == NAMES
    assert found.left_out() == "left out by their ending: 1 without an ending, 2 .heic, 1 .jfif, 1 .jp2"
    assert find_images(str(photos), photos / "out") == found
    assert [pair.name for pair in find_pairs(str(photos), str(photos))] == NAMES
    assert list(under([photos.parent], "photos", "jpg")) == ["0.jpg"]


def test_a_folder_that_is_left_out_may_be_named_by_a_link(photos: Path) -> None:
    assert [path.name for path in image_tree(photos, [photos / "again"]).images] == ["0.jpg", "2.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_told(photos: Path) -> None:
    (photos / "day").chmod(0)
    with pytest.raises(UserError, match=r"day: cannot be read \(Permission denied\)"):
        image_tree(photos)


def test_make_lists_them_and_counts_the_rest(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(photos.parent)
    splits(["make", "street", "--images", str(photos)])
    assert [entry.image for entry in read_list("splits/street/train.txt")] == NAMES
    assert f"{photos}: left out by their ending: 1 without an ending, 2 .heic, 1 .jfif, 1 .jp2" in capsys.readouterr().out
    shutil.rmtree(photos)
    photos.mkdir()
    (photos / "a.heic").touch()
    with pytest.raises(UserError, match=r"found no image in .*photos \(left out by their ending: 1 .heic\), expected"):
        splits(["make", "street", "--images", str(photos)])


@pytest.mark.parametrize(("images", "masks"), [("data", "data/masks"), ("data/photos", "data"), ("data/photos", "data/masks")])
def test_one_folder_may_lie_in_the_other(images: str, masks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are no photographs, and photographs no masks."""
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write_image(Path(images, f"{i}.jpg"), 28, 28, i)
        write_image(Path(masks, f"{i}.png"), 28, 28, i)
    root, entries, alone, _ = pair_folders(Path(images), Path(masks), None)
    assert [(root / entry.image).resolve() for entry in entries] == [Path(images, f"{i}.jpg").resolve() for i in range(3)]
    assert [(root / str(entry.mask)).resolve() for entry in entries] == [Path(masks, f"{i}.png").resolve() for i in range(3)]
    assert alone == 0
