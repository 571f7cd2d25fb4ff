"""SemiVL's network against its second writing, what is trained of it, and its checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model import build_model
from model.backbone.clip import CLIP, CLIP_MEAN, CLIP_STD
from model.backbone.resnet import Bottleneck, ResNetV1cStage
from model.encoder import IMAGENET_MEAN, IMAGENET_STD
from model.guide import Guide
from model.semseg.vlm import VLM, make_clip
from model.spec import check_crop
from model.weights import default_path
from tests.model import vlm_oracle as oracle
from util import checkpoint
from util.error import UserError

CLASSES = 3


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights for what starts as constants too; float64."""
    model = model.double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.2 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return model.eval()


def text(rows: int = CLASSES) -> Tensor:
    return torch.randn(rows, 512, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


def network(crop: int, nclass: int = CLASSES, **options: Any) -> VLM:
    torch.manual_seed(0)
    model = build_model("clip_tiny", nclass, model="vlm", crop_size=crop, **options)
    assert isinstance(model, VLM)
    lively(model)
    model.set_text_(text(nclass))
    return model


def image(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width), dtype=torch.float64)


@pytest.mark.parametrize(("crop", "size"), [(64, (64, 64)), (80, (64, 80)), (70, (70, 70)), (64, (20, 96))])
def test_logits_are_those_of_the_second_writing(crop: int, size: tuple[int, int]) -> None:
    """Whole crops; smaller windows; sides that are padded, and positions resized for them; a side of fewer than four patches."""
    model, img = network(crop), image(*size)
    with torch.no_grad():
        found = model(img)
    for one, logits in zip(img, found, strict=True):
        torch.testing.assert_close(logits, oracle.logits_of(one, model.state_dict(), 6, 3, (0, 2), crop), rtol=1e-9, atol=1e-10)


def test_attention_and_positions_alone_are_trained() -> None:
    model = network(64)
    trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.backbone.named_parameters() if name == "pos_embed" or ".attn." in name}
    assert all(p.requires_grad for p in model.decode_head.parameters())
    model(image(64, 64)).square().mean().backward()
    last = model.backbone.get_parameter("layers.5.attn.attn.in_proj_weight").grad
    assert last is not None
    assert not last[:384].any(), "queries and keys of the last layer reach nothing"
    assert last[384:].any()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad), "or processes would wait for them"


def test_parameters_of_the_published_size() -> None:
    with torch.device("meta"):
        model = build_model("clip_base", 21, model="vlm", crop_size=512)
    assert isinstance(model, VLM)
    assert sum(p.numel() for p in model.decode_head.parameters()) == 2_217_185
    assert model.backbone.pos_embed.shape == (1, 1 + 32 * 32, 768)
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 28_348_416 + 1025 * 768
    assert build_on_meta(801).backbone.pos_embed.shape == (1, 1 + 50 * 50, 768)


def build_on_meta(crop: int) -> VLM:
    with torch.device("meta"):
        model = build_model("clip_base", 19, model="vlm", crop_size=crop, conv_encoder=True)
    assert isinstance(model, VLM)
    check_crop(crop, model.backbone)  # no multiple of 16
    return model


def test_a_convolutional_encoder_for_the_finer_map() -> None:
    """Cityscapes: it sees images as they come, CLIP sees them with its own mean and deviation."""
    model, img = network(64, conv_encoder=True, renorm_clip_img=True), image(64, 64)
    assert model.channels == (256, 192, 512)
    mean, std, clip_mean, clip_std = (
        torch.tensor(v, dtype=img.dtype)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD, CLIP_MEAN, CLIP_STD)
    )
    with torch.no_grad():
        finer, coarser, dense = model.maps(img)
        torch.testing.assert_close(finer, model.conv_encoder(img)[0])
        assert finer.shape == (2, 256, 16, 16)
        expected = model.backbone(((img * std + mean) - clip_mean) / clip_std)
        torch.testing.assert_close([coarser, dense], expected)
        decoder = {name.removeprefix("decode_head."): value for name, value in model.state_dict().items()}
        logits = oracle.decode([finer[0], coarser[0], dense[0]], text(), decoder)
        torch.testing.assert_close(model.decode([finer, coarser, dense])[0], logits, rtol=1e-9, atol=1e-10)


def test_the_stage_of_a_resnet() -> None:
    """Against its layers one after the other."""
    torch.manual_seed(0)
    stage, img = ResNetV1cStage().double().eval(), image(37, 50, 1)
    with torch.no_grad():
        x = img
        for i in (0, 3, 6):
            weight = stage.get_parameter(f"stem.{i}.weight")
            x = stage.stem[i + 1](torch.nn.functional.conv2d(x, weight, stride=2 if i == 0 else 1, padding=1)).relu()
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        for block in stage.layer1:
            assert isinstance(block, Bottleneck)
            y = block.bn1(block.conv1(x)).relu()
            y = block.bn3(block.conv3(block.bn2(block.conv2(y)).relu()))
            x = (y + (x if block.downsample is None else block.downsample(x))).relu()
        assert x.shape == (1, 256, 10, 13)
        torch.testing.assert_close(stage(img)[0], x)


