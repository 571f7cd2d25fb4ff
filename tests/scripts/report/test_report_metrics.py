"""Runs of ours: the report reads them from metrics.jsonl, and finds the same in their log alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import supervised
import unimatch_v2
from scripts.report import read_log
from scripts.report.identity import OWN
from scripts.report.recipe import Recipe, differences
from scripts.report.tables import build_tables
from tests.conftest import Tiny
from tests.pairs import make_pairs
from tests.test_train import stop_after
from util.error import UserError


def resumed(module: Any, argv: list[str]) -> None:
    """A run that is killed at its second evaluation, and resumed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.trainer.Trainer._evaluate", stop_after(1))
        with pytest.raises(KeyboardInterrupt):
            module.main(argv)
    module.main(argv)


@pytest.fixture(scope="module")
def runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of both tasks, with and without an EMA; one has an evaluation only every second epoch."""
    root = tmp_path_factory.mktemp("runs")
    pairs = make_pairs(root / "pairs")
    resumed(unimatch_v2, tiny.args(root / "semi", "epochs=3"))
    supervised.main(tiny.args(root / "alone", "batch_size=30", "epochs=3", "eval_every=2", unlabeled=False))
    lists = (f"val_id_path={pairs.root}/val.txt", f"test_id_path={pairs.root}/test.txt")
    resumed(unimatch_v2, pairs.args(root / "change", *lists, "lr_factors.backbone=0.5"))
    return {name: root / name for name in ("semi", "alone", "change")}


@pytest.fixture
def copy(runs: dict[str, Path], tmp_path: Path) -> Any:
    """copy(name): the log and metrics of a run in a folder of their own, always the same one, with the record of its command."""

    def files(name: str) -> Path:
        for file in ("train.log", "metrics.jsonl"):
            shutil.copy(runs[name] / file, tmp_path)
        (tmp_path / "record.json").write_text(json.dumps([{"command": [f"{NAMES[name]}.py"]}]))
        return tmp_path

    return files


def as_json(folder: Path) -> dict[str, Any]:
    (run,) = read_log(folder / "train.log")
    return run.to_json()


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether log and metrics say the same. Their lines of a step are written one after the other, so that their times differ."""
    return one | {"sec_per_iter": None} == two | {"sec_per_iter": None}


NAMES = {"semi": "unimatch_v2", "alone": "supervised", "change": "unimatch_v2"}


@pytest.mark.parametrize("name", NAMES)
def test_metrics_and_log_give_the_same_report(name: str, copy: Any) -> None:
    folder = copy(name)
    whole = as_json(folder)
    assert (whole["method"], whole["complete"], whole["unread_lines"]) == (NAMES[name], True, 0)
    assert whole["statistic"] == {"semi": "ema_miou", "alone": "miou", "change": "changed_iou"}[name]
    assert whole["best"] is not None
    assert (whole["accuracy"] is not None) == (name == "change")
    assert (whole["resumed"], whole["test"] is not None) == (name != "alone", name == "change")
    settings = read_log(folder / "train.log")[0].settings
    rows = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").unlink()
    assert same(as_json(folder), whole), "from the log alone"
    assert whole["sec_per_iter"] == pytest.approx(as_json(folder)["sec_per_iter"], abs=0.05)
    assert read_log(folder / "train.log")[0].settings == settings
    assert (settings["lr_factors"], settings["name"]) == ("{'backbone': 0.5}" if name == "change" else "{}", "CELoss")
    assert whole["backbone"] == "dinov2_tiny", "which a factor's name does not replace"
    (folder / "train.log").write_text("")
    with pytest.raises(UserError, match="an empty file"):
        read_log(folder / "train.log")
    (folder / "metrics.jsonl").write_text(rows)
    assert as_json(folder) == whole, "from the metrics alone"


def test_a_finished_run_that_is_started_again_is_not_resumed(copy: Any, tiny: Tiny, runs: dict[str, Path]) -> None:
    supervised.main(tiny.args(runs["alone"], "batch_size=30", "epochs=3", "eval_every=2", unlabeled=False))
    folder = copy("alone")
    assert not as_json(folder)["resumed"]
    (folder / "metrics.jsonl").unlink()
    assert not as_json(folder)["resumed"]


def test_a_line_with_a_mean_that_is_no_number_is_counted(copy: Any) -> None:
    folder = copy("alone")
    path = folder / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    next(row for row in found if row["kind"] == "step")["means"]["loss_x"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    assert as_json(folder)["nan_iterations"] == 1


def test_metrics_count_and_what_is_damaged_makes_the_log_count(copy: Any) -> None:
    folder = copy("semi")
    whole, path = as_json(folder), folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    at = max(i for i, line in enumerate(lines) if '"scores"' in line)
    row = json.loads(lines[at])
    row["scores"]["EMA"]["miou"] = 87.654999
    path.write_text("".join(lines[:at]) + json.dumps(row) + "\n")
    found = as_json(folder)
    assert (found["best"], found["best_epoch"], found["last"]) == (87.65, 2, 87.65), "two decimals, as the log would print it"
    (row["scores"]["EMA"]["miou"], kept) = (87.25, path.read_text())
    path.write_text("".join(lines[:at]) + json.dumps(row) + "\n")
    (run,) = read_log(folder / "train.log")
    (table,) = build_tables([run])
    cells = [cell for line in table.rows for cell in line.cells.values() if cell.runs]
    assert [str(cell.value(OWN)) for cell in cells] == ["87.3"], "half up"
    for damaged in (kept[:-30], *(kept.replace("87.654999", other) for other in ("1e999", "-5", '"87"', "null"))):
        path.write_text(damaged)
        assert same(as_json(folder), whole)
    path.write_text("".join(lines[:at]))
    assert same(as_json(folder), whole), "a line that a full disk did not take"
    path.write_text("")
    assert same(as_json(folder), whole)


def test_metrics_are_of_the_log_they_lie_beside(copy: Any) -> None:
    """Neither of a copied log under another name, nor of an earlier run in the same folder."""
    folder = copy("semi")
    whole, path = as_json(folder), folder / "metrics.jsonl"
    other = path.read_text().replace('"miou": ', '"miou": 9')
    path.write_text(other.replace("99", "9"))
    shutil.copy(folder / "train.log", folder / "copied.log")
    (run,) = read_log(folder / "copied.log")
    assert run.best == whole["best"]
    with open(path, "a") as file:
        file.write('{"kind": "start", "step": 0}\n')
    assert same(as_json(folder), whole)


def test_tables_call_methods_by_their_own_titles(copy: Any) -> None:
    for name, title in (("alone", "Labeled only"), ("semi", "UniMatch V2")):
        (run,) = read_log(copy(name) / "train.log")
        (table,) = build_tables([run])
        assert [row.method for row in table.rows if row.has_runs] == [f"{title} (conf_thresh 0.2)"]


def test_a_run_is_what_its_recipe_says(tiny: Tiny, copy: Any) -> None:
    """The header of a real run against that which the map of the paper's tables makes of a recipe."""
    for name, settings in (("semi", ("epochs=3",)), ("alone", ("batch_size=30", "epochs=3"))):
        (run,) = read_log(copy(name) / "train.log")
        recipe = Recipe(NAMES[name], "demo", "few", str(tiny.config), settings)
        assert differences(recipe, run.settings) == {}
        other = replace(recipe, settings=(*settings, "crop_size=56"))
        assert differences(other, run.settings) == {"crop_size": ("28", "56")}
