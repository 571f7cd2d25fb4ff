"""Change detection: LEVIR-CD tiles and the WHU-CD images to 256 x 256 crops in A/, B/ and label/ (0 unchanged, 255 changed).

LEVIR-CD (train.zip, val.zip, test.zip): each 1024 x 1024 tile `train_1.png` becomes `train_1_1.png` to `train_1_16.png`. The lists name
these; that they are numbered row by row, as here, is an assumption (`--order column` counts down the columns): the crops of
all tiles are the same set either way, only which of them are labelled changes. Academic use only (justchenhao.github.io/LEVIR).

WHU-CD (before.tif, after.tif, change label; 32507 x 15354): crops without overlap, row by row, the rest at the right and bottom dropped:
126 x 59 = 7434, which is how many the published lists have. Their names are `whucd_00001.png` and on here; the authors' names
and numbering may differ, which the summary shows when the lists are in splits/whu. Data and terms: gpcv.whu.edu.cn.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset.pool import cores, parallel
from dataset.prepare.files import nothing, open_sources, read_image, save_png, under
from dataset.spec import DATE_FOLDERS, LABEL_FOLDER
from util.error import UserError

SIDE = 256
FOLDERS = (*DATE_FOLDERS, LABEL_FOLDER)
MAX_PIXELS = 1 << 30  # a WHU image has 0.5e9, more than PIL opens by itself; 2 GB in memory
NODATA_TAG = 42113  # of GeoTIFF files written by GDAL: the value of pixels without data, as text
PATTERNS = {
    "before": ("before*.tif*", "*2012*.tif*"),
    "after": ("after*.tif*", "*2016*.tif*"),
    "label": ("*change*label*.tif*", "change*.tif*", "label*.tif*"),
}


class Job(NamedTuple):
    """A tile of LEVIR-CD and the files of its crops."""

    source: Path
    targets: list[Path]
    label: bool
    overwrite: bool


def prepare_levir(args: argparse.Namespace) -> list[str]:
    """Writes A/, B/ and label/ below args.dst. Returns the lines of the summary. Raises UserError."""
    dst = Path(args.dst)
    roots = open_sources(args.src, dst, lambda path: Path(path).parent.name in FOLDERS and path.endswith(".png"))
    tiles = {folder: under(roots, folder, ".png") for folder in FOLDERS}
    if not tiles["A"]:
        raise nothing("tiles (A/*.png)", args.src, "train.zip, val.zip and test.zip of LEVIR-CD")
    for folder in FOLDERS[1:]:
        if alone := tiles["A"].keys() ^ tiles[folder].keys():
            raise UserError(f"--src: {min(alone)} is in one of A/ and {folder}/ only; expected it in A/, B/ and label/")
    jobs = [
        Job(path, _names(dst / folder, Path(key).stem, args.order), folder == LABEL_FOLDER, args.overwrite)
        for folder in FOLDERS
        for key, path in tiles[folder].items()
    ]
    made = Counter(parallel(cut_tile, jobs, "tiles", "tile"))
    return [
        f"{len(tiles['A'])} tiles (complete: 445 + 64 + 128 = 637) in {16 * len(tiles['A'])} crops each for A, B and label; "
        f"{made[True]} files cut, {made[False]} already existed",
        f"crops are numbered by {args.order}; the authors' numbering is not documented (see `python -m dataset.prepare levir --help`)",
    ]


def _names(folder: Path, stem: str, order: str) -> list[Path]:
    """The crops' files, row by row."""
    numbers = np.arange(1, 17).reshape(4, 4)
    return [folder / f"{stem}_{i}.png" for i in (numbers if order == "row" else numbers.T).ravel()]


def cut_tile(job: Job) -> bool:
    """Writes the 16 crops of one tile. False when they already existed."""
    todo = [i for i, path in enumerate(job.targets) if job.overwrite or not path.exists()]
    if not todo:
        return False
    img = read_image(job.source)
    if img.size != (4 * SIDE, 4 * SIDE):
        raise UserError(f"{job.source}: found {img.width} x {img.height}, expected an official tile of 1024 x 1024")
    array = to_label(np.asarray(img), job.source) if job.label else np.asarray(img.convert("RGB"))
    for i in todo:
        row, col = divmod(i, 4)
        save_png(array[row * SIDE : (row + 1) * SIDE, col * SIDE : (col + 1) * SIDE], job.targets[i])
    return True


def to_label(array: np.ndarray, path: Path) -> np.ndarray:
    """Converts a change label (H, W) or (H, W, bands) of 0 and 1 or 0 and 255, or bool, to uint8 of 0 and 255."""
    flat = array[..., 0] if array.ndim == 3 else array
    if array.ndim == 3 and (array[..., :3] != flat[..., None]).any():
        raise UserError(f"{path}: found colors, expected a label of 0 and 255")
    values = np.unique(flat).tolist()
    if not set(values) <= {0, 1} and not set(values) <= {0, 255}:
        raise UserError(f"{path}: found the values {', '.join(map(str, values[:8]))}, expected 0 and 255 (or 0 and 1)")
    return (flat != 0).astype(np.uint8) * np.uint8(255)


