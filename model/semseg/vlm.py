"""SemiVL's model: CLIP with a language-guided decoder over the similarity of pixels and class names (METHOD.md 1.8).

Parameter names are those of SemiVL's checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone.clip import CLIP, CLIP_MEAN, CLIP_STD, EMBED, PATCH, Layer
from model.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder
from model.segmenter import Maps, Segmenter
from model.spec import ENCODERS, EncoderSpec, get_encoder
from model.weights import default_path, load_encoder_
from util.dist import to_device
from util.error import UserError

CONV_ENCODER = "resnet101_v1c_stage1"  # of the variant for Cityscapes
WIDTH = 128  # channels of a class's similarity map
POOL = 4  # side of the squares in which classes attend to each other


def resize(x: Tensor, size: Sequence[int], align: bool = False) -> Tensor:
    """A map resized bilinearly to (H, W). align: whether corners are aligned."""
    return F.interpolate(x, list(size), mode="bilinear", align_corners=align)


def conv_norm_relu(inputs: int, outputs: int, groups: int, kernel: int = 1, dilation: int = 1) -> list[nn.Module]:
    """A convolution of 1 x 1 or 3 x 3, GroupNorm and ReLU; the size stays."""
    padding = dilation if kernel == 3 else 0
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.GroupNorm(groups, outputs), nn.ReLU()]


class ImagePooling(nn.Module):
    """The mean over the map, transformed and spread over the map again."""

    def __init__(self) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(WIDTH, WIDTH, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.gap(x).expand(-1, -1, *x.shape[-2:])


class SpatialReasoning(nn.Module):
    """Atrous spatial pyramid pooling of one class's map. forward: (N, 128, h, w) -> the same shape."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Sequential(*conv_norm_relu(WIDTH, WIDTH, 8, 3, dilation)) for dilation in (6, 12, 18)]
        self.aspp_convs = nn.ModuleList([nn.Sequential(*conv_norm_relu(WIDTH, WIDTH, 8)), *convs, ImagePooling()])
        self.project = nn.Sequential(*conv_norm_relu(5 * WIDTH, WIDTH, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([conv(x) for conv in self.aspp_convs], dim=1))


class SemanticReasoning(nn.Module):
    """At each position of a pooled grid the classes attend to each other, each with its text beside it.

    forward: maps (B * K, 128, h, w) and texts (K, 128) -> what is added to the maps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.transformer = Layer(2 * WIDTH, 4, 4 * WIDTH, 1e-5)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # a map with a side of fewer than four positions is pooled as a whole
        pooled = F.avg_pool2d(x, (min(POOL, height), min(POOL, width)))
        rows, cols = pooled.shape[-2:]
        tokens = pooled.unflatten(0, (-1, len(text))).permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B * rows * cols, K, 128)
        tokens = self.transformer(torch.cat((tokens, text.expand(len(tokens), -1, -1)), dim=2))[..., :WIDTH]
        pooled = tokens.unflatten(0, (-1, rows, cols)).permute(0, 3, 4, 1, 2).flatten(0, 1)
        return resize(pooled, (height, width), align=True)


class Upsampling(nn.Module):
    """Doubles the sides of class maps (B * K, inputs, h, w) with the help of an image's map (B, skip, ., .)."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, inputs - skip, 2, 2)
        groups = outputs // 16
        self.conv = nn.Sequential(*conv_norm_relu(inputs, outputs, groups, 3), *conv_norm_relu(outputs, outputs, groups, 3))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        skip = resize(skip, x.shape[-2:], align=True).repeat_interleave(len(x) // len(skip), dim=0)
        return self.conv(torch.cat((x, skip), dim=1))


class LanguageGuidedDecoder(nn.Module):
    """The decoder. forward: two maps of an image, a dense embedding (B, 512, h, w) and texts (K, 512) -> logits (B, K, 4h, 4w).

    It has no parameters that depend on the number of classes. skips: channels of the first and the second map; widths: what they become.
    """

    def __init__(self, skips: tuple[int, int], widths: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTH, 7, padding=3)
        self.aspp = SpatialReasoning()
        self.layers = nn.ModuleList(SemanticReasoning() for _ in range(2))
        self.text_proj = nn.Sequential(nn.Linear(EMBED, WIDTH), nn.ReLU())
        convs = [nn.Conv2d(inputs, width, 3, padding=1) for inputs, width in zip(skips, widths, strict=True)]
        self.skip_proj = nn.ModuleList(nn.Sequential(conv, nn.ReLU()) for conv in convs)
        self.up1 = Upsampling(WIDTH, widths[0], 64)
        self.up2 = Upsampling(64, widths[1], 32)
        self.head = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor, dense: Tensor, text: Tensor) -> Tensor:
        similarity = torch.einsum("bchw,kc->bkhw", F.normalize(dense, dim=1), F.normalize(text, dim=1))
        x = self.conv1(similarity.flatten(0, 1)[:, None])  # a class of an image is an image of its own from here on
        x = x + self.aspp(x)
        guide = self.text_proj(text)
        for layer in self.layers:
            x = x + layer(x, guide)
        x = self.up1(x, self.skip_proj[0](first))
        x = self.up2(x, self.skip_proj[1](second))
        return self.head(x).unflatten(0, (-1, len(text))).squeeze(2)


class VLM(Segmenter):
    """SemiVL's model. forward: images (B, 3, H, W) of any size -> logits (B, K, H, W).

    crop: side S of the training crops. Positions are for as many patches, and logits are resized to S x S before they are resized to the
    image. conv_encoder: makes the decoder's finer map instead of the encoder's first values.
    renorm_clip_img: images come with ImageNet's mean and deviation, and the encoder sees them with CLIP's; else as they come.
    text: embeddings (K, 512) of the classes' names, a part of the state once `set_text_` or a checkpoint has brought them.
    """

    onnx = False
    cut_windows = True
    text: Tensor | None
    conv_encoder: Encoder

    def __init__(
        self,
        backbone: CLIP,
        nclass: int,
        crop: int,
        bitemporal: bool = False,
        conv_encoder: Encoder | None = None,
        renorm_clip_img: bool = False,
    ) -> None:
        super().__init__(backbone, None, "text", bitemporal)
        self.nclass, self.crop, self.renorm_clip_img = nclass, crop, renorm_clip_img
        backbone.resize_positions_(crop // PATCH)
        self._finer = () if conv_encoder is None else conv_encoder.channels
        second, first, _ = self.channels
        self.decode_head = LanguageGuidedDecoder((first, second), (32, 32) if conv_encoder else (32, 16))
        if conv_encoder is not None:
            self.conv_encoder = conv_encoder
        self.register_buffer("text", None)

    @property
    def channels(self) -> tuple[int, ...]:
        return (*self._finer, *self.backbone.channels)

    def maps(self, img: Tensor) -> Maps:
        own = self.backbone(renormalized(img) if self.renorm_clip_img else img)
        return [*self.conv_encoder(img), *own] if self._finer else own

    def decode(self, maps: Maps) -> Tensor:  # type: ignore[override]
        if self.text is None:
            raise UserError("text: the model has no embeddings of its classes' names; make them with python -m model.text --config CONFIG")
        second, first, dense = maps
        return self.decode_head(first, second, dense, self.text)

    def resize(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        return resize(resize(logits, (self.crop, self.crop)), size)

    def set_text_(self, text: Tensor) -> None:
        """Gives the model the embeddings (K, 512) of its classes' names."""
        if text.shape != (self.nclass, EMBED):
            raise UserError(f"text: found embeddings {tuple(text.shape)}, expected ({self.nclass}, {EMBED}), one for each class")
        self.text = text.to(self.decode_head.head.weight)

    def accept_(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        text = weights.get("text")
        if text is not None and (self.text is None or self.text.shape != text.shape):
            self.text = text.to(self.decode_head.head.weight)
        elif text is None and self.text is not None:  # the authors' checkpoints have none
            weights = weights | {"text": self.text}
        # the frozen copy that guides the training is of no use to the trained model
        return {name: value for name, value in weights.items() if not name.startswith("clip_encoder.")}

    def load_pretrained_(self, backbone: str, path: str | Path) -> None:
        assert isinstance(self.backbone, CLIP)
        self.backbone = pretrained_clip(backbone, path, self.crop // PATCH, skips=self.backbone.skips)
        if self._finer:
            load_encoder_(self.conv_encoder, CONV_ENCODER, default_path(CONV_ENCODER))


def make_clip(name: str, **options: Any) -> CLIP:
    """The encoder `name` with random weights. Raises UserError for an encoder that is no CLIP."""
    spec = get_encoder(name)
    if spec.model != "vlm" or spec.name == CONV_ENCODER:
        usual = ", ".join(known.name for known in ENCODERS.values() if known.model == "vlm" and known.name != CONV_ENCODER)
        raise UserError(f"model: found vlm with backbone {name}, expected one of {usual}; correct the config")
    encoder = spec.build(**options)
    assert isinstance(encoder, CLIP)
    return encoder


def pretrained_clip(name: str, path: str | Path, grid: int, **options: Any) -> CLIP:
    """The encoder `name` with the weights of a file, its positions for grid x grid patches. Raises UserError."""
    encoder = make_clip(name, **options)
    load_encoder_(encoder, name, path)
    encoder.resize_positions_(grid)
    return encoder


def renormalized(img: Tensor) -> Tensor:
    """Images normalised with CLIP's mean and deviation, from images normalised with ImageNet's."""
    scale = [std / clip for std, clip in zip(IMAGENET_STD, CLIP_STD, strict=True)]
    shift = [(mean - clip) / std for mean, clip, std in zip(IMAGENET_MEAN, CLIP_MEAN, CLIP_STD, strict=True)]
    scale_map, shift_map = (to_device(torch.tensor(values, dtype=img.dtype), img.device)[:, None, None] for values in (scale, shift))
    return img * scale_map + shift_map


def build_vlm(
    spec: EncoderSpec,
    nclass: int,
    bitemporal: bool,
    crop_size: int = 512,
    conv_encoder: bool = False,
    renorm_clip_img: bool = False,
) -> VLM:
    """The model of a CLIP encoder. Raises UserError for another one.

    conv_encoder: the variant for Cityscapes, whose finer map is that of a ResNet-101 and not the values of an early layer.
    """
    backbone = make_clip(spec.name)
    if conv_encoder:
        backbone = make_clip(spec.name, skips=backbone.skips[-1:])
    conv = ENCODERS[CONV_ENCODER].build() if conv_encoder else None
    return VLM(backbone, nclass, crop_size, bitemporal, conv, renorm_clip_img)
