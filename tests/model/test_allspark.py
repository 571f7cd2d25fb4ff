"""AllSpark's network against its second writing, its memory, and how it is built."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.evaluation import Prediction, predict_whole
from model import build_model
from model.backbone.mit import Block, MiT
from model.semseg.allspark import AllSpark
from tests.model import allspark_oracle as oracle
from util.error import UserError

CLASSES, CROP = 3, 70


def undropped(model: nn.Module) -> nn.Module:
    """Nothing is drawn in training."""
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
        elif isinstance(module, Block):
            module.drop = 0.0
    return model


def network(crop: int = CROP, nclass: int = CLASSES) -> AllSpark:
    """A small one, whose norms and statistics are random too; float64."""
    torch.manual_seed(0)
    model = AllSpark(MiT((8, 16, 20, 32), (1, 1, 1, 1)), nclass, 24, crop).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.2 * torch.randn_like(p))
        model.get_buffer("decoder.decoder.linear_fuse.bn.running_mean").normal_(std=0.2)
        model.get_buffer("decoder.decoder.linear_fuse.bn.running_var").uniform_(0.5, 2)
    return model.eval()


def image(height: int, width: int, batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def test_logits_are_those_of_the_second_writing() -> None:
    """Each image attends to all of its batch."""
    model, img = network(), image(65, 98, 3)
    found = model(img)
    torch.testing.assert_close(found, oracle.logits(model.backbone(img), (65, 98), model.state_dict()), rtol=1e-9, atol=1e-10)
    alone = model(img[:1])
    torch.testing.assert_close(alone, oracle.logits(model.backbone(img[:1]), (65, 98), model.state_dict()), rtol=1e-9, atol=1e-10)
    assert float((alone - found[:1]).norm() / found[:1].norm()) > 1e-3


@pytest.mark.parametrize("read", [False, True], ids=["batch", "memory"])
def test_training_passes_are_those_of_the_second_writing(read: bool) -> None:
    """Logits, gradients and memory of three passes, which write 192 rows into rings of 96."""
    model = network().train()
    undropped(model)
    memory = oracle.rings_of(model.state_dict())
    for it in range(3):
        img, guide = image(CROP, CROP, 4, it), torch.randn(2, CLASSES, CROP, CROP, dtype=torch.float64) + 0.1
        state = {name: value.detach().clone().requires_grad_(value.is_floating_point()) for name, value in model.state_dict().items()}
        found = model(img, guide=guide, memory=read)
        maps = [x.detach() for x in model.backbone(img)]
        expected = oracle.logits(maps, (CROP, CROP), state, guide, memory, read)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
        model.zero_grad()
        found.square().mean().backward()
        expected.square().mean().backward()
        for name, p in model.get_submodule("decoder").named_parameters():
            assert p.grad is not None, f"{name}: or processes would wait for it"
            torch.testing.assert_close(p.grad, state[f"decoder.{name}"].grad, rtol=1e-6, atol=1e-10, msg=name)
        rings, pointers = oracle.rings_of(model.state_dict())
        assert pointers == memory[1]
        for ring, own in zip(rings, memory[0], strict=True):
            torch.testing.assert_close(torch.stack(ring), torch.stack(own), rtol=1e-9, atol=1e-10)


def test_a_pass_without_gradient_leaves_the_memory_alone() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.memory().items()}
    assert set(before) == {"decoder.allspark.attn.queue_ptr", "decoder.allspark.attn.kv_queue"} < set(model.state_dict())
    model(image(CROP, CROP, 2))
    assert all(torch.equal(value, before[name]) for name, value in model.memory().items())
    assert not any(p.requires_grad for p in model.memory().values())


@torch.no_grad()
def test_images_and_windows_are_predicted_alone() -> None:
    """In any mode, whatever is predicted together with an image."""
    model, img = network(), image(66, 80, 2)
    for prediction in (Prediction("original", 40), Prediction("slide", 40), Prediction("sliding_window", 40, "cut", flip=True)):
        each = torch.cat([prediction.class_scores(model, one) for one in img.split(1)])
        torch.testing.assert_close(prediction.class_scores(model, img), each)
    whole = Prediction("slide", 40).class_scores(model, img[:1])
    windows, count = torch.zeros(2, 1, CLASSES, 66, 80, dtype=torch.float64)
    for y in (0, 26):
        for x in (0, 33, 40):
            windows[..., y : y + 40, x : x + 40] += predict_whole(model, img[:1, :, y : y + 40, x : x + 40])
            count[..., y : y + 40, x : x + 40] += 1
    torch.testing.assert_close(whole, windows / count)


def test_dropout() -> None:
    """In attention, projections and head, drawn from PyTorch's generator."""
    small = network().train()
    assert {name: module.p for name, module in small.named_modules() if isinstance(module, (nn.Dropout, nn.Dropout2d))} == {
        "decoder.allspark.attn.drop": 0.1,
        "decoder.decoder.drop": 0.1,
    }
    x, guide = image(CROP, CROP, 2), torch.randn(1, CLASSES, CROP, CROP).double()
    torch.manual_seed(0)
    first, second = small(x, guide=guide), small(x, guide=guide)
    assert not torch.allclose(first, second)
    torch.manual_seed(0)
    assert torch.equal(small(x, guide=guide), first)


