"""Mix Transformer, SegFormer's encoder (METHOD.md 1.7): four maps at strides 4, 8, 16, 32. Parameter names are the published weights'."""

import math
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import Encoder

HEADS = (1, 2, 5, 8)  # of each stage's attention
REDUCTIONS = (8, 4, 2, 1)  # of the sides of the map that gives keys and values
DROP_PATH = 0.1  # of the last block; the rates of those before rise to it linearly
EPS = 1e-6  # of the norms of blocks and stages; the others have PyTorch's 1e-5


class PatchEmbed(nn.Module):
    """A strided convolution. forward: (B, C, H, W) -> tokens (B, h * w, width), h = ceil(H / stride) and w."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.norm(_tokens(x)), x.shape[2], x.shape[3]


class Attention(nn.Module):
    """Self-attention. forward: tokens (B, h * w, width) -> the same shape.

    reduction: side of the squares that keys and values are made of.
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, rows: int, cols: int) -> Tensor:
        source = x
        if self.reduction > 1:
            source = self.norm(_tokens(self.sr(_map(x, rows, cols))))
        query = self._split(self.q(x))
        key, value = (self._split(part) for part in self.kv(source).chunk(2, dim=-1))
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """Splits tokens into heads: (B, N, width) -> (B, heads, N, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class DepthwiseConv(nn.Module):
    """A 3 x 3 convolution of each channel, over the map that the tokens make."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, rows: int, cols: int) -> Tensor:
        return _tokens(self.dwconv(_map(x, rows, cols)))


class Mlp(nn.Module):
    """The two linear layers of a block, with a depthwise convolution between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = DepthwiseConv(4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, rows: int, cols: int) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), rows, cols)))


class Block(nn.Module):
    """A transformer block. forward: tokens (B, h * w, width) -> the same shape.

    drop: probability that an image skips a branch in training.
    """

    def __init__(self, width: int, heads: int, reduction: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, rows: int, cols: int) -> Tensor:
        x = x + self._kept(self.attn(self.norm1(x), rows, cols))
        return x + self._kept(self.mlp(self.norm2(x), rows, cols))

    def _kept(self, branch: Tensor) -> Tensor:
        """Stochastic depth: in training, a branch is 0 for some images and scaled up for the others."""
        if not self.training or self.drop == 0:
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop
        return branch * keep.to(branch.dtype) / (1 - self.drop)


class MiT(Encoder):
    """The Mix Transformer.

    forward: (B, 3, H, W) of any size -> maps (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])), each after its norm.
    widths, depths: channels and number of blocks of each stage.
    """

    multiple = 1
    least = 29  # the first stage's keys need a map of 8 x 8
    strides = (4, 8, 16, 32)
    draws = True

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = widths
        rates = iter(torch.linspace(0, DROP_PATH, sum(depths), device="cpu").tolist())
        # the published order of parameters: patch embeddings, then each stage's blocks and norm
        for i, (inputs, width) in enumerate(zip((3, *widths), widths, strict=False), 1):
            setattr(self, f"patch_embed{i}", PatchEmbed(inputs, width, *((7, 4) if i == 1 else (3, 2))))
        for i, (width, depth, heads, reduction) in enumerate(zip(widths, depths, HEADS, REDUCTIONS, strict=True), 1):
            setattr(self, f"block{i}", nn.ModuleList(Block(width, heads, reduction, next(rates)) for _ in range(depth)))
            setattr(self, f"norm{i}", nn.LayerNorm(width, eps=EPS))
        self.apply(_init_)

    @property
    def blocks(self) -> list[nn.Module]:  # type: ignore[override]
        return list(chain.from_iterable(self.get_submodule(f"block{i}").children() for i in range(1, 5)))

    def forward(self, img: Tensor) -> list[Tensor]:
        x, maps = img, []
        for i in range(1, 5):
            x, rows, cols = self.get_submodule(f"patch_embed{i}")(x)
            for block in self.get_submodule(f"block{i}").children():
                x = self.run(block, x, rows, cols)
            x = _map(self.get_submodule(f"norm{i}")(x), rows, cols)
            maps.append(x)
        return maps


def _tokens(x: Tensor) -> Tensor:
    """The tokens of a map: (B, C, h, w) -> (B, h * w, C)."""
    return x.flatten(2).transpose(1, 2)


def _map(x: Tensor, rows: int, cols: int) -> Tensor:
    """The map of tokens: (B, h * w, C) -> (B, C, h, w)."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, rows, cols)


def _init_(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
