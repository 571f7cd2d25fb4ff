"""What a run will need, before anything is booked: operations, hours and memory on a card, and what breaks first on many of them.

    python -m scripts.benchmark plan --config configs/pascal.yaml --split 92 --card h100

Calculated from the config, the lengths of the lists and the cards' data sheets; needs neither data nor a GPU. Times are a floor (the
products at the card's peak rate) and an estimate at an assumed share of peak rate and bandwidth: measure before relying on it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import product

from dataset.custom import spec_of
from scripts.benchmark.cards import CARDS, get_card
from scripts.benchmark.footprint import GIB, Footprint, footprint
from scripts.benchmark.measure import write_figures
from scripts.benchmark.recipe import IMAGE_SIZES, Recipe, find_lengths
from scripts.benchmark.scaling import CORES, EFFICIENCY, LAUNCH, MANY, Cluster, Cost, Row, cost, table, verdict
from scripts.benchmark.work import IMAGES, Part, check_method
from util.config import load_config
from util.error import UserError
from util.precision import PRECISIONS

USABLE = 0.95  # share of a card's memory that a run may take; the rest is for CUDA, NCCL, cuDNN's workspaces and gaps
FEW = (1, 2, 4, 8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m scripts.benchmark plan`."""
    parser.add_argument("--config", required=True)
    parser.add_argument("--method", default="unimatch_v2", help=f"one of {', '.join(IMAGES)}")
    parser.add_argument("--split", help="take the lengths of this split's lists, here or as published")
    parser.add_argument("--labeled", type=int, metavar="N", help="images in the labelled list; likewise the next two")
    parser.add_argument("--unlabeled", type=int, metavar="N")
    parser.add_argument("--val", type=int, metavar="N")
    parser.add_argument("--image-size", metavar="HxW", help="of the data set's images, in pixels")
    parser.add_argument("--card", default="h100", help=f"one of {', '.join(CARDS)}")
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY, help="share of peak rate and bandwidth that is reached")
    parser.add_argument("--node", type=int, default=8, help="cards in a node")
    parser.add_argument("--network", type=float, default=25.0, help="GB/s out of a node, in one direction (25 is 200 Gbit/s)")
    parser.add_argument("--cores", type=int, default=CORES, help="CPU cores beside each card")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")


@dataclass(frozen=True)
class Plan:
    """All figures. costs: {precision that the card has: a shard's step}; memory: {(precision, with activation
    checkpointing?): a process that runs all shards}."""

    recipe: Recipe
    cluster: Cluster
    costs: dict[str, Cost]
    memory: dict[tuple[str, bool], Footprint]

    def rows(self, precision: str, counts: tuple[int, ...]) -> list[Row]:
        """The run in a precision on these numbers of cards."""
        return table(self.recipe, self.cluster, self.costs[precision], counts)

    @property
    def own_rows(self) -> list[Row]:
        """The config's precision on 1 to 64 cards."""
        return self.rows(self.recipe.cfg.precision, MANY)


