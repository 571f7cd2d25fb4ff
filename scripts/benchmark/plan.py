"""What a run will need, before anything is booked: operations, memory, and hours on 1 to 8 cards.

    python -m scripts.benchmark plan --config configs/pascal.yaml --split 92 --card h100

Calculated from the config, the lengths of the lists and the cards' data sheets; needs neither data nor a GPU. Times are a floor (the
products at the card's peak rate) and an estimate at an assumed share of peak rate and bandwidth: measure before relying on it.
"""

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from dataset.custom import spec_of, unlabeled_places
from dataset.lists import read_lines
from dataset.sampler import make_streams, run_shards
from dataset.splits.published import published_length, published_splits
from engine.footprint import GIB, DryRun, Meter, Work
from engine.method import Method, method_for
from model.loss import numeric_criterion
from model.spec import check_crop, get_encoder
from scripts.table import markdown_table
from util.cli import positive
from util.config import Config, load_config
from util.error import UserError
from util.files import write_output
from util.precision import PRECISIONS, SIXTEEN_BIT

EFFICIENCY = 0.7  # an assumption, no measurement: the share of a card's peak rate and bandwidth that a run reaches
LAUNCH = 6e-6  # an assumption: seconds that PyTorch takes on the CPU to start one operation
UPDATE = {"adamw": 28, "sgd": 20}  # bytes that an optimiser in one kernel moves for a parameter
AVERAGE = 20  # bytes that the moving average moves for a parameter
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
        linear = attention = convolutions = getattr(self, precision)
        if linear and precision not in SIXTEEN_BIT:
            attention, convolutions = max(self.fp32, self.tf32 / 3), max(self.fp32, self.tf32)
        return {"linear layers": linear, "attention": attention, "convolutions": convolutions}


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


def image_size(text: str) -> tuple[int, int]:
    """Height and width, of a command line."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected HEIGHTxWIDTH in pixels, such as 375x500")
    return int(found[1]), int(found[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m scripts.benchmark plan` alone."""
    parser.add_argument("--split", help="take the lengths of this split's lists, here or as published")
    parser.add_argument("--labeled", type=positive, metavar="N", help="images in the labelled list; likewise the next two")
    parser.add_argument("--unlabeled", type=positive, metavar="N")
    parser.add_argument("--val", type=positive, metavar="N")
    parser.add_argument("--image-size", type=image_size, metavar="HxW", help="of the data set's images, in pixels")
    parser.add_argument("--card", default="h100", type=str.lower, choices=CARDS)
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY, help="share of peak rate and bandwidth that is reached")


def main(args: argparse.Namespace) -> None:
    """Prints the plan, each paragraph as soon as it is known. Raises UserError for options that do not say what to plan."""
    if not 0 < args.efficiency <= 1:
        raise UserError(f"--efficiency: found {args.efficiency}, expected a number above 0, at most 1")
    cfg, method = load_recipe(args.config, args.set, args.method)
    plan = Plan(cfg, method, find_lengths(cfg, method, args), CARDS[args.card], args.efficiency)
    found: dict[str, Any] = {}
    for text, figures in plan.paragraphs(args.image_size or spec_of(cfg).image_size or (cfg.crop_size, cfg.crop_size)):
        print(f"\n{text}" if found else text, flush=True)
        found |= figures
    write_output("--json", args.json, json.dumps(found, indent=1))


def load_recipe(path: str, settings: list[str] | None, name: str | None) -> tuple[Config, Method]:
    """A run's config, settled as far as it needs no data, and its method. Raises UserError for one that makes no run.

    `class_weights: auto` are equal ones. name: see `method_for`.
    """
    method = method_for(path, name)
    cfg = replace(load_config(path, settings, method.config), pretrained=None)
    spec, method = spec_of(cfg), method.of(cfg)
    check_crop(cfg.crop_size, get_encoder(cfg.backbone).facts())
    criterion = numeric_criterion(cfg.criterion, spec.nclass, lambda: [1] * spec.nclass)
    return method.settled(replace(cfg, criterion=criterion), spec.task), method


