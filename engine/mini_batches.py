"""What a step gets: the mini-batches of a process's shards, made on its device, and what the method draws for them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from dataset.batch import Batch, make_batch
from dataset.loader import Data
from dataset.semi import batches
from engine.method import shard_seed
from engine.update import Learner


def mini_batches(data: Data, learner: Learner, epoch: int, start: int) -> Iterator[tuple[list[Batch], list[str]]]:
    """The mini-batches of the own shards, and the files left out as bad, for each step of an epoch from `start` on.

    What the method draws comes from (seed, step, shard), so that any number of processes draws the same, and a resumed run too.
    """
    sampler, student, method, cfg = data.sampler, learner.student, learner.method, learner.cfg
    sampler.set_epoch(epoch, start)
    raw = batches(data.loader)
    for step in range(start, sampler.steps):
        out, bad = [], []
        for shard, mini_batch in zip(sampler.own, islice(raw, len(sampler.own)), strict=True):
            generator = torch.Generator().manual_seed(shard_seed(cfg.seed, epoch * sampler.steps + step, shard))
            drop = method.factors(cfg, student.channels, generator)
            for text in filter(None, mini_batch.bad):
                bad += text.split("\n")
            out.append(make_batch(mini_batch, learner.world.device, student.backbone, drop))
        yield out, bad
