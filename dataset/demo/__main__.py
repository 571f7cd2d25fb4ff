"""Draws the demo images: `python -m dataset.demo [--change] [--root FOLDER]`."""

from pathlib import Path

from dataset.demo.sets import DRAW
from util.cli import Parser
from util.error import run


def main(argv: list[str]) -> None:
    parser = Parser(prog="dataset.demo", description="Draws the demo images (default) or the demo pairs.")
    parser.add_argument("--change", action="store_true", help="draw the pairs for change detection")
    parser.add_argument("--root", type=Path, help="folder to draw into (default data/demo, with --change data/demo_change)")
    args = parser.parse_args(argv)
    name = "demo_change" if args.change else "demo"
    DRAW[name](args.root or Path("data", name))


if __name__ == "__main__":
    run(main)
