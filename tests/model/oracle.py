"""The network of METHOD.md 1, written a second time: plain matrix products in float64, weights looked up by name.

It shares no code with `model/`: sizes come from the table below, interpolation is a matrix per axis, attention one head at a time.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# width, depth, heads, out_indices, SwiGLU
TABLE = {
    "small": (384, 12, 6, (2, 5, 8, 11), False),
    "base": (768, 12, 12, (2, 5, 8, 11), False),
    "large": (1024, 24, 16, (4, 11, 17, 23), False),
    "giant": (1536, 40, 24, (9, 19, 29, 39), True),
}
# fusion width, projection widths
Weights = Callable[[str], Tensor]


def lookup(state: dict[str, Tensor], prefix: str = "") -> Weights:
    """Weights by name, in float64, converted one at a time so that the giant encoder fits."""
    return lambda name: state[prefix + name].double()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-6) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention(x: Tensor, w: Weights, heads: int) -> Tensor:
    """x: (N, width) of one image."""
    width = x.shape[1]
    dim = width // heads
    qkv = x @ w("qkv.weight").T + w("qkv.bias")
    out = torch.empty_like(x)
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        q, k, v = qkv[:, :width][:, part], qkv[:, width : 2 * width][:, part], qkv[:, 2 * width :][:, part]
        score = (q @ k.T).div_(math.sqrt(dim)).exp_()
        out[:, part] = score @ v / score.sum(1, keepdim=True)
    return out @ w("proj.weight").T + w("proj.bias")


def feed_forward(x: Tensor, w: Weights, swiglu: bool) -> Tensor:
    if swiglu:
        both = x @ w("w12.weight").T + w("w12.bias")
        a, b = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
        return a / (1 + torch.exp(-a)) * b @ w("w3.weight").T + w("w3.bias")
    return gelu(x @ w("fc1.weight").T + w("fc1.bias")) @ w("fc2.weight").T + w("fc2.bias")


def cubic(distance: float, a: float = -0.75) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def bicubic_matrix(size: int, scale: float, source: int = 37) -> Tensor:
    """(size, source): half-pixel centres divided by the given scale, edges clamped, no antialias."""
    matrix = torch.zeros(size, source, dtype=torch.float64)
    for i in range(size):
        centre = (i + 0.5) / scale - 0.5
        first = math.floor(centre) - 1
        for j in range(first, first + 4):
            matrix[i, min(max(j, 0), source - 1)] += cubic(centre - j)
    return matrix


def position(pos_embed: Tensor, rows: int, cols: int) -> Tensor:
    """(1 + rows * cols, width)."""
    if (rows, cols) == (37, 37):
        return pos_embed[0]
    grid = pos_embed[0, 1:].reshape(37, 37, -1)
    down, across = bicubic_matrix(rows, (rows + 0.1) / 37), bicubic_matrix(cols, (cols + 0.1) / 37)
    grid = torch.einsum("ry,cx,yxd->rcd", down, across, grid)
    return torch.cat((pos_embed[0, :1], grid.reshape(rows * cols, -1)))


def tokens(w: Weights, img: Tensor) -> Tensor:
    """Class token and patches with their position, (1 + N, width), of one image (3, H, W)."""
    rows, cols = img.shape[1] // 14, img.shape[2] // 14
    # patch (r, c) is one row of 3 * 14 * 14 numbers in the order of the convolution's weight
    patches = img.double().reshape(3, rows, 14, cols, 14).permute(1, 3, 0, 2, 4).reshape(rows * cols, -1)
    x = patches @ w("patch_embed.proj.weight").flatten(1).T + w("patch_embed.proj.bias")
    return torch.cat((w("cls_token")[0], x)) + position(w("pos_embed"), rows, cols)


def encode(state: dict[str, Tensor], encoder: str, images: list[Tensor]) -> list[list[Tensor]]:
    """For each image (3, H, W), which may differ in size, its four maps (N, width)."""
    _, depth, heads, out_indices, swiglu = TABLE[encoder]
    w = lookup(state, "backbone.")
    xs = [tokens(w, img) for img in images]
    maps: list[list[Tensor]] = [[] for _ in images]
    doubles: dict[int, Tensor] = {}  # by address: blocks may share weights
    for i in range(depth):
        begin = f"backbone.blocks.{i}."
        names = [name for name in state if name.startswith(begin)]
        for name in names:
            if state[name].data_ptr() not in doubles:
                doubles[state[name].data_ptr()] = state[name].double()
        block = {name: doubles[state[name].data_ptr()] for name in names}
        own = lookup(block, begin)
        for image, x in enumerate(xs):
            h = layer_norm(x, own("norm1.weight"), own("norm1.bias"))
            x = x + attention(h, lookup(block, begin + "attn."), heads) * own("ls1.gamma")
            h = layer_norm(x, own("norm2.weight"), own("norm2.bias"))
            xs[image] = x + feed_forward(h, lookup(block, begin + "mlp."), swiglu) * own("ls2.gamma")
            if i in out_indices:
                maps[image].append(layer_norm(xs[image], w("norm.weight"), w("norm.bias"))[1:])
    return maps


def linear_matrix(size: int, source: int) -> Tensor:
    """(size, source): bilinear resize of one axis with align_corners=True."""
    matrix = torch.zeros(size, source, dtype=torch.float64)
    for i in range(size):
        at = i * (source - 1) / (size - 1) if size > 1 else 0.0
        low = min(int(at), source - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, source - 1)] += at - low
    return matrix


def resize(x: Tensor, rows: int, cols: int) -> Tensor:
    """Bilinear, align_corners=True. x: (C, H, W)."""
    return linear_matrix(rows, x.shape[1]) @ x @ linear_matrix(cols, x.shape[2]).T


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """3x3 (padded by 1) or 1x1 convolution of (C, H, W)."""
    return F.conv2d(x[None], weight, bias, stride, padding=weight.shape[-1] // 2)[0]


def spread(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Transposed convolution whose stride is its kernel size k: every pixel becomes k x k pixels."""
    k = weight.shape[-1]
    out = torch.einsum("chw,cdij->dhiwj", x, weight).reshape(weight.shape[1], x.shape[1] * k, x.shape[2] * k)
    return out + bias[:, None, None]


