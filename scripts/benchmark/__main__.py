"""How fast and how large: measured against a literal way of doing the same, side by side, or calculated before a run.

    python -m scripts.benchmark all                                       # every figure that this machine can give
    python -m scripts.benchmark step --config configs/cityscapes.yaml    # one kind: step, memory, loop, eval, data
    python -m scripts.benchmark step --method fixmatch                   # of another method, or with a config of its folder
    python -m scripts.benchmark plan --config configs/pascal.yaml        # hours, memory and GPUs of a run, before it

A figure is printed, and written to --json, as soon as it is measured. Ends with exit code 1 when a goal is missed or a figure could not be
measured. Goals are UniMatch V2's; those that need a GPU are judged on one only.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from dataset.batch import Batch
from dataset.source import read_png
from engine.method import DEFAULT, Method, method_names
from engine.provenance import machine, versions
from scripts.benchmark import data, loop, plan, speed
from scripts.benchmark.measure import Row, attempt
from util.cli import Parser, positive
from util.config import DEVICES, Config
from util.dist import processes
from util.error import UserError, run
from util.files import write_output

# the kinds in the order of `all`: what says most comes first
KINDS: dict[str, tuple[str, Callable[[Config, Method, torch.device, argparse.Namespace], Iterator[Row]]]] = {
    "step": ("the training step in fp32 and bf16; on an NVIDIA GPU in every precision, and compiled", speed.step_rows),
    "memory": ("peak memory of a step, and what activation checkpointing costs", speed.memory_rows),
    "eval": ("evaluation of the student and its average", speed.evaluation_rows),
    "data": ("training samples", data.rows),
    "loop": ("idle time and host reads of the whole loop (NVIDIA GPU)", loop.rows),
}
RECIPES = {"step": "configs/pascal.yaml", "memory": "configs/cityscapes.yaml"}  # those that the goals are about; the others' is step's


def in_last_epoch(method: Method) -> Method:
    """The method with the step of a run's last epoch: some do less in the first ones (allspark.py)."""

    def step(student: Any, teacher: Any, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
        return method.step(student, teacher, replace(batch, epoch=cfg.epochs - 1), cfg)

    return replace(method, step=step)


def measure(args: argparse.Namespace) -> None:
    """Measures, prints each row of the table and writes the JSON anew with it. Exits with 1 when a goal is missed or a row has failed."""
    with processes(args.device) as world:
        device, kinds = world.device, args.kinds
        if "loop" in kinds and device.type != "cuda":
            lacking = f"loop: found device {device.type}, expected an NVIDIA GPU"
            if kinds == ["loop"]:
                raise UserError(lacking)
            print(f"skipped {lacking}")
            kinds = [kind for kind in kinds if kind != "loop"]
        recipes = {kind: plan.load_recipe(args.config or RECIPES.get(kind, RECIPES["step"]), args.set, args.method) for kind in kinds}
        packages = versions() | ({"kornia-rs": version("kornia-rs")} if read_png else {})
        recipes = {kind: (cfg, in_last_epoch(method)) for kind, (cfg, method) in recipes.items()}
        about, rows = machine(device) | {"threads": torch.get_num_threads()}, list[Row]()

        def write() -> None:
            found = {
                "machine": about | {"versions": packages},
                "rows": [asdict(row) | {"value": row.value, "met": row.met} for row in rows],
            }
            write_output("--json", args.json, json.dumps(found, indent=1))

        write()  # finds a path that cannot be written before the work
        print("; ".join(f"{name} {value}" for name, value in (about | packages).items()))
        print("\n| figure | value | spread | goal | |\n|---|---|---|---|---|", flush=True)
        for kind, recipe in recipes.items():
            for found in attempt(kind, device, KINDS[kind][1], *recipe, device, args):
                row = found if recipe[1].name == DEFAULT else replace(found, goal=None)  # the goals are its own
                rows.append(row)
                print(row, flush=True)
                write()
    failed = [row.figure for row in rows if row.value is None]
    missed = [row.figure for row in rows if row.met is False]
    for figures, words in ((failed, "figures failed"), (missed, "goals missed")):
        if figures:
            print(f"\n{len(figures)} {words}: {'; '.join(figures)}")
    if failed or missed:
        raise SystemExit(1)


def main(argv: list[str]) -> None:
    parser = Parser(prog="scripts.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    words = {name: f"measures {kind[0]}" for name, kind in KINDS.items()} | {"all": f"measures all of these: {', '.join(KINDS)}"}
    for name, text in (words | {"plan": "calculates hours, memory and scaling of a run, before it"}).items():
        about = plan.__doc__ if name == "plan" else text
        command = commands.add_parser(name, help=text, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
        command.add_argument("--json", metavar="FILE", help="the figures as a file")
        default = f"default: the one that the config's folder is named after, else {DEFAULT}"
        command.add_argument("--method", choices=method_names(), help=default)
        if name == "plan":
            command.add_argument("--config", required=True)
            plan.add_arguments(command)
            command.set_defaults(run=plan.main)
            continue
        command.add_argument("--config", help="the recipe to measure; without it the one that the goals are about")
        command.add_argument("--device", default="auto", choices=DEVICES)
        command.add_argument("--rounds", type=positive, default=3, help="measurements of each alternative, taken in turn (default: 3)")
        if name == "step":
            only = f"this setting beside the literal step, and nothing else: {', '.join(speed.SETTINGS)}"
            command.add_argument("--only", choices=speed.SETTINGS, metavar="SETTING", help=only)
        command.set_defaults(run=measure, only=None, kinds=list(KINDS) if name == "all" else [name])
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    run(main)
