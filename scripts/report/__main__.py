"""Tables from training logs: `python -m scripts.report [--format markdown|json|latex] PATH...` (files, or folders with *.log in them)."""

import json
import os
import sys
from pathlib import Path

from engine.resume import LOG
from scripts.report.parse import Run, read_log
from scripts.report.render import Skipped, latex, markdown
from scripts.report.tables import build_tables
from util.cli import Parser
from util.error import UserError
from util.error import run as run_command

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


def main(argv: list[str]) -> None:
    """Reads the logs and prints the report."""
    parser = Parser(prog="scripts.report", description="Tables from training logs, beside the published numbers.")
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help=f"logs, or folders searched for *.log (default: {' '.join(DEFAULT_PATHS)})"
    )
    parser.add_argument("--format", choices=("markdown", "json", "latex"), default="markdown", help="json: a list of runs")
    args = parser.parse_args(argv)
    paths = args.paths or [path for path in DEFAULT_PATHS if Path(path).is_dir()]
    if not paths:
        raise UserError(f"found neither {' nor '.join(DEFAULT_PATHS)} here, expected folders with training logs; give a PATH")
    runs, skipped = read_all(paths)
    if args.format == "json":
        for file in skipped:
            print(f"warning: {file.path}: not in the report: {file.reason}", file=sys.stderr)
        text = json.dumps([run.to_json() for run in runs], indent=1)
    else:
        text = (markdown if args.format == "markdown" else latex)(build_tables(runs), runs, skipped)
    print(text)


if __name__ == "__main__":
    run_command(main)
