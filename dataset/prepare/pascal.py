"""Pascal VOC 2012 with the extra labels of SBD: the 10 582 training and 1449 validation images of the published lists.

VOC's own masks count where both have one. SBD's masks (.mat, or colour or grey PNGs made of them) have no void borders. VOC:
host.robots.ox.ac.uk, images under the terms of Flickr; SBD: the Semantic Boundaries Dataset of Hariharan et al. (2011).
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from dataset.pool import parallel
from dataset.prepare.files import Job, nothing, open_sources, place, place_all, read_image, save_png, under
from dataset.spec import bit_palette, get_spec
from util.error import UserError

FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "cls", "img")
PALETTE = bit_palette(256)  # entry 255 is the colour of void
VOC = "VOCtrainval_11-May-2012.tar"
SBD = "benchmark.tgz"


def prepare(args: argparse.Namespace) -> list[str]:
    """Writes JPEGImages/ and SegmentationClass/ below args.dst. Returns the lines of the summary. Raises UserError."""
    dst = Path(args.dst)
    roots = open_sources(args.src, dst, lambda path: Path(path).parent.name in FOLDERS)
    voc = under(roots, "SegmentationClass", ".png")
    sbd = under(roots, "SegmentationClassAug", ".png") | under(roots, "cls", ".mat")
    if not voc:
        raise nothing("masks (SegmentationClass/*.png)", args.src, f"{VOC}, and {SBD} for the 10 582-image list")
    masks = {Path(key).stem: path for files in (sbd, voc) for key, path in files.items()}  # VOC last: it takes precedence
    images = {Path(key).stem: path for folder in ("img", "JPEGImages") for key, path in under(roots, folder, ".jpg").items()}
    names = sorted(masks.keys() & images.keys())
    if not names:
        raise nothing("images (JPEGImages/*.jpg) of the masks", args.src, VOC)
    jobs = [Job(masks[name], dst / f"SegmentationClass/{name}.png", args.overwrite) for name in names]
    made = Counter(parallel(convert, jobs, "masks"))
    new = place_all({f"{name}.jpg": images[name] for name in names}, dst / "JPEGImages")
    own = len({Path(key).stem for key in voc} & set(names))
    lines = [
        f"{len(names)} masks: {own} of VOC, {len(names) - own} of SBD; {made[True]} written, {made[False]} already existed; "
        f"{new} new images"
    ]
    if left := len(masks.keys() - images.keys()):
        lines.append(f"{left} masks have no image and were left out")
    if not sbd:
        lines.append(f"no SBD labels in --src: the lists of 10 582 images need them ({SBD})")
    return lines


def convert(job: Job) -> bool:
    """Writes one mask as palette PNG. False when it already existed."""
    if job.target.exists() and not (job.overwrite or job.target.samefile(job.source)):
        return False
    if job.source.suffix == ".mat":
        save_png(_checked(read_mat(job.source), job.source), job.target, PALETTE)
        return True
    img = read_image(job.source)
    if img.mode == "P":  # as published: the file itself
        _checked(np.asarray(img), job.source)
        if job.overwrite and not (job.target.exists() and job.target.samefile(job.source)):
            job.target.unlink(missing_ok=True)
        return place(job.source, job.target)
    if job.target.exists() and job.target.samefile(job.source):
        raise UserError(f"{job.source}: has to be converted; choose another --dst, so that the original is not overwritten")
    ids = np.asarray(img) if img.mode == "L" else from_colors(np.asarray(img.convert("RGB")), job.source)
    save_png(_checked(ids, job.source), job.target, PALETTE)
    return True


def read_mat(path: Path) -> np.ndarray:
    """The class ids (H, W) uint8 of an SBD file. Needs scipy."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError("pascal: reading SBD's .mat files needs scipy; `pip install -r requirements-extra.txt`") from error
    try:
        return np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0], dtype=np.uint8)
    except Exception as error:  # scipy raises what it likes about a broken file
        raise UserError(f"{path}: not a label file of SBD ({type(error).__name__}: {error}); unpack it again") from error


def from_colors(rgb: np.ndarray, path: Path) -> np.ndarray:
    """The class ids (H, W) uint8 of a mask (H, W, 3) painted in VOC's colours."""
    weights = np.array([1 << 16, 1 << 8, 1])
    codes, ids = rgb.astype(np.int64) @ weights, np.array(PALETTE) @ weights
    order = np.argsort(ids)
    at = order[np.searchsorted(ids[order], codes).clip(max=255)]
    if (wrong := ids[at] != codes).any():
        raise UserError(f"{path}: found the color {tuple(rgb[wrong][0].tolist())}, expected the 21 colors of VOC and that of void")
    return at.astype(np.uint8)


def _checked(ids: np.ndarray, path: Path) -> np.ndarray:
    worst = int(ids[ids != 255].max(initial=0))
    if worst >= get_spec("pascal").nclass:
        raise UserError(f"{path}: found the value {worst}, expected 0 to 20 or 255")
    return ids