def residual(x: Tensor, w: Weights, unit: str) -> Tensor:
    h = conv(x.clamp(min=0), w(f"{unit}.conv1.weight"), w(f"{unit}.conv1.bias"))
    return x + conv(h.clamp(min=0), w(f"{unit}.conv2.weight"), w(f"{unit}.conv2.bias"))


def decode(state: dict[str, Tensor], maps: list[Tensor], rows: int, cols: int) -> Tensor:
    """Logits (K, 14 * rows, 14 * cols)."""
    w = lookup(state, "head.")
    skips = []
    for i, tokens in enumerate(maps):
        x = conv(tokens.T.reshape(-1, rows, cols), w(f"projects.{i}.weight"), w(f"projects.{i}.bias"))
        if i < 2:
            x = spread(x, w(f"resize_layers.{i}.weight"), w(f"resize_layers.{i}.bias"))
        elif i == 3:
            x = conv(x, w("resize_layers.3.weight"), w("resize_layers.3.bias"), stride=2)
        skips.append(conv(x, w(f"scratch.layer{i + 1}_rn.weight")))
    path = skips[3]
    for level in (4, 3, 2, 1):
        name = f"scratch.refinenet{level}"
        if level < 4:
            path = path + residual(skips[level - 1], w, f"{name}.resConfUnit1")
        path = residual(path, w, f"{name}.resConfUnit2")
        finer = skips[level - 2].shape[1:] if level > 1 else (2 * path.shape[1], 2 * path.shape[2])
        path = conv(resize(path, *finer), w(f"{name}.out_conv.weight"), w(f"{name}.out_conv.bias"))
    x = conv(path, w("scratch.output_conv.0.weight"), w("scratch.output_conv.0.bias")).clamp(min=0)
    x = conv(x, w("scratch.output_conv.2.weight"), w("scratch.output_conv.2.bias"))
    return resize(x, 14 * rows, 14 * cols)


def forward(state: dict[str, Tensor], encoder: str, images: list[Tensor], factors: Tensor | None = None) -> list[Tensor]:
    """Logits (K, H, W) in float64 of each image (3, H, W), or of each pair of dates (6, H, W).

    factors (B, width): complementary dropout. A pair is seen as the absolute difference of its two dates' maps.
    """
    maps = encode(state, encoder, [img[:3] for img in images])
    if images[0].shape[0] == 6:
        second = encode(state, encoder, [img[3:] for img in images])
        maps = [[(a - b).abs() for a, b in zip(*dates, strict=True)] for dates in zip(maps, second, strict=True)]
    if factors is not None:
        maps = [[m * factor.double() for m in own] for own, factor in zip(maps, factors, strict=True)]
    return [decode(state, own, img.shape[1] // 14, img.shape[2] // 14) for own, img in zip(maps, images, strict=True)]
