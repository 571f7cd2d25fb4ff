"""ResNet-50, -101 and -152 with a deep stem: three 3x3 convolutions instead of one 7x7 (METHOD.md 1.6).

Parameter names are those of UniMatch V1's checkpoints. torchvision's models of these names have another stem.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import Encoder

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}  # blocks of the four stages


def conv3x3(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)


class Bottleneck(nn.Module):
    """A bottleneck block. forward: (B, inputs, H, W) -> (B, 4 * width, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, inputs: int, width: int, stride: int = 1, dilation: int = 1, shortcut: bool = False) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if shortcut:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return F.relu(residual + (x if self.downsample is None else self.downsample(x)))


class ResNet(Encoder):
    """The encoder. forward: (B, 3, H, W) of any size -> maps (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])).

    depths: blocks of the four stages. dilate: for stages 2, 3 and 4, whether dilation replaces their stride.
    out_indices: the stages, counted from 0, whose outputs are returned.
    """

    multiple = 1

    def __init__(
        self, depths: Sequence[int], dilate: Sequence[bool] = (False, False, False), out_indices: Sequence[int] = (0, 1, 2, 3)
    ) -> None:
        super().__init__()
        self.out_indices = tuple(out_indices)
        self.conv1 = nn.Sequential(
            conv3x3(3, 64, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
            conv3x3(64, 64), nn.BatchNorm2d(64), nn.ReLU(),
            conv3x3(64, 128),
        )  # fmt: skip
        self.bn1 = nn.BatchNorm2d(128)
        inputs, stride, dilation, strides = 128, 4, 1, []
        for i, (depth, dilated) in enumerate(zip(depths, (False, *dilate), strict=True)):
            width, step, before = 64 * 2**i, 1 if i == 0 or dilated else 2, dilation
            dilation = 2 * dilation if dilated else dilation
            # the first block of a stage has the dilation from before the stage
            blocks = [Bottleneck(inputs, width, step, before, shortcut=True)]
            blocks += [Bottleneck(4 * width, width, dilation=dilation) for _ in range(depth - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            inputs, stride = 4 * width, stride * step
            strides.append(stride)
        self.channels = tuple(256 * 2**i for i in self.out_indices)
        self.strides = tuple(strides[i] for i in self.out_indices)
        self.apply(_he)

    @property
    def stages(self) -> list[nn.Sequential]:
        return [getattr(self, f"layer{i}") for i in range(1, 5)]

    @property
    def blocks(self) -> list[nn.Module]:  # type: ignore[override]
        return [block for stage in self.stages for block in stage]

    def forward(self, img: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(img))), 3, 2, padding=1)
        maps = []
        for stage in self.stages:
            for block in stage:
                x = self.run(block, x)
            maps.append(x)
        return [maps[i] for i in self.out_indices]


class ResNetV1cStage(Encoder):
    """Stem (of 32, 32, 64 channels) and first stage of a ResNet-101 "v1c": SemiVL's finer map for Cityscapes (METHOD.md 1.8).

    forward: (B, 3, H, W) of any size -> one map (B, 256, ceil(H / 4), ceil(W / 4)). Parameter names are those of SemiVL's checkpoints.
    """

    multiple, channels, strides = 1, (256,), (4,)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv3x3(3, 32, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            conv3x3(32, 32), nn.BatchNorm2d(32), nn.ReLU(),
            conv3x3(32, 64), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.layer1 = nn.Sequential(Bottleneck(64, 64, shortcut=True), Bottleneck(256, 64), Bottleneck(256, 64))
        self.apply(_he)

    @property
    def blocks(self) -> list[nn.Module]:  # type: ignore[override]
        return list(self.layer1)

    def forward(self, img: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.stem(img), 3, 2, padding=1)
        for block in self.layer1:
            x = self.run(block, x)
        return [x]


def _he(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
