"""How fast and how large: measured against a literal way of doing the same, side by side, or calculated before a run.

    python -m util.benchmark all                                       # every figure that this machine can give
    python -m util.benchmark step --config configs/cityscapes.yaml    # one kind: step, data, eval, memory
    python -m util.benchmark plan --config configs/pascal.yaml        # hours, memory and GPUs of a run, before it

Ends with exit code 1 when a goal is missed. Goals that need a GPU are judged on one only.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dataset.loader import data_spec
from dataset.semi import read_png
from util.benchmark import data, evaluation, loop, memory, plan, step
from util.benchmark.measure import Row
from util.cli import Parser
from util.config import Config, load_config
from util.dist import cpu_count, processes
from util.error import UserError, reason, run
from util.files import write_atomic
from util.provenance import versions

CONFIGS = {"step": "configs/pascal.yaml", "data": "configs/pascal.yaml", "eval": "configs/pascal.yaml", "memory": "configs/cityscapes.yaml"}
KINDS = ("step", "data", "eval", "memory")


def chosen(args: argparse.Namespace, kind: str) -> Config:
    """The config of a kind of figure: --config, or the one that the goal is about."""
    return replace(load_config(args.config or CONFIGS[kind], args.set), pretrained=None)


def step_rows(args: argparse.Namespace, device: torch.device) -> list[Row]:
    cfg = chosen(args, "step")
    nclass = data_spec(cfg).nclass
    if device.type == "cuda":
        return step.rows(cfg, nclass, device, args.rounds) + loop.rows(cfg, device)
    if args.config:
        return step.rows(cfg, nclass, device, args.rounds)
    # what two cores do in minutes: a smaller encoder, the published crop and a small one
    small = replace(cfg, backbone="dinov2_small")
    sizes = (replace(small, crop_size=112, batch_size=4), replace(small, crop_size=518, batch_size=1))
    return [row for size in sizes for row in step.rows(size, nclass, device, args.rounds)]


def eval_rows(args: argparse.Namespace, device: torch.device) -> list[Row]:
    cfg = chosen(args, "eval")
    if device.type != "cuda" and not args.config:
        cfg = replace(cfg, backbone="dinov2_small")
    return evaluation.rows(cfg, data_spec(cfg).nclass, device, args.rounds)


MEASURE: dict[str, Callable[[argparse.Namespace, torch.device], list[Row]]] = {
    "step": step_rows,
    "data": lambda args, device: data.rows(chosen(args, "data"), args.rounds, device),
    "eval": eval_rows,
    "memory": lambda args, device: memory.rows(chosen(args, "memory"), device, args.rounds),
}


def machine(device: torch.device) -> dict[str, Any]:
    """Where the figures come from."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    png = {"kornia-rs": version("kornia-rs")} if read_png else {}  # decodes PNG in Pillow's place
    return {"gpu": gpu, "cpu": cpu, "cores": cpu_count(), "threads": torch.get_num_threads(), "versions": versions() | png}


def table(rows: list[Row]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | value | spread | goal | |", "|---|---|---|---|---|"]
    for row in rows:
        spread = "" if row.low is None or row.high is None else f"{row.low:.3g} to {row.high:.3g}"
        goal = "" if row.goal is None else f"{row.goal[0]} {row.goal[1]:g} {'met' if row.met else '**missed**'}"
        lines.append(f"| {row.figure} | {row.value:.3g} {row.unit} | {spread} | {goal} | {row.note} |")
    return "\n".join(lines)


def measure(args: argparse.Namespace) -> None:
    """Measures, prints the table, writes the JSON. Exits with 1 when a goal is missed."""
    with processes(args.device) as world:
        found = machine(world.device)
        names = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        print(f"{found['gpu'] or 'no GPU'}; {found['cpu']}, {found['cores']} cores, {found['threads']} threads; {names}\n", flush=True)
        try:
            rows = [row for kind in args.kinds for row in MEASURE[kind](args, world.device)]
        except torch.OutOfMemoryError as error:
            raise UserError(f"{found['gpu']}: too little memory for the literal step ({reason(error)}); --set batch_size=1") from error
    print(table(rows))
    missed = [row.figure for row in rows if row.met is False]
    if args.json:
        text = json.dumps({"machine": found, "rows": [asdict(row) | {"met": row.met} for row in rows]}, indent=1)
        write_atomic(Path(args.json), lambda file: file.write(text.encode()))
    if missed:
        print(f"\n{len(missed)} goals missed: {'; '.join(missed)}")
        raise SystemExit(1)


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m util.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in (*KINDS, "all"):
        command = commands.add_parser(name, help=f"measures {name}" if name != "all" else "measures step, data, eval and memory")
        command.add_argument("--config", help="the recipe to measure; without it the one that the goals are about")
        command.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
        command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
        command.add_argument("--rounds", type=int, default=3, help="measurements of each alternative, taken in turn (default: 3)")
        command.add_argument("--json", metavar="FILE", help="the figures as a file")
        command.set_defaults(run=measure, kinds=KINDS if name == "all" else (name,))
    command = commands.add_parser("plan", help="hours, memory and scaling of a run, calculated before it", description=plan.__doc__)
    plan.add_arguments(command)
    command.set_defaults(run=plan.main)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    run(main)