@pytest.mark.parametrize(("crop", "positions"), [(513, 289), (801, 676), (97, 16)])
def test_sizes_of_the_published_models(crop: int, positions: int) -> None:
    with torch.device("meta"):
        model = build_model("mit_b5", 21, model="allspark", crop_size=crop)
        small = build_model("mit_b0", 21, model="allspark", crop_size=crop)
    assert isinstance(model, AllSpark)
    assert sum(p.numel() for p in model.backbone.parameters()) == 81_443_008
    decoder = [p for part in model.decoder_parts() for p in part.parameters()]
    assert sum(p.numel() for p in decoder) == 7_888_149
    assert model.memory()["decoder.allspark.attn.kv_queue"].shape == (21, 512, positions)
    assert small.get_parameter("decoder.decoder.linear_pred.weight").shape[1] == 256
    assert len(list(model.backbone.parameters())) == 1052
    assert len(decoder) == 29


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = build_model("mit_b0", 5, model="allspark", crop_size=97)
    weight = model.get_parameter("decoder.allspark.attn.q_u.weight")  # (512, 256)
    assert float(weight.detach().abs().max()) == pytest.approx((6 / 768) ** 0.5, rel=1e-2), "uniform by Glorot's rule"
    assert float(model.get_parameter("decoder.decoder.linear_fuse.conv.weight").detach().std()) == pytest.approx((2 / 256) ** 0.5, rel=1e-2)
    memory = model.memory()
    assert not memory["decoder.allspark.attn.queue_ptr"].any()
    assert float(memory["decoder.allspark.attn.kv_queue"].std()) == pytest.approx(1, abs=0.02)


def test_a_checkpoint_for_another_crop_is_taken_but_for_training() -> None:
    """Nothing but training reads the memory."""
    other, model = network(97), network(CROP)
    model.load_state_dict(model.accept_(other.state_dict()))
    img = image(80, 60, 1)
    assert torch.equal(model(img), other(img))
    with pytest.raises(UserError, match="crop_size: found crops with 9 positions in the last map, expected 16"):
        model.train()(image(CROP, CROP, 2), guide=torch.zeros(1, CLASSES, CROP, CROP).double())


@pytest.mark.parametrize(
    ("backbone", "options", "words"),
    [
        ("dinov2_tiny", {}, "model: found allspark with backbone dinov2_tiny, expected one of mit_b0, .*mit_b5"),
        ("mit_b0", {"dilations": [1, 2, 3]}, "dilations: found model allspark, which has no such setting; it belongs to deeplabv3plus"),
    ],
)
def test_user_errors(backbone: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(backbone, 3, model="allspark", **options)
