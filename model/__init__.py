"""`build_model`: makes every model by the names in a config."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model.segmenter import Segmenter
from model.semseg.deeplabv3plus import build_deeplabv3plus
from model.semseg.dpt import build_dpt
from model.spec import EncoderSpec, get_encoder
from model.weights import load_encoder
from util.config import Config
from util.error import UserError


def build_model(
    backbone: str,
    nclass: int,
    task: str = "segmentation",
    pretrained: str | Path | None = None,
    model: str | None = "dpt",
    replace_stride_with_dilation: Sequence[bool] | None = None,
    dilations: Sequence[int] | None = None,
) -> Segmenter:
    """An encoder and a decoder as one model, under the parameter names of its published checkpoints (METHOD.md 1).

    task: "segmentation" takes images (B, 3, H, W), "change" two dates as (B, 6, H, W); both return logits (B, nclass, H, W).
    pretrained: path of the encoder's weights, None for random ones. model: the architecture, None for the encoder's usual one.
    replace_stride_with_dilation, dilations: as the config keys of that name, None as published. Raises UserError for an unknown name,
    a wrong file, or what does not go together.
    """
    if task not in ("segmentation", "change"):
        raise UserError(f"task: found {task!r}, expected segmentation or change")
    spec = get_encoder(backbone)
    model = model or spec.model
    if model not in MODELS:
        raise UserError(f"model: found {model!r}, expected one of {', '.join(MODELS)}; correct `model` in the config")
    options = {"replace_stride_with_dilation": replace_stride_with_dilation, "dilations": dilations}
    out = MODELS[model](spec, nclass, task == "change", **{key: value for key, value in options.items() if value is not None})
    if pretrained is not None:
        load_encoder(out.backbone, backbone, pretrained)
    return out


def configured_model(cfg: Config, nclass: int, task: str, pretrained: str | Path | None = None) -> Segmenter:
    """`build_model` by a run's config."""
    return build_model(cfg.backbone, nclass, task, pretrained, cfg.model, cfg.replace_stride_with_dilation, cfg.dilations)


def _dpt(spec: EncoderSpec, nclass: int, bitemporal: bool, **options: Any) -> Segmenter:
    if options:
        raise UserError(f"{next(iter(options))}: found model dpt, which has no such setting; it belongs to deeplabv3plus, remove it")
    backbone = spec.build()
    if not spec.fusion:
        raise UserError(f"model: found dpt with {spec.name}, expected deeplabv3plus; correct `model` in the config")
    return build_dpt(backbone, spec.widths, spec.fusion, nclass, bitemporal)


MODELS: dict[str, Callable[..., Segmenter]] = {"dpt": _dpt, "deeplabv3plus": build_deeplabv3plus}
