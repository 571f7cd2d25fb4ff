"""What CONTRIBUTING.md says of adding an encoder, a decoder and a method, tried through the real commands with those of toy.py."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import predict
import supervised
from dataset.batch import Reads
from engine.method import SEMI_LABELS
from engine.metrics_file import read_epochs
from scripts import export
from scripts.report.__main__ import main as report
from scripts.report.tables import round_half_up
from tests import toy
from tests.conftest import ROOT, Tiny
from tests.test_train import stop_after
from util import checkpoint
from util.error import UserError

SETTINGS = ("backbone=toy", "model=toy", "crop_size=16", "lr=0.01", "optimizer=sgd", "weight_decay=0")


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "run"
    toy.main(tiny.args(folder, *SETTINGS, "toy_weight=0.25"))
    return folder


def test_its_own_stat_is_in_log_board_and_page(trained: Path) -> None:
    log = (trained / "train.log").read_text()
    assert ", Toy: " in log
    assert ", Toy confidence: 0." in log
    assert "'toy_weight': 0.25" in log
    board = EventAccumulator(str(trained))
    board.Reload()
    assert len(board.Scalars("train/loss_toy")) == 12
    page = (trained / "report.html").read_text()
    assert "Toy confidence, mean of the epoch" in page
    assert "Toy" in page.replace("Toy confidence", "")


def test_its_own_stat_is_in_the_metrics(trained: Path) -> None:
    """The means of an epoch's steps so far, as TensorBoard has the steps."""
    board = EventAccumulator(str(trained)).Reload()
    steps = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in steps if row["kind"] == "step"]
    epochs = read_epochs(trained / "metrics.jsonl")
    for tag, stat in (("train/loss_toy", "loss_toy"), ("train/toy_conf", "toy_conf")):
        values = [event.value for event in board.Scalars(tag)]
        means = [float(np.mean(values[i - i % 6 : i + 1])) for i in range(12)]
        assert max(values) > min(values), "the numbers of a run"
        assert [row["means"][stat] for row in steps] == pytest.approx(means, rel=1e-6), "TensorBoard has float32"
        assert [row.means[stat] for row in epochs] == [steps[5]["means"][stat], steps[11]["means"][stat]]


def test_the_report_reads_its_log(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines with a stat that no other method has are lines of a log, and the figures stand in the table."""
    report([str(trained), "--format", "json"])
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["backbone"], run["statistic"], run["epochs_done"], run["complete"]) == ("toy", "ema_miou", 2, True)
    assert (run["unread_lines"], run["unread_samples"], run["notes"], run["nan_iterations"]) == (0, [], [], 0)
    assert run["sec_per_iter"] > 0, "the time between two lines with its stat"
    scores = [epoch.scores["EMA"]["miou"] for epoch in read_epochs(trained / "metrics.jsonl")]
    assert (run["best"], run["last"]) == (round(max(scores), 2), round(scores[-1], 2))
    report([str(trained)])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| toy (conf_thresh 0.2) | toy "))
    assert f" {round_half_up(run['best'], 1)} |" in row


def test_a_method_may_read_more_unlabelled_images_than_labelled_ones(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy, "METHOD", replace(toy.METHOD, reads=Reads(unlabeled=2, strong_views=1)))
    toy.main(tiny.args(tmp_path, *SETTINGS))
    board = EventAccumulator(str(tmp_path)).Reload()
    assert "A step sees 2 + 4 images on one shard" in capsys.readouterr().out
    assert len(board.Scalars("train/loss_toy")) == 6, "half as many steps as with as many labelled images"
    assert {"data/labeled", "data/unlabeled"} <= set(board.Tags()["images"])
    assert [epoch.labeled_images for epoch in read_epochs(tmp_path / "metrics.jsonl")] == [6, 6]


def test_a_method_may_draw_without_unlabelled_images(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def draw(images: int, channels: tuple[int, ...], generator: torch.Generator, cfg: Any) -> torch.Tensor:
        drawn.append(images)
        return torch.ones(1)

    monkeypatch.setattr(supervised, "METHOD", replace(supervised.METHOD, draw=draw))
    supervised.main(tiny.args(tmp_path, *SETTINGS, "epochs=1", unlabeled=False))
    assert set(drawn) == {0}


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_resumed_run_has_the_same_bits(trained: Path, tiny: Tiny, tmp_path: Path, checkpointing: str) -> None:
    """Dropout inside the encoder, batch statistics and SGD's momentum too; recomputed blocks change nothing."""
    args = tiny.args(tmp_path, *SETTINGS, "toy_weight=0.25", f"activation_checkpointing={checkpointing}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.trainer.Trainer._evaluate", stop_after(1))
        with pytest.raises(KeyboardInterrupt):
            toy.main(args)
    toy.main(args)
    whole, resumed = (checkpoint.load(folder / "latest.pth") for folder in (trained, tmp_path))
    for which in ("model", "model_ema"):
        for name, value in whole[which].items():
            assert torch.equal(resumed[which][name], value), f"{which} {name}"


def test_an_own_key_that_changed_is_refused(trained: Path, tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"toy_weight: 0\.25, now 0\.5"):
        toy.main(tiny.args(trained, *SETTINGS))


def test_it_is_evaluated_predicted_and_exported(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    best = ["--checkpoint", str(trained / "best.pth")]
    config = ["--config", str(tiny.config), *(word for setting in SETTINGS[:3] for word in ("--set", setting))]
    evaluate.main([*config, *best, "--json", str(tmp_path / "scores.json")])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert 0 < scores["miou"] <= 100
    predict.main([*config, *best, "--out", str(tmp_path / "out"), str(tiny.root / "images/18.jpg")])
    assert (tmp_path / "out/18.png").exists()
    export.main([*best, "--format", "torch", "--out", str(tmp_path / "toy.pt")])
    about = json.loads(torch.load(tmp_path / "toy.pt")["meta"])
    assert (about["multiple"], about["mean"]) == (8, [0.5, 0.5, 0.5])
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is an extra: pip install -r requirements-extra.txt")
    export.main([*best, "--format", "onnx", "--out", str(tmp_path / "toy.onnx")])
    session = runtime.InferenceSession(str(tmp_path / "toy.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.zeros((1, 3, 21, 30), np.float32)})[0].shape == (1, 6, 21, 30)


def test_a_crop_that_does_not_fit_is_refused_by_its_multiple(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crop_size: found 28, expected a multiple of 8 for this backbone; the nearest is 32"):
        toy.main(tiny.args(tmp_path, *SETTINGS, "crop_size=28"))


def test_a_step_from_given_tensors_runs_as_it_is_written() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["learner"].it == 8
    assert {name for name, value in names["stats"].items() if torch.isfinite(value)} == set(SEMI_LABELS)
