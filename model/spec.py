"""What is known about each encoder by its name: one EncoderSpec per encoder (METHOD.md 1.1 and 1.2)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from model.backbone.dinov2 import DINOv2
from model.encoder import Encoder
from util.error import UserError


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder and the decoder widths that go with it.

    build: makes the encoder with random weights. fusion, widths: of the DPT decoder, channels inside it and of each map after its
    1x1 convolution. file: name of the published weights file, empty where none was published.
    """

    name: str
    build: Callable[[], Encoder]
    fusion: int
    widths: tuple[int, int, int, int]
    file: str = ""

    def facts(self) -> Encoder:
        """The encoder without memory for its weights: `multiple`, `channels`, `mean` and so on can be read from it."""
        with torch.device("meta"):
            return self.build()


_DINOV2 = {
    # not a published model: small enough to train from random weights on two CPU cores (demo, tests)
    "tiny": EncoderSpec("dinov2_tiny", partial(DINOv2, 192, 4, 3, (0, 1, 2, 3)), 32, (24, 48, 96, 192)),
    "small": EncoderSpec("dinov2_small", partial(DINOv2, 384, 12, 6, (2, 5, 8, 11)), 64, (48, 96, 192, 384), "dinov2_vits14_pretrain.pth"),
    "base": EncoderSpec("dinov2_base", partial(DINOv2, 768, 12, 12, (2, 5, 8, 11)), 128, (96, 192, 384, 768), "dinov2_vitb14_pretrain.pth"),
    "large": EncoderSpec(
        "dinov2_large", partial(DINOv2, 1024, 24, 16, (4, 11, 17, 23)), 256, (256, 512, 1024, 1024), "dinov2_vitl14_pretrain.pth"
    ),
    "giant": EncoderSpec(
        "dinov2_giant", partial(DINOv2, 1536, 40, 24, (9, 19, 29, 39), 4096), 384, (1536,) * 4, "dinov2_vitg14_pretrain.pth"
    ),
}
ENCODERS: dict[str, EncoderSpec] = {spec.name: spec for spec in _DINOV2.values()}


def get_encoder(name: str) -> EncoderSpec:
    """The EncoderSpec of a `backbone` value; of other weights, as `dinov2_mine_small`, the last part says the size. Raises UserError."""
    if name in ENCODERS:
        return ENCODERS[name]
    size = name.rsplit("_", 1)[-1]
    if name.startswith("dinov2_") and size in _DINOV2:
        return replace(_DINOV2[size], name=name, file="")
    raise UserError(f"backbone: found {name!r}, expected one of {', '.join(ENCODERS)}; correct `backbone` in the config")


def check_crop(crop_size: int, encoder: Encoder) -> None:
    """Raises UserError unless the training crop's side is a multiple of what the encoder needs."""
    multiple = encoder.multiple
    if crop_size % multiple:
        near = max(multiple, round(crop_size / multiple) * multiple)
        raise UserError(f"crop_size: found {crop_size}, expected a multiple of {multiple} for this backbone; the nearest is {near}")
