"""DINOv3 ConvNeXt (METHOD.md 1.5): four maps at strides 4, 8, 16 and 32. Parameter names are those of the published weights."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import Encoder

EPS = 1e-6  # of every LayerNorm
LAYER_SCALE = 1e-6  # initial value of gamma


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A ConvNeXt block. forward: (B, C, H, W) -> the same shape."""

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


class DINOv3ConvNeXt(Encoder):
    """The encoder: a map of each stage; only the last passes the final norm.

    widths, depths: channels and number of blocks of each stage.
    """

    multiple = 32
    strides = (4, 8, 16, 32)

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = widths
        downsample = [nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], eps=EPS))]
        for fine, coarse in pairwise(widths):
            downsample.append(nn.Sequential(ChannelNorm(fine, eps=EPS), nn.Conv2d(fine, coarse, 2, 2)))
        self.downsample_layers = nn.ModuleList(downsample)
        stages = (nn.Sequential(*(Block(width) for _ in range(depth))) for width, depth in zip(widths, depths, strict=True))
        self.stages = nn.ModuleList(stages)
        self.norm = ChannelNorm(widths[-1], eps=EPS)
        self.apply(_init_)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        return nn.ModuleList(block for stage in self.stages for block in stage.children())

    def forward(self, img: Tensor) -> list[Tensor]:
        self.grid(img)  # raises where a side does not fit
        x, maps = img, []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = downsample(x)
            for block in stage.children():
                x = self.run(block, x)
            maps.append(x)
        maps[-1] = self.norm(x)
        return maps


def _init_(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
