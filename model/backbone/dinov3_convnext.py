"""DINOv3 ConvNeXt (METHOD.md 1.5): four maps at strides 4, 8, 16 and 32. Parameter names are those of the published weights."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.backbone.dinov3 import IMAGENET

EPS = 1e-6  # of every LayerNorm
LAYER_SCALE = 1e-6  # initial value of gamma


@dataclass(frozen=True)
class DINOv3ConvNeXtSpec:
    name: str
    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    fusion: int
    normalise: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    file: str = ""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """(B, C, H, W) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        branch = self.gamma * self.pwconv2(F.gelu(self.pwconv1(branch)))
        return x + branch.permute(0, 3, 1, 2)


class DINOv3ConvNeXt(nn.Module):
    """The encoder. forward: (B, 3, H, W) float, H and W multiples of 32 -> maps (B, widths[i], H / s, W / s), s = 4, 8, 16, 32.

    Only the last map passes the final norm. checkpointing: as in `DINOv3`.
    """

    multiple = 32
    strides = (4, 8, 16, 32)

    def __init__(self, spec: DINOv3ConvNeXtSpec) -> None:
        super().__init__()
        self.channels = spec.widths
        self.mean, self.std = spec.normalise
        self.checkpointing = False
        stem = nn.Sequential(nn.Conv2d(3, spec.widths[0], 4, 4), ChannelNorm(spec.widths[0], eps=EPS))
        halve = [
            nn.Sequential(ChannelNorm(fine, eps=EPS), nn.Conv2d(fine, coarse, 2, 2))
            for fine, coarse in zip(spec.widths, spec.widths[1:], strict=False)
        ]
        self.downsample_layers = nn.ModuleList((stem, *halve))
        stages = (nn.Sequential(*(Block(width) for _ in range(depth))) for width, depth in zip(spec.widths, spec.depths, strict=True))
        self.stages = nn.ModuleList(stages)
        self.norm = ChannelNorm(spec.widths[-1], eps=EPS)
        self.apply(_init)

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, from the finest stage to the coarsest."""
        return [block for stage in self.stages for block in stage.children()]

    def forward(self, img: Tensor) -> list[Tensor]:
        x, maps = img, []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = downsample(x)
            for block in stage.children():
                if self.checkpointing and torch.is_grad_enabled():
                    x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)  # blocks draw nothing
                else:
                    x = block(x)
            maps.append(x)
        maps[-1] = self.norm(x)
        return maps


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
