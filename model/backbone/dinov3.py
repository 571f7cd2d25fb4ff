"""DINOv3 vision transformer with patch size 16 (METHOD.md 1.5). Parameter names are those of the published weights."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.backbone.dinov2 import LayerScale, Mlp, attend

PATCH = 16
STORAGE = 4  # storage tokens, which others call registers
BASE = 100.0  # of the rotary periods
LAYER_SCALE = 1e-5  # initial value
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of the images that the LVD-1689M weights are for
SATELLITE = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)  # of the SAT-493M weights


@dataclass(frozen=True)
class DINOv3Spec:
    """Shape of a DINOv3 vision transformer; the fields that `EncoderSpec` has too mean the same.

    normalise: mean and deviation of its images. unused: tensors of the published file that no forward pass reads.
    """

    name: str
    width: int
    depth: int
    heads: int
    taps: tuple[int, int, int, int]
    fusion: int
    projections: tuple[int, int, int, int]
    swiglu_hidden: int = 0
    qkv_bias: bool = True
    unused: tuple[str, ...] = ()
    normalise: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    file: str = ""


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
    """Turns the patch tokens of queries or keys (B, heads, tokens, D), in float32; the tokens before them have no position."""
    prefix, patches = x[:, :, : -len(cos)], x[:, :, -len(cos) :].float()
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((prefix, turned.to(x.dtype)), dim=2)


class MaskedQkv(nn.Linear):
    """A linear layer for queries, keys and values together. The bias has an entry for the keys, as in the files, that counts as 0."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.bias.chunk(3)
        return F.linear(x, self.weight, torch.cat((query, torch.zeros_like(key), value)))


class Attention(nn.Module):
    def __init__(self, spec: DINOv3Spec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.qkv = MaskedQkv(spec.width, 3 * spec.width) if spec.qkv_bias else nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.proj = nn.Linear(spec.width, spec.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, tokens, width / heads) each
        x = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class Block(nn.Module):
    def __init__(self, spec: DINOv3Spec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, eps=1e-5)
        self.attn = Attention(spec)
        self.ls1 = LayerScale(spec.width)
        self.norm2 = nn.LayerNorm(spec.width, eps=1e-5)
        self.mlp = SwiGlu(spec.width, spec.swiglu_hidden) if spec.swiglu_hidden else Mlp(spec.width)
        self.ls2 = LayerScale(spec.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), cos, sin))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, img: Tensor) -> Tensor:
        return self.proj(img).flatten(2).transpose(1, 2)  # (B, N, width), patches row by row


class DINOv3(nn.Module):
    """The encoder. forward: (B, 3, H, W) float, H and W multiples of 16 -> four maps (B, width, H / 16, W / 16).

    checkpointing: a pass that gets gradients keeps only the input of each block and computes the block again for its gradient.
    """

    multiple = PATCH

    def __init__(self, spec: DINOv3Spec) -> None:
        super().__init__()
        self.taps = spec.taps
        self.channels = (spec.width,) * 4
        self.strides = (PATCH,) * 4
        self.mean, self.std = spec.normalise
        self.unused = spec.unused
        self.head_width = spec.width // spec.heads
        self.checkpointing = False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.storage_tokens = nn.Parameter(torch.zeros(1, STORAGE, spec.width))
        # only in the checkpoints, never used: frozen, so that DDP needs no search for unused parameters
        self.mask_token = nn.Parameter(torch.zeros(1, spec.width), requires_grad=False)
        self.patch_embed = PatchEmbed(spec.width)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width, eps=1e-5)
        self.apply(_init)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.storage_tokens, std=0.02)

    def constants(self) -> dict[str, Tensor]:
        """What files of weights hold beside the parameters, always with these values: the rotary periods and the masks of the biases."""
        masks = {}
        for name, parameter in self.named_parameters():
            if name.endswith("qkv.bias"):
                one = torch.ones(len(parameter) // 3)
                masks[f"{name}_mask"] = torch.cat((one, torch.zeros_like(one), one))
        return {"rope_embed.periods": periods(self.head_width // 4), **masks}

    def forward(self, img: Tensor) -> list[Tensor]:
        rows, cols = img.shape[-2] // PATCH, img.shape[-1] // PATCH
        x = self.patch_embed(img)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), self.storage_tokens.expand(len(x), -1, -1), x), dim=1)
        cos, sin = rotary(rows, cols, self.head_width, img.device)
        maps = []
        for i, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, use_reentrant=False, preserve_rng_state=False)  # blocks draw nothing
            else:
                x = block(x, cos, sin)
            if i in self.taps:
                maps.append(self.norm(x)[:, 1 + STORAGE :].transpose(1, 2).unflatten(2, (rows, cols)))
        return maps


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, LayerScale):
        nn.init.constant_(module.gamma, LAYER_SCALE)
