"""metrics.jsonl: what it holds after training, a kill, a resume, a full disk and on several processes."""

import json
import logging
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fixmatch
import supervised
from dataset.spec import get_spec
from engine import metrics_file
from engine import trainer as training
from engine.metrics_file import Epoch, append, read_epochs
from engine.records import Record
from engine.update import Learner
from tests import crash
from tests.conftest import Tiny, command
from util import checkpoint

STATS = {"loss_all", "loss_x", "loss_s", "mask_ratio", "grad_norm"}


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] != "warning"]


def test_every_logged_step_and_every_epoch_in_full_precision(tiny: Tiny, tmp_path: Path) -> None:
    fixmatch.main(tiny.args(tmp_path, "batch_size=1", "crop_size=14", "epochs=3", "eval_every=2"))
    board = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    rows = lines(tmp_path)
    assert [row["kind"] for row in rows] == ["start", *(["step"] * 12 + ["epoch"]) * 3]
    rates = {event.step: event.value for event in board.Scalars("train/lr")}
    scalars = {name: [event.value for event in board.Scalars(f"train/{name}")] for name in STATS}
    for i, row in enumerate(row for row in rows if row["kind"] == "step"):
        assert (row["step"], row["epoch"], row["iteration"]) == (i, i // 12, i % 12)
        assert row["lr"] == pytest.approx(rates[i], rel=1e-6)
        assert row["means"].keys() == STATS
        for name, mean in row["means"].items():
            assert mean == pytest.approx(sum(scalars[name][i - i % 12 : i + 1]) / (i % 12 + 1), rel=1e-6)
    epochs = read_epochs(tmp_path / "metrics.jsonl")
    assert [(row.epoch, row.step, sorted(row.scores)) for row in epochs] == [
        (0, 12, []),
        (1, 24, ["EMA", "student"]),
        (2, 36, ["EMA", "student"]),
    ]
    assert [row.means for row in epochs] == [row["means"] for row in rows if row["kind"] == "step" and row["iteration"] == 11]
    shares = [[event.value for event in board.Scalars(f"pseudo_labels/{name}")] for name in get_spec("demo").classes]
    assert [list(row.pseudo_labels.values()) for row in epochs] == [pytest.approx(list(own), rel=1e-6) for own in zip(*shares, strict=True)]
    assert all(row.seconds > 0 and row.images_per_second and row.memory for row in epochs)
    state = checkpoint.load(tmp_path / "latest.pth")
    assert state["previous_best_ema"] == max(row.scores["EMA"]["miou"] for row in epochs[1:]), "to the last bit"
    for own in epochs[-1].scores.values():
        assert list(own["iou"]) == list(get_spec("demo").classes)
        assert own["miou"] == pytest.approx(sum(own["iou"].values()) / 6)


def test_a_killed_run_that_is_resumed_has_every_line_once(tiny: Tiny, tmp_path: Path) -> None:
    """Killed after the second epoch's lines were written and before they were saved, with a line torn at the end."""
    args = (tmp_path / "whole", tmp_path / "parts")
    settings = ("batch_size=10", "epochs=3", "save_every=60")
    supervised.main(tiny.args(args[0], *settings, unlabeled=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Learner, "state", stop_at(4, training.Learner.state))  # the start, then each epoch, saves once
        with pytest.raises(KeyboardInterrupt):
            supervised.main(tiny.args(args[1], *settings, unlabeled=False))
    assert [row.epoch for row in read_epochs(args[1] / "metrics.jsonl")] == [0, 1, 2]
    assert [row["step"] for row in lines(args[1]) if row["kind"] == "start"] == [0]
    with open(args[1] / "metrics.jsonl", "a") as file:
        file.write('{"kind": "epoch", "epo')
    supervised.main(tiny.args(args[1], *settings, unlabeled=False))
    assert crash.metrics(args[1]) == crash.metrics(args[0])
    assert [row["step"] for row in lines(args[1]) if row["kind"] == "start"] == [0, 24]
    page = (args[1] / "report.html").read_text()
    assert page.count("<circle") == (args[0] / "report.html").read_text().count("<circle") == 3 * 3, "score, loss and speed of each epoch"


def stop_at(call: int, original: Any) -> Any:
    done: list[int] = []

    def wrapped(*args: Any) -> Any:
        done.append(1)
        if len(done) == call:
            raise KeyboardInterrupt
        return original(*args)

    return wrapped


def test_several_processes_write_what_one_does(tiny: Tiny, tmp_path: Path) -> None:
    for processes in (0, 2):
        done = command("fixmatch.py", *tiny.args(tmp_path / str(processes), "shards=2", "epochs=1"), processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (lines(tmp_path / name) for name in ("0", "2"))
    assert [(row["kind"], row["step"]) for row in one] == [(row["kind"], row["step"]) for row in two]
    for row, other in zip(one[1:], two[1:], strict=True):
        # float32, 3 steps of AdamW: the same bits on x86; kernels may differ by 3e-5 (test_golden_losses.py), bf16 gradients by 1e-3
        assert row["means"] == pytest.approx(other["means"], rel=1e-4, abs=1e-5)
    # images a second count those of all processes
    assert one[-1]["images_per_second"] * one[-1]["seconds"] > 2 * 2 * 3 * 2


def test_a_run_begun_without_it_says_that_curves_are_missing(tiny: Tiny, tmp_path: Path) -> None:
    args = tiny.args(tmp_path, "batch_size=10", "epochs=1", unlabeled=False)
    supervised.main(args)
    (tmp_path / "metrics.jsonl").unlink()
    supervised.main([*args, "--set", "epochs=2"])
    assert "metrics.jsonl: found 0 of the 1 epochs so far; the page's curves lack" in (tmp_path / "train.log").read_text()
    assert [row.epoch for row in read_epochs(tmp_path / "metrics.jsonl")] == [1]


def test_epochs_of_other_classes_are_not_on_the_page(tiny: Tiny, tmp_path: Path) -> None:
    args = tiny.args(tmp_path, "batch_size=10", "epochs=1", unlabeled=False)
    supervised.main(args)
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text.replace('"disc"', '"disk"'))
    supervised.main([*args, "--set", "epochs=2"])
    assert "metrics.jsonl: found 0 of the 1 epochs so far; the page's curves lack" in (tmp_path / "train.log").read_text()
    assert [row.epoch for row in read_epochs(tmp_path / "metrics.jsonl")] == [0, 1]


class Full:
    """A file on a disk that takes `room` bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        return self.file.write(data[: self.room])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_costs_a_line_and_not_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, log = tmp_path / "metrics.jsonl", logging.Logger("x")
    log.addHandler(logging.FileHandler(tmp_path / "log"))
    record = Record(log, tmp_path, get_spec("demo"), supervised.METHOD, {"teacher": None})
    record.iteration(0, 0, 0, 1e-4, {"loss_all": 1.0})
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(metrics_file, "open", lambda *words, **options: Full(open(*words, **options), 10), raising=False)  # noqa: SIM115
        record.iteration(0, 1, 1, 1e-4, {"loss_all": 1.0})
    assert path.read_bytes() == whole
    assert (tmp_path / "log").read_text().endswith(f"{path}: a line is lost (No space left on device)\n")
    record.iteration(0, 2, 2, 1e-4, {"loss_all": math.nan})
    assert [row["step"] for row in lines(tmp_path)] == [0, 0, 2], "the start, and two of three steps"
    assert record.warnings[0].endswith("a line is lost (No space left on device)"), "which the page can show all the same"
    assert lines(tmp_path)[-1]["means"] == {"loss_all": None}, "JSON has no nan"
    record.board.close()


def test_warnings_are_those_of_the_run_and_of_its_earlier_starts(tmp_path: Path) -> None:
    def start(step: int, *texts: str) -> list[str]:
        """A start that warns of `texts`. Returns what the page could show."""
        log = logging.Logger("x")
        record = Record(log, tmp_path, get_spec("demo"), supervised.METHOD, {"teacher": None}, step)
        log.info("no warning")
        for text in texts:
            log.warning(text)
        record.board.close()
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line[:19]) for line in record.warnings)
        return [line[20:] for line in record.warnings]

    assert start(0, "of an earlier run in the same folder") == ["of an earlier run in the same folder"]
    assert start(0, "two lines:\n  é") == ["two lines:\n  é"]
    assert start(8, "after the resume") == ["two lines:\n  é", "after the resume"]
    assert start(8) == ["two lines:\n  é", "after the resume"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that are whole."""
    whole = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            whole.append(json.loads(line))
    return whole


def row(epoch: int, seconds: float = 1.0) -> dict[str, Any]:
    return vars(Epoch(epoch, 10 * epoch + 10, seconds, None, None, {"loss_all": None}, {}, {}))


def test_reading_leaves_out_what_is_torn_and_what_was_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for epoch, seconds in ((0, 1), (1, 1), (2, 1), (1, 2)):
        append(path, "epoch", row(epoch, seconds))
    append(path, "step", {"step": 20})
    assert [(one.epoch, one.seconds) for one in read_epochs(path)] == [(0, 1), (1, 2)]
    damaged = ['{"kind": "epoch", "epo', "[1]", "null", "", "\0\0", '{"kind": "epoch"}', '{"epoch": 7}', "[" * 100_000]
    damaged += [json.dumps({"kind": "epoch", **row(7), "epoch": "7"}), json.dumps({"kind": "epoch", **row(7), "more": 1})]
    with open(path, "ab") as file:
        file.write("\n".join(damaged).encode() + b"\n\xff\xfe\n")
    append(path, "epoch", row(2, 3))
    with open(path, "ab") as file:
        file.write(b'{"kind": "epoch", "epo')
    append(path, "start", {"step": 30})
    assert read_lines(path)[-1]["step"] == 30, "a torn line before it costs none but itself"
    assert [(one.epoch, one.seconds) for one in read_epochs(path)] == [(0, 1), (1, 2), (2, 3)]
    append(path, "start", {"step": 0})
    assert read_epochs(path) == [], "an earlier run's"
    with pytest.raises(FileNotFoundError):
        read_epochs(tmp_path / "missing")


def test_a_stat_that_was_never_finite_has_no_mean(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: Learner, shards: Any, *rest: Any) -> Any:
        stats = original(self, shards, *rest)
        return {name: value * math.nan for name, value in stats.items()}

    original = Learner.update
    monkeypatch.setattr(Learner, "update", update)
    fixmatch.main(tiny.args(tmp_path, "epochs=1"))
    for line in lines(tmp_path)[1:]:
        assert [name for name, mean in line["means"].items() if mean is not None] == ["grad_norm"]
    assert "Total loss: nan" in (tmp_path / "train.log").read_text()
    assert "Mask ratio, mean of the epoch" in (tmp_path / "report.html").read_text()
