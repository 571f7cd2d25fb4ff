"""Xception-65, the encoder of UniMatch V1 on COCO (METHOD.md 1.6). Parameter names are those of its checkpoints."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import Encoder

MOMENTUM = 0.0003  # of the running statistics, in the encoder alone


def norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with the published momentum."""
    return nn.BatchNorm2d(channels, momentum=MOMENTUM)


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel, then a 1x1 one over channels, normalised each.

    relu_first: one ReLU, before everything; else one after each normalisation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, relu_first: bool = True) -> None:
        super().__init__()
        self.relu_first = relu_first
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
        self.bn1 = norm(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.relu_first:
            return self.bn2(self.pointwise(self.bn1(self.depthwise(F.relu(x)))))
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))


class Block(nn.Module):
    """Three separable convolutions beside a shortcut. forward: x -> (output of the second convolution, output of the block).

    widths: output channels of the three. The third carries the stride.
    """

    def __init__(self, inputs: int, widths: tuple[int, int, int], stride: int = 1) -> None:
        super().__init__()
        self.skip = self.skipbn = None
        if stride != 1 or widths[2] != inputs:
            self.skip = nn.Conv2d(inputs, widths[2], 1, stride, bias=False)
            self.skipbn = norm(widths[2])
        self.sepconv1 = SeparableConv(inputs, widths[0])
        self.sepconv2 = SeparableConv(widths[0], widths[1])
        self.sepconv3 = SeparableConv(widths[1], widths[2], stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.skip is None or self.skipbn is None:
            # not x itself: the published network's first ReLU overwrites it, and its weights are trained so
            shortcut = F.relu(x)
        else:
            shortcut = self.skipbn(self.skip(x))
        middle = self.sepconv2(self.sepconv1(x))
        return middle, self.sepconv3(middle) + shortcut


class Xception(Encoder):
    """The encoder. forward: (B, 3, H, W) of any size -> two maps, (B, 256, ceil(H / 4), ...) and (B, 2048, ceil(H / 16), ...)."""

    multiple = 1
    channels = (256, 2048)
    strides = (4, 16)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 2, padding=1, bias=False)
        self.bn1 = norm(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn2 = norm(64)
        self.block1 = Block(64, (128,) * 3, stride=2)
        self.block2 = Block(128, (256,) * 3, stride=2)
        self.block3 = Block(256, (728,) * 3, stride=2)
        for i in range(4, 20):
            setattr(self, f"block{i}", Block(728, (728,) * 3))
        self.block20 = Block(728, (728, 1024, 1024))
        self.conv3 = SeparableConv(1024, 1536, relu_first=False)
        self.conv4 = SeparableConv(1536, 1536, relu_first=False)
        self.conv5 = SeparableConv(1536, 2048, relu_first=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))

    @property
    def blocks(self) -> list[nn.Module]:  # type: ignore[override]
        return [*(self.get_submodule(f"block{i}") for i in range(1, 21)), self.conv3, self.conv4, self.conv5]

    def forward(self, img: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(img)))
        x = F.relu(self.bn2(self.conv2(x)))
        for i in range(1, 21):
            middle, x = self.run(self.get_submodule(f"block{i}"), x)
            if i == 2:
                fine = middle
        for conv in (self.conv3, self.conv4, self.conv5):
            x = self.run(conv, x)
        return [fine, x]
