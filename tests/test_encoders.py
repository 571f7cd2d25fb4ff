"""Every kind of encoder through the commands: trained, stopped, resumed, evaluated, used for predictions, exported."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path

import pytest
import torch
from PIL import Image

import evaluate
import predict
import supervised
import unimatch_v2
from model import build_model
from model.backbone.dinov2 import DINOv2
from model.backbone.mit import MiT
from model.encoder import Encoder
from model.spec import ENCODERS, check_crop, get_encoder
from scripts import export
from scripts.benchmark.__main__ import main as benchmark
from tests.conftest import ROOT, TIMM, Tiny
from tests.model.test_dinov3 import CONVNEXT, VITS, random_
from tests.pairs import make_pairs
from tests.test_train import stop_after
from util import checkpoint
from util.error import UserError

# name: (a small build of its kind, None where it is small already; crop)
KINDS: dict[str, tuple[Callable[[], Encoder] | None, int]] = {
    "dinov2_small_reg": (partial(DINOv2, 96, 4, 3, (0, 1, 2, 3), registers=4), 28),
    "dinov3_small": (VITS["mlp"], 32),
    "dinov3_convnext_tiny": (CONVNEXT, 32),
    "mit_b0": (partial(MiT, (8, 16, 20, 32), (1, 1, 1, 1)), 37),
    "efficientnet_lite0": (None, 35),
    "timm/test_convnext": (None, 32),
}


@pytest.fixture(params=[pytest.param(name, marks=[TIMM] if build is None else []) for name, (build, _) in KINDS.items()])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An encoder of each kind, made small."""
    spec = get_encoder(request.param)
    build = KINDS[spec.name][0] or spec.build
    monkeypatch.setitem(ENCODERS, spec.name, replace(spec, build=build, fusion=8, widths=spec.widths and (8,) * 4))
    return spec.name


