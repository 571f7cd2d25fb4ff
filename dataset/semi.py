"""Training and validation data sets (METHOD.md 2). A training sample is a pure function of (seed, stream, epoch, position)."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dataset.batch import RawBatch, Reads
from dataset.lists import Entry, ImageList, inside, odd_name
from dataset.look import count, illegal, two_values, unknown_color
from dataset.opencv import resize_image, with_short_side
from dataset.photometry import draw_photometry, strong_view
from dataset.sampler import Key
from dataset.spec import IGNORE, DatasetSpec
from dataset.stored import check_whole, mask_values, to_rgb, turned, unknown_range, unreadable
from dataset.transform import Geometry, crop_image, crop_mask, cut_image, draw_box, draw_geometry, ignore_map
from util.error import UserError

STREAMS = {"x": 0, "u": 1, "second": 2}  # labelled, unlabelled, unlabelled again: part of a sample's seed


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


def image_tensor(images: Sequence[Image.Image]) -> Tensor:
    """One RGB image, or two dates, as uint8 (3 * dates, H, W)."""
    return torch.cat([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def tensor_images(img: Tensor) -> list[Image.Image]:
    """The inverse of `image_tensor`: the images of a tensor."""
    return [Image.fromarray(date.permute(1, 2, 0).numpy()) for date in img.split(3)]


TRIES = 10  # files that `skip_bad` looks at for one sample


class TrainSet(Dataset):
    """Labelled and unlabelled samples by key (see ShardSampler). A user's error comes back as the UserError itself.

    skip_bad: a file that cannot be read is replaced by the next one of its list, and named in the sample's `bad`.

    A sample has the fields of a RawBatch by their names, for one image of each kind. on_device: its crops and strong views are left to the
    training device. What is drawn is the same, and so are the images.
    """

    def __init__(
        self, sources: dict[str, Sources], crop: int, seed: int, reads: Reads, skip_bad: bool = False, on_device: bool = False
    ) -> None:
        self.sources = sources
        self.crop = crop
        self.seed = seed
        self.reads = reads
        self.skip_bad = skip_bad
        self.on_device = on_device

    def __getitem__(self, keys: tuple[Key, ...]) -> dict[str, Any] | UserError:
        bad: list[str] = []
        try:
            sample: dict[str, Any] = {}
            for key in keys:
                part = self._one(key, bad)
                sample |= {"second": part} if key[0] == "second" else part
            return sample | {"bad": "\n".join(bad)} if self.skip_bad else sample
        except UserError as error:
            return error

    def _one(self, key: Key, bad: list[str]) -> dict[str, Any]:
        """The part of a sample that comes from one stream."""
        stream, epoch, position, index = key
        listed = self.sources["x" if stream == "x" else "u"]
        make = self.labeled if stream == "x" else self.unlabeled
        for attempt in range(TRIES):
            rng = np.random.default_rng((self.seed, STREAMS[stream], epoch, position))
            try:
                return make(*listed[(index + attempt) % len(listed)], rng)
            except BadFileError as error:
                if not self.skip_bad:
                    raise
                bad.append(str(error))
        raise UserError(f"{bad[-1]} (bad_images=skip: {TRIES} files in a row are bad)")

    def labeled(self, source: Source, entry: Entry, rng: np.random.Generator) -> dict[str, Any]:
        images = source.images(entry)
        mask = source.mask(entry, images[0].size)
        geometry = draw_geometry(rng, *images[0].size, self.crop, source.spec.scale, source.spec.frame)
        sample = {"mask_x": torch.from_numpy(crop_mask(mask, geometry, self.crop, IGNORE)), "name_x": entry.image}
        strong = [draw_photometry(rng, source.spec.grey) for _ in images] if self.reads.strong_labeled else []
        if self.on_device:
            sample |= self._cut(images, geometry, "x")
            if strong:
                sample["photometry_x"] = torch.tensor([[date.pack() for date in strong]], dtype=torch.float64)
            return sample
        crops = [crop_image(image, geometry, self.crop) for image in images]
        sample["img_x"] = image_tensor([strong_view(*pair) for pair in zip(crops, strong, strict=True)] if strong else crops)
        return sample

    def unlabeled(self, source: Source, entry: Entry, rng: np.random.Generator) -> dict[str, Any]:
        images = source.images(entry)
        geometry = draw_geometry(rng, *images[0].size, self.crop, source.spec.scale, source.spec.frame)
        sample = {"ignore_u": torch.from_numpy(ignore_map(geometry, self.crop)), "name_u": entry.image}
        views = []  # of each view, the Photometry of each date
        for view in range(1, self.reads.strong_views + 1):
            views.append([draw_photometry(rng, source.spec.grey) for _ in images])
            sample[f"box{view}"] = torch.tensor(draw_box(rng, self.crop))
        if self.on_device:
            sample |= self._cut(images, geometry, "u")
            if views:
                sample["photometry"] = torch.tensor([[date.pack() for date in dates] for dates in views], dtype=torch.float64)
            return sample
        crops = [crop_image(image, geometry, self.crop) for image in images]
        sample["img_u_w"] = image_tensor(crops)
        for view, dates in enumerate(views, 1):
            sample[f"img_u_s{view}"] = image_tensor([strong_view(*pair) for pair in zip(crops, dates, strict=True)])
        return sample

    def _cut(self, images: list[Image.Image], geometry: Geometry, kind: str) -> dict[str, Any]:
        """The fields from which the training device makes the weak crop; in a frame, the crop itself."""
        if geometry.in_frame:
            return {"img_x" if kind == "x" else "img_u_w": image_tensor([crop_image(image, geometry, self.crop) for image in images])}
        part, taps = cut_image(images, geometry, self.crop)
        return {f"part_{kind}": part, f"taps_{kind}": taps}


def to_predict(images: list[Image.Image], spec: DatasetSpec) -> Tensor:
    """The input of a model for an image, or its dates: uint8 (3 * dates, H, W), with the frame's short side where the data set has one."""
    if spec.frame is not None:
        size = with_short_side(*images[0].size, min(spec.frame))
        images = [Image.fromarray(resize_image(np.asarray(image), *size)) for image in images]
    return image_tensor(images)


