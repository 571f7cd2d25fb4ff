"""Exponential moving average of a model (METHOD.md 3)."""

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


class Ema:
    """Makes a teacher follow a student. Both have to keep their tensors: these are listed once, for a GPU would wait while they are."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        pairs = list(zip(teacher.state_dict().values(), student.state_dict().values(), strict=True))
        self.own, self.new = ([pair[i] for pair in pairs if pair[i].is_floating_point()] for i in (0, 1))
        self.copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, it: int) -> None:
        """teacher = d * teacher + (1 - d) * student for parameters and floating-point buffers; integer buffers are copied."""
        decay = ema_decay(it)
        torch._foreach_mul_(self.own, decay)
        torch._foreach_add_(self.own, self.new, alpha=1 - decay)
        for own, new in self.copied:
            own.copy_(new)
