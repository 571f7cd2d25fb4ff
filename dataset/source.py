"""Lists and the files that they name: images and masks as they are read, or refused (METHOD.md 2)."""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dataset.lists import Entry, ImageList, inside, odd_name
from dataset.look import count, illegal, two_values, unknown_color
from dataset.spec import DatasetSpec
from dataset.stored import check_whole, mask_values, to_rgb, turned, unknown_range, unreadable
from util.error import UserError

try:
    from kornia_rs.io import read_image_png_u8 as read_png
except ImportError:  # see requirements-extra.txt
    read_png = None
_CHANNELS = {"RGB": "rgb", "L": "mono"}  # kornia-rs's names of Pillow's modes that it reads to the same bits


class BadFileError(UserError):
    """Raised for an image or mask file that is missing or cannot be read."""


@dataclass(frozen=True)
class Source:
    """A list and the folder its paths are relative to."""

    spec: DatasetSpec
    root: str
    ids: ImageList

    def images(self, entry: Entry) -> list[Image.Image]:
        """The image of an entry, or its two dates, RGB. Raises UserError where the dates differ in size."""
        paths, _ = self.spec.files(entry)
        images = [open_image(self.root, path) for path in paths]
        for path, image in zip(paths[1:], images[1:], strict=True):
            if image.size != images[0].size:
                full = inside(self.root, path)
                raise UserError(f"{full}: found {image.size}, expected {images[0].size} (width, height) as {paths[0]}; fix the pair")
        return images

    def mask(self, entry: Entry, size: tuple[int, int]) -> np.ndarray:
        """The class ids (H, W) uint8 of an entry's mask, 255 where ignored; `size` is its image's (width, height)."""
        (image, *_), path = self.spec.files(entry)
        return open_mask(self.spec, self.root, str(path), size, inside(self.root, image))


class Sources:
    """One list, or several concatenated: index -> the Source that it belongs to and the entry in it."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part.ids) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Source, Entry]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[number]
        return part, part.ids[index - int(self._ends[number]) + len(part.ids)]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the content; of several lists, that of their SHA-256s in order."""
        sums = [part.ids.sha256 for part in self.parts]
        return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def find_file(root: str, path: str) -> str:
    """The full path of a file of a list. Raises UserError where it is not below the root, missing or no file."""
    full = inside(root, path)
    try:
        mode = os.stat(full).st_mode
    except FileNotFoundError as error:
        where = f"the folder that the list's paths start from, {root} (data_root; of unlabelled lists data_root_u)"
        raise BadFileError(f"{full}: no such file{odd_name(path)}; check the list, and {where}") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        raise _unreadable(full, error) from error
    if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
        raise BadFileError(f"{full}: not a file; correct the path or the list")
    return full


def _unreadable(full: str, error: Exception) -> BadFileError:
    return BadFileError(f"{full}: {unreadable(error, 'replace the file or take it off the list')}")


def open_file(root: str, path: str) -> tuple[Image.Image, np.ndarray | None]:
    """An image as Pillow opens it, and its pixels where they already are an array, which saves a copy."""
    full = find_file(root, path)
    try:
        with Image.open(full) as image:
            check_whole(image, full)
            pixels = _decode_png(full, image.mode) if image.format == "PNG" else None
            if pixels is not None:
                return Image.fromarray(pixels), pixels
            image.load()
            return image, None
    except Exception as error:  # PIL's readers raise whatever broken bytes lead them to
        raise _unreadable(full, error) from error


def _decode_png(path: str, mode: str) -> np.ndarray | None:
    """A PNG read by kornia-rs, in less than half of Pillow's time. None where Pillow reads it: kornia-rs is not installed, or fails."""
    if read_png is None or mode not in _CHANNELS:
        return None
    try:
        pixels = read_png(path, _CHANNELS[mode])
    except Exception:  # rarer kinds of PNG, and broken ones: Pillow reads them, or says what is wrong
        return None
    return pixels if mode == "RGB" else pixels[..., 0]


def open_image(root: str, path: str) -> Image.Image:
    """An RGB image of any mode (dataset.stored.to_rgb). EXIF rotation is ignored. Raises BadFileError for other than 8 or 16 bits too."""
    image, _ = open_file(root, path)
    if wrong := unknown_range(image):
        raise BadFileError(f"{inside(root, path)}: found {wrong}, expected 8 or 16 bits without sign; convert it to 8 bits")
    try:
        return to_rgb(image)
    except ValueError as error:
        raise _unreadable(inside(root, path), error) from error


def open_mask(spec: DatasetSpec, root: str, path: str, size: tuple[int, int], image_path: str = "") -> np.ndarray:
    """The class ids (H, W) uint8 of a mask file, 255 where ignored. `size` is the image's (width, height); its path is for the message.

    Raises UserError for a colour mask, another size, or a value that is no class.
    """
    (image, _), full = open_file(root, path), inside(root, path)
    values = mask_values(image, full, spec)
    if image.size != size:
        why = turned(image_path) or "correct one of them"
        raise UserError(f"{full}: mask is {image.size}, its image {size} (width, height); expected the same size: {why}")
    found = list(count(values))
    if wrong := illegal(found, spec):
        raise UserError(f"{full}: {unknown_color(values, wrong[0], spec)}") if spec.colors else _illegal_label(spec, full, found)
    if spec.colors:
        ids = np.empty(values.shape, np.uint8)
        for value in found:
            ids[values == value] = spec.label_map[value]
        return ids
    table = spec.label_table.astype(np.uint8)
    return np.array(values, np.uint8) if np.array_equal(table[found], found) else table[values]


def _illegal_label(spec: DatasetSpec, path: str, found: list[int]) -> UserError:
    """The error for a mask that holds the values `found`, ascending."""
    advice = two_values(found, spec) or "correct the mask, or use label_map"
    if spec.bitemporal:
        # the reference would read a mask of 0 and 1 as all unchanged
        scales = {1: "multiply the mask by 255", 65535: "write the mask with 8 bits (divide it by 257)"}
        advice = scales.get(found[-1], "write the mask as PNG, without smoothing and without other classes")
    return UserError(f"{path}: found label {illegal(found, spec)[0]}, expected {spec.legal} for {spec.name}; {advice}")
