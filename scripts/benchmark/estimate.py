"""Hours of a run on 1 to 8 cards: from its operations, its lists and the cards' data sheets."""

import sys
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import Any

from dataset.custom import spec_of
from dataset.sampler import epoch_steps, labeled_length
from engine.method import Method
from scripts.benchmark.footprint import GIB, KINDS, DryRun, Meter, Work
from util.config import Config
from util.error import UserError
from util.precision import PRECISIONS, SIXTEEN_BIT

EFFICIENCY = 0.7  # an assumption, no measurement: the share of a card's peak rate and bandwidth that a run reaches
LAUNCH = 6e-6  # an assumption: seconds that PyTorch takes on the CPU to start one operation
UPDATE = {"adamw": 28, "sgd": 20}  # bytes that an optimiser in one kernel moves for a parameter
AVERAGE = 20  # and the moving average
USABLE = 0.95  # share of a card's memory that a run may take; the rest is for CUDA, NCCL, cuDNN's workspaces and gaps
GPUS = (1, 2, 4, 8)  # cards of one node


@dataclass(frozen=True)
class Card:
    """Peak rates of one card, dense, in TFLOP/s (10^12 operations a second), sums in float32; from the maker's public data sheet.

    memory: GiB. fp32: float32 without tensor cores. tf32, bf16, fp16: tensor cores; 0 where the card has none for that type.
    bandwidth: GB/s of its memory.
    """

    name: str
    memory: float
    fp32: float
    tf32: float
    bf16: float
    fp16: float
    bandwidth: float

    def rates(self, precision: str) -> dict[str, float]:
        """TFLOP/s of each kind of product at a `precision`; 0 where the card cannot do it.

        "fp32" is PyTorch's default: convolutions in TF32 on cards that have it, matrix products in full float32. The fused attention
        of float32 runs three TF32 products for each float32 one on cards that have it.
        """
        linear = getattr(self, precision)
        if precision in SIXTEEN_BIT or not linear:
            return dict.fromkeys(KINDS, linear)
        return dict(zip(KINDS, (linear, max(self.fp32, self.tf32 / 3), max(self.fp32, self.tf32)), strict=True))


CARDS = {
    card.name: card
    for card in (
        #     name       GiB   fp32   tf32   bf16   fp16   GB/s
        Card("a100-40", 40, 19.5, 156.0, 312.0, 312.0, 1555),  # SXM4
        Card("a100-80", 80, 19.5, 156.0, 312.0, 312.0, 2039),  # SXM4
        Card("h100", 80, 66.9, 494.7, 989.4, 989.4, 3350),  # SXM5
        Card("h200", 141, 66.9, 494.7, 989.4, 989.4, 4800),  # SXM5
        Card("l40s", 48, 91.6, 183.0, 362.0, 362.0, 864),
        Card("a6000", 48, 38.7, 77.4, 154.8, 154.8, 768),  # RTX A6000, Ampere
        Card("rtx4090", 24, 82.6, 82.6, 165.2, 165.2, 1008),
        Card("rtx3090", 24, 35.6, 35.6, 71.0, 71.0, 936),
        Card("v100", 32, 15.7, 0.0, 0.0, 125.0, 900),  # SXM2
    )
}


