"""Which list selects a run's best epoch, and which one scores it: segmentation (for change detection: tests/test_change.py)."""

import json
import signal
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest

import unimatch_v2
from dataset.loader import test_source as find_test_source
from dataset.loader import validation_source
from dataset.spec import get_spec
from engine import final_test, metric
from scripts.report import read_log
from tests.conftest import Tiny
from tests.util.test_signals import signal_at
from util import checkpoint
from util.config import load_config
from util.error import StoppedError
from util.log import open_log


def test_one_list_selects_and_best_pth_is_scored_once_on_the_other(tiny: Tiny, tmp_path: Path) -> None:
    unimatch_v2.main(tiny.args(tmp_path, "epochs=2", f"test_id_path={tiny.root}/labeled.txt"))
    log, result = (tmp_path / "train.log").read_text(), json.loads((tmp_path / "test.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert f"Selection: the best epoch by {tiny.root}/val.txt (4 images); best.pth is scored once, at the end, on" in log
    assert (result["selected_on"], result["list"], result["images"]) == (f"{tiny.root}/val.txt", f"{tiny.root}/labeled.txt", 6)
    for name, scores in result["scores"].items():
        line = f"Test of best.pth (epoch {result['epoch']}, selected on {tiny.root}/val.txt) on {tiny.root}/labeled.txt, {name}: "
        shown = ", ".join(f"{figure.label} {scores[key]:.2f}" for key, figure in metric.FIGURES["segmentation"].items())
        assert f"{line}{shown}\n" in log
        assert f"<p>{line}{shown}</p>" in page
    unimatch_v2.main(tiny.args(tmp_path, "epochs=2", f"test_id_path={tiny.root}/labeled.txt"))
    assert (tmp_path / "report.html").read_text() == page, "a finished run that is started again loses nothing of its page"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    tests = [{key: value for key, value in row.items() if key not in ("kind", "time")} for row in rows if row["kind"] == "test"]
    assert tests == [result], "in full precision, once"
    (run,) = read_log(tmp_path / "train.log")
    assert run.unread_lines == 0
    (tmp_path / "train.log").write_text(log.partition("Test of best.pth")[0])
    assert [one.test for one in read_log(tmp_path / "train.log")] == [run.test] == [float(f"{result['scores']['EMA']['miou']:.2f}")]
    (tmp_path / "train.log").write_text(log)
    assert [note for note in run.notes if "of the list that chose the epoch. Test of best.pth" in note]


def test_the_scores_of_other_weights_are_not_taken_over(tiny: Tiny, tmp_path: Path) -> None:
    """Of an earlier run in the same folder, and of a best.pth that has changed since."""
    lists = (f"test_id_path={tiny.root}/labeled.txt",)
    unimatch_v2.main(tiny.args(tmp_path / "run", "epochs=1", *lists))
    for path in (tmp_path / "run").glob("*.pth"):
        path.unlink()
    for folder in ("run", "alone"):
        unimatch_v2.main(tiny.args(tmp_path / folder, "epochs=1", "seed=5", *lists))
    first, alone = (json.loads((tmp_path / folder / "test.json").read_text()) for folder in ("run", "alone"))
    assert first["scores"] == alone["scores"]
    state = checkpoint.load(tmp_path / "run/best.pth")
    state["model_ema"] = {name: 2 * value if value.is_floating_point() else value for name, value in state["model_ema"].items()}
    checkpoint.save(state, tmp_path / "run/best.pth")
    unimatch_v2.main(tiny.args(tmp_path / "run", "epochs=1", "seed=5", *lists))
    again = json.loads((tmp_path / "run/test.json").read_text())["scores"]
    assert again["student"] == first["scores"]["student"]
    assert again["EMA"] != first["scores"]["EMA"]


def test_a_run_that_is_stopped_in_its_test_does_it_when_it_is_started_again(tiny: Tiny, tmp_path: Path) -> None:
    args = tiny.args(tmp_path, "epochs=1", f"test_id_path={tiny.root}/labeled.txt")
    patch = signal_at(1, signal.SIGTERM, final_test, "evaluate")
    with pytest.raises(StoppedError, match=r"the test of best\.pth is not; the same command does it"):
        unimatch_v2.main(args)
    patch.undo()
    assert not (tmp_path / "test.json").exists()
    unimatch_v2.main(args)
    assert (tmp_path / "test.json").exists()


def test_a_full_disk_costs_the_files_of_the_test_and_not_its_scores(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *others: Any) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(final_test, "write_atomic", full)
    unimatch_v2.main(tiny.args(tmp_path, "epochs=1", f"test_id_path={tiny.root}/labeled.txt"))
    log = (tmp_path / "train.log").read_text()
    assert "Test of best.pth (epoch 0" in log
    assert f"{tmp_path}/test.json: cannot be written (No space left on device); make room" in log
    monkeypatch.undo()
    unimatch_v2.main(tiny.args(tmp_path, "epochs=1", f"test_id_path={tiny.root}/labeled.txt"))
    assert (tmp_path / "test.json").is_file()


def test_a_run_without_another_list_says_that_its_score_is_of_the_images_that_chose_it(tiny: Tiny, tmp_path: Path) -> None:
    unimatch_v2.main(tiny.args(tmp_path, "epochs=1"))
    log = (tmp_path / "train.log").read_text()
    assert f"Selection: the best epoch by {tiny.root}/val.txt (4 images); no other list scores it" in log
    assert "Test of best.pth" not in log
    assert not (tmp_path / "test.json").exists()


@pytest.mark.parametrize(
    ("dataset", "lists", "settings", "expected"),
    [
        ("camvid", ("val", "test"), {}, ("val.txt", "test.txt")),  # both are the data set's own
        ("pascal", ("val",), {}, ("val.txt", None)),  # as published
        ("pascal", ("val", "1_8/select"), {"val_id_path": "splits/pascal/1_8/select.txt"}, ("1_8/select.txt", "val.txt")),
        ("levir", ("test", "val"), {}, ("test.txt", None)),  # as published
        ("levir", ("test", "val"), {"val_id_path": "splits/levir/val.txt"}, ("val.txt", "test.txt")),
        ("camvid", ("val", "test", "x"), {"test_id_path": "splits/camvid/x.txt"}, ("val.txt", "x.txt")),
        ("camvid", ("val", "test"), {"test_id_path": "splits/camvid/val.txt"}, ("val.txt", None)),  # no test wanted
    ],
)
def test_which_lists_are_taken(
    dataset: str, lists: tuple[str, ...], settings: dict[str, Any], expected: tuple[str, str | None], tiny: Tiny,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    spec, file = get_spec(dataset), f"images/{len(lists)}.jpg"
    for folder in ("images", "A", "B", "label"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for place in (file, f"A/{file[7:]}", f"B/{file[7:]}"):
        (tmp_path / "data" / place).write_bytes((tiny.root / "images/0.jpg").read_bytes())
    for i, name in enumerate(lists):
        path = Path("splits", dataset, f"{name}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{file[7:]}\n" * (i + 1) if spec.task == "change" else f"{file} {file}\n" * (i + 1))
    cfg = replace(load_config(str(tiny.config)), dataset=dataset, data_root="data", val_id_path=None, test_id_path=None)
    cfg = replace(cfg, **settings)
    validation = validation_source(cfg, spec)
    test = find_test_source(cfg, spec, validation, open_log(tmp_path / "log"))
    base = f"splits/{dataset}/"
    assert (validation.ids.path.removeprefix(base), test and test.ids.path.removeprefix(base)) == expected
