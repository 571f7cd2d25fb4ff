"""UniMatch V1: its draws, its log, and its steps as the program of 2023 has them, against tests/unimatch_v1_literal.py.

Its step on today's networks: tests/engine/test_update.py. Golden numbers of both: tests/golden.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import evaluate
import fixmatch
import supervised
import unimatch_v1
import unimatch_v2
from dataset.batch import Batch
from engine.method import Method
from model.backbone.resnet import ResNet
from model.segmenter import Segmenter
from model.semseg.deeplabv3plus import DeepLabV3Plus
from model.spec import ENCODERS
from scripts.report import read_log
from tests import unimatch_v1_literal as literal
from tests.conftest import Tiny
from tests.pairs import make_pairs
from unimatch_v1 import Settings
from util import checkpoint
from util.config import Config
from util.error import UserError

B, SIDE, CLASSES, CHANNELS = 2, 24, 5, (256, 2048)
CE = {"name": "CELoss", "kwargs": {"ignore_index": 255}}
OHEM = {"name": "OHEM", "kwargs": {"ignore_index": 255, "thresh": 0.2, "min_kept": 300}}


def v1_batch(it: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Labelled, unlabelled, and the second draw, as the second writing reads them; boxes and padding of every kind."""
    g = torch.Generator().manual_seed(it)
    images = torch.randn(7, B, 3, SIDE, SIDE, generator=g, dtype=torch.float64)
    mask = torch.randint(0, CLASSES, (B, SIDE, SIDE), generator=g)
    mask[:, :4] = 255
    ignore, ignore_mix = torch.zeros(2, B, SIDE, SIDE, dtype=torch.long)
    ignore[1, :, 20:], ignore_mix[0, 18:] = 255, 255
    box1, box2 = torch.zeros(2, B, SIDE, SIDE)
    box1[0, 3:20, 5:22], box1[1, 10:24, 0:9], box2[1, 0:12, 8:24] = 1, 1, 1
    return (images[0], mask), (*images[1:4], ignore, box1, box2), (*images[4:7], ignore_mix)


def feature_draw(call: int, images: int, channels: int) -> Tensor:
    return torch.randint(0, 2, (images, channels), generator=torch.Generator().manual_seed(call)).double()


INPUTS: Any = SimpleNamespace(v1_batch=v1_batch, feature_draw=feature_draw)


def network() -> Segmenter:
    """A small one with batch statistics, whose confidences spread around the threshold; float64."""
    torch.manual_seed(0)
    model = DeepLabV3Plus(ResNet((1, 1, 1, 1), (False, False, True), (0, 3)), CLASSES).double()
    with torch.no_grad():
        model.classifier.weight.mul_(8)
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(std=0.2)
    return model


def given_batch(it: int) -> Batch:
    (img_x, mask_x), (w, s1, s2, ignore, box1, box2), (w_mix, s1_mix, s2_mix, ignore_mix) = v1_batch(it)
    drop = torch.cat([2 * feature_draw(2 * it + i, 2 * B, channels) for i, channels in enumerate(CHANNELS)], dim=1)
    second = Batch(torch.empty(0), torch.empty(0), w_mix, s1_mix, s2_mix, ignore_mix)
    return Batch(img_x, mask_x, w, s1, s2, ignore, box1, box2, drop, second=second)


@pytest.mark.parametrize(("method", "criterion"), [(unimatch_v1.OF_2023, OHEM), (fixmatch.OF_2023, CE)], ids=["unimatch_v1", "fixmatch"])
def test_steps_of_2023(method: Method, criterion: dict[str, Any]) -> None:
    """Loss, stats, gradients and running statistics of two steps, one after the other."""
    cfg = Settings(dataset="", data_root="", backbone="resnet50", crop_size=SIDE, epochs=1, batch_size=B, lr=1e-3, conf_thresh=0.45,
                   criterion=criterion)  # fmt: skip
    ours, theirs = network().train(), network().train()
    settings = literal.Settings(method.name, 0.45, (0.2, 300) if criterion is OHEM else None)
    for it in range(2):
        loss, stats = method.step(ours, ours, given_batch(it), cfg)
        expected = literal.losses(theirs, INPUTS, it, settings)
        assert ours.training
        assert 0.05 < float(stats["mask_ratio"]) < 0.95
        for name, value in expected.items():
            torch.testing.assert_close(stats[name].double(), value.detach().double(), rtol=1e-6, atol=0, msg=name)
        loss.backward()
        expected["loss_all"].backward()
        torch.testing.assert_close(loss, expected["loss_all"], rtol=1e-9, atol=0)
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-12, msg=name)
        for (name, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12, msg=name)


def config(**keys: Any) -> Config:
    made: dict[str, Any] = {"dataset": "pascal", "data_root": "", "backbone": "resnet50", "crop_size": 33, "epochs": 1, "batch_size": 2}
    return Config(**(made | {"lr": 1e-3} | keys))


