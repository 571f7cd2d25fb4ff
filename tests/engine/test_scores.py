"""Scores of engine.metric against counting pixel by pixel in plain Python."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import unimatch_v2
from dataset.spec import get_spec
from engine import metric
from tests.conftest import Tiny


def labels(seed: int, height: int = 23, width: int = 31) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 4, (5, 6)), np.ones((5, 6)))[:height, :width]
    return torch.from_numpy(blocks.astype(np.int64))[None]


def band_by_definition(mask: np.ndarray, distance: int) -> np.ndarray:
    """A mask without its erosion by a square; outside of the image nothing is in the mask (Cheng et al. 2021)."""
    height, width = mask.shape
    padded = np.pad(mask, distance, constant_values=False)
    eroded = np.ones_like(mask)
    for dy in range(2 * distance + 1):
        for dx in range(2 * distance + 1):
            eroded &= padded[dy : dy + height, dx : dx + width]
    return mask & ~eroded


def test_boundary_iou_is_the_iou_of_the_masks_bands() -> None:
    true, pred = labels(0), labels(1)
    true[0, 4:9, 3:20] = 255
    for distance in (1, 3):
        counts = torch.zeros(3, 4, dtype=torch.int64)
        expected = []
        counts += metric.boundary_counts(pred, true, 4, distance)
        counts += metric.boundary_counts(true.clamp(max=3), true, 4, distance)
        for k in range(4):
            both = union = 0
            for image in (pred, true.clamp(max=3)):
                valid = (true != 255)[0].numpy()
                own = [((x[0].numpy() == k) & valid) for x in (true, image)]
                bands = [band_by_definition(mask, distance) for mask in own]
                both += int((bands[0] & bands[1]).sum())
                union += int((bands[0] | bands[1]).sum())
            expected.append(100 * both / union)
        assert metric.boundary_iou(counts).tolist() == pytest.approx(expected)


def test_scores_of_a_matrix_worked_out_by_hand() -> None:
    # three classes, the last one absent from truth and prediction
    matrix = torch.tensor([[6, 2, 0], [1, 11, 0], [0, 0, 0]])
    iou = [6 / 9, 11 / 14, 0]
    assert np.allclose(metric.iou(matrix), 100 * np.array(iou))
    assert np.allclose(metric.recall(matrix), [75, 100 * 11 / 12, 0])
    assert np.isclose(metric.frequency_weighted_iou(matrix), 100 * (iou[0] * 8 + iou[1] * 12) / 20)
    empty = torch.zeros(3, 3, dtype=torch.int64)
    sums = torch.stack([metric.sums(each) for each in (matrix, empty)])
    assert metric.present_iou(sums).tolist() == pytest.approx([100 * (iou[0] + iou[1]) / 2, 100])
    assert metric.present_iou(sums, 1).tolist() == pytest.approx([100 * iou[1], 100])
    unchanged = metric.sums(torch.tensor([[9, 0], [0, 0]]))[None]
    assert metric.present_iou(unchanged, 1).tolist() == [100]  # nothing has changed, and nothing was found


def test_scores_of_both_tasks_by_their_keys() -> None:
    matrix = torch.tensor([[900, 30], [20, 50]])
    found = metric.scores(matrix, get_spec("levir"))
    unchanged = 100 * 900 / 950
    assert found.pop("iou") == pytest.approx({"unchanged": unchanged, "changed": 50})
    assert found == pytest.approx(
        {"miou": (unchanged + 50) / 2, "pixel_accuracy": 95, "overall_accuracy": 95, "unchanged_iou": unchanged, "changed_iou": 50}
        | {"precision": 62.5, "recall": 500 / 7, "f1": 200 / 3}
        | {"mean_accuracy": (100 * 900 / 930 + 500 / 7) / 2, "frequency_weighted_iou": 0.93 * unchanged + 0.07 * 50}
    )
    spec = get_spec("demo")
    found = metric.scores(torch.diag(torch.arange(6)), spec)
    assert found.pop("iou") == pytest.approx(dict(zip(spec.classes, [0, 100, 100, 100, 100, 100], strict=True)))
    absent = 100 * 5 / 6  # a class without a pixel has 0
    assert found == pytest.approx({"miou": absent, "pixel_accuracy": 100, "mean_accuracy": absent, "frequency_weighted_iou": 100})


def test_every_task_has_a_score_that_chooses_the_epoch_and_all_that_are_shown() -> None:
    assert [metric.chosen_by(task) for task in metric.FIGURES] == ["miou", "changed_iou"]
    for name in ("demo", "levir"):
        spec = get_spec(name)
        assert metric.FIGURES[spec.task].keys() <= metric.scores(torch.eye(spec.nclass, dtype=torch.int64), spec).keys()


def test_a_figure_that_is_added_is_shown_everywhere(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What CONTRIBUTING.md says of a figure: its value in `scores`, its names in `FIGURES`."""
    scores = metric.scores
    monkeypatch.setattr(metric, "scores", lambda matrix, spec: scores(matrix, spec) | {"best_iou": float(metric.iou(matrix).max())})
    monkeypatch.setitem(metric.FIGURES["segmentation"], "best_iou", metric.Figure("best IoU", tag="best_IoU"))
    run = tmp_path / "run"
    unimatch_v2.main(tiny.args(run, "epochs=1", f"test_id_path={tiny.root}/labeled.txt"))
    (epoch,) = (row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "epoch")
    value = epoch["scores"]["EMA"]["best_iou"]
    assert value == max(epoch["scores"]["EMA"]["iou"].values()) > 0
    assert f"<b>{value:.2f}</b><span>best IoU (EMA), epoch 0</span>" in (run / "report.html").read_text()
    tested = json.loads((run / "test.json").read_text())["scores"]["EMA"]["best_iou"]
    assert f", best IoU {tested:.2f}\n" in (run / "train.log").read_text()
    board = EventAccumulator(str(run))
    board.Reload()
    assert [row.value for row in board.Scalars("eval/best_IoU_ema")] == pytest.approx([value])
    capsys.readouterr()
    evaluate.main(["--checkpoint", str(run / "best.pth"), "--json", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["best_iou"] == pytest.approx(value, abs=0.01)
    assert f"{'best IoU':<24} {value:6.2f}" in capsys.readouterr().out
