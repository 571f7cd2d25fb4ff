"""Tables from training logs, beside the published numbers. PATH: logs, or folders with *.log in them.

python -m scripts.report [PATH...]                            every run, a table for each data set
python -m scripts.report table 6 [PATH...]                    a table of the paper, and commands for its missing cells
python -m scripts.report figure 5 [PATH...] --svg FILE        a figure of the paper as a table, and as a picture
python -m scripts.report compare [PATH...]                    methods over their seeds, and their differences with an interval
"""

import json
import os
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from engine.resume import LOG
from scripts.report import compare, compare_page, compare_render, paper
from scripts.report.figure import draw
from scripts.report.parse import Run, read_log
from scripts.report.render import Skipped, latex, markdown, paper_markdown
from scripts.report.reproduce import reproduce, to_json
from scripts.report.tables import build_tables
from util.cli import Parser
from util.error import UserError
from util.error import run as run_command
from util.files import check_output, write_output

DEFAULT_PATHS = ("exp", "training-logs")


def find_logs(paths: list[str]) -> list[Path]:
    """The logs under the paths, each once. Raises UserError for a path that holds none."""
    found: dict[Path, Path] = {}
    for name in paths:
        path = Path(name)
        if path.is_dir():
            # beside a run's own log, others repeat it: Slurm's, and what `tee` wrote
            named = ((folder, [LOG] if LOG in files else files) for folder, _, files in os.walk(path))
            logs = sorted(Path(folder, file) for folder, files in named for file in files if file.endswith(".log"))
            if not logs:
                raise UserError(f"{path}: found no *.log in this folder or below, expected training logs; give the folder of a run")
        elif path.exists():
            logs = [path]
        else:
            raise UserError(f"{path}: not found, expected a training log or a folder of them; check the path")
        for log in logs:
            found.setdefault(log.resolve(), log)
    return list(found.values())


def read_all(paths: list[str]) -> tuple[list[Run], list[Skipped]]:
    """Runs of all logs under the paths. A file that is no log ends the command when it is itself a path, or all; else it is reported."""
    logs, named = find_logs(paths), {Path(name).resolve() for name in paths}
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for path in logs:
        try:
            runs += read_log(path)
        except UserError as error:
            if path.resolve() in named or len(logs) == 1:
                raise
            skipped.append(Skipped(str(path), str(error).removeprefix(f"{path}: ")))
    if not runs:
        raise UserError(f"{skipped[0].path}: {skipped[0].reason} ({len(skipped)} files like this, and no training log among them)")
    return runs, skipped


def default_paths(required: bool = True) -> list[str]:
    """Where logs are, unless somebody says otherwise. Raises UserError where there is no such folder, and one is `required`."""
    paths = [path for path in DEFAULT_PATHS if Path(path).is_dir()]
    if required and not paths:
        raise UserError(f"found neither {' nor '.join(DEFAULT_PATHS)} here, expected folders with training logs; give a PATH")
    return paths


def print_comparison(argv: list[str]) -> None:
    """`compare`: prints the methods over their seeds, with their differences; writes them to files where these are asked for."""
    parser = Parser(prog="scripts.report compare", description=compare.__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="as without `compare`")
    parser.add_argument("--draws", action="store_true", help="splits such as 3_draw0 and 3_draw1 are draws of one")
    parser.add_argument("--part", nargs=2, metavar=("LIST", "TEXT"), help="of the images alone whose line in LIST holds TEXT")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to FILE")
    parser.add_argument("--html", metavar="FILE", help="also write a page to FILE")
    parser.add_argument("--svg", metavar="FILE", help="also draw the curves of one data set, split and encoder into FILE")
    args = parser.parse_args(argv)
    for option, name in (("--json", args.json), ("--html", args.html), ("--svg", args.svg)):
        if name:
            check_output(option, Path(name))
    part = compare.part_of(*args.part) if args.part else None
    runs, skipped = read_all(args.paths or default_paths())
    found = compare.compare(runs, args.draws, part)
    found.remarks += [f"{file.path}: not in the report: {file.reason}" for file in skipped]
    print(compare_render.markdown(found))
    write_output("--json", args.json, json.dumps(found.to_json(), indent=1))
    write_output("--html", args.html, compare_page.page(found, Path(args.html or ".").parent))
    write_output("--svg", args.svg, compare_page.curves_picture(found) if args.svg else "")


def main(argv: list[str]) -> None:
    """Reads the logs and prints the report, a table or figure of the paper, or a comparison of methods."""
    if argv[:1] == ["compare"]:
        return print_comparison(argv[1:])
    kind = argv[0] if argv and argv[0] in ("table", "figure") else ""
    prog = f"scripts.report {kind} NUMBER" if kind else "scripts.report"
    parser = Parser(prog=prog, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    if kind == "figure":
        parser.add_argument("--svg", metavar="FILE", help="draw it into this file")
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help=f"logs, or folders searched for *.log (default: {' '.join(DEFAULT_PATHS)})"
    )
    parser.add_argument("--format", choices=("markdown", "json", "latex"), default="markdown", help="json: lists of runs or cells")
    name = paper_name(kind, argv[1:]) if kind and "--help" not in argv and "-h" not in argv else ""
    args = parser.parse_args(argv[2:] if name else argv)
    if getattr(args, "svg", None):
        check_output("--svg", Path(args.svg))
    paths = args.paths or default_paths(required=not kind)
    runs, skipped = read_all(paths) if paths else ([], [])
    if args.format == "json":
        for file in skipped:
            print(f"warning: {file.path}: not in the report: {file.reason}", file=sys.stderr)
    if kind:
        print_paper(name, runs, skipped, args)
    elif args.format == "json":
        print(json.dumps([run.to_json() for run in runs], indent=1))
    else:
        print((markdown if args.format == "markdown" else latex)(build_tables(runs), runs, skipped))


def paper_name(kind: str, words: list[str]) -> str:
    """The name (paper.py) of the table or figure whose number is the first word. Raises UserError."""
    names = {name.removeprefix(kind).strip(): name for name in paper.tables() if name.startswith("figure") == (kind == "figure")}
    if not words or words[0] not in names:
        found = repr(words[0]) if words else "nothing"
        raise UserError(f"{kind}: found {found} behind it, expected a number: {', '.join(names)}; such as `{kind} {min(names)}`")
    return names[words[0]]


def print_paper(name: str, runs: list[Run], skipped: list[Skipped], args: Namespace) -> None:
    """Prints a table or figure of the paper; draws the figure where a file for it is given."""
    found = reproduce(name, runs)
    if args.format == "json":
        print(json.dumps(to_json(found), indent=1))
    elif args.format == "latex":
        print(latex(found.parts, found.runs, skipped, [*found.remarks, *found.commands]))
    else:
        print(paper_markdown(found, skipped))
    write_output("--svg", getattr(args, "svg", None), draw(found) if name.startswith("figure") else "")


if __name__ == "__main__":
    run_command(main)
