"""What a run will need, before anything is booked: operations, memory, and hours on 1 to 8 cards.

    python -m scripts.benchmark plan --config configs/pascal.yaml --split 92 --card h100

Calculated from the config, the lengths of the lists and the cards' data sheets; needs neither data nor a GPU. Times are a floor (the
products at the card's peak rate) and an estimate at an assumed share of peak rate and bandwidth: measure before relying on it.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.custom import spec_of, unlabeled_places
from dataset.lists import read_lines
from dataset.splits.published import manifest
from engine.method import Method, get_method, method_names
from scripts.benchmark.estimate import CARDS, EFFICIENCY, GPUS, LAUNCH, USABLE, Plan
from scripts.benchmark.footprint import GIB, load_recipe
from scripts.benchmark.measure import count
from scripts.table import markdown_table
from util.config import Config
from util.error import UserError
from util.files import write_output

# height, width of typical validation images in pixels; a data set that is not here counts with its crop
IMAGE_SIZES = {
    "pascal": (375, 500), "cityscapes": (1024, 2048), "ade20k": (512, 683), "coco": (480, 640), "levir": (256, 256), "whu": (256, 256),
    "camvid": (360, 480),
}  # fmt: skip


def image_size(text: str) -> tuple[int, int]:
    """Height and width, of a command line."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected HEIGHTxWIDTH in pixels, such as 375x500")
    return int(found[1]), int(found[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m scripts.benchmark plan`."""
    parser.add_argument("--config", required=True)
    parser.add_argument(
        "--method", choices=method_names(), help="default: the one that the config's folder is named after, else unimatch_v2"
    )
    parser.add_argument("--split", help="take the lengths of this split's lists, here or as published")
    parser.add_argument("--labeled", type=count, metavar="N", help="images in the labelled list; likewise the next two")
    parser.add_argument("--unlabeled", type=count, metavar="N")
    parser.add_argument("--val", type=count, metavar="N")
    parser.add_argument("--image-size", type=image_size, metavar="HxW", help="of the data set's images, in pixels")
    parser.add_argument("--card", default="h100", type=str.lower, choices=CARDS)
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY, help="share of peak rate and bandwidth that is reached")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")


def main(args: argparse.Namespace) -> None:
    """Prints the plan. Raises UserError for options that do not say what to plan."""
    if not 0 < args.efficiency <= 1:
        raise UserError(f"--efficiency: found {args.efficiency}, expected a number above 0, at most 1")
    method = chosen_method(args.config, args.method)
    cfg, card = load_recipe(args.config, args.set, method), CARDS[args.card]
    method = method.of(cfg)
    image = args.image_size or IMAGE_SIZES.get(spec_of(cfg).name, (cfg.crop_size,) * 2)
    print("counting the operations and the memory of a step and of an evaluation ...", file=sys.stderr, flush=True)
    plan = Plan(cfg, method, find_lengths(cfg, method, args), image, card, args.efficiency)
    found = plan.figures()
    print("\n\n".join(text(plan, found)))
    write_output("--json", args.json, json.dumps(found, indent=1))


def chosen_method(config: str, name: str | None) -> Method:
    """The method of that name, else the one whose recipes the folder of the config holds, else UniMatch V2."""
    folder = Path(config).resolve().parent.name
    return get_method(name or (folder if folder in method_names() else "unimatch_v2"))


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
            splits = sorted({one.local.parts[2] for one in manifest().get(spec.name, []) if one.local.name == "labeled.txt"})
            known = f" (published: {', '.join(splits)})" if splits else ""
            ways = f"give --split NAME{known}, or --labeled N --unlabeled N"
            raise UserError(f"--split: found none, and no {name} list in the config; {ways}")
    return lengths


def list_length(path: str) -> int:
    """Lines of a list: of the file where it is here, else as published. Raises UserError for a list that is neither."""
    if Path(path).is_file():
        return len(read_lines(path))
    known = {str(one.local): one.lines for lists in manifest().values() for one in lists}
    if known.get(path):
        return known[path]
    train = known.get("/".join((*Path(path).parts[:2], "all", "train.txt")), 0)
    if path in known and train:  # a split's unlabelled images are all those that it has no labels of
        return train - list_length(str(Path(path).with_name("labeled.txt")))
    raise UserError(f"{path}: no such list, and none that is published; give its length with --labeled, --unlabeled or --val")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(rows: list[dict[str, str]]) -> str:
    """A Markdown table of {column: cell}."""
    return markdown_table([list(rows[0]), *(list(row.values()) for row in rows)])


def text(plan: Plan, found: dict[str, Any]) -> Iterator[str]:
    """The plan for a person to read, as Markdown: its paragraphs."""
    cfg, lengths, shards, card = plan.cfg, plan.lengths, plan.shards, plan.card
    step, scored = (work.total() for work in plan.work)
    images = f"{plan.batch} + {plan.batch}" if plan.method.semi else str(plan.batch)
    lists = f"{lengths['labeled']} labelled" + (f" and {lengths['unlabeled']} unlabelled" if plan.method.semi else "")
    yield (
        f"{cfg.config}: {plan.method.name}, {cfg.backbone}, crop {cfg.crop_size}, {images} images on each of {shards} shard(s), "
        f"{cfg.precision}{', activation checkpointing' * cfg.activation_checkpointing}\n"
        f"Lists: {lists}, {lengths['val']} for validation, taken as {plan.image[0]} x {plan.image[1]} pixels"
    )
    yield f"Work of one shard's step: {_short(step / 1e12)} TFLOP"
    yield (
        f"{found['steps_per_epoch']} steps an epoch, {found['steps']} in all: {_short(found['steps'] * shards * step / 1e15)} PFLOP; "
        f"{plan.evaluations} evaluations of {_short(scored / 1e15)} PFLOP: {_short(plan.evaluations * scored / 1e15)} PFLOP"
    )
    yield (
        f"Time on {card.name}. Floor: these operations at the peak rate. Estimate: with the memory traffic between them at "
        f"{card.bandwidth:g} GB/s, all at {plan.efficiency:g} of the data sheet's figures, and at least {1e6 * LAUNCH:g} us "
        "for each operation (both assumed); not compiled"
    )
    yield _table([_time_row(plan, precision, cost, found["gpus"][precision]) for precision, cost in found["costs"].items()])
    divisors = ", ".join(str(n) for n in range(1, shards + 1) if shards % n == 0)
    yield f"{divisors} GPU(s) compute the same run, {shards} shard(s) a step; more of them make more shards, a larger batch, fewer steps."
    yield f"Memory of a process in GiB, one shard at a time; {card.name} has {card.memory:g}, of which {USABLE:.0%} may be taken"
    yield _table([_memory_row(one, [*plan.footprints["fp32", False][0], "total"]) for one in found["memory"]])


def _time_row(plan: Plan, precision: str, cost: dict[str, float], rows: list[dict[str, float]]) -> dict[str, str]:
    hours = {row["gpus"]: _short(row["hours"]) for row in rows}
    return {
        "precision": precision,
        "peak TFLOP/s: linear / attention / convolutions": " / ".join(f"{rate:.0f}" for rate in plan.card.rates(precision).values()),
        "ms a shard's step: floor": _short(1000 * cost["floor"]),
        "estimate": _short(1000 * cost["shard"]),
    } | {f"hours on {gpus}": hours.get(gpus, "-") for gpus in GPUS}


def _memory_row(one: dict[str, Any], columns: list[str]) -> dict[str, str]:
    name = ("bf16, fp16" if one["precision"] == "bf16" else "fp32, tf32") + ", checkpointing" * one["checkpointing"]
    return {"": name} | {column: f"{one[column] / GIB:.2f}" for column in columns} | {"fits": "yes" if one["fits"] else "no"}
