"""`Batch`: every field a step may read."""

from dataclasses import dataclass, field
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
    """Which images a method reads.

    labeled: labelled images of a mini-batch, in units of `batch_size`; of unlabelled ones there are always `batch_size`.
    strong_views: strong views of each unlabelled image, 1 or 2.
    """

    labeled: int = 1
    unlabeled: bool = True
    strong_views: int = 2


@dataclass(frozen=True)
class Batch:
    """A mini-batch of one shard on the training device. B images of each kind, C is 3 or 6 (two dates), crop S x S.

    Supervised training reads img_x, mask_x and name_x; its mini-batches have no unlabelled images.
    """

    img_x: Tensor  # (B, C, S, S) float, normalised
    mask_x: Tensor  # (B, S, S) long, 255 is ignored
    img_u_w: Tensor = _ABSENT  # (B, C, S, S) float, normalised: weak view
    img_u_s1: Tensor = _ABSENT  # strong view 1
    img_u_s2: Tensor = _ABSENT  # strong view 2, where the method reads two
    ignore_u: Tensor = _ABSENT  # (B, S, S) 255 on padding, else 0
    box1: Tensor = _ABSENT  # (B, S, S) 1 inside the CutMix box of view 1
    box2: Tensor = _ABSENT
    drop: Tensor = _ABSENT  # float: factors of feature dropout, as the method draws them
    name_x: list[str] = field(default_factory=list)
    name_u: list[str] = field(default_factory=list)


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


def make_batch(raw: dict[str, Any], device: torch.device, encoder: Encoder, drop: Tensor | None = None) -> Batch:
    """A collated mini-batch of TrainSet samples, moved to the device and normalised there. Images still to be made are made there."""
    photometry = raw.get("photometry")  # stays on the CPU: what is in it decides what the device is told to do
    moved = {name: _move(value, device) for name, value in raw.items() if name != "photometry"}
    for img, stream in (("img_x", "x"), ("img_u_w", "u")):
        if f"part_{stream}" in moved:
            moved[img] = crop_parts(moved.pop(f"part_{stream}"), moved.pop(f"taps_{stream}"))
    if photometry is not None:
        for number, view in enumerate(strong_views(moved["img_u_w"], photometry).unbind(1), 1):
            moved[f"img_u_s{number}"] = view
    for name, value in moved.items():
        if name.startswith("img"):
            moved[name] = normalize(value, encoder)
        elif name.startswith("box"):
            moved[name] = box_map(value, moved["img_u_w"].shape[-1])
        elif name == "mask_x":
            moved[name] = value.long()
    return Batch(**moved, drop=_ABSENT if drop is None else _move(drop, device))


def _move(value: Any, device: torch.device) -> Any:
    return to_device(value, device) if isinstance(value, Tensor) else value
