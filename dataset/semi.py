"""Training and validation data sets (METHOD.md 2). A training sample is a pure function of (seed, stream, epoch, position)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dataset.batch import RawBatch, Reads
from dataset.lists import Entry
from dataset.opencv import resize_image, with_short_side
from dataset.photometry import draw_photometry, strong_view
from dataset.sampler import Key
from dataset.source import BadFileError, Source, Sources
from dataset.spec import IGNORE, DatasetSpec
from dataset.transform import Geometry, crop_image, crop_mask, cut_image, draw_box, draw_geometry, ignore_map
from util.error import UserError

STREAMS = {"x": 0, "u": 1, "second": 2}  # labelled, unlabelled, unlabelled again: part of a sample's seed


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
        """The fields of a sample that come from a labelled image. Raises UserError."""
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
        """The fields of a sample that come from an unlabelled image. Raises UserError."""
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
