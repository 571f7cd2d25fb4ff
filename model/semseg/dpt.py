"""DPT decoder (METHOD.md 1.2)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import Encoder
from model.segmenter import Segmenter
from model.spec import EncoderSpec
from util.error import UserError


class ResidualConvUnit(nn.Module):
    """Two 3 x 3 convolutions, added to their input. (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FusionBlock(nn.Module):
    """Adds a map to the one from the coarser level and refines the sum. (B, C, H, W) -> (B, C, h, w)."""

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
    """The part that is always trained from scratch; its name is that of the public checkpoints."""

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

    def forward(self, levels: list[Tensor], classifier_factors: Tensor | None = None) -> Tensor:
        skips = [getattr(self, f"layer{i}_rn")(level) for i, level in enumerate(levels, start=1)]  # fine to coarse
        sizes = [tuple(skip.shape[-2:]) for skip in skips]
        x, skip = skips[3], None
        for i in (4, 3, 2, 1):
            size = sizes[i - 2] if i > 1 else (2 * sizes[0][0], 2 * sizes[0][1])
            x = getattr(self, f"refinenet{i}")(x, skip, size)
            skip = skips[i - 2]
        *layers, classifier = self.output_conv
        for layer in layers:
            x = layer(x)
        return classifier(x if classifier_factors is None else x * classifier_factors[:, :, None, None])


class DPTHead(nn.Module):
    """The DPT decoder. forward: four maps -> logits (B, K, h, w).

    Maps of one grid become four resolutions first, and h is 8 times the grid's rows; maps that halve from one to the next go straight into
    the fusion, and h is twice the rows of the finest.
    widths: channels of each map after a 1x1 convolution, empty for none. fusion: channels inside the decoder.
    classifier_factors: (B, fusion), multiply the channels that the last convolution reads.
    """

    def __init__(self, backbone: Encoder, widths: tuple[int, ...], fusion: int, nclass: int) -> None:
        super().__init__()
        out = widths or backbone.channels
        project = [nn.Conv2d(own, width, 1) for own, width in zip(backbone.channels, widths, strict=True)] if widths else []
        resize = _reassembling(out) if len(set(backbone.strides)) == 1 else []
        self.projects = nn.ModuleList(project)
        self.resize_layers = nn.ModuleList(resize)
        self.scratch = Scratch(out, fusion, nclass)

    def forward(self, maps: list[Tensor], classifier_factors: Tensor | None = None) -> Tensor:
        for layers in (self.projects, self.resize_layers):
            maps = [layer(x) for layer, x in zip(layers, maps, strict=True)] if layers else maps
        return self.scratch(maps, classifier_factors)


def _reassembling(widths: tuple[int, ...]) -> list[nn.Module]:
    """The layers that bring a plain vision transformer's maps to 4, 2, 1 and 1/2 times their resolution."""
    return [
        nn.ConvTranspose2d(widths[0], widths[0], 4, 4),
        nn.ConvTranspose2d(widths[1], widths[1], 2, 2),
        nn.Identity(),
        nn.Conv2d(widths[3], widths[3], 3, 2, padding=1),
    ]


def build_dpt(spec: EncoderSpec, nclass: int, bitemporal: bool) -> Segmenter:
    """An encoder with a DPT decoder, which starts from PyTorch's default initialisation. Raises UserError for one that it does not fit."""
    if not spec.fusion:
        raise UserError(f"model: found dpt with {spec.name}, expected {spec.model}; correct `model` in the config")
    backbone = spec.build()
    head = DPTHead(backbone, spec.widths, spec.fusion, nclass)
    # a plain vision transformer's maps lie channels last: convolutions that do too need not turn them round
    layout: Any = {"memory_format": torch.channels_last}  # Any: not every PyTorch's type hints have this argument
    return Segmenter(backbone, head.to(**layout), "head.scratch.output_conv.2", bitemporal)
