"""`RawBatch`, a mini-batch as the loader leaves it, and `Batch`, with every field a step may read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dataset.photometry import strong_views
from dataset.transform import crop_parts
from model.encoder import Encoder
from util.dist import to_device

_ABSENT = torch.empty(0)


@dataclass(frozen=True)
class Reads:
    """The images that a method reads.

    labeled, unlabeled: labelled and unlabelled images of a mini-batch, in units of `batch_size`.
    strong_labeled: whether labelled images come as a strong view; there is no weak one then.
    repeat_labeled: whether an epoch of labelled images alone repeats a shorter list (beside unlabelled ones it is always repeated).
    cut_labeled: whether it is cut to the length of the unlabelled one where it is longer.
    strong_views: strong views of each unlabelled image, 0 to 2.
    second_draw: whether the unlabelled images come a second time, with draws of their own (`Batch.second`).
    """

    labeled: int = 1
    unlabeled: int = 1
    strong_labeled: bool = False
    repeat_labeled: bool = True
    cut_labeled: bool = False
    strong_views: int = 2
    second_draw: bool = False

    def images(self, batch_size: int) -> dict[str, int]:
        """The images of a shard's mini-batch from each list: labelled (x) and, where it reads them, unlabelled (u)."""
        return {"x": self.labeled * batch_size} | ({"u": self.unlabeled * batch_size} if self.unlabeled else {})


@dataclass(frozen=True)
class RawBatch:
    """A mini-batch of one shard as a loader process leaves it. B images of each kind, C is 3 or 6 (two dates), crop S x S.

    Crops and strong views are made already (img_*), or are left to the training device (part_*, taps_*, photometry). Supervised training
    has no unlabelled images. An absent field is empty. Validation fills img_x (whole images), mask_x (of their own size) and
    name_x.
    """

    mask_x: Tensor = _ABSENT  # (B, S, S) uint8 class ids, 255 is ignored
    name_x: list[str] = field(default_factory=list)
    img_x: Tensor = _ABSENT  # (B, C, S, S) uint8: weak crop
    part_x: Tensor = _ABSENT  # (B, H, W, C) uint8: what a crop is resized from, padded with 0 at the right and below to one size
    taps_x: Tensor = _ABSENT  # (B, 2, 2, taps, S) int32: filter taps of the resize, see dataset.transform.cut_image
    photometry_x: Tensor = _ABSENT  # as photometry, of one view: where a labelled image comes as a strong view
    ignore_u: Tensor = _ABSENT  # (B, S, S) uint8: 255 on padding, else 0
    box1: Tensor = _ABSENT  # (B, 4) int64: x, y, width, height of the CutMix box of view 1 in pixels, zeros for none
    box2: Tensor = _ABSENT
    name_u: list[str] = field(default_factory=list)
    img_u_w: Tensor = _ABSENT  # (B, C, S, S) uint8: weak crop
    img_u_s1: Tensor = _ABSENT  # (B, C, S, S) uint8: strong view 1
    img_u_s2: Tensor = _ABSENT  # strong view 2, where the method reads two
    part_u: Tensor = _ABSENT  # as part_x
    taps_u: Tensor = _ABSENT  # as taps_x
    photometry: Tensor = _ABSENT  # (B, views, C / 3, 10) float64: of each view and date, see dataset.photometry.Photometry.pack
    second: RawBatch | None = None  # the unlabelled images drawn a second time
    bad: list[str] = field(default_factory=list)  # of each sample: the files that others replace, one line each (bad_images=skip)

    def pin_memory(self) -> RawBatch:
        """The mini-batch in page-locked memory, from which a GPU copies while the host continues. The DataLoader calls this by its name."""
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, (Tensor, RawBatch))}
        return replace(self, **pinned)


@dataclass(frozen=True)
class Batch:
    """A mini-batch of one shard on the training device. B images of each kind, C is 3 or 6 (two dates), crop S x S.

    Supervised training reads img_x, mask_x and name_x; its mini-batches have no unlabelled images.
    """

    img_x: Tensor  # (B, C, S, S) float, normalised: weak view, or a strong one where the method reads that
    mask_x: Tensor  # (B, S, S) long, 255 is ignored
    img_u_w: Tensor = _ABSENT  # (B, C, S, S) float, normalised: weak view
    img_u_s1: Tensor = _ABSENT  # strong view 1
    img_u_s2: Tensor = _ABSENT  # strong view 2, where the method reads two
    ignore_u: Tensor = _ABSENT  # (B, S, S) uint8: 255 on padding, else 0
    box1: Tensor = _ABSENT  # (B, S, S) bool: true inside the CutMix box of view 1
    box2: Tensor = _ABSENT
    drop: Tensor = _ABSENT  # float: factors of feature dropout, as the method draws them
    progress: float = 0.0  # share of the run's steps that are done
    epoch: int = 0  # of the run, from 0
    name_x: list[str] = field(default_factory=list)
    name_u: list[str] = field(default_factory=list)
    second: Batch | None = None  # the same unlabelled images drawn a second time, where the method reads them: their views and ignore_u


