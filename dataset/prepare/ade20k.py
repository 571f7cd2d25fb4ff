"""ADE20K scene parsing, 150 classes (ADEChallengeData2016.zip): raw labels 0 (other) and 1 to 150 become 255 and 0 to 149.

Terms: groups.csail.mit.edu/vision/datasets/ADE20K (images for non-commercial research, annotations BSD 3-Clause).
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from dataset.pool import parallel
from dataset.prepare.files import Job, nothing, open_sources, place_all, read_ids, save_png, under
from util.error import UserError


def prepare(args: argparse.Namespace) -> list[str]:
    """Writes annotations/ below args.dst and places images/. Returns the lines of the summary. Raises UserError."""
    dst = Path(args.dst)
    parts = ("training", "validation")
    roots = open_sources(args.src, dst, lambda path: Path(path).parent.name in parts and path.endswith((".jpg", ".png")))
    labels = {f"{part}/{key}": path for part in parts for key, path in under(roots, f"annotations/{part}", ".png").items()}
    images = {f"{part}/{key}": path for part in parts for key, path in under(roots, f"images/{part}", ".jpg").items()}
    if not labels:
        raise nothing("labels (annotations/training/*.png)", args.src, "ADEChallengeData2016.zip")
    jobs = [Job(path, dst / "annotations" / key, args.overwrite) for key, path in labels.items()]
    made = Counter(parallel(convert, jobs, "labels"))
    new = place_all(images, dst / "images")
    train = sum(key.startswith("training/") for key in labels)
    return [
        f"{len(labels)} labels: {train} training, {len(labels) - train} validation (complete: 20210 and 2000); {made[True]} written, "
        f"{made[False]} already existed; {new} new images of {len(images)}"
    ]


def convert(job: Job) -> bool:
    """Writes one label file, shifted by one. False when it already existed."""
    if job.target.exists():
        if job.target.samefile(job.source):  # a second run would shift them again
            raise UserError(f"--dst: {job.target} is a raw label; choose another folder, so that it is not overwritten")
        if not job.overwrite:
            return False
    raw = read_ids(job.source)
    if (worst := int(raw.max())) > 150:
        raise UserError(f"{job.source}: found the value {worst}, expected raw labels from 0 to 150; has it been converted already?")
    save_png(raw - np.uint8(1), job.target)  # 0 wraps around to 255
    return True
