"""The seam between encoder, method and decoder: a segmentation model made of any encoder and any decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.encoder import Encoder

Maps = list[Tensor]  # (B, C_i, h_i, w_i) each


class Segmenter(nn.Module):
    """forward: (B, 3, H, W) float, normalised, sides multiples of `backbone.multiple` -> logits (B, K, H, W), at least float32.

    bitemporal: images are two dates, (B, 6, H, W), date A in the first three channels. Both go through the encoder as one batch,
    and the decoder reads the absolute difference of their maps (METHOD.md 1.4).
    perturb: changes the encoder's maps before the decoder reads them; it may return a larger batch (feature dropout of UniMatch V1).
    to_head: what else the decoder needs.
    last_layer: name of the layer that has an output for each class. frozen_statistics: whether BatchNorm layers keep their running
    statistics in training. A subclass whose decoder has several parts overrides `decode`.
    """

    cut_windows = False  # windows of an evaluation that reach out of the image: cut off (True) or moved back into it

    def __init__(self, backbone: Encoder, head: nn.Module, last_layer: str, bitemporal: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.last_layer = last_layer
        self.bitemporal = bitemporal
        self.frozen_statistics = False

    def train(self, mode: bool = True) -> Segmenter:
        super().train(mode)
        if mode and self.frozen_statistics:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def encode(self, img: Tensor) -> Maps:
        """The maps that the decoder reads."""
        if not self.bitemporal:
            return self.backbone(img)
        maps = self.backbone(torch.cat((img[:, :3], img[:, 3:])))
        return [(a - b).abs() for a, b in (x.chunk(2) for x in maps)]

    def decode(self, maps: Maps, **to_head: Any) -> Tensor:
        """Logits of the decoder, at a resolution of its own."""
        return self.head(maps, **to_head)

    def forward(self, img: Tensor, perturb: Callable[[Maps], Maps] | None = None, **to_head: Any) -> Tensor:
        maps = self.encode(img)
        if perturb is not None:
            maps = perturb(maps)
        logits = self.decode(maps, **to_head)
        # at least float32, in 16-bit precision too: confidences and losses depend on small differences
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.interpolate(logits, img.shape[-2:], mode="bilinear", align_corners=True)

    @property
    def multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return self.backbone.multiple

    def decoder(self) -> list[nn.Module]:
        """The parts of the model that are not the encoder."""
        return [part for name, part in self.named_children() if name != "backbone"]

    def compile_parts(self) -> None:
        """Has torch.compile replace what the encoder's blocks and the decoder do, in place: parameter names stay."""
        for part in (*self.backbone.blocks, *self.decoder()):
            part.compile(dynamic=False)
