"""The tutorials for data of one's own (docs/own-data.md, and README.md in short), followed word for word."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.demo.sets import draw_image
from dataset.spec import get_spec
from tests.conftest import ROOT

PAGE, README = ROOT / "docs/own-data.md", ROOT / "README.md"
CLASSES = 11  # of the tutorial's config
STEPS = ("dataset.splits make", "dataset.splits check", "dataset.preview", "unimatch_v2.py", "evaluate.py", "predict.py")


def tutorial() -> str:
    """The page's first shell block."""
    block = re.search(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert block
    return block[1]


def clone(folder: Path) -> Path:
    """A working copy of the project in which the commands run."""
    for place in ("dataset", "engine", "model", "scripts", "util"):
        shutil.copytree(ROOT / place, folder / place, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    (folder / "splits").mkdir()
    shutil.copy(ROOT / "splits/manifest.tsv", folder / "splits")
    for kind in ("images", "masks"):
        (folder / f"data/street/{kind}/train").mkdir(parents=True)
    return folder


def draw(folder: Path) -> None:
    """A few of the images that `python -m dataset.demo --root data/street` draws."""
    for i in range(16):
        image, mask = draw_image("train", i)
        image.save(folder / f"data/street/images/train/{i:04}.jpg")
        mask.save(folder / f"data/street/masks/train/{i:04}.png")


def shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs commands that succeed."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-e", "-c", text], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def follow(folder: Path, images: int) -> None:
    """Runs the tutorial and looks at everything it promises."""
    done = shell(tutorial(), folder)
    run = folder / "exp/street/unimatch_v2"
    for name in ("latest.pth", "best.pth", "train.log", "report.html"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "train.log").read_text().count("Class [10 bicyclist] IoU") == 2  # epochs
    masks = {path.stem: Image.open(path) for path in (folder / "exp/street/predictions").glob("*.png")}
    photos = {path.stem: Image.open(path) for path in (folder / "data/street/images/train").iterdir()}
    assert len(masks) == images
    assert {name: mask.size for name, mask in masks.items()} == {name: photo.size for name, photo in photos.items()}
    assert max(int(np.asarray(mask).max()) for mask in masks.values()) < CLASSES
    assert {path.name for path in (folder / "exp/street/preview").iterdir()} == {"labeled.jpg", "unlabeled.jpg"}
    for word in ("mIoU", "10 bicyclist"):
        assert word in done.stdout


def test_the_tutorial_on_a_small_folder(tmp_path: Path) -> None:
    """16 pictures of horizontal bands, two of them without a mask."""
    folder = clone(tmp_path / "clone")
    rng = np.random.default_rng(0)
    for i in range(16):
        mask = np.repeat(np.sort(rng.integers(0, CLASSES, 12)), 6)[:, None].repeat(96, 1).astype(np.uint8)
        pixels = np.stack([mask * 20, 255 - mask * 20, mask * 7], -1) + rng.integers(0, 20, (*mask.shape, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"data/street/images/train/photo {i}.jpg")
        if i not in (3, 11):
            Image.fromarray(mask).save(folder / f"data/street/masks/train/photo {i}.png")
    follow(folder, 16)


def test_the_tutorial_on_drawn_images(tmp_path: Path) -> None:
    """As `python -m dataset.demo --root` draws them, with the classes that the page gives for these: up to what the network will see."""
    classes = f"classes: [{', '.join(get_spec('demo').classes)}]"
    assert f"`{classes}`" in PAGE.read_text(encoding="utf-8")
    folder = clone(tmp_path / "clone")
    draw(folder)
    text = re.sub(r"^classes: .*$", classes, tutorial(), flags=re.M).partition("# 4.")[0]
    done = shell(text, folder)
    assert "5 cross" in done.stdout
    assert (folder / "exp/street/preview/unlabeled.jpg").exists()


def test_own_data_of_the_readme(tmp_path: Path) -> None:
    """With a few images instead of 480."""
    folder = clone(tmp_path / "clone")
    shutil.copy(ROOT / "requirements.txt", folder)
    draw(folder)
    (block,) = (block for block in re.findall(r"^```sh\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S) if "<<'END'" in block)
    text = block.replace("python -m dataset.demo --root data/street\n", "")
    assert text.count("\n") == block.count("\n") - 1
    done = shell(text, folder)
    assert "street, 6 classes: 4 labelled, 10 unlabelled and 2 validation images." in done.stdout
    assert (folder / "exp/street/best.pth").exists()


@pytest.mark.parametrize("words", STEPS)
def test_the_tutorial_has_every_step(words: str) -> None:
    assert words in tutorial()
