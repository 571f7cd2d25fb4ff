"""The demo's table and pictures, from logs and checkpoints as runs leave them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.spec import get_spec
from model import build_model
from scripts import demo_report
from tests.conftest import Tiny
from util.error import UserError

LOG = """[2026-01-02 10:00:00,000][    INFO] {'backbone': 'dinov2_tiny',
 'epochs': 2}

[2026-01-02 10:00:10,000][    INFO] ===========> Epoch: 0, Previous best: 0.00 @epoch-0, EMA: 0.00 @epoch-0
[2026-01-02 10:00:20,500][    INFO] ***** Evaluation original ***** >>>> MeanIoU: 40.00, EMA: 41.00

[2026-01-02 11:00:00,000][    INFO] {'backbone': 'dinov2_tiny',
 'epochs': 2}

[2026-01-02 11:00:05,000][    INFO] ************ Load from checkpoint at epoch 0

[2026-01-02 11:00:09,500][    INFO] ***** Evaluation original ***** >>>> MeanIoU: 30.25, EMA: 31.50
"""


def make_run(folder: Path, log: str, semi: bool, task: str = "segmentation", nclass: int = 6) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.log").write_text(log)
    state = build_model("dinov2_tiny", nclass, task).state_dict()
    torch.save({"model": state} | ({"model_ema": state} if semi else {}), folder / "best.pth")
    return folder


def test_result_is_the_last_evaluation_and_pauses_do_not_count(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", LOG, semi=True)
    result = demo_report.read_result("fixmatch", folder, "miou")
    assert (result.student, result.ema, result.seconds) == (30.25, 31.5, 30.0)


def test_table() -> None:
    results = [demo_report.Result("supervised", 9.5, None, 61.4), demo_report.Result("fixmatch", 30.25, 31.5, 102)]
    assert demo_report.table(results, "mIoU").splitlines() == [
        "| method     | student mIoU | EMA mIoU | seconds |",
        "| ---------- | ------------:| --------:| -------:|",
        "| supervised |         9.50 |          |      61 |",
        "| fixmatch   |        30.25 |    31.50 |     102 |",
    ]


def test_pictures(tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    semi = make_run(tmp_path / "a b/fixmatch", LOG, semi=True)
    alone = make_run(tmp_path / "a b/supervised", LOG.replace(", EMA: 31.50", "").replace(", EMA: 41.00", ""), semi=False)
    out = tmp_path / "pictures/demo.png"
    args = ["--config", str(tiny.config), "--out", str(out), f"supervised={alone}", f"fixmatch={semi}"]
    demo_report.main(args)
    printed = capsys.readouterr().out
    assert "| supervised |        30.25 |          |      30 |" in printed
    assert str(out) in printed
    with Image.open(out) as img:
        pixels = np.asarray(img)
    assert pixels.shape[1] == 4 * 186 - 6  # straight columns
    assert pixels.shape[0] > 4 * 200
    colours = {tuple(c) for c in pixels[:-40].reshape(-1, 3)}  # above the legend
    assert len(colours & set(get_spec("demo").palette)) >= 4  # the truth


def test_a_run_without_log_or_evaluation_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.log: no such log"):
        demo_report.read_result("x", tmp_path, "miou")
    (tmp_path / "train.log").write_text(LOG[:100])
    with pytest.raises(UserError, match="found no evaluation"):
        demo_report.read_result("x", tmp_path, "miou")
