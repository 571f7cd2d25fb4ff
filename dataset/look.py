"""Looks at one image and its mask without knowing the lists: what `check` and the stratified `make` do on all cores."""

import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.lists import inside
from dataset.spec import IGNORE, DatasetSpec
from util.error import UserError

ID_MODES = ("L", "P", "1", "I", "I;16", "I;16B")  # modes whose pixels are class ids; a bit of mode 1 counts as 0 or 255, as PIL has it


def is_deep(image: Image.Image) -> bool:
    """Whether an image has 32 bits a pixel: what is black and white in it, nobody knows."""
    return image.mode == "F" or (image.mode == "I" and image.format == "TIFF")


class Job(NamedTuple):
    """An image, or both dates of a pair, to look at. mask: None where none is read. decode: read the pixels too, not only the head."""

    root: str
    paths: tuple[str, ...]
    mask: str | None
    decode: bool = False

    @property
    def images(self) -> list[str]:
        """The full paths of the image, or of both dates."""
        return [os.path.join(self.root, path) for path in self.paths]

    @property
    def label(self) -> str | None:
        return None if self.mask is None else os.path.join(self.root, self.mask)


class Found(NamedTuple):
    """kind and problem: "" when nothing is wrong. values: pixels per mask value."""

    kind: str = ""
    problem: str = ""
    values: dict[int, int] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)


def inspect(job: Job) -> Found:
    """Opens image and mask: do they exist, can they be read, have they one size, which values has the mask."""
    sizes = {}
    for path in (*job.images, *filter(None, (job.label,))):
        try:
            inside(job.root, os.path.abspath(path))
        except UserError as error:
            return Found("outside", str(error))
        if not os.path.isfile(path):
            return Found("no mask" if path == job.label else "no image", f"{path}: no such file")
        try:
            with Image.open(path) as img:
                sizes[path] = img.size
                if path == job.label:
                    if img.format == "GIF":
                        return Found("color", f"{path}: found a GIF, whose values are renumbered as it is read, expected PNG")
                    if img.mode not in ID_MODES:
                        return Found("color", f"{path}: found a mask of mode {img.mode}, expected one channel of class ids")
                    values = _count(img)
                elif is_deep(img):
                    return Found("depth", f"{path}: found 32 bits a pixel (mode {img.mode}), expected 8 or 16")
                elif job.decode:
                    img.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL reports broken files as all of these
            return Found("unreadable", f"{path}: cannot be read ({error})")
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{os.path.relpath(path, job.root)} is {w} x {h}" for path, (w, h) in sizes.items())
        return Found("size", f"{text}, expected one size")
    return Found(values=values if job.label else {})


def _count(img: Image.Image) -> dict[int, int]:
    if img.mode in ("L", "P", "1"):
        return {value: count for value, count in enumerate(img.histogram()) if count}
    values, counts = np.unique(np.asarray(img).astype(np.int64), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def illegal(values: Iterable[int], spec: DatasetSpec) -> list[int]:
    """Mask values that are neither a class nor ignored, ascending."""
    return sorted(value for value in values if _label(value, spec) < 0)


def class_of(value: int, spec: DatasetSpec) -> int | None:
    """Class id of a mask value, None for the ignored and the illegal ones."""
    label = _label(value, spec)
    return label if 0 <= label < IGNORE else None


def _label(value: int, spec: DatasetSpec) -> int:
    return int(spec.label_table[value]) if 0 <= value < len(spec.label_table) else -1
