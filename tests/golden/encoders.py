"""Golden numbers of an encoder by itself: its maps (fwd_*.npz) and the names in its published file (keys_*.txt).

fwd_*.npz: `HxW/map<i>` is the i-th map of `image(H, W, B)` as (B, N, C), flattened, every `HxW/map<i>/stride`-th value; `/shape` and
`/norm` are of the whole map. `prenorm<i>` is the same before the final norm, `cls` and `storage` the tokens of the last block after it.
"""

import re
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model import build_model
from model.formats import FORMATS

NAMES = {  # in file names -> `backbone`
    **{f"dinov2_reg_{size}": f"dinov2_{size}_reg" for size in ("small", "base", "large", "giant")},
    **{f"dinov3_convnext_{size}": f"dinov3_convnext_{size}" for size in ("tiny", "small", "base", "large")},
    "dinov3_vits16": "dinov3_small",
    "dinov3_vitsplus16": "dinov3_small_plus",
    "dinov3_vits16plus": "dinov3_small_plus",
    "dinov3_vitb16": "dinov3_base",
    "dinov3_vitl16": "dinov3_large",
    "dinov3_vith16plus": "dinov3_huge_plus",
    "dinov3_vithplus16": "dinov3_huge_plus",
    "dinov3_vit7b16": "dinov3_7b",
}
PATTERN = r"(dinov3|dinov2_reg)_\w+"
TOLERANCE = 1e-5  # ||a - b|| / ||b||
Numbers = dict[str, np.ndarray]


def backbone(file: str) -> str:
    name = file.split("_", 1)[1]
    assert name in NAMES, f"{file}: an unknown encoder, expected one of {', '.join(NAMES)}"
    return NAMES[name]


def check_keys(name: str, lines: list[str]) -> None:
    """Every name and shape of a published file, `NAME (SHAPE)` in each line, in order, is the encoder's or known to be left out."""
    with torch.device("meta"):
        encoder = build_model(backbone(name), 2).backbone
    shapes = {line.split(" ")[0]: tuple(map(int, re.findall(r"\d+", line.split(" ", 1)[1]))) for line in lines}
    published = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    meta = FORMATS[type(encoder)][0]
    own = meta.convert(encoder, published)
    assert [key for key in shapes if key in own] == list(own)
    assert set(shapes) - set(own) == set(meta.beside(encoder, published))


def check_forward(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    encoder = build_model(backbone(name), 2).backbone.eval()
    encoder.load_state_dict(inputs.fill(encoder.state_dict()))
    for size in {key.split("/")[0] for key in numbers}:
        height, width = map(int, size.split("x"))
        expected = {key.removeprefix(f"{size}/"): value for key, value in numbers.items() if key.startswith(f"{size}/")}
        with torch.no_grad():
            found = outputs(encoder, inputs.image(height, width, int(expected["map0/shape"][0])))
        for key in (key for key in expected if "/" not in key):
            assert tuple(found[key].shape) == tuple(expected.get(f"{key}/shape", expected[key].shape)), f"{size}/{key}"
            values = found[key].flatten()[:: int(expected.get(f"{key}/stride", 1))].numpy()
            if values.size:
                assert np.linalg.norm(values - expected[key].flatten()) <= TOLERANCE * np.linalg.norm(expected[key]), f"{size}/{key}"
            if f"{key}/norm" in expected:
                assert abs(float(found[key].norm()) / float(expected[f"{key}/norm"]) - 1) <= TOLERANCE, f"{size}/{key}/norm"


def outputs(encoder: Any, img: Tensor) -> dict[str, Tensor]:
    """Everything that a file may hold of one image batch, under its keys."""
    last: list[Tensor] = []
    hook = encoder.blocks[-1].register_forward_hook(lambda block, args, out: last.append(out))
    maps = encoder(img)
    hook.remove()
    norm, encoder.norm = encoder.norm, nn.Identity()
    before = encoder(img)
    encoder.norm = norm
    found = {f"map{i}": tokens(x) for i, x in enumerate(maps)} | {f"prenorm{i}": tokens(x) for i, x in enumerate(before)}
    if last[0].ndim == 4:  # a convolutional network has no tokens: the mean of the last map stands for the class token
        return found | {
            "cls": norm(last[0].mean(dim=(2, 3), keepdim=True)).flatten(1),
            "storage": last[0].new_empty(len(img), 0, last[0].shape[1]),
        }
    prefix = last[0].shape[1] - found["map3"].shape[1]
    return found | {"cls": norm(last[0])[:, 0], "storage": norm(last[0])[:, 1:prefix]}


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)
