"""Means of what the steps of an epoch report, read from the device only when somebody asks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from util.dist import World


class AverageMeter:
    """Per-step scalars, kept on the device until somebody reads them, and their running averages since the epoch's start.

    `sums` and `counts` are the state; `read` adds what came since the last read, as means over all shards of all processes.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.reset()

    def reset(self, sums: Mapping[str, float] | None = None, count: Mapping[str, int] | int = 0) -> None:
        """Starts anew, or from a state of before. count: of each scalar; one number for all in checkpoints of earlier versions."""
        self.pending: list[tuple[dict[str, Tensor], bool]] = []
        self.sums = dict(sums or {})
        self.counts = dict.fromkeys(self.sums, count) if isinstance(count, int) else dict(count)

    def add(self, stats: dict[str, Tensor], counts: bool = True) -> None:
        """Adds a step's scalars. counts: whether they belong to the averages; those of a skipped step do not."""
        self.pending.append((stats, counts))

    def read(self) -> list[dict[str, float]]:
        """The scalars of each step since the last read. All processes must call it at the same step."""
        if not self.pending:
            return []
        names = list(self.pending[0][0])
        self.sums, self.counts = dict.fromkeys(names, 0.0) | self.sums, dict.fromkeys(names, 0) | self.counts
        # float32: Apple GPUs have no float64
        table = torch.stack([torch.stack([stats[name].float() for name in names]) for stats, _ in self.pending])
        rows = [dict(zip(names, row, strict=True)) for row in (self.world.sum_(table) / self.world.size).tolist()]
        for row, (_, counts) in zip(rows, self.pending, strict=True):
            for name, value in row.items():
                if counts and math.isfinite(value):  # a mean over no pixel is not
                    self.sums[name] += value
                    self.counts[name] += 1
        self.pending = []
        return rows

    def means(self) -> dict[str, float]:
        """Means since the epoch's start of the steps that count; nan for what has had no value in them."""
        return {name: value / self.counts[name] if self.counts[name] else math.nan for name, value in self.sums.items()}
