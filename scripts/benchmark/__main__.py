"""How fast and how large: measured against a literal way of doing the same, side by side, or calculated before a run.

    python -m scripts.benchmark all                                       # every figure that this machine can give
    python -m scripts.benchmark step --config configs/cityscapes.yaml    # one kind: step, memory, loop, eval, data, settings
    python -m scripts.benchmark plan --config configs/pascal.yaml        # hours, memory and GPUs of a run, before it

A figure is printed, and written to --json, as soon as it is measured. Ends with exit code 1 when a goal is missed or a figure could not be
measured. Goals that need a GPU are judged on one only.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dataset.custom import spec_of
from dataset.semi import read_png
from engine.provenance import versions
from model.spec import get_encoder
from scripts.benchmark import data, evaluation, loop, memory, plan, step
from scripts.benchmark.measure import Row, attempt, release, write_figures
from util.cli import Parser
from util.config import DEVICES, Config, load_config
from util.dist import cpu_count, processes
from util.error import UserError, run

PASCAL = "configs/pascal.yaml"
CONFIGS = {"memory": "configs/cityscapes.yaml"}  # of the kinds whose goal is about another one
# the kinds in the order of `all`: what says most comes first
KINDS = {
    "step": "the training step in fp32 and bf16 (with compile on an NVIDIA GPU), and its parts",
    "memory": "peak memory of a step, and what activation checkpointing costs",
    "loop": "idle time, host reads and waits of the whole loop (NVIDIA GPU)",
    "eval": "evaluation of student and teacher",
    "data": "training samples",
    "settings": "the training step in every other precision, and fp32 with compile (NVIDIA GPU)",
}


def chosen(args: argparse.Namespace, kind: str) -> Config:
    """The config of a kind of figure: --config, or the one that the goal is about. Raises UserError for one that makes no model."""
    cfg = replace(load_config(args.config or CONFIGS.get(kind, PASCAL), args.set), pretrained=None)
    spec_of(cfg)
    get_encoder(cfg.backbone)
    return cfg


def obstacle(kind: str, cfg: Config, device: torch.device) -> str | None:
    """Why a kind of figure cannot be measured here, or of this config; None where it can."""
    if kind in ("loop", "settings") and device.type != "cuda":
        return f"{kind}: found device {device.type}, expected an NVIDIA GPU"
    if kind in ("loop", "eval") and spec_of(cfg).task == "change":
        return f"{kind}: {cfg.config} is about change detection, expected segmentation: its images are drawn one by one"
    return None


def step_rows(cfg: Config, device: torch.device, args: argparse.Namespace) -> Iterator[Row]:
    names = list(step.SETTINGS)[:2] if device.type == "cuda" else ["fp32", "bf16"]
    parted = ["bf16, compile" if device.type == "cuda" else "bf16", "fp32"]
    if args.only:
        names, parted = [args.only], []
    sizes = [cfg]
    if device.type != "cuda" and not args.config:
        # what two cores do in minutes: a smaller encoder, the published crop and a small one
        small = replace(cfg, backbone="dinov2_small")
        sizes = [replace(small, crop_size=112, batch_size=4), replace(small, crop_size=518, batch_size=1)]
    for size in sizes:
        yield from step.rows(size, device, args.rounds, names, parted)


def eval_rows(cfg: Config, device: torch.device, args: argparse.Namespace) -> Iterator[Row]:
    if device.type != "cuda" and not args.config:
        cfg = replace(cfg, backbone="dinov2_small")
    return evaluation.rows(cfg, device, args.rounds)


MEASURE: dict[str, Callable[[Config, torch.device, argparse.Namespace], Iterable[Row]]] = {
    "step": step_rows,
    "memory": lambda cfg, device, args: memory.rows(cfg, device, args.rounds),
    "loop": lambda cfg, device, args: loop.rows(cfg, device),
    "eval": eval_rows,
    "data": lambda cfg, device, args: data.rows(cfg, args.rounds, device),
    "settings": lambda cfg, device, args: step.rows(cfg, device, args.rounds, list(step.SETTINGS)[2:]),
}


def kind_rows(kind: str, cfg: Config, device: torch.device, args: argparse.Namespace) -> Iterator[Row]:
    """The rows of a kind, begun with the memory of those before it given back."""
    release(device)
    yield from MEASURE[kind](cfg, device, args)


def machine(device: torch.device) -> dict[str, Any]:
    """Where the figures come from."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    fast = {"kornia-rs": version("kornia-rs")} if read_png else {}
    return {"gpu": gpu, "cpu": cpu, "cores": cpu_count(), "threads": torch.get_num_threads(), "versions": versions() | fast}