def find_lengths(cfg: Config, method: Method, args: argparse.Namespace) -> dict[str, int]:
    """The lengths that are given, else those of the split's lists or of the config's. Raises UserError where there is none."""
    spec = spec_of(cfg)
    lists = {"labeled": [cfg.labeled_id_path], "unlabeled": [path for path, _ in unlabeled_places(cfg)]}
    if args.split is not None:
        lists = {name: [spec.list_path(args.split, name)] for name in lists}
    if not method.semi:  # of own data, the unlabelled lists that exist give the length of an epoch (dataset/loader.py)
        lists["unlabeled"] = [] if spec.supervised_length else [path for path in lists["unlabeled"] if Path(path).is_file()]
    lengths = {}
    for name, paths in (lists | {"val": [cfg.val_id_path or spec.val_list]}).items():
        lengths[name] = getattr(args, name) or sum(map(list_length, filter(None, paths)))
        if not lengths[name] and (method.semi or name != "unlabeled"):
            known = ", ".join(published_splits(spec.name))
            ways = f"give --split NAME{f' (published: {known})' if known else ''}, or --labeled N --unlabeled N"
            raise UserError(f"--split: found none, and no {name} list in the config; {ways}")
    return lengths


def list_length(path: str) -> int:
    """Lines of a list: of the file where it is here, else as published. Raises UserError for a list that is neither."""
    lines = len(read_lines(path)) if Path(path).is_file() else published_length(path)
    if not lines:
        raise UserError(f"{path}: no such list, and none that is published; give its length with --labeled, --unlabeled or --val")
    return lines


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


