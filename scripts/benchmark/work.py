"""Floating-point operations of a training step by part, counted from the model's own layers (METHOD.md 1 and 3).

Counted as the field does: a multiplication and its addition are two operations; matrix products and convolutions only. Norms,
activations, interpolation, softmax and losses cost memory traffic rather than operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dataset.spec import DatasetSpec
from model import build_model
from model.backbone.dinov2 import Attention
from model.segmenter import Segmenter
from util.config import Config
from util.error import UserError

# images of a step in units of cfg.batch_size (METHOD.md 3): the teacher's, the student's over all its forward passes
IMAGES: dict[str, tuple[int, int]] = {"unimatch_v2": (1, 3), "unimatch_v1": (1, 4), "fixmatch": (1, 2), "supervised": (0, 2)}


class Part(NamedTuple):
    """A share of a step. network: teacher | student; layer: patch embedding | linear layers | attention | decoder;
    phase: forward | backward | again (the forward pass that activation checkpointing repeats)."""

    network: str
    layer: str
    phase: str

    @property
    def kind(self) -> str:
        """What decides its rate on a card (`Card.rates`): linear | attention | convolution."""
        return {"linear layers": "linear", "attention": "attention"}.get(self.layer, "convolution")

    def __str__(self) -> str:
        return f"{self.network}, {self.layer}, {self.phase}"


def check_method(method: str) -> None:
    """Raises UserError for a method whose passes are not known."""
    if method not in IMAGES:
        raise UserError(f"--method: found {method!r}, expected one of {', '.join(IMAGES)}")


def meta_model(cfg: Config, spec: DatasetSpec) -> Segmenter:
    """The run's model without storage, frozen where the config says so."""
    with torch.device("meta"):
        model = build_model(cfg.backbone, spec.nclass, spec.task)
    if cfg.lock_backbone:
        model.backbone.requires_grad_(False)
    return model


def model_work(model: Segmenter, spec: DatasetSpec, height: int, width: int) -> dict[tuple[str, str], int]:
    """Operations of one image (change detection: one pair) of height x width pixels by (layer, "forward" | "backward").

    A backward pass costs one forward pass for the gradient of the input and one for that of the weights, where they need one.
    """
    work: Counter[tuple[str, str]] = Counter()
    with _counting(model, work):
        model(torch.empty(1, 3 * spec.dates, height, width, device="meta"))
    return dict(work)


@contextmanager
def _counting(model: Segmenter, work: Counter[tuple[str, str]]) -> Iterator[None]:
    """Inside, every forward pass of the model adds its operations, and those of a backward pass through it, to `work`."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            layer = "decoder" if name.startswith("head") else "patch embedding" if "patch_embed" in name else "linear layers"
            handles.append(module.register_forward_hook(partial(_add_layer, work, layer)))
        elif isinstance(module, Attention):
            handles.append(module.register_forward_hook(partial(_add_attention, work)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_layer(work: Counter[tuple[str, str]], layer: str, module: Any, args: tuple[Tensor], out: Tensor) -> None:
    x = args[0]
    if isinstance(module, nn.Linear):
        positions = x.numel() // module.in_features
    elif isinstance(module, nn.ConvTranspose2d):  # every input position is multiplied by the whole kernel
        positions = x.numel() // module.in_channels
    else:
        positions = out.numel() // module.out_channels
    forward = 2 * positions * module.weight.numel()
    work[layer, "forward"] += forward
    work[layer, "backward"] += forward * (x.requires_grad + module.weight.requires_grad)


def _add_attention(work: Counter[tuple[str, str]], module: Attention, args: tuple[Tensor], out: Tensor) -> None:
    batch, tokens, width = args[0].shape
    product = 2 * batch * tokens * tokens * width  # of all heads together
    work["attention", "forward"] += 2 * product  # q k^T, weights v
    work["attention", "backward"] += 5 * product * out.requires_grad  # fused kernels form q k^T again, then two for each of the two


def step_work(cfg: Config, spec: DatasetSpec, method: str) -> dict[Part, int]:
    """Operations of one shard's share of an optimiser step: one mini-batch of `cfg.batch_size`, forward and backward.

    Parts of size 0 are left out. Raises UserError for an unknown method.
    """
    check_method(method)
    work = model_work(meta_model(cfg, spec), spec, cfg.crop_size, cfg.crop_size)
    teacher, student = (cfg.batch_size * images for images in IMAGES[method])
    parts: dict[Part, int] = {}
    for (layer, phase), amount in work.items():
        if phase == "forward":
            parts[Part("teacher", layer, phase)] = teacher * amount
        parts[Part("student", layer, phase)] = student * amount
        if cfg.activation_checkpointing and phase == "backward" and amount and layer in ("linear layers", "attention"):
            parts[Part("student", layer, "again")] = student * work[layer, "forward"]
    return {part: amount for part, amount in parts.items() if amount}
