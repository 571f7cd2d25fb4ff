"""Pseudo labels and their mixing: what the semi-supervised methods share (METHOD.md 3)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


def labels_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The label (B, H, W) long and confidence (B, H, W) float of each pixel, without gradient: argmax and maximum of the softmax."""
    conf, pseudo = logits.detach().softmax(dim=1).max(dim=1)
    return pseudo, conf


@torch.no_grad()
def pseudo_label(teacher: nn.Module, img: Tensor) -> tuple[Tensor, Tensor]:
    """The labels and confidences (`labels_of`) of the teacher's logits for images (B, C, H, W)."""
    return labels_of(teacher(img))


def pseudo_label_in_eval_mode(student: nn.Module, img: Tensor) -> tuple[Tensor, Tensor]:
    """The result of `pseudo_label` by a model in training that is in eval mode for this one pass."""
    return labels_of(logits_in_eval_mode(student, img))


@torch.no_grad()
def logits_in_eval_mode(student: nn.Module, img: Tensor) -> Tensor:
    """Logits (B, K, H, W) of images (B, C, H, W), without gradient, of a model in training that is in eval mode for this one pass."""
    try:
        return student.eval()(img)
    finally:
        student.train()


class Mixed(NamedTuple):
    """One strong view after CutMix."""

    img: Tensor  # (B, C, H, W)
    pseudo: Tensor  # (B, H, W) long
    conf: Tensor  # (B, H, W)
    ignore: Tensor  # (B, H, W)


def cutmix(
    img: Tensor, pseudo: Tensor, conf: Tensor, ignore: Tensor, box: Tensor, partner: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
) -> Mixed:
    """CutMix: inside its box, image i takes everything from its partner, un-mixed. box: (B, H, W), non-zero inside.

    partner: image, pseudo label, confidence and ignore map of each image's partner; None: image B-1-i of the same view.
    """
    inside = box.bool()
    other = [x.flip(0) for x in (img, pseudo, conf, ignore)] if partner is None else partner
    mixed = [torch.where(inside, new, old) for new, old in zip(other[1:], (pseudo, conf, ignore), strict=True)]
    return Mixed(torch.where(inside[:, None], other[0], img), *mixed)
