"""DeepLabV3+ decoder, as UniMatch V1 has it (METHOD.md 1.6). Parameter names are those of its checkpoints."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone.xception import Xception
from model.encoder import Encoder
from model.segmenter import Maps, Segmenter
from model.spec import ENCODERS, EncoderSpec
from util.error import UserError


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """A convolution of 1 x 1 or 3 x 3, BatchNorm and ReLU; the size stays."""
    padding = dilation if kernel == 3 else 0
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class ImagePooling(nn.Module):
    """The mean over the map, transformed and spread over the map again."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1 and self.gap[2].training and type(self.gap[2]) is nn.BatchNorm2d:
            raise UserError(
                "batch_size: found 1, expected 2 or more: deeplabv3plus normalises one pooled value of each image over the batch"
            )
        return self.gap(x).expand(-1, -1, *x.shape[-2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling. forward: (B, inputs, h, w) -> (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.b0 = conv_bn_relu(inputs, outputs)
        self.b1, self.b2, self.b3 = (conv_bn_relu(inputs, outputs, 3, dilation) for dilation in dilations)
        self.b4 = ImagePooling(inputs, outputs)
        self.project = conv_bn_relu(5 * outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.b0, self.b1, self.b2, self.b3, self.b4)
        return self.project(torch.cat([branch(x) for branch in branches], dim=1))


class DeepLabV3Plus(Segmenter):
    """A segmentation model whose encoder gives two maps, fine and coarse (Xception; ResNet with `out_indices` 0 and 3).

    dilations: of the three 3x3 branches of ASPP.
    """

    cut_windows = True

    def __init__(self, backbone: Encoder, nclass: int, bitemporal: bool = False, dilations: Sequence[int] = (6, 12, 18)) -> None:
        fine, coarse = backbone.channels
        super().__init__(backbone, ASPP(coarse, 256, dilations), "classifier", bitemporal)
        self.reduce = conv_bn_relu(fine, 48)
        self.fuse = nn.Sequential(*conv_bn_relu(48 + 256, 256, 3), *conv_bn_relu(256, 256, 3))
        self.classifier = nn.Conv2d(256, nclass, 1)

    def decode(self, maps: Maps) -> Tensor:  # type: ignore[override]
        fine, coarse = maps
        context = F.interpolate(self.head(coarse), fine.shape[-2:], mode="bilinear", align_corners=True)
        return self.classifier(self.fuse(torch.cat((self.reduce(fine), context), dim=1)))


def build_deeplabv3plus(
    spec: EncoderSpec,
    nclass: int,
    bitemporal: bool,
    replace_stride_with_dilation: Sequence[bool] | None = None,
    dilations: Sequence[int] = (6, 12, 18),
) -> DeepLabV3Plus:
    """The model of a ResNet (in its stages 2, 3 and 4, dilation replaces the stride where true; None is the last alone) or Xception.

    Raises UserError for another encoder, and for settings that it does not have.
    """
    if spec.model != "deeplabv3plus":
        usual = ", ".join(known.name for known in ENCODERS.values() if known.model == "deeplabv3plus")
        raise UserError(f"model: found deeplabv3plus with backbone {spec.name}, expected one of {usual}; correct the config")
    if len(dilations) != 3 or any(type(dilation) is not int or dilation < 1 for dilation in dilations):
        raise UserError(f"dilations: found {list(dilations)}, expected three whole numbers above 0; correct it in the config")
    if spec.build is Xception:
        if replace_stride_with_dilation is not None:
            raise UserError("replace_stride_with_dilation: found it with xception, whose output stride is always 16; remove it")
        return DeepLabV3Plus(spec.build(), nclass, bitemporal, dilations)
    dilate = (False, False, True) if replace_stride_with_dilation is None else replace_stride_with_dilation
    if len(dilate) != 3 or any(type(flag) is not bool for flag in dilate):
        found = list(dilate)
        raise UserError(f"replace_stride_with_dilation: found {found}, expected three of true or false, for stages 2, 3 and 4; correct it")
    return DeepLabV3Plus(spec.build(dilate=dilate, out_indices=(0, 3)), nclass, bitemporal, dilations)
