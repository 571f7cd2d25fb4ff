"""Cityscapes: gtFine labelIds become labelTrainIds. Archives and terms (non-commercial, after registration): cityscapes-dataset.com."""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from dataset.pool import parallel
from dataset.prepare.files import Job, nothing, open_sources, place_all, read_ids, save_png, under
from util.error import UserError

# The official ids of the 19 evaluated classes, in the order of the train ids; every other id is ignored.
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TABLE = np.full(256, 255, dtype=np.uint8)
TABLE[list(IDS)] = range(len(IDS))


def prepare(args: argparse.Namespace) -> list[str]:
    """Writes gtFine/.../*_labelTrainIds.png below args.dst and places leftImg8bit/. Returns the summary. Raises UserError."""
    dst = Path(args.dst)
    roots = open_sources(args.src, dst, lambda path: path.endswith(("_labelIds.png", "_leftImg8bit.png")))
    labels = {key: path for key, path in under(roots, "gtFine", "_labelIds.png").items() if key.startswith(("train/", "val/"))}
    images = under(roots, "leftImg8bit", "_leftImg8bit.png")
    if not labels:
        raise nothing("labels (gtFine/train/*/*_labelIds.png)", args.src, "gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip")
    jobs = [Job(path, dst / "gtFine" / key.replace("_labelIds", "_labelTrainIds"), args.overwrite) for key, path in labels.items()]
    made = Counter(parallel(convert, jobs, "labels"))
    new = place_all(images, dst / "leftImg8bit")
    train = sum(key.startswith("train/") for key in labels)
    return [
        f"{len(labels)} labels: {train} train, {len(labels) - train} val (complete: 2975 and 500); {made[True]} written, "
        f"{made[False]} already existed; {new} new images of {len(images)}"
    ]


def convert(job: Job) -> bool:
    """Writes one label file. False when it already existed."""
    if job.target.exists() and not job.overwrite:
        return False
    ids = read_ids(job.source)
    values = np.unique(ids)
    if (wrong := values[(values > 33) & (values != 255)]).size:  # 255 is the license plate, id -1
        raise UserError(f"{job.source}: found the id {wrong[0]}, expected 0 to 33; is it a labelIds file of gtFine?")
    save_png(TABLE[ids], job.target)
    return True
