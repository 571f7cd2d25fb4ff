"""What a model remembers from one step to the next, besides weights and running statistics (METHOD.md 3.5)."""

from __future__ import annotations

from torch import Tensor

from model.segmenter import Segmenter
from util.dist import World


class StepMemory:
    """Keeps one memory for all shards in a step: each begins with what the step before left, and what the first shard writes stays.

    The published recipes do the same: before each pass, the first GPU's buffers are copied to all. The result does not depend on the
    number of processes. Made before a step's first shard.
    """

    def __init__(self, model: Segmenter, world: World) -> None:
        self.world = world
        self.buffers = list(model.memory().values())
        self.before = self._copy()
        self.first = self.before

    def begin_shard(self, i: int) -> None:
        """The i-th of this process's shards begins."""
        if i == 1:
            self.first = self._copy()
        if i > 0:
            self._set(self.before)

    def end_step(self, shards: int) -> None:
        """All shards are done, and the step counts. shards: of this process."""
        if shards > 1:
            self._set(self.first)
        for buffer in self.buffers:
            self.world.copy_from_first_(buffer)

    def undo(self) -> None:
        """The step does not count."""
        self._set(self.before)

    def _copy(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self.buffers]

    def _set(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer.copy_(value)
