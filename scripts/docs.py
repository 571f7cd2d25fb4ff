"""Prints into README.md and docs/ what programs say: `python -m scripts.docs` renews all blocks, from

    <!-- python -m scripts.benchmark plan --config configs/pascal.yaml --split 92 -->
    <!-- end -->

between which the output of the command stands. Two of the commands are of this file: `python -m scripts.docs published` prints the
published numbers of the main tables (scripts/report/paper.yaml), `python -m scripts.docs reproduce` what their first splits need.
"""

import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.report import paper
from scripts.table import markdown_table
from util.cli import Parser
from util.error import UserError, run
from util.files import ROOT, write_atomic

BLOCK = re.compile(r"(<!-- (python -m [^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
MAIN = ("1", "2", "3", "4")  # the paper's tables of Pascal, Cityscapes, ADE20K and COCO
GPUS, CARD = 4, "h100"
LOGGED = re.compile(r"log .* spans ([\d.]+) hours on their 4 GPUs")  # the authors' log of a recipe, in the head of its config


def published() -> str:
    """The published mIoU of each main table."""
    parts = []
    for table in MAIN:
        ((dataset, splits),) = paper.columns(table).items()
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for entry in paper.entries(table):
            if "miou" in entry.published:
                star = " *" if entry.log else ""
                rows.setdefault((entry.name + star, entry.encoder), {})[entry.split] = str(entry.published["miou"])
        splits = [split for split in splits if any(split in row for row in rows.values())]
        grid = [["method", "encoder", *(paper.heading(dataset, split) or split for split in splits)]]
        grid += [[*names, *(row.get(split, "") for split in splits)] for names, row in rows.items()]
        parts.append(f"**{paper.dataset_title(dataset)}**\n\n{markdown_table(grid, 2)}")
    return "\n\n".join(parts)


def reproduce() -> str:
    """The first split of each main table: its command, what was published, and what the planner calculates of it for four cards."""
    grid = [["command", "published mIoU", "hours, authors' log", f"hours, {GPUS} x {CARD.upper()}", "GiB a GPU"]]
    for table in MAIN:
        entry = next(one for one in paper.entries(table) if one.method == "unimatch_v2" and one.backbone == "dinov2_base")
        config = f"configs/{entry.dataset}.yaml"
        logged = LOGGED.search((ROOT / config).read_text(encoding="utf-8"))
        hours, memory = _planned(config, entry.split)
        command = f"`dataset={entry.dataset} split={entry.split} sh scripts/train.sh {GPUS} 29500`"
        grid.append([command, str(entry.published["miou"]), logged[1] if logged else "", f"{hours:.1f}", f"{memory:.1f}"])
    return markdown_table(grid, 1)


def _planned(config: str, split: str) -> tuple[float, float]:
    """Hours and GiB a card in float32, by the planner."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plan.json")
        printed(f"python -m scripts.benchmark plan --config {config} --split {split} --card {CARD} --json {path}")
        found = json.loads(path.read_text())
    (hours,) = (row["hours"] for row in found["gpus"]["fp32"] if row["gpus"] == GPUS)
    (memory,) = (one["total"] for one in found["memory"] if one["precision"] == "fp32" and not one["checkpointing"])
    return hours, memory / 2**30


def printed(command: str) -> str:
    """What a command of the project prints. Raises UserError where it fails."""
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{command}: ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def fill(text: str) -> str:
    """A page with all its blocks renewed. Tables stand as they are, other output as code."""

    def block(found: re.Match[str]) -> str:
        output = printed(found[2])
        shown = output if output.startswith(("|", "**")) else f"```\n{output}\n```"
        return f"{found[1]}\n{shown}\n\n{found[3]}"

    return BLOCK.sub(block, text)


def main(argv: list[str]) -> None:
    parser = Parser(prog="scripts.docs", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("published", "reproduce"), help="print this alone")
    args = parser.parse_args(argv)
    if args.what:
        print(published() if args.what == "published" else reproduce())
        return
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = page.read_text(encoding="utf-8")
        after = fill(before)
        if after != before:
            write_atomic(page, lambda file, text=after: file.write(text.encode()))  # type: ignore[misc]
            print(f"{page.relative_to(ROOT)}: renewed")


if __name__ == "__main__":
    run(main)
