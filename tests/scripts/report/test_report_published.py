"""The authors' logs: every published cell whose log is here is rebuilt, and the parse is set against a naive count of raw lines."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.report import Run, read_log
from scripts.report.identity import AUTHORS
from scripts.report.tables import build_tables, round_half_up

SHARED = Path(os.environ.get("UNIMATCH_SHARED", "/nonexistent"))
pytestmark = pytest.mark.skipif(not (SHARED / "logs").is_dir(), reason="UNIMATCH_SHARED is not set to a folder with public logs")
LOGS = sorted((SHARED / "logs").glob("*.log"))


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    found = {}
    for path in LOGS:
        (found[path.name],) = read_log(path)
    return found


def shared_cells() -> list[dict[str, Any]]:
    if not (SHARED / "published.json").is_file():
        return []
    tables = json.loads((SHARED / "published.json").read_text(encoding="utf-8"))["tables"]
    return [{"table": name, **cell} for name, cells in tables.items() for cell in cells]


REBUILT = [cell for cell in shared_cells() if cell["log"] in {path.name for path in LOGS}]


@pytest.mark.parametrize("cell", REBUILT, ids=lambda cell: f"{cell['log']}-{cell['kind']}")
def test_published_cell_is_rebuilt(cell: dict[str, Any], runs: dict[str, Run]) -> None:
    run = runs[cell["log"]]
    value, places = (run.accuracy, 2) if cell["kind"] == "cd_oa" else (run.best, 1)
    assert value is not None
    assert str(round_half_up(value, places)) == cell["reported"]
    (table,) = build_tables([run])
    cells = [found for row in table.rows for found in row.cells.values() if found.runs and found.published and found.kind == cell["kind"]]
    assert [str(found.value(AUTHORS)) for found in cells] == [cell["reported"]]
    assert [found.difference(AUTHORS) for found in cells] == [0]


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name)
def test_against_a_naive_count(path: Path, runs: dict[str, Run]) -> None:
    """Greps the raw text: no state, no sessions, nothing shared with the reader."""
    run, text = runs[path.name], path.read_text(errors="replace")
    evaluations = {
        "classification": r"Epoch: \d+, EMA@1 ([\d.]+)",
        "change": r">>>> Changed IoU: ([\d.]+)",
        "segmentation": r"MeanIoU: ([\d.]+)\n" if run.method == "supervised" else r"MeanIoU: [\d.]+, EMA[^:]*: ([\d.]+)\n",
    }[run.task]
    values = [float(value) for value in re.findall(evaluations, text)]
    assert run.epochs_done == len(values)  # true of these logs: no epoch was evaluated twice
    assert run.best == max(values)
    assert run.last == values[-1]
    assert run.best_epoch == max(i for i, value in enumerate(values) if value == run.best)
    if run.task == "change":
        accuracies = re.findall(r">>>> Overall Accuracy: ([\d.]+)", text)
        assert run.accuracy == float(accuracies[run.best_epoch])
    assert run.nan_iterations == len(re.findall(r"Iters?: .*nan", text))
    assert run.resumed == ("Load from checkpoint" in text)
    planned = re.findall(r"'?epochs'?[:=] ?(\d+)", text)
    assert run.epochs == int(planned[-1])
    assert run.complete == (len(values) == run.epochs)
    ours = re.compile(r"\[\d{4}-|\s*$| '|\s+'(name|thresh|min_kept)'")
    assert run.unread_lines == sum(not ours.match(line) for line in text.split("\n"))


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name)
def test_against_what_the_run_said_itself(path: Path, runs: dict[str, Run]) -> None:
    """Every epoch line prints the best so far; after the last evaluation only that one may add to it."""
    run, text = runs[path.name], path.read_text(errors="replace")
    said = {
        "ema_miou": r"Epoch: \d+, Previous best.*EMA[^:]*: ([\d.]+)",
        "miou": r"Previous best: ([\d.]+)",
        "changed_iou": r"Previous best Changed IoU: ([\d.]+)",
        "ema_acc1": r"Best_EMA@1 ([\d.]+)",
    }[run.statistic]
    assert run.best is not None
    assert run.last is not None
    assert run.best == max(float(re.findall(said, text)[-1]), run.last)


def test_names_from_headers_and_from_file_names_agree(runs: dict[str, Run], tmp_path: Path) -> None:
    for name, run in runs.items():
        path = tmp_path / name
        path.write_text("[2024-01-01 00:00:00,000][    INFO] ===========> Epoch: 0, Previous best: 0.00\n")
        (bare,) = read_log(path)
        names = ("method", "dataset", "split", "backbone", "seed")
        assert [getattr(bare, key) for key in names] == [getattr(run, key) for key in names], name