def prepare_whu(args: argparse.Namespace) -> list[str]:
    """Writes A/, B/ and label/ below args.dst. Returns the lines of the summary. Raises UserError."""
    dst = Path(args.dst)
    roots = open_sources(args.src, dst, lambda path: path.lower().endswith((".tif", ".tiff")))
    files = {what: Path(getattr(args, what) or _find(roots, what, args.src)) for what in PATTERNS}
    holes: dict[int, np.ndarray] = {}
    made: Counter[bool] = Counter()
    size: tuple[int, int] | None = None
    for folder, what in zip(FOLDERS, PATTERNS, strict=True):  # the label last: it is unchanged where a date has no data
        with open_geotiff(files[what]) as img:
            if size is not None and img.size != size:
                raise UserError(f"{files[what]}: found {img.size}, expected {size} (width, height) as {files['before']}; take one release")
            size = img.size
            made += cut_crops(img, files[what], dst / folder, holes, args.overwrite)
    assert size is not None
    cols, rows = size[0] // SIDE, size[1] // SIDE
    return [
        f"{cols} x {rows} = {cols * rows} crops (complete: 7434) each for A, B and label; "
        f"{made[True]} files cut, {made[False]} already existed",
        f"{sum(int(hole.sum()) for hole in holes.values())} pixels without data: black in the images, unchanged in the label",
        "the authors' names and numbering are not documented (see `python -m dataset.prepare whu --help`)",
    ]


def _find(roots: list[Path], what: str, sources: list[str]) -> Path:
    for pattern in PATTERNS[what]:
        found = [path for root in roots for path in sorted(root.rglob("*")) if path.match(pattern) and path.is_file()]
        if what != "label":
            found = [path for path in found if "label" not in path.name.lower()]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(path) for path in found[:3])
            raise UserError(f"--src: found {len(found)} files that may be the {what} image ({names}); name it with --{what} FILE")
    raise nothing(f"{what} image ({PATTERNS[what][0]})", sources, f"the WHU-CD archive (or name the image with --{what} FILE)")


@contextmanager
def open_geotiff(path: Path) -> Iterator[Image.Image]:
    """Decodes a GeoTIFF. PIL refuses images of this size as a possible attack; here the size is expected, so its limit is raised."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        img = read_image(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if img.mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise UserError(f"{path}: found mode {img.mode}, expected 8 bits per band (1, 3 or 4 bands)")
    with img:
        yield img


def cut_crops(img: Image.Image, path: Path, folder: Path, holes: dict[int, np.ndarray], overwrite: bool) -> Counter[bool]:
    """Cuts an image into crops row by row. holes: by crop, pixels where a date has no data; dates add to it, the label is 0 there."""
    nodata = _nodata(img, path)
    if folder.name == LABEL_FOLDER and nodata in (0, 1, 255):  # a legal label: a tag that says so was copied from an image
        nodata = None
    cols, rows = img.width // SIDE, img.height // SIDE
    if not cols * rows:
        raise UserError(f"{path}: found {img.width} x {img.height}, expected an image of more than {SIDE} x {SIDE}")

    def cut(i: int) -> bool:
        row, col = divmod(i, cols)
        crop = img.crop((col * SIDE, row * SIDE, (col + 1) * SIDE, (row + 1) * SIDE))
        array = np.asarray(crop)
        hole = np.zeros((SIDE, SIDE), dtype=bool)
        if img.mode == "RGBA":
            hole |= array[..., 3] == 0
        if nodata is not None:
            bands = array if array.ndim == 3 else array[..., None]
            hole |= (bands[..., :3] == nodata).all(axis=-1)
        if folder.name == LABEL_FOLDER:
            values = np.where(hole, 0, array[..., 0] if array.ndim == 3 else array)
            content = np.where(holes.get(i, False), np.uint8(0), to_label(values, path))
        else:
            content = np.array(crop.convert("RGB"))
            content[hole] = 0
            if hole.any():
                holes[i] = holes.get(i, False) | hole
        target = folder / f"whucd_{i + 1:05}.png"
        if target.exists() and not overwrite:
            return False
        save_png(content, target)
        return True

    with ThreadPool(cores()) as pool:  # PIL compresses outside of the interpreter's lock; an image is too large for several processes
        return Counter(tqdm(pool.imap(cut, range(cols * rows)), desc=folder.name, total=cols * rows, leave=False, disable=None))


def _nodata(img: Image.Image, path: Path) -> int | None:
    """The value of pixels without data, None where the file names none (or one that 8 bits cannot have)."""
    text = getattr(img, "tag_v2", {}).get(NODATA_TAG)
    if text is None:
        return None
    try:
        value = float(str(text).strip("\0 "))
    except ValueError as error:
        raise UserError(f"{path}: found {text!r} as value of pixels without data, expected a number") from error
    return int(value) if value in range(256) else None
