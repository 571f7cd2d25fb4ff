"""The models against the second writing in oracle.py, at every published encoder and crop size (METHOD.md 1)."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model import build_model
from model.attention import QUERIES, attend
from model.dropout import combine_factors, complementary_factors, factor_width, scaled
from tests.model import oracle
from util.dist import deterministic

TOLERANCE = 1e-4  # ||float32 - float64|| / ||float64|| of logits; rounding alone leaves 1e-6 to 5e-6, as 40 blocks of 2^-24 each
DISTINCT = 2  # blocks with weights of their own in the larger encoders; the others share them, which saves memory and time


def random_model(encoder: str, nclass: int, task: str = "segmentation") -> Any:
    """A model with random weights of sensible size, made quickly: slices of one block of normal numbers."""
    with torch.device("meta"):
        model: Any = build_model(f"dinov2_{encoder}", nclass, task)
    blocks = model.backbone.blocks
    for i in range(DISTINCT if encoder != "small" else len(blocks), len(blocks)):
        blocks[i] = blocks[i % DISTINCT]
    model.to_empty(device="cpu").eval()
    block = torch.randn(4_000_037, generator=torch.Generator().manual_seed(1))
    start = 0
    for name, parameter in model.named_parameters():  # shared ones once
        tensor = parameter.detach()
        count = tensor.numel()
        if start + count > len(block):
            start = 0
        values = block[start : start + count] if count <= len(block) else block.repeat(-(-count // len(block)))[:count]
        start += count % 1_000_003
        tensor.copy_(values.reshape(tensor.shape))
        if name.endswith("gamma"):
            tensor.mul_(0.1).add_(0.3)
        elif tensor.ndim > 1 and "token" not in name and "pos" not in name:
            tensor.div_(tensor[0].numel() ** 0.5)
        else:
            tensor.mul_(0.1).add_(1 if name.endswith("weight") else 0)
    return model


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[-1]))


def distance(found: Tensor, expected: Tensor | list[Tensor]) -> float:
    expected = expected if isinstance(expected, Tensor) else torch.stack(expected)
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def small() -> Any:
    return random_model("small", 3)


@pytest.mark.parametrize(("height", "width"), [(70, 70), (98, 56), (252, 252), (518, 294), (70, 798)])
@torch.no_grad()
def test_small_at_sides_of_every_published_size(small: Any, height: int, width: int) -> None:
    img = noise(2 if height < 200 else 1, 3, height, width)
    assert distance(small(img), oracle.forward(small.state_dict(), "small", list(img))) < TOLERANCE


@pytest.mark.parametrize("encoder", ["base", "large", "giant"])
@torch.no_grad()
def test_larger_encoders(encoder: str) -> None:
    model = random_model(encoder, 2)
    images = [noise(3, 28, 42)] if encoder == "giant" else [noise(3, 42, 70), noise(3, 56, 28)]  # giant's 40 blocks take seconds an image
    for img, expected in zip(images, oracle.forward(model.state_dict(), encoder, images), strict=True):
        assert distance(model(img[None])[0], expected) < TOLERANCE


@torch.no_grad()
def test_the_four_maps_and_their_blocks(small: Any) -> None:
    """Also without a decoder that could hide an exchanged pair of maps."""
    img = noise(2, 3, 70, 42)
    first, second = oracle.encode(small.state_dict(), "small", list(img))
    for i, found in enumerate(small.backbone(img)):
        assert distance(found.flatten(2).transpose(1, 2), [first[i], second[i]]) < 1e-5  # float32: 5e-7


@torch.no_grad()
def test_position_embedding_at_every_grid(small: Any) -> None:
    embedding = small.backbone.pos_embed[..., :16].double()  # channels do not mix
    # float32 has a coordinate of 37 to 4e-6, and the parameter changes by up to 1 from one to the next
    grids = [(n, n) for n in range(1, 61)] + [(5, 7), (7, 4), (37, 36), (36, 37), (37, 74), (1, 60), (57, 114)]
    for rows, cols in grids:
        expected = oracle.position(embedding, rows, cols)
        found = small.backbone.position(rows, cols)[0, :, :16]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-5, (rows, cols)


def test_position_embedding_whose_gradient_is_deterministic(small: Any) -> None:
    """With `deterministic: true` it is resized by matrices: the same numbers, the same gradient."""
    pos, weights, found = small.backbone.pos_embed, noise(1, 1 + 57 * 18, 384), []
    for wanted in (False, True):
        with deterministic(wanted), torch.autocast("cpu", dtype=torch.bfloat16):
            out = small.backbone.position(57, 18)
        (gradient,) = torch.autograd.grad((out * weights).sum(), pos)
        found.append((out.detach(), gradient))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)  # float32: 4e-6 of a coordinate, times weights of up to 4.5
    assert not torch.equal(found[0][0], found[1][0]), "both ways are the same one"


def test_position_embedding_at_518_is_the_parameter_itself(small: Any) -> None:
    assert small.backbone.position(37, 37) is small.backbone.pos_embed


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_attention_in_bf16_on_a_cpu_where_keys_share_a_large_part() -> None:
    tokens = 2 * QUERIES + 300
    q, k, v = noise(3, 2, 2, tokens, 64)
    k += 20 * noise(64)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    exact = (q.double() @ k.double().transpose(2, 3) / 8).softmax(dim=-1) @ v.double()
    with torch.no_grad(), Largest() as largest:
        found = attend(q, k, v)
    assert (
        distance(found, exact) < 0.01
    )  # 2.5 roundings of bf16 (2^-8). 0.005; 0.036 where the scores keep the shared part; PyTorch's kernel 0.002
    assert largest.numel == QUERIES * tokens  # one head, some of its tokens: not tokens x tokens of a large photograph
    assert distance(attend(q.requires_grad_(), k, v).detach(), exact) < 0.01


@torch.no_grad()
def test_change_detection_sees_absolute_differences() -> None:
    model = random_model("small", 2, "change")
    pairs = noise(2, 6, 56, 70)
    factors = torch.tensor([0.0, 2.0, 1.0]).repeat(2, 128)
    assert distance(model(pairs, scaled(factors)), oracle.forward(model.state_dict(), "small", list(pairs), factors)) < TOLERANCE


@torch.no_grad()
def test_complementary_dropout_acts_on_all_four_maps(small: Any) -> None:
    img, factors = noise(2, 3, 56, 70), torch.tensor([0.0, 2.0, 1.0, 2.0]).repeat(2, 96)
    assert distance(small(img, scaled(factors)), oracle.forward(small.state_dict(), "small", list(img), factors)) < TOLERANCE


def test_factors_of_a_batch() -> None:
    """m1 is 0 or 2, m2 = 2 - m1; the images without dropout have 1 in both views (METHOD.md 1.3)."""
    keep = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    assert combine_factors(keep, torch.tensor([2])).tolist() == [[0, 2], [2, 2], [1, 1], [2, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8])
def test_drawn_factors(batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    undropped, kept, draws = torch.zeros(batch), 0.0, 400
    for _ in range(draws):
        factors = complementary_factors(batch, 64, generator)
        first, second = factors.chunk(2)
        assert torch.equal(first + second, torch.full((batch, 64), 2.0))
        free = (first == 1).all(dim=1)
        assert int(free.sum()) == batch // 2
        assert bool(((first[~free] == 0) | (first[~free] == 2)).all())
        undropped += free
        kept += float((first[~free] == 2).float().mean())
    assert kept / draws == pytest.approx(0.5, abs=0.02)  # more than 6 standard deviations
    assert torch.allclose(undropped / draws, torch.full((batch,), batch // 2 / batch), atol=0.13)  # more than 5


def test_maps_of_other_channels_have_factors_of_their_own() -> None:
    maps = [torch.ones(2, 3, 4, 4), torch.ones(2, 5, 2, 2)]
    factors = torch.arange(16.0).view(2, 8)
    fine, coarse = scaled(factors)(maps)
    assert fine[1, :, 0, 0].tolist() == [8, 9, 10]
    assert coarse[1, :, 1, 1].tolist() == [11, 12, 13, 14, 15]
    assert factor_width((3, 5)) == 8
    assert factor_width((384,) * 4) == 384


def test_sides_that_leave_pixels_over_are_refused(small: Any) -> None:
    with pytest.raises(ValueError, match="found an image of 30 x 28 pixels, expected multiples of 14"):
        small(noise(1, 3, 28, 30))
