"""A toy encoder, decoder and method, added as CONTRIBUTING.md says: the house must take them without a change elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.batch import Batch, Reads
from engine.method import Method
from engine.trainer import train
from model import MODELS
from model.dropout import scaled
from model.encoder import Encoder
from model.loss import labeled_loss, unlabeled_loss
from model.pseudo import pseudo_label
from model.segmenter import Segmenter
from model.spec import ENCODERS, EncoderSpec
from util.config import Config, key
from util.error import run


class ToyEncoder(Encoder):
    """Two maps at strides 4 and 8, with BatchNorm and stochastic depth; its sides are multiples of 8."""

    multiple, channels, strides = 8, (8, 16), (4, 8)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    draws = True

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_block(3, 8, 4), _block(8, 16, 2)])

    def forward(self, img: Tensor) -> list[Tensor]:
        self.grid(img)
        fine = self.run(self.blocks[0], img)
        return [fine, self.run(self.blocks[1], fine)]


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, stride, stride, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout2d(0.1))


class ToyHead(nn.Module):
    """The maps at the finer one's size, side by side, through one convolution."""

    def __init__(self, channels: tuple[int, ...], nclass: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(sum(channels), nclass, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[-2:]
        return self.last(torch.cat([F.interpolate(x, size, mode="bilinear", align_corners=True) for x in maps], dim=1))


def _build(spec: EncoderSpec, nclass: int, bitemporal: bool) -> Segmenter:
    backbone = spec.build()
    return Segmenter(backbone, ToyHead(backbone.channels, nclass), "head.last", bitemporal)


ENCODERS["toy"] = EncoderSpec("toy", ToyEncoder, 8, (8, 8, 8, 8))
MODELS["toy"] = _build


@dataclass(frozen=True)
class ToyConfig(Config):
    """The toy method's settings: one key of its own."""

    toy_weight: float = key(0.5, most=10)  # of the unlabelled loss


def step(student: nn.Module, teacher: nn.Module, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """One strong view with dropped features, and a stat that no other method has."""
    assert isinstance(cfg, ToyConfig)
    pseudo, conf = pseudo_label(teacher, batch.img_u_w)
    loss_x = labeled_loss(student(batch.img_x), batch.mask_x, cfg.criterion)
    loss_toy = unlabeled_loss(student(batch.img_u_s1, scaled(batch.drop)), pseudo, conf, batch.ignore_u, cfg.conf_thresh)
    loss = loss_x + cfg.toy_weight * loss_toy
    return loss, {"loss_all": loss.detach(), "loss_toy": loss_toy.detach(), "toy_conf": conf.mean()}


def _draw(images: int, channels: tuple[int, ...], generator: torch.Generator, cfg: Config) -> Tensor:
    return 2.0 * torch.randint(0, 2, (images, sum(channels)), generator=generator)


METHOD = Method(
    "toy", step, {"loss_all": "Total loss", "loss_toy": "Toy", "toy_conf": "Toy confidence"}, reads=Reads(strong_views=1), draw=_draw,
    config=ToyConfig,
)  # fmt: skip


def main(argv: list[str]) -> None:
    train(METHOD, argv, __doc__)


if __name__ == "__main__":
    run(main)
