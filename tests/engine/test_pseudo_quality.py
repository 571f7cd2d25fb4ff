"""What the pseudo labels are worth: the figures against a second writing, where they stand, and what the log warns of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fixmatch
import supervised
import unimatch_v2
from dataset.loader import validation_source
from dataset.spec import get_spec
from engine.evaluation import Labeler, Prediction, evaluate, validation_loader
from engine.metrics_file import Epoch, read_epochs
from engine.pseudo_quality import NEVER, NONE_YET, current, quality, quality_of, warnings
from engine.trained_model import load_trained
from scripts.report import read_log
from tests.conftest import Tiny
from util.config import load_config
from util.dist import World

CLASSES = get_spec("demo").classes


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    unimatch_v2.main(tiny.args(folder, "epochs=2", "conf_thresh=0.2"))
    return folder


def by_pixel(tiny: Tiny, checkpoint: Path, which: str, mode: str) -> tuple[float, dict[str, Any]]:
    """A threshold that some pixels reach; share and right, of all and by class, counted pixel by pixel from the model's probabilities."""
    cfg = load_config(str(tiny.config), [f"eval_mode={mode}"])
    trained = load_trained(cfg, str(checkpoint), which, torch.device("cpu"))
    prediction = Prediction.of(cfg, trained.spec, trained.model)
    rows = []
    for batch in validation_loader(validation_source(cfg, trained.spec), World(), 0):
        img = (batch.img_x.float() / 255 - torch.tensor(trained.model.backbone.mean)[:, None, None]) / torch.tensor(
            trained.model.backbone.std
        )[:, None, None]
        with torch.no_grad():
            scores = prediction.class_scores(trained.model, img)
        prob = (scores.softmax(1) if mode == "original" else scores / scores.sum(1, keepdim=True))[0].numpy()
        rows += list(zip(prob.max(0).ravel(), prob.argmax(0).ravel(), batch.mask_x[0].numpy().ravel(), strict=True))
    scored = [row for row in rows if row[2] != 255]
    thresh = float(np.quantile([row[0] for row in scored], 0.4))
    kept = [row for row in scored if row[0] >= thresh]

    def figures(of: list[Any]) -> tuple[float, float | None]:
        return 100 * len(of) / len(scored), 100 * sum(row[1] == row[2] for row in of) / len(of) if of else None

    return thresh, {"": figures(kept)} | {name: figures([row for row in kept if row[1] == k]) for k, name in enumerate(CLASSES)}


def flat(found: dict[str, Any]) -> dict[str, Any]:
    return {name: (own["share"], own["right"]) for name, own in {"": found, **found["classes"]}.items()}


@pytest.mark.parametrize("mode", ["original", "sliding_window"])
@pytest.mark.parametrize("which", ["student", "ema"])
def test_figures_are_those_of_the_labelling_models_confident_pixels(which: str, mode: str, run: Path, tiny: Tiny) -> None:
    cfg = load_config(str(tiny.config), [f"eval_mode={mode}"])
    models = [load_trained(cfg, str(run / "latest.pth"), one, torch.device("cpu")) for one in ("student", "ema")]
    source, prediction = validation_source(cfg, models[0].spec), Prediction.of(cfg, models[0].spec, models[0].model)
    thresh, expected = by_pixel(tiny, run / "latest.pth", which, mode)
    labeler = Labeler(("student", "ema").index(which), thresh)
    counts = evaluate([one.model for one in models], validation_loader(source, World(), 0), prediction, 6, World(), labeler)
    assert expected[""][0] == pytest.approx(60, abs=1)
    found = flat(quality_of(counts, CLASSES))
    assert found.keys() == expected.keys()
    for name, pair in expected.items():
        assert found[name] == pytest.approx(pair, abs=0.05), name  # a pixel on the threshold may round to its other side


def test_log_metrics_and_tensorboard_say_the_same(run: Path) -> None:
    rows = read_epochs(run / "metrics.jsonl")
    board = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    for tag, key in (("share", "share"), ("right", "right")):
        values = [event.value for event in board.Scalars(f"pseudo_label_{tag}/all")]
        assert values == pytest.approx([row.pseudo_quality[key] for row in rows], rel=1e-6)
    log = (run / "train.log").read_text()
    for row in rows:
        for name, own in row.pseudo_quality["classes"].items():
            shown = f"{name} none" if own["right"] is None else f"{name} {own['right']:.2f} ({own['share']:.2f})"
            assert shown in log
            events = board.Scalars(f"pseudo_label_share/{name}")
            assert [event.value for event in events if event.step == row.epoch] == pytest.approx([own["share"]], rel=1e-6)
    assert sum(own["share"] for own in rows[-1].pseudo_quality["classes"].values()) == pytest.approx(rows[-1].pseudo_quality["share"])
    (found,) = read_log(run / "train.log")
    assert found.unread_lines == 0


