"""A few validation images as a run sees them: truth, student, teacher, the teacher's confidence, which pseudo labels count."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dataset.batch import normalize
from dataset.semi import Source, ValSet
from dataset.spec import IGNORE
from util import picture
from util.error import UserError
from util.evaluation import predict, probabilities

COUNT = 3
SIDE = 320  # pixels of the long side of a panel
Panels = list[tuple[str, Image.Image]]


def _small(image: Image.Image, method: Image.Resampling) -> Image.Image:
    scale = min(1.0, SIDE / max(image.size))
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), method)


@torch.no_grad()
def sample_panels(
    source: Source, student: nn.Module, teacher: nn.Module | None, labels_by: nn.Module | None, thresh: float, mode: str, window: int
) -> list[tuple[str, Panels]]:
    """(name, panels) of images spread over the list. teacher: the EMA, None for a supervised run; labels_by: who gives pseudo labels."""
    device = next(student.parameters()).device
    places = sorted({round(i) for i in np.linspace(0, len(source.ids) - 1, COUNT)})
    rows = []
    for place in places:
        sample = ValSet(source)[place]
        if isinstance(sample, UserError):
            raise sample
        img = normalize(sample["img"][None].to(device))

        def scores(model: nn.Module, img: Tensor = img) -> Tensor:
            return predict(model, img, mode, window)

        rows.append((sample["name"], _panels(source, sample, scores, (student, teacher, labels_by), thresh, mode)))
    return rows


def _panels(
    source: Source, sample: dict, scores: Callable[[nn.Module], Tensor], models: tuple[nn.Module | None, ...], thresh: float, mode: str
) -> Panels:
    student, teacher, labels_by = models
    spec = source.spec
    dates = [Image.fromarray(date.permute(1, 2, 0).numpy()) for date in sample["img"].split(3)]
    panels = [
        (name, _small(date, Image.Resampling.BOX)) for name, date in zip(["image"] if len(dates) == 1 else ["A", "B"], dates, strict=True)
    ]

    def painted(ids: np.ndarray) -> Image.Image:
        return _small(picture.paint(ids, spec), Image.Resampling.NEAREST)

    def ids_of(result: Tensor) -> np.ndarray:
        return result.argmax(dim=1)[0].byte().cpu().numpy()

    assert student is not None
    panels += [("truth", painted(sample["mask"].numpy())), ("student", painted(ids_of(scores(student))))]
    if teacher is None or labels_by is None:
        return panels
    panels.append(("EMA teacher", painted(ids_of(scores(teacher)))))
    result = scores(labels_by)
    conf = probabilities(result, mode).amax(dim=1)[0].float().cpu().numpy()
    kept = np.where(conf >= thresh, ids_of(result), IGNORE).astype(np.uint8)
    share = 100 * float((conf >= thresh).mean())
    panels.append(("confidence, dark: 0, yellow: 1", _small(picture.heat(conf), Image.Resampling.BILINEAR)))
    base = picture.tint(picture.stripes(*dates[0].size), kept, spec, 1.0, all_classes=True)
    panels.append((f"kept as pseudo label, {share:.0f} %", _small(base, Image.Resampling.NEAREST)))
    return panels
