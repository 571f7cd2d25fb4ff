"""Exponential moving average of a model (spec.md 3)."""

import copy
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def make_teacher(student: Model) -> Model:
    """A frozen copy of the student in eval mode."""
    return copy.deepcopy(student).eval().requires_grad_(False)


def ema_decay(it: int) -> float:
    """Decay after step `it` (0-based): grows as the average of all steps so far would need, up to 0.996."""
    return min(1 - 1 / (it + 1), 0.996)


@torch.no_grad()
def ema_update_(teacher: nn.Module, student: nn.Module, it: int) -> None:
    """teacher = d * teacher + (1 - d) * student for parameters and floating-point buffers; integer buffers are copied."""
    decay = ema_decay(it)
    own, new = [], []
    for t, s in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
        if t.is_floating_point():
            own.append(t)
            new.append(s)
        else:
            t.copy_(s)
    torch._foreach_mul_(own, decay)
    torch._foreach_add_(own, new, alpha=1 - decay)
