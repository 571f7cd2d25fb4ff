"""Procedural data sets for the embedded default: textured objects in clutter, as single images and as pairs of two dates.

Everything is a function of (set, part, index), so that every machine draws the same scenes. The scenes themselves are in
dataset/demo/scene.py. They are drawn at first use, or by `python -m dataset.demo`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from PIL import Image

from dataset.demo.scene import background, develop, place, relight, render, two_dates
from dataset.lists import Entry
from dataset.spec import get_spec
from util.error import UserError
from util.files import write_atomic

PARTS = {"train": 480, "val": 60}  # images of the segmentation set
SIDES = (128, 176)  # px, both sides of an image, inclusive
CHANGE_PARTS = {"train": 240, "val": 40, "test": 60}  # pairs of the change set
CHANGE_SIDES = (112, 140)
VERSION = "3"  # raise it when the drawing changes: sets drawn by another version are drawn again


def draw_image(part: str, index: int) -> tuple[Image.Image, Image.Image]:
    """Draws image and palette mask number `index` of `part` ("train" or "val") of the segmentation set."""
    rng = default_rng((1, list(PARTS).index(part), index))
    width, height = rng.integers(SIDES[0], SIDES[1] + 1, 2)
    img, mask = render(background(rng, height, width), place(rng, height, width, int(rng.integers(2, 5))))
    label = Image.fromarray(mask)
    palette = [channel for colour in get_spec("demo").palette for channel in colour]
    label.putpalette(palette + [0] * (255 * 3 - len(palette)) + [224, 224, 192])
    return develop(img, rng), label


def draw_pair(part: str, index: int) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Draws dates A and B and the label (0 unchanged, 255 changed) of pair `index` of `part` ("train", "val", "test")."""
    rng = default_rng((2, list(CHANGE_PARTS).index(part), index))
    width, height = rng.integers(CHANGE_SIDES[0], CHANGE_SIDES[1] + 1, 2)
    before, after, changed = two_dates(rng, height, width)
    label = Image.fromarray(np.where(changed, 255, 0).astype(np.uint8))
    return develop(relight(before, rng), rng), develop(relight(after, rng), rng), label


def _save(img: Image.Image, path: Path) -> None:
    """Writes a JPEG or PNG atomically, so that a file that exists is whole even when a process is killed or two of them draw."""
    if path.suffix == ".jpg":
        write_atomic(path, lambda file: img.save(file, "JPEG", quality=92, subsampling=0), sync=False)
    else:
        write_atomic(path, lambda file: img.save(file, "PNG"), sync=False)


def _mark(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def _draw_missing(root: Path, files: dict[tuple[str, ...], Callable[[], Sequence[Image.Image]]]) -> None:
    """Makes every group of files of which one is missing. Raises UserError when `root` cannot be written."""
    marker = root / "drawn.txt"
    whole, part = f"version {VERSION}, complete\n", f"version {VERSION}, unfinished\n"
    try:
        state = marker.read_text() if marker.exists() else ""
        if state == whole:
            return
        if state not in ("", part):  # of another version: gone before the marker says so, or an interruption would mix the two
            for name in (name for names in files for name in names):
                (root / name).unlink(missing_ok=True)
        _mark(marker, part)
        for names, make in files.items():
            if not all((root / name).exists() for name in names):
                for name, img in zip(names, make(), strict=True):
                    _save(img, root / name)
        _mark(marker, whole)
    except OSError as error:
        raise UserError(f"{root}: cannot draw the demo images here ({error}); give another data_root or --root") from None


def draw(root: Path) -> None:
    """Draws what is missing of the segmentation set: images/PART/NNNN.jpg, masks/PART/NNNN.png. Raises UserError."""
    files: dict[tuple[str, ...], Callable[[], Sequence[Image.Image]]] = {}
    for part, count in PARTS.items():
        for i in range(count):
            files[f"images/{part}/{i:04}.jpg", f"masks/{part}/{i:04}.png"] = partial(draw_image, part, i)
    _draw_missing(Path(root), files)


def draw_change(root: Path) -> None:
    """Draws what is missing of the pair set: {A,B,label}/PART_NNNN.png, label 0 or 255. Raises UserError."""
    spec, files = get_spec("demo_change"), dict[tuple[str, ...], Callable[[], Sequence[Image.Image]]]()
    for part, count in CHANGE_PARTS.items():
        for i in range(count):
            dates, label = spec.files(Entry(f"{part}_{i:04}.png", None))
            files[(*dates, str(label))] = partial(draw_pair, part, i)
    _draw_missing(Path(root), files)


DRAW = {"demo": draw, "demo_change": draw_change}


def draw_at_first_use(name: str, root: str) -> None:
    """Draws the demo set `name`, unless it exists, where `root` is the folder that its config names. Other sets are not touched."""
    if name in DRAW and root == f"data/{name}":
        DRAW[name](Path(root))
