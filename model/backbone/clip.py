"""CLIP's vision transformer as MaskCLIP and SemiVL read it (METHOD.md 1.8). Parameter names are those of SemiVL's checkpoints.

It departs from the CLIP that OpenAI trained, as the published models do: LayerNorm has eps 1e-6 and not 1e-5, and the activation is exact
GELU and not x * sigmoid(1.702 x).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend
from model.encoder import Encoder

PATCH = 16
NATIVE = 14  # patches per side of the 224 x 224 images that CLIP was trained on
EMBED = 512  # width of the space that images and texts share
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Attention(nn.Module):
    """Self-attention. forward: (B, N, width) -> the same shape. `attn` holds the parameters, under the published names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias)
        q, k, v = qkv.reshape(batch, tokens, 3, self.attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, width / heads) each
        return self.attn.out_proj(attend(q, k, v).transpose(1, 2).reshape(batch, tokens, width))

    def of_itself(self, x: Tensor) -> Tensor:
        """The output of attention in which every token attends to itself alone."""
        width = x.shape[-1]
        return self.attn.out_proj(F.linear(x, self.attn.in_proj_weight[-width:], self.attn.in_proj_bias[-width:]))


class FeedForward(nn.Module):
    """The two linear layers of a block. (B, N, C) -> the same shape."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(width, hidden), nn.GELU()), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Layer(nn.Module):
    """A transformer layer. forward: (B, N, width) -> the same shape."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.ln2 = nn.LayerNorm(width, eps=eps)
        self.ffn = FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self._finish(x + self.attn(self.ln1(x)))

    def values(self, x: Tensor) -> Tensor:
        """The value path (MaskCLIP): the layer with attention of each token to itself alone."""
        return self._finish(x + self.attn.of_itself(self.ln1(x)))

    def _finish(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.ln2(x))


class PatchEmbed(nn.Module):
    """The patch embedding. forward: (B, 3, H, W) -> (B, width, ceil(H / 16), ceil(W / 16)), padded with zeros at the right and below."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, PATCH, PATCH, bias=False)

    def forward(self, img: Tensor) -> Tensor:
        height, width = img.shape[-2:]
        return self.projection(F.pad(img, (0, -width % PATCH, 0, -height % PATCH)))


class CLIP(Encoder):
    """CLIP's image encoder. forward: (B, 3, H, W) of any size -> maps (B, channels[i], ceil(H / 16), ceil(W / 16)).

    The maps are the values (`Layer.values`) of the layers `skips`, and at last the dense embedding: the values of the last layer in the
    space that images and texts share, of length 1 at each position. Only attention and positions are trained; the rest is frozen.
    grid: patches per side that the positions are for.
    """

    multiple = 1

    def __init__(self, width: int, depth: int, heads: int, skips: tuple[int, ...], grid: int = NATIVE) -> None:
        super().__init__()
        self.skips = skips
        self.channels = (*(width for _ in skips), EMBED)
        self.strides = (PATCH,) * len(self.channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.patch_embed = PatchEmbed(width)
        self.layers = nn.ModuleList(Layer(width, heads, 4 * width, 1e-6) for _ in range(depth))
        self.ln0 = nn.LayerNorm(width, eps=1e-6)
        self.ln1 = nn.LayerNorm(width, eps=1e-6)
        self.proj = nn.Conv2d(width, EMBED, 1, bias=False)
        nn.init.normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=0.02)
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name == "pos_embed" or ".attn." in name

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        return self.layers

    def resize_positions_(self, grid: int) -> None:
        """Resizes the position embedding to grid x grid patches."""
        resized = self._positions(grid, grid).detach()
        self.pos_embed = nn.Parameter(resized.clone(), self.pos_embed.requires_grad)

    def forward(self, img: Tensor) -> list[Tensor]:
        patches = self.patch_embed(img)
        rows, cols = patches.shape[-2:]
        x = torch.cat((self.cls_token.expand(len(img), -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
        x = self.ln0(x + self._positions(rows, cols))
        *layers, last = cast("list[Layer]", list(self.layers))
        maps = []
        for i, layer in enumerate(layers):
            if i in self.skips:
                maps.append(_patch_map(layer.values(x), rows, cols))
            x = self.run(layer, x)
        dense = self.proj(_patch_map(self.ln1(last.values(x)), rows, cols))
        return [*maps, F.normalize(dense, dim=1)]

    def _positions(self, rows: int, cols: int) -> Tensor:
        """Positions (1, 1 + rows * cols, width): the class token's entry, then the others, resized (bicubic, a = -0.75) where they are
        for another grid.
        """
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if rows == cols == side:
            return self.pos_embed
        pos = self.pos_embed.to(torch.promote_types(self.pos_embed.dtype, torch.float32))
        # as matrices: an interpolation's gradient has no fixed order on CUDA
        identity = torch.eye(side, dtype=pos.dtype, device=pos.device)[None, None]
        vertical = F.interpolate(identity, (rows, side), mode="bicubic", align_corners=False)[0, 0]
        horizontal = F.interpolate(identity, (cols, side), mode="bicubic", align_corners=False)[0, 0]
        with nullcontext() if pos.is_meta else torch.autocast(pos.device.type, enabled=False):
            grid = torch.einsum("yi,ijc,xj->yxc", vertical, pos[0, 1:].unflatten(0, (side, side)), horizontal)
        return torch.cat((pos[:, :1], grid.flatten(0, 1)[None]), dim=1).to(self.pos_embed.dtype)


def _patch_map(x: Tensor, rows: int, cols: int) -> Tensor:
    """The patches of tokens (B, 1 + rows * cols, C) as a map (B, C, rows, cols)."""
    return x[:, 1:].transpose(1, 2).reshape(x.shape[0], -1, rows, cols)