def test_every_command(name: str, tiny: Tiny, tmp_path: Path) -> None:
    settings = (f"backbone={name}", f"crop_size={KINDS[name][1]}")
    unimatch_v2.main(tiny.args(tmp_path / "whole", *settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.trainer.Trainer._evaluate", stop_after(1))
        with pytest.raises(KeyboardInterrupt):
            unimatch_v2.main(tiny.args(tmp_path / "parts", *settings, "activation_checkpointing=true"))
    unimatch_v2.main(tiny.args(tmp_path / "parts", *settings))
    whole, parts = (checkpoint.load(tmp_path / run / "latest.pth") for run in ("whole", "parts"))
    for which in ("model", "model_ema"):
        assert all(torch.equal(value, parts[which][key]) for key, value in whole[which].items())

    built = ENCODERS[name].build()
    keys = ("mean", "std", "out_indices", "channels", "strides")
    recorded = {"multiple": built.multiple} | {key: list(getattr(built, key)) for key in keys}
    assert recorded.items() <= whole["encoder"].items()

    config = ["--config", str(tiny.config), *(word for setting in settings for word in ("--set", setting))]
    weights = ["--checkpoint", str(tmp_path / "whole/latest.pth")]
    evaluate.main([*config, *weights, "--json", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 4
    image = tiny.root / "images/0.jpg"
    predict.main([*config, *weights, "--out", str(tmp_path / "out"), "--device", "cpu", str(image)])
    assert Image.open(tmp_path / "out/0.png").size == Image.open(image).size
    export.main([*weights, "--format", "torch", "--out", str(tmp_path / "model.pt")])
    about = json.loads(torch.load(tmp_path / "model.pt", weights_only=True)["meta"])
    facts = ENCODERS[name].facts()
    assert (about["backbone"], about["multiple"], about["mean"]) == (name, facts.multiple, list(facts.mean))
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is an extra: pip install -r requirements-extra.txt")
    export.main([*weights, "--format", "safetensors", "--out", str(tmp_path / "model.safetensors")])
    for key, value in safetensors.load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(value, whole["model_ema"][key])


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
    if multiple == 1:
        check_crop(40, ENCODERS[name].facts())
        return
    with pytest.raises(UserError, match=f"crop_size: found 40, expected a multiple of {multiple} for this backbone"):
        unimatch_v2.main(tiny.args(tmp_path, f"backbone={name}", "crop_size=40"))


@TIMM
def test_a_plain_vision_transformer_of_timm_is_no_onnx_file(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is an extra: pip install -r requirements-extra.txt")
    model = build_model("timm/test_vit", 6)
    config = {"dataset": "demo", "backbone": "timm/test_vit", "crop_size": 32, "lr": 3e-4, "method": "x"}
    torch.save({"model": model.state_dict(), "config": config}, tmp_path / "k.pth")
    with pytest.raises(UserError, match=r"onnx: timm/test_vit resizes its positions.*; give --format torch or safetensors"):
        export.main(["--checkpoint", str(tmp_path / "k.pth"), "--format", "onnx"])
    assert not (tmp_path / "k.onnx").exists()


def test_a_checkpoint_of_another_encoder_under_the_same_name(tiny: Tiny, tmp_path: Path) -> None:
    """Its weights fit, but it saw images in other units."""
    supervised.main(tiny.args(tmp_path, "supervised_length=4", "epochs=1", unlabeled=False))
    state = checkpoint.load(tmp_path / "latest.pth")
    state["encoder"]["mean"] = [0.5, 0.5, 0.5]
    torch.save(state, tmp_path / "latest.pth")
    words = r"latest\.pth: its encoder has mean \[0\.5, 0\.5, 0\.5\], but dinov2_tiny here has \[0\.485, .*; use the versions"
    with pytest.raises(UserError, match=words):
        supervised.main(tiny.args(tmp_path, "supervised_length=4", "epochs=2", unlabeled=False))
    with pytest.raises(UserError, match=words):
        evaluate.main(["--config", str(tiny.config), "--checkpoint", str(tmp_path / "latest.pth")])


@TIMM
def test_an_encoder_of_one_size_is_refused_before_the_first_step(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("backbone=timm/test_vit_relpos", "crop_size=160")
    with pytest.raises(UserError, match="crop_size: found 320, expected 160"):
        unimatch_v2.main(tiny.args(tmp_path, settings[0], "crop_size=320"))
    with pytest.raises(UserError, match="eval_mode: found whole images, expected windows of 160"):
        unimatch_v2.main(tiny.args(tmp_path, *settings))
    supervised.main(tiny.args(tmp_path, *settings, "eval_mode=sliding_window", "supervised_length=4", "epochs=1", unlabeled=False))
    config = ["--config", str(tiny.config), *(word for setting in settings for word in ("--set", setting))]
    with pytest.raises(UserError, match="eval_mode: found whole images"):
        evaluate.main([*config, "--checkpoint", str(tmp_path / "best.pth"), "--mode", "original"])


THREE = ["dinov3_small", pytest.param("efficientnet_lite0", marks=TIMM), pytest.param("timm/test_convnext", marks=TIMM)]


@pytest.mark.parametrize("name", THREE, indirect=True)
def test_change_detection(name: str, tmp_path: Path) -> None:
    """Two dates through an encoder whose maps may have widths of their own, and BatchNorm."""
    pairs = make_pairs(tmp_path / "pairs")
    frozen = ["batch_norm=frozen"] if name.startswith("eff") else []
    unimatch_v2.main(pairs.args(tmp_path / "run", f"backbone={name}", f"crop_size={KINDS[name][1]}", "epochs=1", *frozen))
    log = (tmp_path / "run/train.log").read_text()
    assert "Changed IoU: " in log
    assert all(torch.isfinite(value).all() for value in checkpoint.load(tmp_path / "run/latest.pth")["model"].values())


@pytest.mark.parametrize("name", THREE, indirect=True)
def test_planned_and_measured(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (f"backbone={name}", f"crop_size={KINDS[name][1]}", "shards=1")
    recipe = ["--config", str(ROOT / "configs/camvid.yaml"), *(word for setting in settings for word in ("--set", setting))]
    benchmark(["plan", *recipe, "--split", "1_8"])
    assert f"unimatch_v2, {name}, crop {KINDS[name][1]}" in capsys.readouterr().out
    with contextlib.suppress(SystemExit):  # a goal that is missed
        benchmark(["step", *recipe, "--only", "fp32", "--rounds", "1", "--device", "cpu"])
    out = capsys.readouterr().out
    assert f"| step, {name}, {KINDS[name][1]}, 4+4 images: fp32 | " in out
    assert "x literal" in out


@pytest.mark.parametrize("name", THREE, indirect=True)
def test_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are traced whole (fullgraph), and compute the same."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager", fullgraph=True))
    torch.compiler.reset()
    model = build_model(name, 6).eval()
    img = torch.randn(1, 3, *[2 * model.multiple if model.multiple > 1 else 40] * 2)
    with torch.no_grad():
        expected = model(img)
        model.compile_parts_()
        # float32 logits below 0.5, untrained: the traced code calls the same kernels, so no more than the order of a sum may differ
        torch.testing.assert_close(model(img), expected, rtol=0, atol=1e-5)
    torch.compiler.reset()
