"""`build_model`: makes every model by the names in a config."""

from pathlib import Path

from model.segmenter import Segmenter
from model.semseg.dpt import build_dpt
from model.spec import EncoderSpec, get_encoder
from model.weights import load_encoder
from util.error import UserError


def build_model(
    backbone: str, nclass: int, task: str = "segmentation", pretrained: str | Path | None = None, model: str = "dpt"
) -> Segmenter:
    """An encoder and a decoder as one model, `backbone.*` and `head.*` (METHOD.md 1).

    task: "segmentation" takes images (B, 3, H, W), "change" two dates as (B, 6, H, W); both return logits (B, nclass, H, W).
    pretrained: path of the encoder's weights, None for random ones. Raises UserError for an unknown name or a wrong file.
    """
    if task not in ("segmentation", "change"):
        raise UserError(f"task: found {task!r}, expected segmentation or change")
    if model not in MODELS:
        raise UserError(f"model: found {model!r}, expected one of {', '.join(MODELS)}; correct `model` in the config")
    spec = get_encoder(backbone)
    out = MODELS[model](spec, nclass, task == "change")
    if pretrained is not None:
        load_encoder(out.backbone, backbone, pretrained)
    return out


def _dpt(spec: EncoderSpec, nclass: int, bitemporal: bool) -> Segmenter:
    return build_dpt(spec.build(), spec.widths, spec.fusion, nclass, bitemporal)


MODELS = {"dpt": _dpt}
