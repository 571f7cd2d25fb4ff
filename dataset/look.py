"""Looks at one image and its mask without knowing the lists: what `check` and the stratified `make` do on all cores."""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.lists import inside, odd_name
from dataset.spec import IGNORE, SPECS, DatasetSpec
from dataset.stored import check_whole, mask_values, orientation, to_rgb, unknown_range, unreadable
from util.error import UserError


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
    """The result of `inspect`.

    kind and problem: "" when nothing is wrong. values: pixels per mask value. orientation: of the image, see dataset.stored.
    digest: of the image's pixels, where they were decoded and are not all alike.
    """

    kind: str = ""
    problem: str = ""
    values: dict[int, int] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)
    orientation: int = 1
    digest: bytes = b""


def inspect(job: Job, spec: DatasetSpec | None) -> Found:
    """Opens image and mask and checks that they exist, can be read and have one size; counts the values of the mask.

    spec: None for a data set that is not described yet.
    """
    sizes, turn, pixels = {}, 1, []
    for path in (*job.images, *filter(None, (job.label,))):
        try:
            inside(job.root, os.path.abspath(path))
        except UserError as error:
            return Found("outside", str(error))
        if not os.path.isfile(path):
            return Found("no mask" if path == job.label else "no image", f"{path}: no such file{odd_name(os.path.relpath(path, job.root))}")
        try:
            with Image.open(path) as img:
                sizes[path] = img.size
                check_whole(img, path)
                if path == job.label:
                    mask = mask_values(img, path, spec)
                    values = count(mask)
                    if spec is not None and spec.colors and (wrong := illegal(values, spec)):
                        return Found("value", f"{path}: {unknown_color(mask, wrong[0], spec)}", values)
                elif depth := unknown_range(img):
                    return Found("depth", f"{path}: found {depth}, expected 8 or 16 bits without sign")
                else:
                    turn = max(turn, orientation(img))
                    if job.decode:
                        pixels.append(np.asarray(to_rgb(img)))
        except UserError as error:
            return Found("mask", str(error))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL reports broken files as all of these
            return Found("unreadable", f"{path}: {unreadable(error, 'replace it')}")
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{os.path.relpath(path, job.root)} is {w} x {h}" for path, (w, h) in sizes.items())
        return Found("size", f"{text}, expected one size", orientation=turn)
    return Found(values=values if job.label else {}, orientation=turn, digest=_digest(pixels))


def _digest(images: list[np.ndarray]) -> bytes:
    """A digest of the pixels, whatever the file's name and compression; empty for blank images, which many sets have."""
    if all((image == image[0, 0]).all() for image in images):
        return b""
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        digest.update(repr(image.shape).encode() + image.tobytes())
    return digest.digest()


def count(values: np.ndarray) -> dict[int, int]:
    """The number of pixels of each value of a mask, in ascending order of the values."""
    if values.dtype == np.uint8:
        return {value: n for value, n in enumerate(Image.fromarray(values).histogram()) if n}
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def by_class(values: Mapping[int, int], spec: DatasetSpec) -> Counter[int]:
    """The pixels of each class id, from the pixels of each mask value; -1: ignored, and illegal ones."""
    pixels = Counter[int]()
    for value, n in values.items():
        label = class_of(value, spec)
        pixels[-1 if label is None else label] += n
    return pixels


def nothing_to_learn(pixels: Counter[int], masks: int, spec: DatasetSpec) -> str:
    """The problem of labelled masks with fewer than two classes; "" for other masks. pixels: see `by_class`."""
    seen = [c for c in pixels if c >= 0]
    if len(seen) > 1:
        return ""
    only = "".join(f" but {spec.classes[c]}" for c in seen)
    return f"found no class{only} in {masks} masks ({pixels[-1] / pixels.total():.1%} of the pixels are ignored), expected two or more"


def two_values(values: Collection[int], spec: DatasetSpec) -> str:
    """The label_map that masks of two values may need, 0 and 255 for example; "" where the data set has another number of classes."""
    if len(values) != 2 or spec.nclass != 2 or spec.name in SPECS or spec.label_map:
        return ""
    low, high = sorted(values)
    return f"masks of two values: say what they stand for with `label_map: {{{low}: {spec.classes[0]}, {high}: {spec.classes[1]}}}`"


def unknown_color(mask: np.ndarray, value: int, spec: DatasetSpec) -> str:
    """The message for a colour of a mask (H, W) that no class has."""
    y, x = np.argwhere(mask == value)[0]
    found = f"found the colour {spec.shown(value)} at x = {x}, y = {y}, expected {spec.legal}"
    return f"{found}; add it to label_map (null ignores it), or save the mask without smoothing"


def illegal(values: Iterable[int], spec: DatasetSpec) -> list[int]:
    """Mask values that are neither a class nor ignored, ascending."""
    return sorted(value for value in values if _label(value, spec) < 0)


def class_of(value: int, spec: DatasetSpec) -> int | None:
    """The class id of a mask value, None for the ignored and the illegal ones."""
    label = _label(value, spec)
    return label if 0 <= label < IGNORE else None


def _label(value: int, spec: DatasetSpec) -> int:
    if spec.colors:
        return spec.label_map.get(value, -1)
    return int(spec.label_table[value]) if 0 <= value < len(spec.label_table) else -1
