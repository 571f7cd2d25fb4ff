"""Every kind of encoder through the commands: trained, stopped, resumed, evaluated, used for predictions, exported."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import evaluate
import predict
import unimatch_v2
from model import build_model
from model.backbone.dinov2 import DINOv2
from model.encoder import Encoder
from model.spec import ENCODERS
from scripts import export
from tests.conftest import Tiny
from tests.model.test_dinov3 import CONVNEXT, VITS, random_
from tests.test_train import stop_after
from util import checkpoint
from util.error import UserError

# name: (a small build of its kind, crop)
KINDS: dict[str, tuple[Callable[[], Encoder], int]] = {
    "dinov2_small_reg": (partial(DINOv2, 96, 4, 3, (0, 1, 2, 3), registers=4), 28),
    "dinov3_small": (VITS["mlp"], 32),
    "dinov3_convnext_tiny": (CONVNEXT, 32),
}


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An encoder of each kind, made small."""
    spec = ENCODERS[request.param]
    monkeypatch.setitem(ENCODERS, spec.name, replace(spec, build=KINDS[spec.name][0], fusion=8, widths=spec.widths and (8,) * 4))
    return spec.name


def test_every_command(name: str, tiny: Tiny, tmp_path: Path) -> None:
    settings = (f"backbone={name}", f"crop_size={KINDS[name][1]}")
    unimatch_v2.main(tiny.args(tmp_path / "whole", *settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.trainer.Run._evaluate", stop_after(1))
        with pytest.raises(KeyboardInterrupt):
            unimatch_v2.main(tiny.args(tmp_path / "parts", *settings, "activation_checkpointing=true"))
    unimatch_v2.main(tiny.args(tmp_path / "parts", *settings))
    whole, parts = (checkpoint.load(tmp_path / run / "latest.pth") for run in ("whole", "parts"))
    for which in ("model", "model_ema"):
        assert all(torch.equal(value, parts[which][key]) for key, value in whole[which].items())

    config = ["--config", str(tiny.config), *(word for setting in settings for word in ("--set", setting))]
    weights = ["--checkpoint", str(tmp_path / "whole/latest.pth")]
    evaluate.main([*config, *weights, "--json", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 4
    image = tiny.root / "images/0.jpg"
    predict.main([*config, *weights, "--out", str(tmp_path / "out"), "--device", "cpu", str(image)])
    assert Image.open(tmp_path / "out/0.png").size == Image.open(image).size
    export.main([*weights, "--format", "torch", "--out", str(tmp_path / "model.pt")])
    about = json.loads(torch.load(tmp_path / "model.pt", weights_only=True)["meta"])
    assert (about["backbone"], about["multiple"]) == (name, ENCODERS[name].facts().multiple)


def test_onnx(name: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is an extra: pip install -r requirements-extra.txt")
    model = build_model(name, 6)
    random_(model.backbone)
    config = {"dataset": "demo", "backbone": name, "crop_size": KINDS[name][1], "lr": 3e-4, "method": "x"}
    torch.save({"model": model.state_dict(), "config": config}, tmp_path / "k.pth")
    export.main(["--checkpoint", str(tmp_path / "k.pth"), "--format", "onnx"])  # raises where the file's numbers differ at any size
    assert (tmp_path / "k.onnx").stat().st_size > 10_000


def test_a_crop_that_does_not_fit(name: str, tiny: Tiny, tmp_path: Path) -> None:
    multiple = ENCODERS[name].facts().multiple
    with pytest.raises(UserError, match=f"crop_size: found 40, expected a multiple of {multiple} for this backbone"):
        unimatch_v2.main(tiny.args(tmp_path, f"backbone={name}", "crop_size=40"))