def test_which_program_a_run_follows() -> None:
    """UniMatch V1's for DeepLabV3+, whose configs say nothing of it; `program` decides otherwise."""
    transformer = {"backbone": "dinov2_tiny"}
    for module in (unimatch_v1, fixmatch, supervised):
        method, old = module.METHOD, module.OF_2023
        assert method.of(config()) is old
        assert method.of(config(program="unimatch_v2")) is method
        assert method.of(config(**transformer)) is method
        assert method.of(config(program="unimatch_v1", **transformer)) is old
    assert unimatch_v2.METHOD.of(config()) is unimatch_v2.METHOD
    cfg = unimatch_v1.OF_2023.settled(config(), "segmentation")
    assert (cfg.program, cfg.model, cfg.optimizer, cfg.teacher) == ("unimatch_v1", "deeplabv3plus", "sgd", "student")
    cfg = unimatch_v1.METHOD.settled(config(**transformer), "segmentation")
    assert (cfg.program, cfg.model, cfg.optimizer, cfg.teacher) == ("unimatch_v2", "dpt", "adamw", "ema")
    assert unimatch_v1.OF_2023.settled(config(optimizer="adamw"), "segmentation").optimizer == "adamw"
    with pytest.raises(UserError, match="program: found unimatch_v1, which has no unimatch_v2"):
        unimatch_v2.METHOD.of(config(program="unimatch_v1"))
    with pytest.raises(UserError, match="teacher: found ema, but unimatch_v1 has no average"):
        unimatch_v1.METHOD.of(config(teacher="ema"))


# lines of UniMatch V1's own logs
PUBLIC_2023 = """\
Total params: 40.5M
Iters: 1, Total loss: 0.355, Loss x: 0.675, Loss s: 0.043, Loss w_fp: 0.027, Mask ratio: 0.309
***** Evaluation ***** >>>> Class [0 background] IoU: 86.81
***** Evaluation original ***** >>>> MeanIoU: 58.74
"""


@pytest.fixture
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ResNet-50 of one block in each stage."""
    monkeypatch.setitem(ENCODERS, "resnet50", replace(ENCODERS["resnet50"], build=partial(ResNet, (1, 1, 1, 1))))


@pytest.mark.usefixtures("_shallow")
@pytest.mark.parametrize("module", [unimatch_v1, fixmatch, supervised], ids=lambda module: module.__name__)
def test_a_run_of_2023(module: Any, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A crop of any size, no average anywhere, steps as published, and a checkpoint that evaluates."""
    semi = module is not supervised
    settings = ("backbone=resnet50", "crop_size=33", "epochs=1", "lr=0.001", "lr_multi=10", "supervised_length=null")
    module.main(tiny.args(tmp_path, *settings, unlabeled=semi))
    log = (tmp_path / "train.log").read_text()
    lines = {re.sub(r"\d+", "0", line.split("] ", 1)[-1]) for line in log.splitlines()}
    if module is unimatch_v1:
        assert {re.sub(r"\d+", "0", line) for line in PUBLIC_2023.splitlines()} <= lines
    assert "EMA" not in log
    state = checkpoint.load(tmp_path / "best.pth")
    assert "model_ema" not in state
    assert state["optimizer"]["param_groups"][0]["momentum"] == 0.9
    # 12 unlabelled images in mini-batches of 2; supervised, 6 labelled ones that nobody repeats
    steps = 6 if semi else 3
    board = EventAccumulator(str(tmp_path)).Reload()
    assert len(board.Scalars("train/loss_all")) == steps
    forwards = 2 if semi else 1
    assert int(state["model"]["backbone.bn1.num_batches_tracked"]) == forwards * steps
    capsys.readouterr()
    evaluate.main(["--config", str(tiny.config), "--checkpoint", str(tmp_path / "best.pth"), "--set", "backbone=resnet50"])
    score = float(re.search(r"MeanIoU: (\d+\.\d+)", log)[1])  # type: ignore[index]
    assert f"{score:.2f}" in capsys.readouterr().out


@pytest.mark.usefixtures("_shallow")
def test_change_detection_of_2023(tmp_path: Path) -> None:
    """Both dates through ResNet-50 as one batch; the differences of both maps are dropped and decoded."""
    pairs = make_pairs(tmp_path / "pairs")
    unimatch_v1.main(pairs.args(tmp_path / "run", "backbone=resnet50", "crop_size=33", "epochs=1", "lr=0.02", "lr_multi=1"))
    log = (tmp_path / "run/train.log").read_text()
    assert len(re.findall(r"Loss w_fp: \d\.\d{3}, Mask ratio: \d\.\d{3}$", log, re.M)) == 6
    assert len(re.findall(r">>>> Changed IoU: \d+\.\d\d$", log, re.M)) == 1
    state = checkpoint.load(tmp_path / "run/latest.pth")
    assert "model_ema" not in state
    assert int(state["model"]["classifier.bias"].numel()) == 2


def test_a_mini_batch_of_one_image_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("backbone=resnet50", "crop_size=33", "epochs=1", "batch_size=1")
    with pytest.raises(UserError, match="batch_size: found 1, expected 2 or more"):
        supervised.main(tiny.args(tmp_path, *settings, unlabeled=False))


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
    lines = [re.sub(r"\d+", "0", line.split("] ", 1)[-1]) for line in log.read_text().splitlines()]
    assert {re.sub(r"\d+", "0", line) for line in PUBLIC.splitlines()} <= set(lines)
    for line in (line for line in log.read_text().splitlines() if "Iters" in line):
        total, x, u, strong, fp = (float(re.search(rf"{name}: (\d+\.\d+)", line)[1]) for name in ("loss", "x", "u", "strong", "fp"))  # type: ignore[index]
        assert u == pytest.approx((strong + fp) / 2, abs=0.0011), "printed with three decimals"
        assert total == pytest.approx((x + u) / 2, abs=0.0011)
    (run,) = read_log(log)
    assert (run.method, run.epochs_done, run.complete, run.statistic, run.unread_lines) == ("unimatch_v1", 2, True, "ema_miou", 0)