class ValSet(Dataset):
    """Validation samples in list order: uint8 img_x (C, H, W) as `to_predict` makes it, mask_x (H, W) of its own size, and name_x.

    A user's error comes back as the UserError itself.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.ids)

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        try:
            entry = self.source.ids[index]
            images = self.source.images(entry)
            mask = self.source.mask(entry, images[0].size)
            return {"img_x": to_predict(images, self.source.spec), "mask_x": torch.from_numpy(mask), "name_x": entry.image}
        except UserError as error:
            return error


def collate(samples: list[dict[str, Any] | UserError]) -> RawBatch | UserError:
    """Collates samples of a TrainSet, with parts and taps padded with 0 to the largest, or of a ValSet, which must have one size; the first
    error replaces the mini-batch.
    """
    fields: dict[str, list[Any]] = {}
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        for name, value in sample.items():
            fields.setdefault(name, []).append(value)
    how: dict[str, Callable[[list[Any]], Any]] = {"second": collate} | dict.fromkeys(("part_x", "taps_x", "part_u", "taps_u"), _stack)
    return RawBatch(**{name: how.get(name, default_collate)(values) for name, values in fields.items()})


def _stack(tensors: list[Tensor]) -> Tensor:
    out = tensors[0].new_zeros(len(tensors), *np.max([tensor.shape for tensor in tensors], axis=0))
    for target, tensor in zip(out, tensors, strict=True):
        target[tuple(slice(size) for size in tensor.shape)] = tensor
    return out


def batches(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's mini-batches. An error met in a worker is raised here, in the process that can report it."""
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
