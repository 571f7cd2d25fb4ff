"""MiT: a second, plain writing; the golden maps and names where there are some; stochastic depth; sizes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.evaluation import predict_whole
from model import build_model, pretrained
from model.backbone.mit import DROP_PATH, Block, MiT
from model.spec import get_encoder
from tests.model.test_dinov3 import random_
from tests.model.test_formats import hugging_face_mit

WIDTHS, DEPTHS = (8, 16, 20, 32), (1, 2, 1, 1)


def plain(w: dict[str, Tensor], img: Tensor) -> list[Tensor]:
    """The encoder as METHOD.md 1.7 says it, head by head, in evaluation mode."""

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def conv(x: Tensor, name: str, stride: int, padding: int, groups: int = 1) -> Tensor:
        """Of a map that lies channels last."""
        out = F.conv2d(x.permute(0, 3, 1, 2), w[f"{name}.weight"], w[f"{name}.bias"], stride, padding, 1, groups)
        return out.permute(0, 2, 3, 1)

    x, maps = img.permute(0, 2, 3, 1), []
    for i, (width, depth, heads, reduction) in enumerate(zip(WIDTHS, DEPTHS, (1, 2, 5, 8), (8, 4, 2, 1), strict=True), 1):
        x = norm(conv(x, f"patch_embed{i}.proj", *((4, 3) if i == 1 else (2, 1))), f"patch_embed{i}.norm", 1e-5)
        for j in range(depth):
            at = f"block{i}.{j}"
            y = norm(x, f"{at}.norm1", 1e-6)
            source = norm(conv(y, f"{at}.attn.sr", reduction, 0), f"{at}.attn.norm", 1e-5) if reduction > 1 else y
            q, (k, v) = linear(y, f"{at}.attn.q").flatten(1, 2), linear(source, f"{at}.attn.kv").flatten(1, 2).split(width, -1)
            parts = []
            for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
                parts.append((qh @ kh.transpose(1, 2) / (width / heads) ** 0.5).softmax(-1) @ vh)
            x = x + linear(torch.cat(parts, -1), f"{at}.attn.proj").view_as(x)
            y = linear(norm(x, f"{at}.norm2", 1e-6), f"{at}.mlp.fc1")
            y = conv(y, f"{at}.mlp.dwconv.dwconv", 1, 1, 4 * width)
            x = x + linear(y * 0.5 * (1 + torch.erf(y / 2**0.5)), f"{at}.mlp.fc2")
        x = norm(x, f"norm{i}", 1e-6)
        maps.append(x.permute(0, 3, 1, 2))
    return maps


@torch.no_grad()
def test_maps_at_sizes_that_halve_to_odd_numbers() -> None:
    encoder = random_(MiT(WIDTHS, DEPTHS)).double()
    img = torch.randn(2, 3, 97, 130, dtype=torch.float64)
    found = encoder(img)
    assert [tuple(x.shape[1:]) for x in found] == [(8, 25, 33), (16, 13, 17), (20, 7, 9), (32, 4, 5)]
    for x, expected in zip(found, plain(encoder.state_dict(), img), strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", ["b0", "b5"])
def test_names_and_golden_maps(size: str, shared: Path) -> None:
    folder = shared / "golden/allspark"
    encoder = get_encoder(f"mit_{size}").facts()
    names = [line for line in (folder / f"keys_allspark_mit_{size}.txt").read_text().splitlines() if line.startswith("backbone.")]
    assert [f"backbone.{key} {tuple(value.shape)}" for key, value in encoder.state_dict().items()] == names
    if size == "b5":  # as the logs of Table 9 count it
        assert sum(parameter.numel() for parameter in encoder.parameters()) == 81_443_008
        return
    spec = importlib.util.spec_from_file_location("golden_inputs", folder / "inputs.py")
    assert spec is not None
    assert spec.loader is not None
    inputs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inputs)
    model = build_model("mit_b0", 2).eval()
    model.load_state_dict(inputs.fill(model.state_dict()))
    numbers = np.load(folder / "fwd_allspark_mit_b0.npz")
    with torch.no_grad():
        maps = model.backbone(inputs.image(97, 97, 1))
    for i, x in enumerate(maps):
        expected = numbers[f"backbone_{i}"]
        assert np.linalg.norm(x.numpy() - expected) <= 1e-5 * np.linalg.norm(expected)


def test_stochastic_depth() -> None:
    """Rates rise linearly; in training an image's branch is dropped or scaled up, in evaluation nothing is drawn."""
    encoder = random_(MiT(WIDTHS, DEPTHS))
    assert [block.drop for block in encoder.blocks] == pytest.approx([DROP_PATH * i / 4 for i in range(5)])
    block = Block(16, 2, 1, 0.25).train()
    kept = block._kept(torch.ones(4000, 3, 2))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (kept == kept[:, :1, :1]).all()  # whole images
    assert float((kept[:, 0, 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.04)
    assert torch.equal(block.eval()._kept(kept), kept)


@torch.no_grad()
def test_images_smaller_than_it_takes() -> None:
    """8 x 8 positions are needed for the first stage's keys; a smaller image is enlarged."""
    model = build_model("mit_b0", 3).eval()
    assert predict_whole(model, torch.randn(1, 3, 5, 40)).shape == (1, 3, 5, 40)
    img = torch.randn(1, 3, 29, 30)
    assert torch.equal(predict_whole(model, img), model(img)), "large enough"


def test_weights_of_the_authors_and_of_hugging_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both have the classifier of ImageNet beside the encoder, and become the same weights under a license that is named."""
    monkeypatch.chdir(tmp_path)
    state = get_encoder("mit_b0").build().state_dict()
    torch.save(state | {"head.weight": torch.zeros(9, 256), "head.bias": torch.zeros(9)}, "mit_b0.pth")
    theirs = {f"segformer.{name}": value for name, value in hugging_face_mit(state).items()}
    torch.save(theirs | {"classifier.weight": torch.zeros(9, 256), "classifier.bias": torch.zeros(9)}, "pytorch_model.bin")
    for file, words in (("mit_b0.pth", ""), ("pytorch_model.bin", "converted from Hugging Face's MiT; ")):
        pretrained.main(["mit_b0", "--from", file])
        assert f"{words}loads strictly; license NVIDIA Source Code License for SegFormer" in capsys.readouterr().out
        model = build_model("mit_b0", 2, model="allspark", pretrained="pretrained/mit_b0.pth")
        torch.testing.assert_close(model.backbone.state_dict(), state, rtol=0, atol=0)