def test_the_guide_labels_by_the_nearest_concept() -> None:
    encoder = lively(make_clip("clip_tiny", skips=(), grid=4))
    assert isinstance(encoder, CLIP)
    img, concepts = image(64, 50), text(5)
    guide = Guide(encoder, concepts, [0, 1, 1, 2, 2])
    state = encoder.state_dict()
    for thresh in (0.0, 0.9):
        for one, label in zip(img, guide(img, thresh), strict=True):
            (dense,) = oracle.encode(one, state, 6, 3, ())
            similar = torch.einsum("chw,rc->rhw", dense, concepts / concepts.norm(dim=1, keepdim=True))
            similar = torch.stack([similar[:1].amax(0), similar[1:3].amax(0), similar[3:].amax(0)])
            similar = torch.nn.functional.interpolate(similar[None], (64, 50), mode="bilinear", align_corners=False)[0]
            conf, expected = (100 * similar).softmax(0).max(0)
            assert torch.equal(label, torch.where(conf < thresh, 255, expected))
            assert thresh == 0 or 0 < (label == 255).double().mean() < 1
    assert not any(p.requires_grad for p in guide.parameters())


def test_without_text_nothing_is_predicted() -> None:
    model = build_model("clip_tiny", 2, model="vlm", crop_size=64)
    assert "text" not in model.state_dict()
    with pytest.raises(UserError, match="text: the model has no embeddings"):
        model(torch.zeros(1, 3, 64, 64))
    assert isinstance(model, VLM)
    with pytest.raises(UserError, match=r"found embeddings \(3, 512\), expected \(2, 512\)"):
        model.set_text_(text(3))


def test_checkpoints_of_the_authors_load_without_their_frozen_copy() -> None:
    model = network(64)
    own = model.state_dict()
    theirs = {name: value + 1 for name, value in own.items() if name != "text"}
    theirs |= {f"clip_encoder.{name}": value for name, value in make_clip("clip_tiny").state_dict().items()}
    checkpoint.load_strictly(model, model.accept_(theirs), "best.pth", "")
    assert all(torch.equal(model.state_dict()[name], theirs[name]) for name in own if name != "text")
    torch.testing.assert_close(model.text, text())
    ours = own | {"text": text(7)}  # of another number of classes
    checkpoint.load_strictly(model, model.accept_(ours), "best.pth", "")
    torch.testing.assert_close(model.text, text(7))


@pytest.mark.parametrize(
    ("backbone", "options", "words"),
    [
        ("dinov2_tiny", {}, "model: found vlm with backbone dinov2_tiny, expected one of clip_base, clip_tiny"),
        ("resnet101_v1c_stage1", {}, "model: found vlm with backbone resnet101_v1c_stage1"),
        ("clip_tiny", {"dilations": [1, 2, 3]}, "dilations: found model vlm, which has no such setting; it belongs to deeplabv3plus"),
        ("clip_tiny", {"model": "dpt"}, "model: found dpt with clip_tiny, expected vlm"),
        ("dinov2_tiny", {"model": "dpt", "conv_encoder": True}, "conv_encoder: found model dpt, which has no such setting"),
    ],
)
def test_what_does_not_go_together(backbone: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(backbone, 3, **({"model": "vlm"} | options))  # type: ignore[arg-type]


def test_pretrained_weights_reach_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their positions are resized to the crop."""
    monkeypatch.chdir(tmp_path)
    clip, stage = make_clip("clip_tiny"), ResNetV1cStage()
    for encoder, name in ((clip, "clip_tiny"), (stage, "resnet101_v1c_stage1")):
        checkpoint.save(encoder.state_dict(), default_path(name))
    model = build_model("clip_tiny", 2, pretrained=default_path("clip_tiny"), model="vlm", crop_size=100, conv_encoder=True)
    assert torch.equal(model.backbone.get_parameter("proj.weight"), clip.proj.weight)
    assert torch.equal(model.get_parameter("conv_encoder.stem.0.weight"), stage.get_parameter("stem.0.weight"))
    found = model.backbone.get_parameter("pos_embed")
    expected = oracle.resized_positions(clip.pos_embed[0, 1:].unflatten(0, (14, 14)).double(), 6, 6)
    torch.testing.assert_close(found[0, 1:].double(), expected.flatten(0, 1), rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0, 0], clip.pos_embed[0, 0])
    assert found.requires_grad
    assert not model.backbone.get_parameter("proj.weight").requires_grad
