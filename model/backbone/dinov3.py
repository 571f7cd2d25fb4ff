"""DINOv3 vision transformer with patch size 16 (METHOD.md 1.5). Parameter names are those of the published weights."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend
from model.backbone.dinov2 import LayerScale, Mlp
from model.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder

PATCH = 16
STORAGE = 4  # storage tokens, which others call registers
BASE = 100.0  # of the rotary periods
LAYER_SCALE = 1e-5  # initial value


def periods(count: int, device: torch.device | None = None) -> Tensor:
    """The rotary periods (count,) in float32: 100^(i / count). Files of weights hold them as `rope_embed.periods`."""
    return BASE ** (torch.arange(count, dtype=torch.float32, device=device) / count)


def rotary(rows: int, cols: int, head: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows * cols, head) in float32 for the patches of a grid, row by row; head: channels of an attention head.

    The centre of a patch lies between -1 and 1 on each axis, whatever the size of the image. A head's first quarter has the angles
    of the row, the second those of the column, and the second half repeats the first.
    """
    inverse = 2 * math.pi / periods(head // 4, device)
    y, x = ((2 * torch.arange(n, dtype=torch.float32, device=device) + 1) / n - 1 for n in (rows, cols))
    vertical = (y[:, None] * inverse)[:, None].expand(-1, cols, -1)
    horizontal = (x[:, None] * inverse)[None].expand(rows, -1, -1)
    angles = torch.cat((vertical, horizontal), dim=-1).flatten(0, 1).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the patch tokens of queries or keys (B, heads, tokens, D); the tokens before them have no position."""
    prefix, patches = x[:, :, : 1 + STORAGE], x[:, :, 1 + STORAGE :]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat((-second, first), dim=-1) * sin  # float32, as cos and sin are, whatever the precision
    return torch.cat((prefix, turned.to(x.dtype)), dim=2)


class MaskedQkv(nn.Linear):
    """A linear layer for queries, keys and values together. The bias has an entry for the keys, as in the files, that counts as 0."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.bias.chunk(3)
        return F.linear(x, self.weight, torch.cat((query, torch.zeros_like(key), value)))


class Attention(nn.Module):
    """Self-attention in heads, with rotated queries and keys of the patches. (B, N, C) -> the same shape."""

    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = MaskedQkv(width, 3 * width) if qkv_bias else nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, tokens, width / heads) each
        x = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class SwiGlu(nn.Module):
    """The gated layers of a block. (B, N, C) -> the same shape."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class Block(nn.Module):
    """A block of the transformer: attention, then linear layers, each added to its input. (B, N, C) -> the same shape."""

    def __init__(self, width: int, heads: int, swiglu_hidden: int, qkv_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = Attention(width, heads, qkv_bias)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = SwiGlu(width, swiglu_hidden) if swiglu_hidden else Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), cos, sin))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A token for each patch of 16 x 16. (B, 3, H, W) -> (B, N, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, img: Tensor) -> Tensor:
        return self.proj(img).flatten(2).transpose(1, 2)  # (B, N, width), patches row by row


class DINOv3(Encoder):
    """The encoder: four maps of the patches' grid, after the blocks `out_indices` (0-based) and the last norm.

    swiglu_hidden: hidden width of a SwiGLU feed-forward, 0 for the MLP of four times the width.
    unused: tensors of the published file that no forward pass reads, and that the encoder does not have.
    """

    multiple = PATCH

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        out_indices: tuple[int, ...],
        swiglu_hidden: int = 0,
        qkv_bias: bool = True,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        unused: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.out_indices = out_indices
        self.channels = (width,) * len(out_indices)
        self.strides = (PATCH,) * len(out_indices)
        self.mean, self.std = mean, std
        self.unused = unused
        self.head_width = width // heads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.storage_tokens = nn.Parameter(torch.zeros(1, STORAGE, width))
        # only in the checkpoints, never used: frozen, so that DDP needs no search for unused parameters
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)
        self.patch_embed = PatchEmbed(width)
        self.blocks = nn.ModuleList(Block(width, heads, swiglu_hidden, qkv_bias) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.apply(_init_)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.storage_tokens, std=0.02)

    def constants(self) -> dict[str, Tensor]:
        """The constants that files of weights hold beside the parameters: the rotary periods and the masks of the biases."""
        masks = {}
        for name, parameter in self.named_parameters():
            if name.endswith("qkv.bias"):
                one = torch.ones(len(parameter) // 3)
                masks[f"{name}_mask"] = torch.cat((one, torch.zeros_like(one), one))
        return {"rope_embed.periods": periods(self.head_width // 4), **masks}

    def forward(self, img: Tensor) -> list[Tensor]:
        rows, cols = self.grid(img)
        x = self.patch_embed(img)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), self.storage_tokens.expand(x.shape[0], -1, -1), x), dim=1)
        cos, sin = rotary(rows, cols, self.head_width, img.device)
        maps = []
        for i, block in enumerate(self.blocks):
            x = self.run(block, x, cos, sin)
            if i in self.out_indices:
                # a view whose channels lie last in memory; not unflatten, which would make rows and columns constants of an ONNX graph
                maps.append(self.norm(x)[:, 1 + STORAGE :].transpose(1, 2).reshape(img.shape[0], -1, rows, cols))
        return maps


def _init_(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, LayerScale):
        nn.init.constant_(module.gamma, LAYER_SCALE)
