"""Pseudo labels and their mixing: what FixMatch and UniMatch V2 share (METHOD.md 3)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


@torch.no_grad()
def pseudo_label(teacher: nn.Module, img: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's label (B, H, W) long and confidence (B, H, W) float of each pixel: argmax and maximum of the softmax."""
    conf, pseudo = teacher(img).softmax(dim=1).max(dim=1)
    return pseudo, conf


class Mixed(NamedTuple):
    """One strong view after CutMix."""

    img: Tensor  # (B, C, H, W)
    pseudo: Tensor  # (B, H, W) long
    conf: Tensor  # (B, H, W)
    ignore: Tensor  # (B, H, W)


def cutmix(
    img: Tensor, pseudo: Tensor, conf: Tensor, ignore: Tensor, box: Tensor, partner: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
) -> Mixed:
    """Inside its box, image i takes everything from its partner, un-mixed. box: (B, H, W), non-zero inside.

    partner: image, pseudo label, confidence and ignore map of each image's partner; None: image B-1-i of the same view.
    """
    inside = box.bool()
    other = [x.flip(0) for x in (img, pseudo, conf, ignore)] if partner is None else partner
    mixed = [torch.where(inside, new, old) for new, old in zip(other[1:], (pseudo, conf, ignore), strict=True)]
    return Mixed(torch.where(inside[:, None], other[0], img), *mixed)