def main(args: argparse.Namespace) -> None:
    """Prints the plan. Raises UserError for options that do not say what to plan."""
    plan = make_plan(args)
    print(text(plan))
    if args.json:
        write_figures(args.json, figures(plan))


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan that the options ask for."""
    recipe, card = _recipe(args), get_card(args.card)
    cfg = recipe.cfg
    cluster = Cluster(card, args.efficiency, args.node, args.network, args.cores)
    possible = [precision for precision in PRECISIONS if all(card.rates(precision).values())]
    if cfg.precision not in possible:
        raise UserError(f"precision: found {cfg.precision}, expected one that --card {card.name} has: {', '.join(possible)}")
    memory = {}
    for precision, checkpointing in product(("fp32", "bf16"), (False, True)):
        changed = replace(cfg, precision=precision, activation_checkpointing=checkpointing)
        memory[precision, checkpointing] = footprint(changed, recipe.spec, args.method, recipe.shards)
    costs = {p: cost(recipe, cluster, p, memory["fp32" if "32" in p else "bf16", cfg.activation_checkpointing]) for p in possible}
    return Plan(recipe, cluster, costs, memory)


def _recipe(args: argparse.Namespace) -> Recipe:
    check_method(args.method)
    for name in ("labeled", "unlabeled", "val", "node", "network", "cores", "efficiency"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name}: found {value}, expected a number above 0")
    if args.efficiency > 1:
        raise UserError(f"--efficiency: found {args.efficiency}, expected a share, at most 1")
    cfg = load_config(args.config, args.set)
    spec = spec_of(cfg)
    lengths = find_lengths(cfg, args.method != "supervised", args.split, args.labeled, args.unlabeled, args.val)
    recipe = Recipe(cfg, spec, args.method, lengths, _size(args.image_size) or IMAGE_SIZES.get(spec.name, (cfg.crop_size,) * 2))
    if not recipe.steps(recipe.shards):
        raise UserError(f"batch_size: these lists make no full mini-batch of {recipe.batch} on each of {recipe.shards} shard(s); lower it")
    return recipe


def _size(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", given)
    if not found:
        raise UserError(f"--image-size: found {given!r}, expected HEIGHTxWIDTH in pixels, such as 375x500")
    return int(found[1]), int(found[2])


def figures(plan: Plan) -> dict:
    """The plan for a machine to read. Operations as they are, bytes, seconds, hours."""
    recipe = plan.recipe
    return {
        "config": recipe.cfg.config,
        "method": recipe.method,
        "lengths": asdict(recipe.lengths),
        "image_size": recipe.image,
        "settings": {"precision": recipe.cfg.precision, "checkpointing": recipe.cfg.activation_checkpointing},
        "step_work": {str(part): amount for part, amount in recipe.work.items()},
        "evaluation_work": sum(recipe.evaluation_work.values()),
        "steps_per_epoch": recipe.steps(recipe.shards),
        "steps": recipe.steps(recipe.shards) * recipe.cfg.epochs,
        "evaluations": recipe.evaluations,
        "card": asdict(plan.cluster.card),
        "efficiency": plan.cluster.efficiency,
        "costs": {precision: asdict(one) for precision, one in plan.costs.items()},
        "hours": {precision: {row.gpus: row.hours for row in plan.rows(precision, FEW)} for precision in plan.costs},
        "memory": [
            {"precision": precision, "checkpointing": checkpointing, **asdict(f), "total": f.total, "fits": fits(f, plan.cluster)}
            for (precision, checkpointing), f in plan.memory.items()
        ],
        "gpus": [asdict(row) for row in plan.own_rows],
        "verdict": verdict(plan.own_rows, recipe, plan.cluster),
    }


def fits(found: Footprint, cluster: Cluster) -> bool:
    """Whether a run of this size fits the card."""
    return found.total <= USABLE * cluster.card.memory * GIB


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def lines_of(head: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def text(plan: Plan) -> str:
    """The plan for a person to read, as Markdown."""
    parts = (_head, _work, _time, _memory, _many)
    return "\n\n".join("\n".join(part(plan)) for part in parts)


def _head(plan: Plan) -> list[str]:
    recipe = plan.recipe
    cfg, lists = recipe.cfg, recipe.lengths
    batch = f"{recipe.batch} + {recipe.batch}" if recipe.semi else str(recipe.batch)
    named = f"{lists.labeled} labelled" + (f" and {lists.unlabeled} unlabelled" if recipe.semi else "")
    return [
        f"{cfg.config}: {recipe.method}, {cfg.backbone}, crop {cfg.crop_size}, {batch} images on each of {recipe.shards} shard(s), "
        f"{cfg.precision}{', activation checkpointing' if cfg.activation_checkpointing else ''}",
        f"Lists: {named}, {lists.val} for validation, taken as {recipe.image[0]} x {recipe.image[1]} pixels",
    ]


def _work(plan: Plan) -> list[str]:
    recipe = plan.recipe
    columns = [("teacher", "forward"), ("student", "forward"), ("student", "backward"), ("student", "again")]
    columns = [c for c in columns if any((p.network, p.phase) == c for p in recipe.work)]
    layers = dict.fromkeys(part.layer for part in recipe.work)
    body = [[layer, *(_short(recipe.work.get(Part(n, layer, p), 0) / 1e12) for n, p in columns)] for layer in layers]
    step, scored = sum(recipe.work.values()), sum(recipe.evaluation_work.values())
    steps = recipe.steps(recipe.shards)
    total = steps * recipe.cfg.epochs
    return [
        f"Work of one shard's step: {_short(step / 1e12)} TFLOP",
        "",
        *lines_of(["TFLOP", *(f"{n}, {p}" for n, p in columns)], body),
        "",
        f"{steps} steps an epoch, {total} in all: {_short(total * recipe.shards * step / 1e15)} PFLOP; "
        f"{recipe.evaluations} evaluations of {_short(scored / 1e15)} PFLOP: {_short(recipe.evaluations * scored / 1e15)} PFLOP",
    ]


def _time(plan: Plan) -> list[str]:
    card, body = plan.cluster.card, []
    for precision, one in plan.costs.items():
        hours = {row.gpus: _short(row.hours) for row in plan.rows(precision, FEW)}
        speeds = " / ".join(f"{rate:.0f}" for rate in card.rates(precision).values())
        body.append([precision, speeds, _short(1000 * one.floor), _short(1000 * one.shard), *(hours.get(gpus, "-") for gpus in FEW)])
    head = ["precision", "peak TFLOP/s: linear / attention / convolutions", "ms a shard's step: floor", "estimate"]
    shards = plan.recipe.shards
    divisors = ", ".join(str(n) for n in range(1, shards + 1) if shards % n == 0)
    return [
        f"Time on {card.name}. Floor: these operations at the peak rate. Estimate: with the memory traffic between them at "
        f"{card.bandwidth:g} GB/s, all at {plan.cluster.efficiency:g} of the data sheet's figures, and at least {1e6 * LAUNCH:g} us "
        "for each operation (both assumed); not compiled",
        "",
        *lines_of([*head, *(f"hours on {gpus}" for gpus in FEW)], body),
        "",
        f"{divisors} GPU(s) compute the same run, {shards} shard(s) a step; more of them make more shards, a larger batch, fewer steps.",
    ]


def _memory(plan: Plan) -> list[str]:
    columns = ("weights", "teacher", "gradients", "adam", "batches", "activations", "temporary", "total")
    body = []
    for (precision, checkpointing), found in plan.memory.items():
        name = ("bf16, fp16" if precision == "bf16" else "fp32, tf32") + (", checkpointing" if checkpointing else "")
        body.append([name, *(f"{getattr(found, c) / GIB:.2f}" for c in columns), "yes" if fits(found, plan.cluster) else "no"])
    card = plan.cluster.card
    return [
        f"Memory of a process in GiB, one shard at a time; {card.name} has {card.memory:g}, of which {USABLE:.0%} may be taken",
        "",
        *lines_of(["", *columns, "fits"], body),
    ]


def _many(plan: Plan) -> list[str]:
    cluster = plan.cluster
    head = ["GPUs", "shards", "labelled images a step", "steps an epoch", "ms a step", "waiting for gradients", "hours", "of it evaluation"]
    head += ["loader: cores a GPU", "images/s to read"]
    body = []
    for row in plan.own_rows:
        cells = [str(row.gpus), str(row.shards), str(row.batch), str(row.steps), _short(1000 * row.step_seconds), f"{row.talk:.1%}"]
        cells += [_short(row.hours), _short(row.evaluation_hours), f"{row.loader_cores:.1f}", f"{row.files_per_second:.0f}"]
        body.append(cells)
    return [
        f"1 to {MANY[-1]} GPUs, {plan.recipe.cfg.precision}: nodes of {cluster.node}, {cluster.card.link:g} GB/s between cards, "
        f"{cluster.network:g} GB/s between nodes, {1000 * plan.recipe.sample_seconds:.0f} ms of a CPU core for each sample",
        "",
        *lines_of(head, body),
        "",
        f"What breaks first: {verdict(plan.own_rows, plan.recipe, cluster)}",
    ]
