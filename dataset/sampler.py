"""Which images make which mini-batch: the recipe's shards, whatever number of processes runs them (METHOD.md 2.1, 6)."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

import torch

from dataset.batch import Reads
from dataset.spec import DatasetSpec
from util.config import Config

# One image of a list at one position in an epoch: (stream, epoch, position in the epoch's order, index in the list).
Key = tuple[str, int, int, int]


def run_shards(cfg: Config, processes: int) -> int:
    """Shards of a run (METHOD.md 6): those of its recipe, but one for each process where these are more or the recipe does not say."""
    return max(cfg.shards or 1, processes)


class Stream(NamedTuple):
    """A list as a run reads it. listed: its images; length: those of an epoch, which repeats a shorter list in order; batch: those of a
    shard's mini-batch.
    """

    listed: int
    length: int
    batch: int

    def steps(self, shards: int) -> int:
        """Full mini-batches of a shard in an epoch."""
        return -(-self.length // shards) // self.batch


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


def make_streams(listed: dict[str, int], batch_size: int, spec: DatasetSpec, reads: Reads, repeats: bool = False) -> dict[str, Stream]:
    """The streams of a run: labelled images ("x"), unlabelled ones ("u") and their second draw ("second"), as far as it reads them.

    listed: images of the labelled and the unlabelled list. repeats: see `labeled_length`.
    """
    streams = {}
    for name, batch in reads.images(batch_size).items():
        length = labeled_length(listed["x"], listed.get("u", 0), spec, reads, repeats) if name == "x" else listed[name]
        streams[name] = Stream(listed[name], length, batch)
    if reads.second_draw:
        streams["second"] = streams["u"]  # of equal length, so in the same order: the same photographs
    return streams


def epoch_order(length: int, epoch: int, shards: int) -> torch.Tensor:
    """Order of an epoch: a permutation seeded with the epoch, padded from its own start to a multiple of `shards`."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(epoch))
    padded = -(-length // shards) * shards
    return order.repeat(-(-padded // length))[:padded]


class ShardSampler:
    """Batch sampler of one process. Yields, for each step and each own shard, the keys of a mini-batch.

    An item of a mini-batch is one key per stream: a labelled image and, semi-supervised, an unlabelled one; the last items lack the
    streams that have fewer images in a mini-batch. The stream that is through first ends an epoch.
    Call `set_epoch` before each pass; `start` skips the steps that were done before a resume.
    """

    def __init__(self, streams: dict[str, Stream], shards: int, own: range) -> None:
        self.streams = streams
        self.shards = shards
        self.own = own
        self.steps = min(stream.steps(shards) for stream in streams.values())
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The next pass is over `epoch`, from step `start` of it on."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        return (self.steps - self.start) * len(self.own)

    def __iter__(self) -> Iterator[list[tuple[Key, ...]]]:
        epoch = self.epoch
        orders = {name: epoch_order(stream.length, epoch, self.shards) for name, stream in self.streams.items()}

        def keys(name: str, step: int, shard: int) -> list[Key]:
            listed, _, batch = self.streams[name]
            positions = range(shard + step * batch * self.shards, shard + (step + 1) * batch * self.shards, self.shards)
            return [(name, epoch, p, int(orders[name][p]) % listed) for p in positions]

        for step in range(self.start, self.steps):
            for shard in self.own:
                items = zip_longest(*(keys(name, step, shard) for name in self.streams))
                yield [tuple(key for key in item if key) for item in items]
