"""The contract that every encoder keeps, so that any method, decoder and command works with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm  # also what timm derives from these
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """An encoder.

    forward: (B, 3, H, W) float, normalised, sides multiples of `multiple` -> maps (B, channels[i], H / strides[i], W / strides[i]).
    Maps run from fine to coarse, or all have one grid (a plain vision transformer), earliest block first. Their sides are rounded up.
    multiple: number that the sides of an image must be multiples of; fixed_size: they must be `multiple` itself; least: smallest side.
    mean, std: with these its images are normalised, RGB in 0..1. out_indices: the blocks or stages, counted from 0, whose maps are
    returned; empty for all stages.
    blocks: the parts that `torch.compile` and activation checkpointing take one by one.
    draws: whether a training pass draws random numbers (stochastic depth, dropout).
    """

    multiple: int
    fixed_size = False
    least = 1
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    out_indices: tuple[int, ...] = ()
    blocks: nn.ModuleList
    draws = False
    checkpointing = False

    def run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """The output of a block. With `checkpointing`, a pass with gradients keeps only the inputs and computes the block again."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        return recomputed(block, block, *inputs, draws=self.draws)

    def grid(self, img: Tensor) -> tuple[int, int]:
        """Rows and columns of `multiple` pixels in an image (B, 3, H, W). Raises ValueError where pixels would be left over."""
        height, width = img.shape[-2:]
        if height % self.multiple or width % self.multiple or (self.fixed_size and (height, width) != (self.multiple, self.multiple)):
            expected = f"{self.multiple} x {self.multiple} alone" if self.fixed_size else f"multiples of {self.multiple}"
            raise ValueError(f"found an image of {width} x {height} pixels, expected {expected}")
        return height // self.multiple, width // self.multiple

    def make_traceable_(self) -> None:
        """Prepares the encoder, in place, for a graph that takes images of any size (ONNX)."""


def batch_norms(module: nn.Module) -> dict[str, BatchNorm]:
    """The layers with batch statistics, by their names."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BatchNorm)}


def recomputed(block: nn.Module, call: Callable[..., Any], *inputs: Any, draws: bool = True, **named: Any) -> Any:
    """`call(*inputs)`, the output of a block, for which only the inputs are kept; the backward pass computes the rest again."""
    layers = [layer for layer in batch_norms(block).values() if layer.training]
    contexts = (lambda: (nullcontext(), _statistics_kept(layers))) if layers else noop_context_fn
    return checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=draws, context_fn=contexts, **named)


@contextmanager
def _statistics_kept(layers: list[BatchNorm]) -> Iterator[None]:
    """A context in which BatchNorm layers do not update their running statistics: a block that is computed again has done so already."""
    counts = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
    kept, momenta = [count.clone() for count in counts], [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for count, value in zip(counts, kept, strict=True):
            count.copy_(value)
