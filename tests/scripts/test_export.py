"""Exported files: the same predictions in other programs, with everything that is needed to use them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from dataset.spec import get_spec
from model import build_model
from scripts import export
from tests.conftest import Tiny
from util.error import UserError


@pytest.fixture(scope="module")
def checkpoint(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    torch.manual_seed(0)
    model: Any = build_model("dinov2_tiny", 6)
    torch.nn.init.normal_(model.backbone.pos_embed)  # so that a position embedding that is off by a little shows
    config = {"dataset": "demo", "backbone": "dinov2_tiny", "crop_size": 28, "eval_mode": None, "seed": 3}
    torch.save({"model": model.state_dict(), "config": config}, path)
    return path


def test_onnx_predicts_what_the_commands_predict(tiny: Tiny, checkpoint: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is an extra: pip install -r requirements-extra.txt")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is an extra: pip install -r requirements-extra.txt")
    export.main(["--checkpoint", str(checkpoint), "--format", "onnx"])
    session = runtime.InferenceSession(str(checkpoint.with_suffix(".onnx")), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(get_spec("demo").classes)
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406]
    predictor = predict.load(str(tiny.config), str(checkpoint), device="cpu")
    for i in (0, 1, 2):  # sizes that are no multiples of 14, both orientations
        image = Image.open(tiny.root / f"images/{i}.jpg")
        planes = np.array(image, np.float32).transpose(2, 0, 1)[None]
        logits = session.run(None, {"image": planes})[0]
        ids, confidence = predictor.predict(image)
        assert logits.shape == (1, 6, image.height, image.width)
        assert (logits[0].argmax(0) == ids).mean() > 0.999
        soft = torch.from_numpy(logits).softmax(1).amax(1)[0].numpy()
        assert np.abs(soft - confidence).max() < 1e-4  # two programs' float32: 1e-6 of logits


def test_position_embedding_of_the_export_is_the_model_s() -> None:
    model: Any = build_model("dinov2_tiny", 6)
    torch.nn.init.normal_(model.backbone.pos_embed)
    sizes = ((1, 1), (3, 50), (37, 37), (37, 36), (40, 20))
    with torch.no_grad():
        expected = [model.backbone.position(*size) for size in sizes]
        export.Exported(model)
        for size, value in zip(sizes, expected, strict=True):
            # float32 has a coordinate of 37 to 4e-6, and the parameter changes by up to 8 from one to the next
            assert torch.allclose(model.backbone.position(*size), value, atol=1e-4), size


def test_change_detection_exports_too(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is an extra: pip install -r requirements-extra.txt")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is an extra: pip install -r requirements-extra.txt")
    model = build_model("dinov2_tiny", 2, "change")
    config = {"dataset": "levir", "backbone": "dinov2_tiny", "crop_size": 28}
    torch.save({"model": model.state_dict(), "config": config}, tmp_path / "c.pth")
    export.main(["--checkpoint", str(tmp_path / "c.pth"), "--format", "onnx"])
    session = runtime.InferenceSession(str(tmp_path / "c.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.zeros((1, 6, 30, 30), np.float32)})[0].shape == (1, 2, 30, 30)


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_weights_come_back_with_what_is_needed_to_use_them(form: str, checkpoint: Path, tmp_path: Path) -> None:
    if form == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is an extra: pip install -r requirements-extra.txt")
    path = tmp_path / f"model{export.SUFFIX[form]}"
    export.main(["--checkpoint", str(checkpoint), "--format", form, "--out", str(path)])
    if form == "torch":
        content = torch.load(path, weights_only=True)
        weights, about = content["model"], json.loads(content["meta"])
    else:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            weights, about = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["meta"])  # noqa: SIM118
    own = torch.load(checkpoint, weights_only=True)["model"]
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    assert (about["classes"], about["backbone"], about["weights"]) == (list(get_spec("demo").classes), "dinov2_tiny", "student")


def test_a_file_that_differs_from_pytorch_does_not_take_the_place_of_a_good_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"good")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="differs from PyTorch"):
        export.main(["--checkpoint", str(checkpoint), "--format", "onnx", "--out", str(tmp_path / "model.onnx")])
    assert (tmp_path / "model.onnx").read_bytes() == b"good"


def test_user_errors_end_in_one_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": torch.load(checkpoint, weights_only=True)["model"]}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="give --config"):
        export.main(["--checkpoint", str(tmp_path / "bare.pth"), "--format", "torch"])
    with pytest.raises(UserError, match=r"bare\.pth/x: cannot be written \(.*\); make room, or give another --out"):
        export.main(["--checkpoint", str(checkpoint), "--format", "torch", "--out", str(tmp_path / "bare.pth/x")])
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-extra\.txt"):
        export.main(["--checkpoint", str(checkpoint), "--format", "safetensors"])


def test_a_data_set_of_ones_own_needs_no_config(tmp_path: Path) -> None:
    own = {"classes": ["sky", "road"], "palette": [[1, 2, 3], "#ffffff"], "label_map": {7: "sky", 9: 1}, "ignore_index": 0, "task": None}
    config = own | {"dataset": "mine", "backbone": "dinov2_tiny", "crop_size": 28, "eval_mode": None, "lr": 3e-4, "method": "x"}
    torch.save({"model": build_model("dinov2_tiny", 2).state_dict(), "config": config}, tmp_path / "k.pth")

    def about(*extra: str) -> dict:
        export.main(["--checkpoint", str(tmp_path / "k.pth"), "--format", "torch", *extra])
        return json.loads(torch.load(tmp_path / "k.pt", weights_only=True)["meta"])

    plain = about()
    assert (plain["classes"], plain["palette"], plain["window"]) == (["sky", "road"], [[1, 2, 3], [255, 255, 255]], 28)
    assert about("--set", "crop_size=42", "--set", "eval_mode=sliding_window")["window"] == 42
    with pytest.raises(UserError, match="crop: no such config key"):
        about("--set", "crop=42")
