"""The interface between encoder, method and decoder: a segmentation model made of any encoder and any decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import Encoder, batch_norms
from model.weights import load_encoder_

Maps = list[Tensor]  # (B, C_i, h_i, w_i) each


class Segmenter(nn.Module):
    """A segmentation model: an encoder and a decoder.

    forward: (B, 3, H, W) float, normalised, sides multiples of `backbone.multiple` -> logits (B, K, H, W), at least float32.

    bitemporal: images are two dates, (B, 6, H, W), date A in the first three channels. Both go through the encoder as one batch,
    and the decoder reads the absolute difference of their maps (METHOD.md 1.4).
    perturb: changes the encoder's maps before the decoder reads them; it may return a larger batch (feature dropout of UniMatch V1).
    to_head: further inputs of the decoder.
    last_layer: name of the layer with one output channel per class. frozen_statistics: whether BatchNorm layers keep their running
    statistics in training. A subclass whose decoder has several parts, or another name, gives no head and overrides `decode`.
    """

    onnx = True  # whether it can be traced for images of any size
    cut_windows = False  # windows of an evaluation that reach out of the image: cut off (True) or moved back into it
    depends_on_batch = False  # whether an image's logits depend on the other images of its batch, so that each is predicted alone

    def __init__(self, backbone: Encoder, head: nn.Module | None, last_layer: str, bitemporal: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        if head is not None:
            self.head = head
        self.last_layer = last_layer
        self.bitemporal = bitemporal
        self.frozen_statistics = False

    def train(self, mode: bool = True) -> Segmenter:
        """As of any module, but frozen batch statistics stay so."""
        super().train(mode)
        if mode and self.frozen_statistics:
            for layer in batch_norms(self).values():
                layer.eval()
        return self

    def encode(self, img: Tensor) -> Maps:
        """The maps that the decoder reads."""
        if not self.bitemporal:
            return self.maps(img)
        maps = self.maps(torch.cat((img[:, :3], img[:, 3:])))
        return [(a - b).abs() for a, b in (x.chunk(2) for x in maps)]

    def maps(self, img: Tensor) -> Maps:
        """The maps of images (B, 3, H, W)."""
        return self.backbone(img)

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
        return self.resize(logits, img.shape[-2:])

    def resize(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """The decoder's logits at the size of the images."""
        return F.interpolate(logits, list(size), mode="bilinear", align_corners=True)

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of the maps that the decoder reads."""
        return self.backbone.channels

    def memory(self) -> dict[str, Tensor]:
        """Buffers, by name, that a training step of one shard writes and the next step reads, besides BatchNorm's statistics."""
        return {}

    def accept_(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adapts the model, in place, to the weights of a checkpoint, ours or the authors'. Returns the weights that it keeps."""
        return weights

    def load_pretrained_(self, backbone: str, path: str | Path) -> None:
        """Loads the published weights of the encoder `backbone` from a file. Raises UserError."""
        load_encoder_(self.backbone, backbone, path)

    @property
    def multiple(self) -> int:
        """The number that the sides of an image must be multiples of."""
        return self.backbone.multiple

    def decoder_parts(self) -> list[nn.Module]:
        """The parts of the model that are not the encoder."""
        return [part for name, part in self.named_children() if name != "backbone"]

    def compile_parts_(self) -> None:
        """Compiles the encoder's blocks and the decoder with torch.compile, in place: parameter names stay."""
        # Blocks of one class share the forms that are compiled of it. Where stages differ, each needs its own, for passes with and
        # without gradient and for each size of batch; beyond the limit, by default 8, PyTorch leaves a block as it is.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(self.backbone.blocks))
        for part in (*self.backbone.blocks, *self.decoder_parts()):
            part.compile(dynamic=False)
