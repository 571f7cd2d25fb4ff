"""UniMatch V1's files: configs, encoder weights, checkpoints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from engine.trained_model import load_trained
from model import build_model, configured_model
from model.backbone.resnet import ResNet
from model.backbone.xception import Xception
from model.encoder import Encoder
from model.weights import load_encoder_
from tests.conftest import ROOT
from util.config import load_config
from util.error import UserError

CE = {"name": "CELoss", "kwargs": {"ignore_index": 255}}
OHEM = {"name": "OHEM", "kwargs": {"ignore_index": 255, "thresh": 0.7, "min_kept": 200000}}
RESNET = {"backbone": "resnet101", "replace_stride_with_dilation": [False, False, True], "dilations": [6, 12, 18]}
XCEPTION = {"backbone": "xception", "dilations": [6, 12, 18]}
# the values of the published configs
CONFIGS: dict[str, dict[str, Any]] = {
    "pascal": {"nclass": 21, "crop_size": 321, "epochs": 80, "lr": 0.001, "lr_multi": 10.0, "conf_thresh": 0.95, "criterion": CE}
    | RESNET | {"model": "deeplabv3plus", "multi_grid": False},
    "cityscapes": {"nclass": 19, "crop_size": 801, "epochs": 240, "lr": 0.005, "lr_multi": 1.0, "conf_thresh": 0, "criterion": OHEM}
    | RESNET,
    "coco": {"nclass": 81, "crop_size": 513, "epochs": 30, "lr": 0.004, "lr_multi": 10.0, "conf_thresh": 0.95, "criterion": CE} | XCEPTION,
}  # fmt: skip


def write_config(folder: Path, dataset: str, **changes: Any) -> str:
    values = {"dataset": dataset, "data_root": str(folder), "batch_size": 2} | CONFIGS[dataset] | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "config.yaml")


@pytest.mark.parametrize("dataset", CONFIGS)
def test_configs_build_the_published_model(dataset: str, tmp_path: Path) -> None:
    cfg = load_config(write_config(tmp_path, dataset))
    nclass = CONFIGS[dataset]["nclass"]
    with torch.device("meta"):
        model = configured_model(cfg, nclass, "segmentation")
        logits = model(torch.empty(2, 3, 65, 97))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert logits.shape == (2, nclass, 65, 97)
    assert model.backbone.strides == (4, 16)
    assert count == pytest.approx({"pascal": 59.5, "cityscapes": 59.5, "coco": 54.7}[dataset], abs=0.05)


@pytest.mark.parametrize("dataset", CONFIGS)
def test_shipped_configs_are_the_published_ones(dataset: str, tmp_path: Path) -> None:
    """But for 4 shards, as the runs had, and paths."""
    ours, theirs = load_config(str(ROOT / f"configs/unimatch_v1/{dataset}.yaml")), load_config(write_config(tmp_path, dataset))
    same = {"shards": 4, "data_root": ours.data_root, "config": ours.config, "model": "deeplabv3plus"}
    assert ours == replace(theirs, **same)


def test_settings_of_the_config_reach_the_model(tmp_path: Path) -> None:
    cfg = load_config(write_config(tmp_path, "pascal", replace_stride_with_dilation=[False, True, True], dilations=[12, 24, 36]))
    with torch.device("meta"):
        model = configured_model(cfg, 21, "segmentation")
    assert model.backbone.strides == (4, 8)
    assert [model.get_submodule(f"head.b{i}.0").dilation for i in (1, 2, 3)] == [(12, 12), (24, 24), (36, 36)]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"multi_grid": True}, "multi_grid: found true, expected false"),
    ({"model": "dpt"}, "replace_stride_with_dilation: found model dpt"),
    ({"model": "deeplab"}, "model: found 'deeplab', expected one of"),
    ({"backbone": "dinov2_small"}, "model: found deeplabv3plus with backbone dinov2_small, expected one of resnet50"),
    ({"backbone": "xception"}, "replace_stride_with_dilation: found it with xception"),
    ({"replace_stride_with_dilation": [True, False]}, "expected three of true or false"),
    ({"replace_stride_with_dilation": [0, 0, 1]}, "expected three of true or false"),
    ({"dilations": [6, 12]}, "dilations: found [6, 12], expected three whole numbers"),
    ({"dilations": [6, 12, 0]}, "dilations: found [6, 12, 0], expected three whole numbers"),
]


@pytest.mark.parametrize(("changes", "words"), MISTAKES, ids=[str(changes) for changes, _ in MISTAKES])
def test_settings_that_do_not_go_together(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error, torch.device("meta"):
        configured_model(load_config(write_config(tmp_path, "pascal", **changes)), 21, "segmentation")
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def small_resnet() -> Encoder:
    return ResNet((1, 1, 1, 1))


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
FILES: list[tuple[str, Callable[[], Encoder], Change, str]] = [
    ("as published", small_resnet, lambda state: state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, ""),
    ("without counters", small_resnet, lambda state: {n: v for n, v in state.items() if "num_batches" not in n}, ""),
    ("torchvision", small_resnet, lambda state: state | {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "torchvision's layout"),
    ("one missing", small_resnet, lambda state: {n: v for n, v in state.items() if n != "layer4.0.bn3.bias"}, "layer4.0.bn3.bias"),
    ("one more", small_resnet, lambda state: state | {"head.weight": torch.zeros(1)}, "'head.weight' in it is unknown"),
    ("32-channel stem", small_resnet, lambda state: state | {"conv1.0.weight": torch.zeros(32, 3, 3, 3)}, "expected (64, 3, 3, 3)"),
    ("as published", Xception, lambda state: state | {"bn_itr": torch.zeros(1), "a.tmp.b": torch.zeros(1)}, ""),
    ("without counters", Xception, lambda state: {n: v for n, v in state.items() if "track" not in n}, ""),
    ("one missing", Xception, lambda state: {n: v for n, v in state.items() if n != "conv5.bn2.weight"}, "it has no 'conv5.bn2.weight'"),
    ("one more", Xception, lambda state: state | {"fc.bias": torch.zeros(1)}, "'fc.bias' in it is unknown"),
]


@pytest.mark.parametrize(("make", "change", "words"), [row[1:] for row in FILES], ids=[f"{row[1].__name__}-{row[0]}" for row in FILES])
def test_encoder_weights(make: Callable[[], Encoder], change: Change, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.weights.ENCODERS", {})  # which a file that does not fit is compared with, for seconds
    with torch.no_grad():
        source, encoder = make(), make()
        for value in source.buffers():
            if value.is_floating_point():
                value.uniform_(1, 2)  # running statistics belong to the weights
    torch.save(change(source.state_dict()), tmp_path / "encoder.pth")
    if not words:
        load_encoder_(encoder, "resnet101", tmp_path / "encoder.pth")
        assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in source.state_dict().items())
        return
    with pytest.raises(UserError) as error:
        load_encoder_(encoder, "resnet101", tmp_path / "encoder.pth")
    assert words in str(error.value)
    assert str(tmp_path / "encoder.pth") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_published_checkpoints_load(tmp_path: Path) -> None:
    """Names begin with `module.`, and there is no average."""
    model = build_model("resnet50", 21, model="deeplabv3plus")
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": state, "optimizer": {}, "epoch": 79, "previous_best": 78.69}, tmp_path / "best.pth")
    cfg = load_config(write_config(tmp_path, "pascal", backbone="resnet50"))
    trained = load_trained(cfg, str(tmp_path / "best.pth"))
    assert (trained.which, trained.epoch) == ("student", 79)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trained.model.state_dict().items())
    del state["module.reduce.1.running_var"]
    torch.save({"model": state, "epoch": 79}, tmp_path / "best.pth")
    with pytest.raises(UserError, match=r"has no 'reduce.1.running_var'"):
        load_trained(cfg, str(tmp_path / "best.pth"))
