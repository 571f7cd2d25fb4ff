"""The DINOv3 encoders against a second writing in float64, and what is particular about them (METHOD.md 1.5)."""

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import build_model
from model.backbone.dinov2 import DINOv2
from model.backbone.dinov3 import DINOv3, periods, rotary, rotate
from model.backbone.dinov3_convnext import DINOv3ConvNeXt
from model.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder
from model.spec import ENCODERS, get_encoder
from util.error import UserError

VITS = {
    "mlp": partial(DINOv3, 64, 5, 2, (0, 1, 3, 4)),
    "swiglu": partial(DINOv3, 64, 4, 2, (0, 1, 2, 3), 100),
    "no bias": partial(DINOv3, 64, 4, 1, (0, 1, 2, 3), 96, False),
}
DEPTHS = (1, 2, 2, 1)
CONVNEXT = partial(DINOv3ConvNeXt, (8, 16, 24, 32), DEPTHS)
SIZES = [(64, 64), (96, 160), (160, 32)]


def random_(encoder: Encoder) -> Encoder:
    """Gives every parameter a random value of sensible size, so that none is hidden behind a zero or a one."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in encoder.named_parameters():
        scale = 0.3 if parameter.ndim < 2 or "token" in name else parameter[0].numel() ** -0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale + (1 if "norm" in name and "weight" in name else 0)
    return encoder.eval()


def image(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(width))


def norm(x: Tensor, w: dict[str, Tensor], name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def turn(x: Tensor, rows: int, cols: int) -> Tensor:
    """Rotary position of one head's patches (N, D): channels i and i + D / 2 are one complex number."""
    half = x.shape[1] // 2
    pairs = torch.complex(x[:, :half], x[:, half:])
    angle = torch.empty(rows, cols, half, dtype=torch.float64)
    for row in range(rows):
        for col in range(cols):
            for i in range(half):
                centre = (row + 0.5) / rows if i < half // 2 else (col + 0.5) / cols
                angle[row, col, i] = 2 * math.pi * (2 * centre - 1) / 100 ** ((i % (half // 2)) / (half // 2))
    pairs = pairs * torch.polar(torch.ones_like(angle), angle).flatten(0, 1)
    return torch.cat((pairs.real, pairs.imag), dim=1)


def attention(x: Tensor, w: dict[str, Tensor], heads: int, rows: int, cols: int) -> Tensor:
    """x: (1 + 4 + N, width) of one image. Keys have no bias, whatever stands in the file."""
    q, k, v = (x @ part.T for part in w["qkv.weight"].chunk(3))
    if "qkv.bias" in w:
        bias = w["qkv.bias"].chunk(3)
        q, v = q + bias[0], v + bias[2]
    out = []
    for qh, kh, vh in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
        qh, kh = (torch.cat((t[:5], turn(t[5:], rows, cols))) for t in (qh, kh))
        out.append((qh @ kh.T / math.sqrt(qh.shape[1])).softmax(dim=1) @ vh)
    return linear(torch.cat(out, dim=1), w, "proj")


def vit(state: dict[str, Tensor], img: Tensor, heads: int, out_indices: tuple[int, ...]) -> list[Tensor]:
    """The maps (width, rows, cols) of one image (3, H, W)."""
    w = {name: value.double() for name, value in state.items()}
    rows, cols = img.shape[1] // 16, img.shape[2] // 16
    patches = img.double().reshape(3, rows, 16, cols, 16).permute(1, 3, 0, 2, 4).reshape(rows * cols, -1)
    x = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    x = torch.cat((w["cls_token"][0], w["storage_tokens"][0], x))
    maps = []
    for i in range(1 + out_indices[-1]):
        b = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items() if name.startswith(f"blocks.{i}.")}
        attn = {name.removeprefix("attn."): value for name, value in b.items() if name.startswith("attn.")}
        x = x + b["ls1.gamma"] * attention(norm(x, b, "norm1", 1e-5), attn, heads, rows, cols)
        h = norm(x, b, "norm2", 1e-5)
        if "mlp.w1.weight" in b:
            h = linear(F.silu(linear(h, b, "mlp.w1")) * linear(h, b, "mlp.w2"), b, "mlp.w3")
        else:
            h = linear(F.gelu(linear(h, b, "mlp.fc1")), b, "mlp.fc2")
        x = x + b["ls2.gamma"] * h
        if i in out_indices:
            maps.append(norm(x, w, "norm", 1e-5)[5:].T.reshape(-1, rows, cols))
    return maps


def convnext(state: dict[str, Tensor], img: Tensor) -> list[Tensor]:
    """The maps (1, width, H, W) of images (1, 3, H, W); channels are the last dimension between convolutions."""
    w = {name: value.double() for name, value in state.items()}

    def conv(x: Tensor, name: str, **kwargs: int) -> Tensor:
        x = F.conv2d(x.movedim(-1, 1), w[f"{name}.weight"], w[f"{name}.bias"], **kwargs)
        return x.movedim(1, -1)

    x, maps = img.double().movedim(1, -1), []
    for stage, depth in enumerate(DEPTHS):
        if stage == 0:
            x = norm(conv(x, "downsample_layers.0.0", stride=4), w, "downsample_layers.0.1", 1e-6)
        else:
            x = conv(norm(x, w, f"downsample_layers.{stage}.0", 1e-6), f"downsample_layers.{stage}.1", stride=2)
        for i in range(depth):
            name = f"stages.{stage}.{i}"
            h = norm(conv(x, f"{name}.dwconv", padding=3, groups=x.shape[-1]), w, f"{name}.norm", 1e-6)
            x = x + w[f"{name}.gamma"] * linear(F.gelu(linear(h, w, f"{name}.pwconv1")), w, f"{name}.pwconv2")
        maps.append(norm(x, w, "norm", 1e-6) if stage == 3 else x)
    return [x.movedim(-1, 1) for x in maps]


def distance(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", VITS)
@torch.no_grad()
def test_vision_transformer(kind: str, size: tuple[int, int]) -> None:
    encoder, img = random_(VITS[kind]()), image(*size)
    expected = [vit(encoder.state_dict(), one, *VITS[kind].args[2:4]) for one in img]
    for x, *ones in zip(encoder(img), *expected, strict=True):
        assert distance(x, torch.stack(ones)) < 1e-5  # float32: 6e-7


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_convnext(size: tuple[int, int]) -> None:
    encoder, img = random_(CONVNEXT()), image(*size)
    maps = encoder(img)
    for x, expected, stride, channels in zip(maps, convnext(encoder.state_dict(), img), (4, 8, 16, 32), encoder.channels, strict=True):
        assert x.shape == (2, channels, size[0] // stride, size[1] // stride)
        assert distance(x, expected) < 1e-5  # float32: 6e-7


def test_periods() -> None:
    assert periods(16).tolist() == pytest.approx([100 ** (i / 16) for i in range(16)], rel=2**-22)  # float32: two units
    assert float(periods(16)[-1]) == pytest.approx(74.989, abs=1e-3)


@pytest.mark.parametrize("encoder", [VITS["mlp"](), CONVNEXT()], ids=["vit", "convnext"])
def test_training_mode_draws_nothing_and_checkpointing_changes_no_gradient(encoder: Encoder) -> None:
    img = image(64, 96)
    expected = random_(encoder)(img)
    gradients: list[list[Any]] = []
    for checkpointing in (False, True):
        encoder.train().zero_grad()
        encoder.checkpointing = checkpointing
        calls: list[Any] = []
        hook = encoder.blocks[0].register_forward_pre_hook(lambda *args, calls=calls: calls.append(args))
        maps = encoder(img)
        assert all(torch.equal(x, y) for x, y in zip(maps, expected, strict=True))
        sum(x.square().sum() for x in maps).backward()
        hook.remove()
        assert len(calls) == 1 + checkpointing
        gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))
    assert all(float(x.abs().max()) > 0 for x in gradients[0])


@torch.no_grad()
def test_the_bias_of_keys_counts_as_zero() -> None:
    encoder, img = random_(VITS["mlp"]()), image(64, 64)
    before = encoder(img)
    for name, parameter in encoder.named_parameters():
        if name.endswith("qkv.bias"):
            parameter[64:128] += 1
    assert all(torch.equal(x, y) for x, y in zip(encoder(img), before, strict=True))


def test_positions_are_float32_in_bf16() -> None:
    x = torch.randn(2, 3, 5 + 24, 64).bfloat16()
    exact = rotate(x.float(), *rotary(4, 6, 64))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotate(x, *rotary(4, 6, 64)), exact.bfloat16())
    assert torch.equal(exact[:, :, :5], x[:, :, :5].float())


# parameters of the published files, without a norm that only pretraining used (2 * width in the satellite's and in 7b)
PARAMETERS = {
    "dinov3_small": 21_601_152,
    "dinov3_small_plus": 28_697_472,
    "dinov3_base": 85_669_632,
    "dinov3_large": 303_154_176,
    "dinov3_large_sat": 303_156_224 - 2048,
    "dinov3_huge_plus": 840_633_600,
    "dinov3_7b": 6_716_043_264 - 8192,
    "dinov3_7b_sat": 6_716_043_264 - 8192,
    "dinov3_convnext_tiny": 27_820_128,
    "dinov3_convnext_small": 49_454_688,
    "dinov3_convnext_base": 87_566_464,
    "dinov3_convnext_large": 196_230_336,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, 5)
        assert model(torch.empty(1, 3, 64, 96)).shape == (1, 5, 64, 96)
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) == PARAMETERS[name]
    satellite = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
    assert (model.backbone.mean, model.backbone.std) == (satellite if "_sat" in name else (IMAGENET_MEAN, IMAGENET_STD))


