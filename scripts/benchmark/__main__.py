"""How fast and how large: measured against a literal way of doing the same, side by side, or calculated before a run.

    python -m scripts.benchmark all                                       # every figure that this machine can give
    python -m scripts.benchmark step --config configs/cityscapes.yaml    # one kind: step, memory, loop, eval, data
    python -m scripts.benchmark plan --config configs/pascal.yaml        # hours, memory and GPUs of a run, before it

A figure is printed, and written to --json, as soon as it is measured. Ends with exit code 1 when a goal is missed or a figure could not be
measured. Goals that need a GPU are judged on one only.
"""

import argparse
import platform
from collections.abc import Callable, Iterator
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
from scripts.benchmark import data, loop, plan, speed
from scripts.benchmark.measure import Row, attempt, count, write_figures
from unimatch_v2 import METHOD
from util.cli import Parser
from util.config import DEVICES, Config, load_config
from util.dist import cpu_count, processes
from util.error import UserError, run

# the kinds in the order of `all`: what says most comes first
KINDS: dict[str, tuple[str, Callable[[Config, torch.device, argparse.Namespace], Iterator[Row]]]] = {
    "step": ("the training step in fp32 and bf16; on an NVIDIA GPU in every precision, and compiled", speed.step_rows),
    "memory": ("peak memory of a step, and what activation checkpointing costs", speed.memory_rows),
    "eval": ("evaluation of student and teacher", speed.evaluation_rows),
    "data": ("training samples", data.rows),
    "loop": ("idle time and host reads of the whole loop (NVIDIA GPU)", loop.rows),
}


def chosen(args: argparse.Namespace, kind: str) -> Config:
    """The config of a kind of figure: --config, or the one that the goal is about. Raises UserError for one that makes no model."""
    default = "configs/cityscapes.yaml" if kind == "memory" else "configs/pascal.yaml"
    cfg = replace(load_config(args.config or default, args.set, METHOD.config), pretrained=None)
    spec_of(cfg)
    get_encoder(cfg.backbone)
    return cfg


def machine(device: torch.device) -> dict[str, Any]:
    """Where the figures come from."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    fast = {"kornia-rs": version("kornia-rs")} if read_png else {}
    return {"gpu": gpu, "cpu": cpu, "cores": cpu_count(), "threads": torch.get_num_threads(), "versions": versions() | fast}


def measure(args: argparse.Namespace) -> None:
    """Measures, prints each row of the table and writes the JSON anew with it. Exits with 1 when a goal is missed or a row has failed."""
    with processes(args.device) as world:
        device = world.device
        lacking = "" if device.type == "cuda" else f"loop: found device {device.type}, expected an NVIDIA GPU"
        if args.kinds == ["loop"] and lacking:
            raise UserError(lacking)
        configs = {kind: chosen(args, kind) for kind in args.kinds if kind != "loop" or not lacking}
        found: dict[str, Any] = {"machine": machine(device), "rows": []}
        if args.json:
            write_figures(args.json, found)  # finds a path that cannot be written before the work
        shown = found["machine"] | found["machine"]["versions"]
        print("; ".join(f"{name} {value}" for name, value in shown.items() if name != "versions"))
        print("\n| figure | value | spread | goal | |\n|---|---|---|---|---|", flush=True)
        rows = []
        for kind, cfg in configs.items():
            for row in attempt(kind, device, partial(KINDS[kind][1], cfg, device, args)):
                rows.append(row)
                print(row, flush=True)
                found["rows"].append(asdict(row) | {"met": row.met})
                if args.json:
                    write_figures(args.json, found)
    failed = [row.figure for row in rows if row.value is None]
    missed = [row.figure for row in rows if row.met is False]
    for figures, words in ((failed, "figures failed"), (missed, "goals missed")):
        if figures:
            print(f"\n{len(figures)} {words}: {'; '.join(figures)}")
    if lacking and "loop" in args.kinds:
        print(f"\nskipped {lacking}")
    if failed or missed:
        raise SystemExit(1)


def main(argv: list[str]) -> None:
    parser = Parser(prog="scripts.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    words = {name: kind[0] for name, kind in KINDS.items()} | {"all": f"all of these: {', '.join(KINDS)}"}
    for name, text in words.items():
        command = commands.add_parser(name, help=text, description=f"Measures {text}.")
        command.add_argument("--config", help="the recipe to measure; without it the one that the goals are about")
        command.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
        command.add_argument("--device", default="auto", choices=DEVICES)
        command.add_argument("--rounds", type=count, default=3, help="measurements of each alternative, taken in turn (default: 3)")
        command.add_argument("--json", metavar="FILE", help="the figures as a file")
        if name == "step":
            only = f"this setting beside the literal step, and nothing else: {', '.join(speed.SETTINGS)}"
            command.add_argument("--only", choices=speed.SETTINGS, metavar="SETTING", help=only)
        command.set_defaults(run=measure, only=None, kinds=list(KINDS) if name == "all" else [name])
    text = "hours, memory and scaling of a run, calculated before it"
    command = commands.add_parser("plan", help=text, description=plan.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan.add_arguments(command)
    command.set_defaults(run=plan.main)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    run(main)
