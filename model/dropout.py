"""Dropout of whole channels of the encoder's maps: UniMatch V2's complementary one, and UniMatch V1's (METHOD.md 1.3 and 3.1)."""

from collections.abc import Callable

import torch
from torch import Tensor


def combine_factors(keep: Tensor, undropped: Tensor) -> Tensor:
    """Factors of a batch that holds view 1, then view 2.

    keep: Bernoulli draws (B, C) of 0 and 1; undropped: indices of the images whose two views keep every channel.
    Returns float (2B, C): 2 * keep for view 1 and 2 - 2 * keep for view 2, 1 for both views of the undropped images.
    """
    first = 2 * keep.float()
    second = 2 - first
    first[undropped] = 1
    second[undropped] = 1
    return torch.cat((first, second))


def complementary_factors(batch: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws factors (2 * batch, channels): each channel of an image goes to one of its two views; floor(batch / 2) images keep all."""
    keep = torch.randint(0, 2, (batch, channels), generator=generator)
    undropped = torch.randperm(batch, generator=generator)[: batch // 2]
    return combine_factors(keep, undropped)


def channel_factors(batch: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws factors (batch, channels), each 0 or 2 with probability 1/2: dropout of whole channels."""
    return 2.0 * torch.randint(0, 2, (batch, channels), generator=generator)


def factor_width(channels: tuple[int, ...]) -> int:
    """The number of factors of an image: one for each channel where all maps have as many, else one for each channel of each map."""
    return channels[0] if len(set(channels)) == 1 else sum(channels)


def scaled(factors: Tensor) -> Callable[[list[Tensor]], list[Tensor]]:
    """A perturbation (model/segmenter.py) that multiplies each channel of each image's maps with its factor.

    factors: float (B, C), used for all maps (B, C, h, w), or (B, the sum of the maps' channels), divided among them.
    """

    def perturb(maps: list[Tensor]) -> list[Tensor]:
        channels = [x.shape[1] for x in maps]
        shared = factors.shape[1] == channels[0]
        parts = [factors] * len(maps) if shared else factors.split(channels, dim=1)
        return [x * part[:, :, None, None] for x, part in zip(maps, parts, strict=True)]

    return perturb


def clean_and_scaled(factors: Tensor) -> Callable[[list[Tensor]], list[Tensor]]:
    """A perturbation that decodes every image twice, as one batch: the maps as they are, and after them the same `scaled`."""
    drop = scaled(factors)
    return lambda maps: [torch.cat(pair) for pair in zip(maps, drop(maps), strict=True)]
