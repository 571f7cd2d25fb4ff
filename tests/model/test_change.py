"""The change detection model against a literal recomputation, and its giant build."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from model import build_model
from model.backbone.dinov2 import DINOv2
from model.dropout import combine_factors, complementary_factors, scaled
from model.segmenter import Segmenter
from model.spec import ENCODERS, EncoderSpec
from util.error import UserError

# giant in everything but size: SwiGLU, maps of four of six blocks, no narrowing in the decoder's projections
SMALL_GIANT = EncoderSpec("giant", partial(DINOv2, 48, 6, 3, (1, 2, 4, 5), 80), 24, (48,) * 4)


def pairs(batch: int = 3, height: int = 42, width: int = 28) -> Tensor:
    return torch.randn(batch, 6, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _small_giant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "giant", SMALL_GIANT)


def make(name: str) -> Any:
    """In float64: where two dates agree to rounding, the sign of their difference, and with it a gradient, would be the CPU's."""
    torch.manual_seed(0)
    return build_model(name, 2, "change").double()


def literal(model: Segmenter, img: Tensor, factors: Tensor | None = None) -> Tensor:
    """One pair after the other, one date after the other: |f_A - f_B| of the four maps, dropped out, into the decoder."""
    rows, cols = img.shape[-2] // 14, img.shape[-1] // 14
    out = []
    for i, pair in enumerate(img):
        before, after = (model.backbone(date[None]) for date in (pair[:3], pair[3:]))
        maps = []
        for a, b in zip(before, after, strict=True):
            assert a.shape == (1, model.backbone.channels[0], rows, cols)
            difference = torch.maximum(a, b) - torch.minimum(a, b)
            maps.append(difference if factors is None else difference * factors[i][:, None, None])
        assert len(maps) == 4
        logits = model.head(maps)
        out.append(torch.nn.functional.interpolate(logits, (14 * rows, 14 * cols), mode="bilinear", align_corners=True))
    return torch.cat(out)


@pytest.mark.parametrize("name", ["dinov2_tiny", "giant"])
def test_difference_of_the_four_maps_goes_into_the_decoder(name: str) -> None:
    model, img = make(name).eval(), pairs()
    with torch.no_grad():
        found = model(img)
        assert found.shape == (3, 2, 42, 28)
        torch.testing.assert_close(found, literal(model, img))
        torch.testing.assert_close(model(torch.cat((img[:, 3:], img[:, :3]), dim=1)), found)
        still = torch.cat((img[:, :3], img[:, :3]), dim=1)
        torch.testing.assert_close(model(still)[0], model(still)[1], msg="equal dates: nothing of the images is left")


@pytest.mark.parametrize("name", ["dinov2_tiny", "giant"])
def test_one_dropout_mask_for_all_four_difference_maps(name: str) -> None:
    model, img = make(name).train(), pairs(batch=4)
    keep = torch.randint(0, 2, (2, model.backbone.channels[0]), generator=torch.Generator().manual_seed(1))
    factors = combine_factors(keep, torch.tensor([1]))
    torch.testing.assert_close(model(img, scaled(factors)), literal(model, img, factors))
    factors = complementary_factors(2, model.backbone.channels[0], torch.Generator().manual_seed(2))
    touched = [not torch.allclose(a, b) for a, b in zip(model(img, scaled(factors)), model(img), strict=True)]
    assert sum(touched) == 2, "one of two images keeps every channel, in both views"
    assert touched[:2] == touched[2:]


def test_gradients_of_both_dates_reach_the_encoder() -> None:
    model, img = make("dinov2_tiny"), pairs(batch=2).requires_grad_()
    ours = torch.autograd.grad(model(img).square().sum(), [img, model.backbone.patch_embed.proj.weight])
    theirs = torch.autograd.grad(literal(model, img).square().sum(), [img, model.backbone.patch_embed.proj.weight])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert all(ours[0][:, channels].abs().sum() > 0 for channels in (slice(0, 3), slice(3, 6)))


def test_the_encoder_runs_once_for_both_dates() -> None:
    model, calls = make("dinov2_tiny"), []
    model.backbone.register_forward_hook(lambda _, inputs, __: calls.append(tuple(inputs[0].shape)))
    model(pairs(batch=3))
    assert calls == [(6, 3, 42, 28)]


def test_parameters_are_those_of_segmentation() -> None:
    change, segmentation = (build_model("dinov2_tiny", 2, task).state_dict() for task in ("change", "segmentation"))
    assert {k: v.shape for k, v in change.items()} == {k: v.shape for k, v in segmentation.items()}


def test_giant_at_full_size_has_its_names_and_shapes() -> None:
    """On the meta device: shapes without numbers or memory."""
    with torch.device("meta"):
        model = build_model("dinov2_giant", 2, "change")
        logits = model(torch.empty(2, 6, 252, 252))
    state = model.state_dict()
    assert logits.shape == (2, 2, 252, 252)
    assert state["backbone.blocks.39.mlp.w12.weight"].shape == (8192, 1536)
    assert state["backbone.blocks.39.mlp.w3.weight"].shape == (1536, 4096)
    assert state["head.projects.3.weight"].shape == (1536, 1536, 1, 1)
    assert "backbone.blocks.0.mlp.fc1.weight" not in state
    assert 1130e6 < sum(p.numel() for p in model.backbone.parameters()) < 1140e6


def test_an_unknown_task_is_told() -> None:
    with pytest.raises(UserError, match="'changes', expected segmentation or change"):
        build_model("dinov2_tiny", 2, "changes")