def test_a_supervised_run_has_none_of_it(tiny: Tiny, tmp_path: Path) -> None:
    supervised.main(tiny.args(tmp_path, "epochs=1", "batch_size=30", unlabeled=False))
    assert "Pseudo labels" not in (tmp_path / "train.log").read_text()
    assert "seudo labels" not in (tmp_path / "report.html").read_text()
    (row,) = read_epochs(tmp_path / "metrics.jsonl")
    assert row.pseudo_quality == {}
    assert row.labeled_images == 240


def test_the_labels_of_who_gives_them_are_judged(tiny: Tiny, tmp_path: Path) -> None:
    fixmatch.main(tiny.args(tmp_path, "epochs=1", "teacher=student", "conf_thresh=0"))
    (row,) = read_epochs(tmp_path / "metrics.jsonl")
    assert row.scores["student"]["pixel_accuracy"] != row.scores["EMA"]["pixel_accuracy"]
    assert row.pseudo_quality["right"] == row.scores["student"]["pixel_accuracy"], "all pixels are confident of at least 0"
    assert row.labeled_images == 12


def epoch(number: int, step: dict[str, float], evaluated: dict[str, float] | None, ratio: float = 0.0) -> Epoch:
    worth = {"share": 0, "right": None, "classes": {name: {"share": share, "right": None} for name, share in (evaluated or {}).items()}}
    return Epoch(number, number + 1, 1.0, None, None, {"mask_ratio": ratio}, step, {}, worth if evaluated is not None else {})


def test_warnings() -> None:
    names, asked = ("sky", "pole", "sign"), []

    def labeled() -> dict[int, int]:
        asked.append(True)
        return {0: 5, 1: 5, 2: 0}

    def said(epochs: list[Epoch], last: bool = False) -> list[str]:
        return warnings(epochs, labeled, names, 0.95, last)

    none = dict.fromkeys(names, 0.0)
    silent = [epoch(i, none, none) for i in range(7)]
    told = [n for n in range(1, 8) if said(silent[:n])]
    assert told == [1, 2, 4]
    assert said(silent, last=True)[0].startswith("No pseudo label has reached conf_thresh (0.95) in 7 epochs. ")
    assert asked == [], "the labelled masks are read where they matter alone"
    assert said([epoch(0, none, None)])[0].startswith("No pseudo label has reached"), "known without an evaluation, too"
    # one class is among them in a step, none on the validation images: the labelled one of the others is named
    (text,) = said([epoch(0, none | {"sky": 2.0}, none)])
    assert text.endswith("nor in the last step of an epoch: pole.")
    assert said([epoch(0, none | {"sky": 2.0}, None)]) == [], "not evaluated: later"
    assert said([epoch(0, none | {"sky": 2.0}, none | {"pole": 0.1})]) == []
    assert said([*silent, epoch(7, none, none, ratio=0.01)])[0].endswith(": sky, pole."), "some passed, in other steps"
    assert said([replace(silent[0], pseudo_labels={}, pseudo_quality={})]) == [], "nobody labels"


def test_a_page_has_the_latest_warning_of_each_kind() -> None:
    def at(minute: int, text: str) -> str:
        return f"2026-01-01 10:0{minute}:00 {text}"

    none, never, other = [f"{NONE_YET} (0.95) in 1 epoch.", f"{NONE_YET} (0.95) in 2 epochs."], f"{NEVER}: pole.", "Step 3 skipped"
    found = [at(0, none[0]), at(1, other), at(2, none[1]), at(3, never), at(4, never), at(5, other)]
    assert current(found) == [at(1, other), at(2, none[1]), at(4, never), at(5, other)]


def test_quality_by_hand() -> None:
    found = quality(torch.tensor([[3, 1, 0], [0, 4, 0], [1, 0, 0]]), 20, ("a", "b", "c"))
    assert found["share"] == 45
    assert found["right"] == pytest.approx(100 * 7 / 9)
    assert found["classes"] == {"a": {"share": 20, "right": 75}, "b": {"share": 25, "right": 80}, "c": {"share": 0, "right": None}}
    assert quality(torch.zeros(2, 2, dtype=torch.int64), 0, ("a", "b"))["right"] is None


def test_a_run_nobody_is_sure_of_is_warned_of_in_its_log(tiny: Tiny, tmp_path: Path) -> None:
    fixmatch.main(tiny.args(tmp_path, "epochs=1", "conf_thresh=1.0"))
    log = (tmp_path / "train.log").read_text()
    assert "WARNING] No pseudo label has reached conf_thresh (1) in 1 epoch. " in log
    assert "Pseudo labels on the validation images: 0.00 % of pixels from confidence 1 on\n" in log
    assert "No pseudo label has reached" in (tmp_path / "report.html").read_text()
