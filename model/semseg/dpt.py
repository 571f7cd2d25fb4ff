"""DPT decoder and the segmentation model made of an encoder and this decoder (METHOD.md 1.2)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone.dinov2 import PATCH, DINOv2
from model.dropout import complementary_factors
from model.spec import EncoderSpec

CLASSIFIER = "head.scratch.output_conv.2"  # name of the layer with an output for each class


class ResidualConvUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FusionBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        self.resConfUnit1 = ResidualConvUnit(channels)
        self.resConfUnit2 = ResidualConvUnit(channels)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        x = F.interpolate(self.resConfUnit2(x), size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Scratch(nn.Module):
    """The part that was always trained from scratch; the name is the public checkpoints'."""

    def __init__(self, projections: tuple[int, ...], channels: int, nclass: int) -> None:
        super().__init__()
        for i, width in enumerate(projections, start=1):
            setattr(self, f"layer{i}_rn", nn.Conv2d(width, channels, 3, padding=1, bias=False))
        for i in range(1, len(projections) + 1):
            setattr(self, f"refinenet{i}", FusionBlock(channels))
        # The coarsest block has no skip, yet its unit exists in the checkpoints: frozen, so that DDP needs no search for it.
        self.get_submodule("refinenet4.resConfUnit1").requires_grad_(False)
        self.output_conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, nclass, 1),
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        skips = [getattr(self, f"layer{i}_rn")(level) for i, level in enumerate(levels, start=1)]  # fine to coarse
        sizes = [tuple(skip.shape[-2:]) for skip in skips]
        x, skip = skips[3], None
        for i in (4, 3, 2, 1):
            size = sizes[i - 2] if i > 1 else (2 * sizes[0][0], 2 * sizes[0][1])
            x = getattr(self, f"refinenet{i}")(x, skip, size)
            skip = skips[i - 2]
        return self.output_conv(x)


class DPTHead(nn.Module):
    """forward: four maps (B, N, width) of a (rows, cols) grid -> logits (B, K, 8 * rows, 8 * cols)."""

    def __init__(self, spec: EncoderSpec, nclass: int) -> None:
        super().__init__()
        p = spec.projections
        self.projects = nn.ModuleList(nn.Conv2d(spec.width, width, 1) for width in p)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(p[0], p[0], 4, 4),
                nn.ConvTranspose2d(p[1], p[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(p[3], p[3], 3, 2, padding=1),
            ]
        )
        self.scratch = Scratch(p, spec.fusion, nclass)

    def forward(self, maps: list[Tensor], rows: int, cols: int) -> Tensor:
        levels = []
        for x, project, resize in zip(maps, self.projects, self.resize_layers, strict=True):
            grid = x.transpose(1, 2).reshape(x.shape[0], -1, rows, cols)
            levels.append(resize(project(grid)))
        return self.scratch(levels)


class DPT(nn.Module):
    """Segmentation model. forward: (B, 3, H, W), H and W multiples of 14 -> logits (B, K, H, W).

    comp_drop: float factors (B, C) that multiply all four encoder maps of each image (complementary dropout, METHOD.md 1.3);
    True draws them from torch's global generator for a batch that holds view 1, then view 2.
    """

    def __init__(self, spec: EncoderSpec, nclass: int) -> None:
        super().__init__()
        self.backbone = DINOv2(spec)
        # the encoder's maps lie channels last: convolutions that do too need not turn them round
        self.head = DPTHead(spec, nclass)
        layout: Any = {"memory_format": torch.channels_last}  # Any: not every PyTorch's type hints have this argument
        self.head.to(**layout)

    def compile_parts(self) -> None:
        """Has torch.compile replace what the encoder's blocks and the decoder do, in place: parameter names stay."""
        for part in (*self.backbone.blocks, self.head):
            part.compile(dynamic=False)

    def encode(self, img: Tensor) -> list[Tensor]:
        """The four maps (B, N, width) that the decoder reads."""
        return self.backbone(img)

    def forward(self, img: Tensor, comp_drop: Tensor | bool | None = None) -> Tensor:
        rows, cols = img.shape[-2] // PATCH, img.shape[-1] // PATCH
        maps = self.encode(img)
        if comp_drop is True:
            comp_drop = complementary_factors(len(img) // 2, self.backbone.width).to(img.device)
        if isinstance(comp_drop, Tensor):
            maps = [x * comp_drop[:, None, :] for x in maps]
        logits = self.head(maps, rows, cols)
        # at least float32, in 16-bit precision too: confidences and losses depend on small differences
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.interpolate(logits, (PATCH * rows, PATCH * cols), mode="bilinear", align_corners=True)
