"""COCO 2017: converts annotations to masks of 81 classes: 0 is everything that is none of the 80 object classes.

The authors' own masks are not documented; these may differ from them, so numbers on COCO are comparable only with that in mind.
--labels panoptic (default): panoptic_annotations_trainval2017.zip. Segments do not overlap. Object segments get their class, crowd
    segments too; stuff and unlabelled pixels are 0.
--labels stuff: stuffthingmaps_trainval2017.zip (COCO-Stuff). Object pixels get their class, stuff and 255 are 0; who covers whom and
    what becomes of crowds was decided by its makers.
--labels instances: annotations_trainval2017.zip, needs pycocotools. Crowd regions are painted first, then objects from the largest
    `area` to the smallest (of equals: in the file's order), each over what is drawn already; so a small object in front of or on a large
    one stays visible. The rest is 0.
Annotations: Creative Commons Attribution 4.0, cocodataset.org; images: the terms of Flickr.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.pool import parallel
from dataset.prepare.files import nothing, open_sources, place_all, read_ids, read_image, save_png, under
from dataset.spec import get_spec
from util.error import UserError

# The ids of the 80 object classes in order; class = position + 1.
IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
CLASS = {i: c for c, i in enumerate(IDS, 1)}
PARTS = ("train2017", "val2017")
ARCHIVES = {
    "panoptic": "panoptic_annotations_trainval2017.zip",
    "stuff": "stuffthingmaps_trainval2017.zip",
    "instances": "annotations_trainval2017.zip",
}
STUFF_TABLE = np.zeros(256, dtype=np.uint8)  # COCO-Stuff's values are the ids minus 1
STUFF_TABLE[np.array(IDS) - 1] = range(1, 81)


class Job(NamedTuple):
    """One mask to write. source: its PNG (panoptic, stuff). facts: segments {id: class}, or the instances of the image."""

    kind: str
    source: Path
    target: Path
    facts: Any = None


def prepare(args: argparse.Namespace) -> list[str]:
    """Writes masks/ below args.dst and places train2017/, val2017/, unlabeled2017/. Returns the summary. Raises UserError."""
    dst = Path(args.dst)
    roots = open_sources(args.src, dst, _wanted)
    inner = [
        str(path) for root in roots for part in PARTS for path in sorted(root.rglob(f"panoptic_{part}.zip"))
    ]  # archives within the panoptic archive
    roots += open_sources(inner, dst, lambda path: path.endswith(".png"))
    made: Counter[bool] = Counter()
    for part in PARTS:  # one after the other: the annotations of train2017 alone fill gigabytes
        jobs = _jobs(args.labels, roots, part, dst)
        todo = [job for job in jobs if args.overwrite or not job.target.exists()]
        made[False] += len(jobs) - len(todo)
        made[True] += sum(parallel(convert, todo, f"masks of {part}"))
    if not made.total():
        raise nothing(f"{args.labels} labels", args.src, f"{ARCHIVES[args.labels]} (--labels chooses another kind)")
    new = sum(place_all(under(roots, part, ".jpg"), dst / part) for part in (*PARTS, "unlabeled2017"))
    return [
        f"{made.total()} masks from {args.labels} (complete: 118287 and 5000); {made[True]} written, "
        f"{made[False]} already existed; {new} new images",
        "the authors' own masks are not documented and may differ (see `python -m dataset.prepare coco --help`)",
    ]


def _wanted(path: str) -> bool:
    name = Path(path).name
    return path.endswith((".jpg", ".png")) or name.startswith(("panoptic_", "instances_"))


def _jobs(kind: str, roots: list[Path], part: str, dst: Path) -> list[Job]:
    masks = dst / "masks"
    if kind == "stuff":
        return [Job(kind, path, masks / key) for key, path in under(roots, part, ".png").items()]
    file = next((path for root in roots for path in sorted(root.rglob(f"{kind}_{part}.json"))), None)
    if file is None:
        return []
    try:
        content = json.loads(file.read_text())
        if kind == "instances":
            return _instance_jobs(content, file, masks)
        pngs = under(roots, f"panoptic_{part}", ".png")
        jobs = []
        for note in content["annotations"]:
            if note["file_name"] not in pngs:
                raise UserError(f"--src: found no {note['file_name']}, which {file} names; expected the PNGs of panoptic_{part}.zip too")
            facts = {s["id"]: CLASS.get(s["category_id"], 0) for s in note["segments_info"]}
            jobs.append(Job(kind, pngs[note["file_name"]], masks / note["file_name"], facts))
        return jobs
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not a COCO annotation file ({type(error).__name__}: {error}); unpack it again") from error


def _instance_jobs(content: dict, file: Path, masks: Path) -> list[Job]:
    of: dict[int, list[tuple[int, Any]]] = {img["id"]: [] for img in content["images"]}
    # crowds first, then from large to small; the sort is stable
    for note in sorted(content["annotations"], key=lambda note: (not note.get("iscrowd", 0), -note["area"])):
        of[note["image_id"]].append((CLASS[note["category_id"]], note["segmentation"]))
    return [
        Job("instances", file, masks / Path(img["file_name"]).with_suffix(".png"), (img["height"], img["width"], of[img["id"]]))
        for img in content["images"]
    ]


def convert(job: Job) -> bool:
    """Writes one mask."""
    make = {"panoptic": _panoptic, "stuff": lambda job: STUFF_TABLE[read_ids(job.source)], "instances": _instances}
    save_png(make[job.kind](job), job.target, get_spec("coco").palette)
    return True


def _panoptic(job: Job) -> np.ndarray:
    rgb = np.asarray(read_image(job.source).convert("RGB")).astype(np.int64)
    ids, where = np.unique(rgb @ np.array([1, 256, 65536]), return_inverse=True)
    if unknown := [int(i) for i in ids if i and int(i) not in job.facts]:
        raise UserError(f"{job.source}: found segment {unknown[0]}, which the annotation file does not name; take both from one archive")
    return np.array([job.facts.get(int(i), 0) for i in ids], dtype=np.uint8)[where].reshape(rgb.shape[:2])


def _instances(job: Job) -> np.ndarray:
    try:
        from pycocotools import mask as rle
    except ImportError as error:
        raise UserError("coco: --labels instances needs pycocotools; `pip install -r requirements-extra.txt`") from error
    height, width, objects = job.facts
    mask = np.zeros((height, width), dtype=np.uint8)
    for label, shape in objects:
        if isinstance(shape, list):
            code = rle.merge(rle.frPyObjects(shape, height, width))
        else:
            code = rle.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
        mask[rle.decode(code).astype(bool)] = label
    return mask