class Plan:
    """A run and the card for it. lengths: of its lists, labeled, unlabeled and val; image: (height, width) of its images in pixels.

    efficiency: share of a card's peak rate and bandwidth. Raises UserError for a run that the lists or the card do not allow.
    """

    def __init__(
        self, cfg: Config, method: Method, lengths: dict[str, int], image: tuple[int, int], card: Card, efficiency: float = EFFICIENCY
    ) -> None:
        self.cfg, self.method, self.lengths, self.image, self.card, self.efficiency = cfg, method, lengths, image, card, efficiency
        self.shards = cfg.shards or 1
        # labelled images of a shard's mini-batch; semi-supervised, as many unlabelled ones come with them
        self.batch = method.reads.labeled * cfg.batch_size
        self.evaluations = -(-cfg.epochs // cfg.eval_every)  # the last epoch has one in any case
        if not self.steps(self.shards):
            raise UserError(f"batch_size: these lists make no full mini-batch of {self.batch} on each of {self.shards} shard(s); lower it")
        self.precisions = [precision for precision in PRECISIONS if all(card.rates(precision).values())]
        if cfg.precision not in self.precisions:
            raise UserError(f"precision: found {cfg.precision}, expected one that --card {card.name} has: {', '.join(self.precisions)}")

    def steps(self, shards: int) -> int:
        """Optimiser steps of an epoch; 0 where the lists make no full mini-batch."""
        labeled, unlabeled, reads = self.lengths["labeled"], self.lengths["unlabeled"], self.method.reads
        length = labeled_length(labeled, unlabeled, spec_of(self.cfg), reads, self.cfg.supervised_length is not None)
        return epoch_steps([length, unlabeled] if reads.unlabeled else [length], shards, self.batch)

    @cached_property
    def dry(self) -> DryRun:
        """The run without storage."""
        return DryRun(self.cfg, self.method, self.shards)

    @cached_property
    def footprints(self) -> dict[tuple[str, bool], tuple[dict[str, int], Meter]]:
        """Memory and meter of a process that runs all shards, by precision (fp32 | bf16) and activation checkpointing."""
        found = {}
        for precision, again in product(("fp32", "bf16"), (False, True)):
            print(f"  {precision}{', activation checkpointing' * again}", file=sys.stderr, flush=True)
            found[precision, again] = self.dry.step(precision=precision, activation_checkpointing=again)
        return found

    @cached_property
    def work(self) -> tuple[Work, Work]:
        """Operations of one shard's step, and of one evaluation, of all of the method's models."""
        images = self.lengths["val"] * len(self.method.models)
        scored = {kind: images * amount for kind, amount in self.dry.evaluation(*self.image).items()}
        return self.footprints["fp32", self.cfg.activation_checkpointing][1].work, Work(scored)

    def cost(self, precision: str) -> dict[str, float]:
        """Seconds on one card, estimated: products at the peak rate, then what lies between them at the peak bandwidth, both at the
        efficiency; or the time to start all of these operations, where a small model waits for that. The forward passes of an
        evaluation are taken to come as near to their products as a step does.
        """
        rates, bandwidth = self.card.rates(precision), 1e9 * self.card.bandwidth
        memory, used = self.footprints["fp32" if "32" in precision else "bf16", self.cfg.activation_checkpointing]
        floor, scored = (sum(amount / (1e12 * rates[kind]) for kind, amount in work.items()) for work in self.work)
        shard = max((floor + used.moved / bandwidth) / self.efficiency, used.operations * LAUNCH)
        moved = UPDATE[self.cfg.optimizer or self.method.optimizer] + (AVERAGE if self.method.teacher == "ema" else 0)
        return {
            "floor": floor,  # products of a shard's step at the peak rate: no implementation goes below
            "shard": shard,  # the estimate for it
            "update": memory["gradients"] / 4 * moved / bandwidth / self.efficiency,  # optimiser and moving average
            "evaluation": self.evaluations * scored * shard / floor,  # all of the run
        }

    def scale(self, cost: dict[str, float], gpus: int) -> dict[str, float]:
        """The run on so many cards; empty where its shards cannot be spread over them, or make no full mini-batch.

        The backward pass of the last shard is taken to hide the way of the gradients, which they have between the cards of one node.
        """
        shards = max(self.shards, gpus)
        steps = self.steps(shards)
        if shards % gpus or not steps:
            return {}
        step, evaluation = shards // gpus * cost["shard"] + cost["update"], cost["evaluation"] / gpus / 3600
        return {
            "gpus": gpus,
            "shards": shards,  # what the recipe becomes
            "steps": steps,  # of an epoch
            "step_seconds": step,
            "hours": steps * self.cfg.epochs * step / 3600 + evaluation,
            "evaluation_hours": evaluation,  # of these
        }

    def figures(self) -> dict[str, Any]:
        """All of it for a machine to read: operations as they are, bytes, seconds, hours."""
        cfg, steps = self.cfg, self.steps(self.shards)
        costs = {precision: self.cost(precision) for precision in self.precisions}
        return {
            "config": cfg.config,
            "method": self.method.name,
            "lengths": self.lengths,
            "image_size": self.image,
            "settings": {"precision": cfg.precision, "checkpointing": cfg.activation_checkpointing},
            "step_work": dict(self.work[0]),
            "evaluation_work": self.work[1].total(),
            "steps_per_epoch": steps,
            "steps": steps * cfg.epochs,
            "evaluations": self.evaluations,
            "card": asdict(self.card),
            "efficiency": self.efficiency,
            "costs": costs,
            "gpus": {precision: [row for gpus in GPUS if (row := self.scale(cost, gpus))] for precision, cost in costs.items()},
            "memory": [
                {"precision": precision, "checkpointing": again, **memory, "total": sum(memory.values())}
                | {"moved": used.moved, "operations": used.operations, "fits": sum(memory.values()) <= USABLE * self.card.memory * GIB}
                for (precision, again), (memory, used) in self.footprints.items()
            ],
        }