def line(row: Row) -> str:
    """A figure as a line of a Markdown table."""
    spread = "" if row.low is None or row.high is None else f"{row.low:.3g} to {row.high:.3g}"
    goal = "" if row.goal is None else f"{row.goal[0]} {row.goal[1]:g} {'met' if row.met else '**missed**'}"
    value = "**failed**" if row.value is None else f"{row.value:.3g} {row.unit}"
    return f"| {row.figure} | {value} | {spread} | {goal} | {row.note.replace('|', '/')} |"


def measure(args: argparse.Namespace) -> None:
    """Measures, prints each row of the table and writes the JSON anew with it. Exits with 1 when a goal is missed or a row has failed."""
    with processes(args.device) as world:
        device, rows, skipped = world.device, list[Row](), []
        figures: dict[str, Any] = {"machine": machine(device), "rows": []}
        configs = {kind: chosen(args, kind) for kind in args.kinds}
        for kind in args.kinds:
            if why := obstacle(kind, configs[kind], device):
                if len(args.kinds) == 1:
                    raise UserError(why)
                skipped.append(why)
                del configs[kind]
        if args.json:
            write_figures(args.json, figures)  # finds a path that cannot be written before the work
        describe(figures["machine"])
        for kind, cfg in configs.items():
            for row in attempt(kind, partial(kind_rows, kind, cfg, device, args)):
                rows.append(row)
                print(line(row), flush=True)
                figures["rows"].append(asdict(row) | {"met": row.met})
                if args.json:
                    write_figures(args.json, figures)
    conclude(rows, skipped)


def describe(found: dict[str, Any]) -> None:
    """Prints where the figures come from, and the head of their table."""
    names = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    print(f"{found['gpu'] or 'no GPU'}; {found['cpu']}, {found['cores']} cores, {found['threads']} threads; {names}\n")
    print("| figure | value | spread | goal | |\n|---|---|---|---|---|", flush=True)


def conclude(rows: list[Row], skipped: list[str]) -> None:
    """Prints what was skipped, what has failed and which goals are missed. Exits with 1 for the latter two."""
    for why in skipped:
        print(f"\nskipped {why}")
    failed = [row.figure for row in rows if row.value is None]
    missed = [row.figure for row in rows if row.met is False]
    for figures, words in ((failed, "figures failed"), (missed, "goals missed")):
        if figures:
            print(f"\n{len(figures)} {words}: {'; '.join(figures)}")
    if failed or missed:
        raise SystemExit(1)


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def main(argv: list[str]) -> None:
    parser = Parser(prog="scripts.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, words in (KINDS | {"all": f"all of these: {', '.join(KINDS)}"}).items():
        command = commands.add_parser(name, help=words, description=f"Measures {words}.")
        command.add_argument("--config", help="the recipe to measure; without it the one that the goals are about")
        command.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
        command.add_argument("--device", default="auto", choices=DEVICES)
        command.add_argument("--rounds", type=count, default=3, help="measurements of each alternative, taken in turn (default: 3)")
        command.add_argument("--json", metavar="FILE", help="the figures as a file")
        if name == "step":
            names = ", ".join(f'"{name}"' for name in step.SETTINGS)
            words = f"this setting beside the literal step, and nothing else: {names}"
            command.add_argument("--only", choices=step.SETTINGS, metavar="SETTING", help=words)
        command.set_defaults(run=measure, only=None, kinds=tuple(KINDS) if name == "all" else (name,))
    words = "hours, memory and scaling of a run, calculated before it"
    command = commands.add_parser("plan", help=words, description=plan.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan.add_arguments(command)
    command.set_defaults(run=plan.main)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    run(main)
