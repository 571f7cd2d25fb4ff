"""Scaled dot-product attention, in the form that the device computes fastest."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

LONG = 256  # tokens from which a head's matrix products are worth a call each
QUERIES = 1024  # tokens of a head whose weights exist at once


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention: softmax(q k^T / sqrt(D)) v, all (B, heads, tokens, D)."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.is_grad_enabled() or q.shape[2] < LONG:
        return F.scaled_dot_product_attention(q, k, v)
    # PyTorch's fused kernel reaches a fifth of a CPU's bfloat16 rate; head by head, the weights stay in the cache. Scores are rounded
    # here: the keys' mean adds the same to all scores of a token, which softmax does not see, and without it they are small.
    k = (k - k.mean(dim=2, keepdim=True)) * q.shape[-1] ** -0.5
    heads = zip(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), strict=True)
    out = [torch.cat([(rows @ keys.T).softmax(dim=-1) @ values for rows in queries.split(QUERIES)]) for queries, keys, values in heads]
    return torch.stack(out).unflatten(0, q.shape[:2])


@contextmanager
def as_on_gpus() -> Iterator[None]:
    """Inside, attention is the fused kernel's alone, also where a CPU computes bfloat16 by heads."""
    global LONG
    before, LONG = LONG, sys.maxsize
    try:
        yield
    finally:
        LONG = before