class Plan:
    """A run and the card for it. cfg: settled. lengths: of its lists, labeled, unlabeled and val. efficiency: share of peak rate and of
    bandwidth.

    Raises UserError for a run that the lists or the card do not allow.
    """

    def __init__(self, cfg: Config, method: Method, lengths: dict[str, int], card: Card, efficiency: float = EFFICIENCY) -> None:
        self.cfg, self.method, self.lengths, self.card, self.efficiency = cfg, method, lengths, card, efficiency
        self.shards = run_shards(cfg, 1)
        self.images = method.reads.images(cfg.batch_size)
        self.batch = " + ".join(map(str, self.images.values()))  # in words
        self.evaluations = -(-cfg.epochs // cfg.eval_every)  # the last epoch has one in any case
        if not self.steps(self.shards):
            raise UserError(f"batch_size: these lists make no full mini-batch of {self.batch} on each of {self.shards} shard(s); lower it")
        self.precisions = [precision for precision in PRECISIONS if all(card.rates(precision).values())]
        if cfg.precision not in self.precisions:
            raise UserError(f"precision: found {cfg.precision}, expected one that --card {card.name} has: {', '.join(self.precisions)}")

    def steps(self, shards: int) -> int:
        """Optimiser steps of an epoch; 0 where the lists make no full mini-batch."""
        cfg, listed = self.cfg, {"x": self.lengths["labeled"], "u": self.lengths["unlabeled"]}
        streams = make_streams(listed, cfg.batch_size, spec_of(cfg), self.method.reads, cfg.supervised_length is not None)
        return min(stream.steps(shards) for stream in streams.values())

    def cost(self, precision: str, step: Work, scored: Work, used: Meter, trained: int) -> dict[str, float]:
        """Seconds on one card, estimated: products at the peak rate, then what lies between them at the peak bandwidth, both at the
        efficiency; or the time to start all of these operations, where a small model waits for that. The forward passes of an
        evaluation are taken to come as near to their products as a step does.

        step, scored: operations of one shard's step and of one evaluation. used: by the step, in 16 or in 32 bits. trained: parameters.
        """
        rates, bandwidth = self.card.rates(precision), 1e9 * self.card.bandwidth
        floor, score = (sum(amount / (1e12 * rates[kind]) for kind, amount in work.items()) for work in (step, scored))
        shard = max((floor + used.moved / bandwidth) / self.efficiency, used.operations * LAUNCH)
        moved = UPDATE[str(self.cfg.optimizer)] + (AVERAGE if self.method.teacher == "ema" else 0)
        return {
            "floor": floor,  # products of a shard's step at the peak rate: no implementation goes below
            "shard": shard,  # the estimate for it
            "update": trained * moved / bandwidth / self.efficiency,  # optimiser and moving average
            "evaluation": self.evaluations * score * shard / floor,  # all of the run
        }

    def hours(self, cost: dict[str, float], gpus: int) -> float | None:
        """Hours of the run on so many cards; None where its shards cannot be spread over them, or make no full mini-batch.

        The backward pass of the last shard is taken to hide the way of the gradients, which they have between the cards of one node.
        """
        shards = run_shards(self.cfg, gpus)
        steps = self.steps(shards)
        if shards % gpus or not steps:
            return None
        step = shards // gpus * cost["shard"] + cost["update"]
        return steps * self.cfg.epochs * step / 3600 + cost["evaluation"] / gpus / 3600

    def paragraphs(self, image: tuple[int, int]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The plan for a person to read, as Markdown: its paragraphs, each with its figures for a machine to read (bytes, seconds, hours).

        image: height and width of the data set's images.
        """
        cfg, method, lengths, shards, card = self.cfg, self.method, self.lengths, self.shards, self.card
        run, own = DryRun(cfg, method, shards), cfg.activation_checkpointing
        lists = f"{lengths['labeled']} labelled" + (f" and {lengths['unlabeled']} unlabelled" if method.semi else "")
        yield (
            f"{cfg.config}: {method.name}, {cfg.backbone}, crop {cfg.crop_size}, {self.batch} images on each of {shards} shard(s), "
            f"{cfg.precision}{', activation checkpointing' * own}\n"
            f"Lists: {lists}, {lengths['val']} for validation, taken as {image[0]} x {image[1]} pixels",
            {"config": cfg.config, "method": method.name, "lengths": lengths, "image_size": image},
        )
        steps = {("fp32", own): run.step(precision="fp32")}  # by precision and activation checkpointing
        work = steps["fp32", own][1].work
        yield f"Work of one shard's step: {_short(work.total() / 1e12)} TFLOP", {"step_work": dict(work)}

        one = run.evaluation(*image)
        scored = Work({kind: lengths["val"] * len(method.models) * amount for kind, amount in one.items()})
        length, evaluation = self.steps(shards), scored.total() / 1e15
        yield (
            f"{length} steps an epoch, {length * cfg.epochs} in all: {_short(length * cfg.epochs * shards * work.total() / 1e15)} PFLOP; "
            f"{self.evaluations} evaluations of {_short(evaluation)} PFLOP: {_short(self.evaluations * evaluation)} PFLOP",
            {"steps_per_epoch": length, "steps": length * cfg.epochs, "evaluations": self.evaluations, "evaluation_work": scored.total()},
        )
        yield (
            f"Time on {card.name}. Floor: these operations at the peak rate. Estimate: with the memory traffic between them at "
            f"{card.bandwidth:g} GB/s, all at {self.efficiency:g} of the data sheet's figures, and at least {1e6 * LAUNCH:g} us "
            "for each operation (both assumed); not compiled",
            {"card": asdict(card), "efficiency": self.efficiency},
        )
        steps["bf16", own] = run.step(precision="bf16")
        peak = "peak TFLOP/s: linear / attention / convolutions"
        rows, costs, hours = [["precision", peak, "ms a shard's step: floor", "estimate", *(f"hours on {n}" for n in GPUS)]], {}, {}
        for precision in self.precisions:
            memory, used = steps["bf16" if precision in SIXTEEN_BIT else "fp32", own]
            cost = costs[precision] = self.cost(precision, work, scored, used, memory["gradients"] // 4)
            each = {gpus: self.hours(cost, gpus) for gpus in GPUS}
            hours[precision] = [{"gpus": gpus, "hours": time} for gpus, time in each.items() if time is not None]
            rates = " / ".join(f"{rate:.0f}" for rate in card.rates(precision).values())
            times = ["-" if time is None else _short(time) for time in each.values()]
            rows.append([precision, rates, _short(1000 * cost["floor"]), _short(1000 * cost["shard"]), *times])
        yield markdown_table(rows), {"costs": costs, "gpus": hours}
        yield from self._memory(run, steps)

    def _memory(self, run: DryRun, steps: dict[tuple[str, bool], tuple[dict[str, int], Meter]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The paragraphs about memory. steps: those that are known, by precision and activation checkpointing."""
        shards, card = self.shards, self.card
        divisors = ", ".join(str(n) for n in range(1, shards + 1) if shards % n == 0)
        yield (
            f"{divisors} GPU(s) compute the same run, {shards} shard(s) a step; more of them make more shards, a larger batch, "
            f"fewer steps.\n\nMemory of a process in GiB, one shard at a time; {card.name} has {card.memory:g}, of which {USABLE:.0%} may "
            "be taken",
            {},
        )
        rows, found = [["", *next(iter(steps.values()))[0], "total", "fits"]], []
        for precision, on in product(("fp32", "bf16"), (False, True)):
            memory = (steps.get((precision, on)) or run.step(precision=precision, activation_checkpointing=on))[0]
            total = sum(memory.values())
            fits = total <= USABLE * card.memory * GIB
            found.append({"precision": precision, "checkpointing": on, **memory, "total": total, "fits": fits})
            name = ("bf16, fp16" if precision == "bf16" else "fp32, tf32") + ", checkpointing" * on
            rows.append([name, *(f"{size / GIB:.2f}" for size in (*memory.values(), total)), "yes" if fits else "no"])
        yield markdown_table(rows), {"memory": found}
