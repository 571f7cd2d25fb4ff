"""Which images make which mini-batch: the recipe's shards, whatever number of processes runs them (METHOD.md 2.1, 6)."""

from collections.abc import Iterator

import torch

from dataset.batch import Reads
from dataset.spec import DatasetSpec

# One image of a list at one position in an epoch: (stream, epoch, position in the epoch's order, index in the list).
Key = tuple[str, int, int, int]


def labeled_length(labeled: int, unlabeled: int, spec: DatasetSpec, reads: Reads, repeats: bool = False) -> int:
    """How many images an epoch of a labelled list has. labeled, unlabeled: images of the lists.

    With unlabelled images it is repeated up to their number; without, where the method or the config `repeats` it, up to what the data set
    says. A longer list is cut in change detection and where the method says so.
    """
    target = unlabeled
    if not reads.unlabeled:
        target = (spec.supervised_length or unlabeled) if repeats or reads.repeat_labeled else 0
    cut = spec.bitemporal or reads.cut_labeled
    return target if target and (cut or labeled < target) else labeled


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
