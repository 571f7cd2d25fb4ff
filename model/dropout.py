"""Complementary dropout: what one strong view loses, the other keeps (METHOD.md 1.3)."""

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