def empty_batch(reads: Reads, batch_size: int, dates: int, size: int) -> Batch:
    """A mini-batch with the fields and the shapes that such a method gets, of crops size x size. Its numbers mean nothing."""

    def images(number: int) -> Tensor:
        return torch.zeros(number, 3 * dates, size, size)

    views: dict[str, Any] = {}
    labeled, count = reads.labeled * batch_size, reads.unlabeled * batch_size
    if count:
        views = {"img_u_w": images(count), "ignore_u": torch.zeros(count, size, size, dtype=torch.uint8)}
        for i in range(1, reads.strong_views + 1):
            views |= {f"img_u_s{i}": images(count), f"box{i}": torch.zeros(count, size, size, dtype=torch.bool)}
    second = Batch(_ABSENT, _ABSENT, **views) if reads.second_draw else None
    return Batch(images(labeled), torch.zeros(labeled, size, size, dtype=torch.long), second=second, **views)


def _statistics(img: Tensor, encoder: Encoder) -> tuple[Tensor, Tensor]:
    """The encoder's mean and deviation as (C, 1, 1); C is 3 or 6 (two dates)."""
    dates = img.shape[-3] // 3
    # new_tensor would wait for a GPU
    mean, std = (to_device(torch.tensor(v * dates), img.device)[:, None, None] for v in (encoder.mean, encoder.std))
    return mean, std


def normalize(img: Tensor, encoder: Encoder) -> Tensor:
    """uint8 (..., C, H, W) in 0..255 -> float with the encoder's mean and deviation; C is 3 or 6 (two dates)."""
    mean, std = _statistics(img, encoder)
    return (img.float() / 255 - mean) / std


def denormalize(img: Tensor, encoder: Encoder) -> Tensor:
    """The inverse of `normalize`: uint8 again."""
    mean, std = _statistics(img, encoder)
    return ((img * std + mean) * 255).round().clamp(0, 255).byte()


def box_map(box: Tensor, size: int) -> Tensor:
    """Boxes (B, 4) as x, y, width, height -> bool maps (B, size, size), true inside."""
    x, y, w, h = box[:, :, None].unbind(1)  # (B, 1) each
    line = torch.arange(size, device=box.device)
    rows, cols = (line >= y) & (line < y + h), (line >= x) & (line < x + w)
    return rows[:, :, None] & cols[:, None, :]


def make_batch(raw: RawBatch, device: torch.device, encoder: Encoder, drop: Tensor | None = None) -> Batch:
    """A mini-batch moved to the device and normalised there; crops and views that the loader has left out are made there."""
    out = Batch(_ABSENT, _ABSENT, drop=_ABSENT if drop is None else to_device(drop, device), name_x=raw.name_x)
    if len(raw.mask_x):
        img_x = _weak(raw.img_x, raw.part_x, raw.taps_x, device)
        if len(raw.photometry_x):
            img_x = strong_views(img_x, raw.photometry_x)[:, 0]
        out = replace(out, img_x=normalize(img_x, encoder), mask_x=to_device(raw.mask_x, device).long())
    if not len(raw.ignore_u):
        return out
    img_u_w = _weak(raw.img_u_w, raw.part_u, raw.taps_u, device)
    strong: Sequence[Tensor] = [to_device(img, device) for img in (raw.img_u_s1, raw.img_u_s2) if len(img)]
    if len(raw.photometry):  # stays on the CPU: what is in it decides what the device is to do
        strong = strong_views(img_u_w, raw.photometry).unbind(1)
    boxes = [box_map(to_device(box, device), img_u_w.shape[-1]) for box in (raw.box1, raw.box2) if len(box)]
    views: dict[str, Any] = {f"img_u_s{i}": normalize(img, encoder) for i, img in enumerate(strong, 1)}
    views |= {f"box{i}": box for i, box in enumerate(boxes, 1)}
    second = None if raw.second is None else make_batch(raw.second, device, encoder)
    views |= {"img_u_w": normalize(img_u_w, encoder), "ignore_u": to_device(raw.ignore_u, device), "second": second}
    return replace(out, name_u=raw.name_u, **views)


def _weak(img: Tensor, part: Tensor, taps: Tensor, device: torch.device) -> Tensor:
    """The weak crops on the device: those of the loader, or made here from parts."""
    return to_device(img, device) if len(img) else crop_parts(to_device(part, device), to_device(taps, device))
