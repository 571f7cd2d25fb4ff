"""`build_model`: makes every model by the names in a config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.segmenter import Segmenter
from model.semseg.allspark import build_allspark
from model.semseg.deeplabv3plus import build_deeplabv3plus
from model.semseg.dpt import build_dpt
from model.semseg.vlm import build_vlm
from model.spec import architecture, get_encoder
from util.config import KEYS, Config
from util.error import UserError

# the config keys of each architecture that has some of its own
OPTIONS = {
    "deeplabv3plus": ("replace_stride_with_dilation", "dilations"),
    "vlm": ("conv_encoder", "renorm_clip_img"),
}
BY_CROP = ("vlm", "allspark")  # architectures that are made for a training crop


def build_model(
    backbone: str,
    nclass: int,
    task: str = "segmentation",
    pretrained: str | Path | None = None,
    model: str | None = "dpt",
    crop_size: int = 512,
    **options: Any,
) -> Segmenter:
    """An encoder and a decoder as one model, under the parameter names of its published checkpoints (METHOD.md 1).

    task: "segmentation" takes images (B, 3, H, W), "change" two dates as (B, 6, H, W); both return logits (B, nclass, H, W).
    pretrained: path of the encoder's weights, None for random ones. model: the architecture, None for the encoder's usual one.
    crop_size: side of the training crops, which vlm and allspark depend on. options: the config keys of that name (OPTIONS), None as
    published.
    Raises UserError for an unknown name, a wrong file, or what does not go together.
    """
    tasks = KEYS["task"].metadata["choices"]
    if task not in tasks:
        raise UserError(f"task: found {task!r}, expected {' or '.join(tasks)}")
    spec, model = get_encoder(backbone), architecture(backbone, model)
    if model not in MODELS:
        raise UserError(f"model: found {model!r}, expected one of {', '.join(MODELS)}; correct `model` in the config")
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in OPTIONS.get(model, ()):
            owner = next((name for name, keys in OPTIONS.items() if key in keys), "no model")
            raise UserError(f"{key}: found model {model}, which has no such setting; it belongs to {owner}, remove it")
    if model in BY_CROP:
        given["crop_size"] = crop_size
    out = MODELS[model](spec, nclass, task == "change", **given)
    if pretrained is not None:
        out.load_pretrained_(backbone, pretrained)
    return out


def configured_model(cfg: Config, nclass: int, task: str, pretrained: str | Path | None = None) -> Segmenter:
    """`build_model` by a run's config."""
    options = {key: getattr(cfg, key) for keys in OPTIONS.values() for key in keys}
    return build_model(cfg.backbone, nclass, task, pretrained, cfg.model, cfg.crop_size, **options)


MODELS: dict[str, Callable[..., Segmenter]] = {
    "dpt": build_dpt,
    "deeplabv3plus": build_deeplabv3plus,
    "vlm": build_vlm,
    "allspark": build_allspark,
}
CLASSIFIER_DROPOUT = ("dpt",)  # those that take `classifier_factors`: feature dropout before the last layer
