"""Which images make which mini-batch: the recipe's shards, whatever number of processes runs them (METHOD.md 2.1, 6)."""

from collections.abc import Iterator

import torch

# One image of a list at one position in an epoch: (stream, epoch, position in the epoch's order, index in the list).
Key = tuple[str, int, int, int]


def repeated_length(length: int, target: int, cut: bool) -> int:
    """How many images an epoch of a labelled list has: repeated up to `target`; a longer list is cut only where `cut` says so. 0: all."""
    return target if target and (cut or length < target) else length


def epoch_order(length: int, epoch: int, shards: int) -> torch.Tensor:
    """Order of an epoch: a permutation seeded with the epoch, padded from its own start to a multiple of `shards`."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(epoch))
    padded = -(-length // shards) * shards
    return order.repeat(-(-padded // length))[:padded]


def epoch_steps(lengths: list[int], shards: int, batch: int) -> int:
    """Optimiser steps of an epoch: full mini-batches of a shard; the shortest list ends it."""
    return min(-(-length // shards) // batch for length in lengths)


class ShardSampler:
    """Batch sampler of one process. Yields, for each step and each own shard, the keys of a mini-batch.

    An item of a mini-batch is one key per stream: a labelled image and, semi-supervised, an unlabelled one.
    streams: {name: (images in the list, images of an epoch)}; a longer epoch repeats the list in order.
    Call `set_epoch` before each pass; `start` skips the steps that were done before a resume.
    """

    def __init__(self, streams: dict[str, tuple[int, int]], batch: int, shards: int, own: range) -> None:
        self.streams = streams
        self.batch = batch
        self.shards = shards
        self.own = own
        self.steps = epoch_steps([length for _, length in streams.values()], shards, batch)
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        return (self.steps - self.start) * len(self.own)

    def __iter__(self) -> Iterator[list[tuple[Key, ...]]]:
        epoch = self.epoch
        orders = {name: epoch_order(length, epoch, self.shards) for name, (_, length) in self.streams.items()}
        for step in range(self.start, self.steps):
            for shard in self.own:
                first = shard + step * self.batch * self.shards
                positions = range(first, first + self.batch * self.shards, self.shards)
                yield [
                    tuple((name, epoch, p, int(orders[name][p]) % listed) for name, (listed, _) in self.streams.items()) for p in positions
                ]