def test_four_resolutions_go_straight_into_the_fusion() -> None:
    model = build_model("dinov3_convnext_tiny", 5)
    names = [name for name, _ in model.head.named_parameters()]
    assert all(name.startswith("scratch.") for name in names)
    assert model.head.get_parameter("scratch.layer2_rn.weight").shape == (64, 192, 3, 3)
    logits = model.head(model.backbone(image(64, 96)))
    assert logits.shape == (2, 5, 32, 48)  # twice the finest map


@pytest.mark.parametrize("name", ["dinov3_small", "dinov3_convnext_tiny"])
def test_dates_and_sides_that_do_not_fit(name: str) -> None:
    with torch.device("meta"):
        assert build_model(name, 2, "change")(torch.empty(1, 6, 32, 64)).shape == (1, 2, 32, 64)
        with pytest.raises(ValueError, match=r"50 x 64 pixels, expected multiples of (16|32)"):
            build_model(name, 2)(torch.empty(1, 3, 64, 50))


@pytest.mark.parametrize(("name", "expected"), [
    ("dinov2_mine_small_reg", "dinov2_small_reg"),
    ("dinov3_mine_small", "dinov3_small"),
    ("dinov3_mine_small_plus", "dinov3_small_plus"),
    ("dinov3_lakes_large_sat", "dinov3_large_sat"),
    ("dinov3_convnext_mine_large", "dinov3_convnext_large"),
])  # fmt: skip
def test_weights_of_ones_own_have_the_size_at_the_end(name: str, expected: str) -> None:
    own, published = get_encoder(name), ENCODERS[expected]
    assert (own.name, own.build, own.fusion, own.widths) == (name, published.build, published.fusion, published.widths)
    assert (own.file, own.origin.license) == ("", "unknown")


@pytest.mark.parametrize("name", ["dinov3_mine", "dinov3_small_mine", "dinov3_giant", "dinov4_small", "dinov3_convnext_giant"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UserError, match=f"backbone: found '{name}', the nearest are dinov"):
        get_encoder(name)


@pytest.mark.parametrize("grid", [(5, 5), (3, 50), (37, 20), (36, 38), (57, 57)])
@torch.no_grad()
def test_positions_beside_registers_are_antialiased(grid: tuple[int, int]) -> None:
    encoder = DINOv2(8, 1, 1, (0,), registers=4)
    pos = encoder.pos_embed[:, 1:].reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(pos, grid, mode="bicubic", antialias=True, align_corners=False).flatten(2).transpose(1, 2)
    # float32 has a coordinate of 37 to 4e-6, and the parameter changes by up to 0.1 from one to the next
    torch.testing.assert_close(encoder.position(*grid)[:, 1:], expected, rtol=0, atol=4e-7)
    assert torch.equal(encoder.position(*grid)[:, 0], encoder.pos_embed[:, 0])
