"""`build_model`: the one door to the models."""

from pathlib import Path

from model.change import ChangeDPT
from model.semseg.dpt import DPT
from model.spec import get_encoder
from model.weights import load_encoder
from util.error import UserError


def build_model(backbone: str, nclass: int, task: str = "segmentation", pretrained: str | Path | None = None) -> DPT:
    """The whole model, `backbone.*` and `head.*` (METHOD.md 1).

    task: "segmentation" takes images (B, 3, H, W), "change" two dates as (B, 6, H, W); both return logits (B, nclass, H, W).
    pretrained: path of the encoder's weights, None for random ones. Raises UserError for an unknown name or a wrong file.
    """
    models: dict[str, type[DPT]] = {"segmentation": DPT, "change": ChangeDPT}
    if task not in models:
        raise UserError(f"task: found {task!r}, expected segmentation or change")
    model = models[task](get_encoder(backbone), nclass)
    if pretrained is not None:
        load_encoder(model.backbone, backbone, pretrained)
    return model
