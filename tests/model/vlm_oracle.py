"""SemiVL's network a second time, read against METHOD.md 1.8: functions of a state dict, one image and one class after the other."""

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer(x: Tensor, state: State, name: str, heads: int, eps: float, alone: bool = False) -> Tensor:
    """(N, width) -> (N, width). alone: every token attends to itself alone."""
    y = norm(x, state, f"{name}.ln1", eps)
    q, k, v = (y @ state[f"{name}.attn.attn.in_proj_weight"].T + state[f"{name}.attn.attn.in_proj_bias"]).chunk(3, dim=1)
    if not alone:
        size = x.shape[1] // heads
        parts = [slice(i * size, (i + 1) * size) for i in range(heads)]
        v = torch.cat([(q[:, part] @ k[:, part].T / size**0.5).softmax(1) @ v[:, part] for part in parts], dim=1)
    x = x + linear(v, state, f"{name}.attn.attn.out_proj")
    hidden = linear(norm(x, state, f"{name}.ln2", eps), state, f"{name}.ffn.layers.0.0")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return x + linear(hidden, state, f"{name}.ffn.layers.1")


def cubic(x: float) -> float:
    x = abs(x)
    return 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0.0


def resized_positions(grid: Tensor, rows: int, cols: int) -> Tensor:
    """(g, g, C) -> (rows, cols, C): bicubic with a = -0.75, edges repeated, pixel centres."""
    side = len(grid)

    def weights(count: int) -> Tensor:
        matrix = torch.zeros(count, side, dtype=grid.dtype)
        for i in range(count):
            centre = (i + 0.5) * side / count - 0.5
            for j in range(int(centre // 1) - 1, int(centre // 1) + 3):
                matrix[i, min(max(j, 0), side - 1)] += cubic(centre - j)
        return matrix

    return torch.einsum("yi,xj,ijc->yxc", weights(rows), weights(cols), grid)


def encode(img: Tensor, state: State, depth: int, heads: int, skips: tuple[int, ...]) -> list[Tensor]:
    """The maps (C, h, w) of one image (3, H, W)."""
    rows, cols = (-(-side // 16) for side in img.shape[1:])
    canvas = img.new_zeros(3, 16 * rows, 16 * cols)
    canvas[:, : img.shape[1], : img.shape[2]] = img
    squares = [canvas[:, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16].flatten() for r in range(rows) for c in range(cols)]
    tokens = torch.stack(squares) @ state["patch_embed.projection.weight"].flatten(1).T
    pos = state["pos_embed"][0]
    side = round((len(pos) - 1) ** 0.5)
    grid = pos[1:].unflatten(0, (side, side))
    if (rows, cols) != (side, side):
        grid = resized_positions(grid, rows, cols)
    x = torch.cat((state["cls_token"][0] + pos[:1], tokens + grid.flatten(0, 1)))
    x = norm(x, state, "ln0", 1e-6)
    maps = []
    for i in range(depth):
        values = layer(x, state, f"layers.{i}", heads, 1e-6, alone=True)
        if i in skips:
            maps.append(values[1:].T.unflatten(1, (rows, cols)))
        x = layer(x, state, f"layers.{i}", heads, 1e-6)
    dense = norm(values[1:], state, "ln1", 1e-6) @ state["proj.weight"].flatten(1).T
    return [*maps, (dense / dense.norm(dim=1, keepdim=True)).T.unflatten(1, (rows, cols))]


def conv(x: Tensor, state: State, name: str, dilation: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x[None], weight, state.get(f"{name}.bias"), padding=dilation * (weight.shape[-1] // 2), dilation=dilation)[0]


def conv_gn_relu(x: Tensor, state: State, name: str, first: int, groups: int, dilation: int = 1) -> Tensor:
    """Convolution `first`, group norm `first + 1` of a sequence, ReLU."""
    x = conv(x, state, f"{name}.{first}", dilation)
    parts = x.reshape(groups, -1)
    parts = (parts - parts.mean(1, keepdim=True)) / (parts.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    weight, bias = (state[f"{name}.{first + 1}.{leaf}"][:, None, None] for leaf in ("weight", "bias"))
    return (parts.reshape(x.shape) * weight + bias).relu()


def aligned(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x[None], size, mode="bilinear", align_corners=True)[0]


def upsample(x: Tensor, skip: Tensor, state: State, name: str, groups: int) -> Tensor:
    x = F.conv_transpose2d(x[None], state[f"{name}.up.weight"], state[f"{name}.up.bias"], stride=2)[0]
    x = torch.cat((x, aligned(skip, (x.shape[1], x.shape[2]))))
    return conv_gn_relu(conv_gn_relu(x, state, f"{name}.conv", 0, groups), state, f"{name}.conv", 3, groups)


def decode(maps: list[Tensor], text: Tensor, state: State) -> Tensor:
    """Logits (K, 4h, 4w) of one image."""
    second, first, dense = maps
    rows, cols = dense.shape[1:]
    dense, text_unit = dense / dense.norm(dim=0), text / text.norm(dim=1, keepdim=True)
    x = [conv((t[:, None, None] * dense).sum(0, keepdim=True), state, "conv1") for t in text_unit]
    for k, own in enumerate(x):
        branches = [conv_gn_relu(own, state, f"aspp.aspp_convs.{i}", 0, 8, max(1, 6 * i)) for i in range(4)]
        pooled = conv_gn_relu(own.mean((1, 2), keepdim=True), state, "aspp.aspp_convs.4.gap", 1, 8)
        x[k] = own + conv_gn_relu(torch.cat([*branches, pooled.expand_as(own)]), state, "aspp.project", 0, 8)
    guide = linear(text, state, "text_proj.0").relu()
    for i in range(2):
        down = (min(4, rows), min(4, cols))
        small = [F.avg_pool2d(own[None], down)[0] for own in x]
        out = [torch.zeros_like(own) for own in small]
        for r in range(small[0].shape[1]):
            for c in range(small[0].shape[2]):
                tokens = torch.stack([torch.cat((own[:, r, c], guide[k])) for k, own in enumerate(small)])
                tokens = layer(tokens, state, f"layers.{i}.transformer", 4, 1e-5)
                for k, own in enumerate(out):
                    own[:, r, c] = tokens[k, :128]
        x = [own + aligned(added, (rows, cols)) for own, added in zip(x, out, strict=True)]
    skips = [conv(own, state, f"skip_proj.{i}.0").relu() for i, own in enumerate((first, second))]
    logits = []
    for own in x:
        own = upsample(upsample(own, skips[0], state, "up1", 4), skips[1], state, "up2", 2)
        logits.append(conv(own, state, "head")[0])
    return torch.stack(logits)


def logits_of(img: Tensor, state: State, depth: int, heads: int, skips: tuple[int, ...], crop: int) -> Tensor:
    """Logits (K, H, W) of one image by the state dict of the whole model, `text` included."""
    encoder, decoder = (
        {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        for start in ("backbone.", "decode_head.")
    )
    logits = decode(encode(img, encoder, depth, heads, skips), state["text"], decoder)
    for size in ((crop, crop), img.shape[1:]):
        logits = F.interpolate(logits[None], tuple(size), mode="bilinear", align_corners=False)[0]
    return logits
