"""UniMatch V1: its draws and its log. Its step: tests/engine/test_update.py and tests/golden."""

import re
from pathlib import Path

import pytest
import torch

import unimatch_v1
from scripts.report import read_log
from tests.conftest import Tiny
from unimatch_v1 import Settings


@pytest.mark.parametrize(
    ("kind", "channels", "width"),
    [("shared", (384,) * 4, 384), ("per_level", (384,) * 4, 1536), ("shared", (64, 128, 320, 512), 1024), ("per_level", (64, 128), 192)],
)
def test_feature_dropout_is_0_or_2_for_each_image_and_channel(kind: str, channels: tuple[int, ...], width: int) -> None:
    """Maps of unequal channels cannot share a mask."""
    cfg = Settings(dataset="", data_root="", backbone="", crop_size=14, epochs=1, batch_size=1, lr=1.0, feature_dropout=kind)
    assert unimatch_v1.METHOD.draw is not None
    factors = unimatch_v1.METHOD.draw(64, channels, torch.Generator().manual_seed(0), cfg)
    assert factors.shape == (64, width)
    assert set(factors.unique().tolist()) == {0, 2}
    assert float(factors.mean()) == pytest.approx(1, abs=0.02)
    assert float(factors.mean(dim=0).std()) == pytest.approx(1 / 8, rel=0.2), "images are drawn one by one"


# lines of the public logs, one of each kind; the figures between are theirs
PUBLIC = """\
===========> Epoch: 0, Previous best: 0.00 @epoch-0, EMA: 0.00 @epoch-0
Iters: 81, LR: 0.0000050, Total loss: 0.286, x: 0.568, u: 0.004, strong: 0.003, fp: 0.004, Mask ratio: 0.371
***** Evaluation original ***** >>>> MeanIoU: 82.39, EMA: 81.57
"""


@pytest.mark.parametrize("kind", ["shared", "per_level"])
def test_the_log_has_the_published_lines(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    unimatch_v1.main(tiny.args(tmp_path / "exp/demo/unimatch_v1/dinov2_tiny/92", f"feature_dropout={kind}", "epochs=2"))
    log = tmp_path / "exp/demo/unimatch_v1/dinov2_tiny/92/train.log"
    lines = [re.sub(r"\d+", "0", line.split("] ")[-1]) for line in log.read_text().splitlines()]
    assert {re.sub(r"\d+", "0", line) for line in PUBLIC.splitlines()} <= set(lines)
    for line in (line for line in log.read_text().splitlines() if "Iters" in line):
        total, x, u, strong, fp = (float(re.search(rf"{name}: (\d+\.\d+)", line)[1]) for name in ("loss", "x", "u", "strong", "fp"))  # type: ignore[index]
        assert u == pytest.approx((strong + fp) / 2, abs=0.0011), "printed with three decimals"
        assert total == pytest.approx((x + u) / 2, abs=0.0011)
    (run,) = read_log(log)
    assert (run.method, run.epochs_done, run.complete, run.statistic, run.unread_lines) == ("unimatch_v1", 2, True, "ema_miou", 0)
