"""A few validation images as a run sees them: truth, student, teacher, the teacher's confidence, which pseudo labels count."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset import picture
from dataset.batch import normalize
from dataset.semi import ValSet, tensor_images
from dataset.source import Source
from dataset.spec import IGNORE, DatasetSpec
from engine.evaluation import Prediction
from model.segmenter import Segmenter
from util.error import UserError

COUNT = 3  # images
SIDE = 400  # pixels of the long side of a panel
Panels = list[tuple[str, Image.Image]]


def _small(image: Image.Image, method: Image.Resampling) -> Image.Image:
    scale = min(1.0, SIDE / max(image.size))
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), method)


def _painted(ids: np.ndarray, spec: DatasetSpec) -> Image.Image:
    """Class ids as colours, with stripes where there is none: grey is the colour of a class of many data sets."""
    small = np.asarray(_small(Image.fromarray(ids), Image.Resampling.NEAREST))
    return picture.strike(picture.paint(small, spec), small == IGNORE)


def _ids(scores: Tensor) -> np.ndarray:
    return scores.argmax(dim=1)[0].byte().cpu().numpy()


@torch.no_grad()
def sample_panels(
    source: Source, models: dict[str, Segmenter], labels_by: Segmenter | None, thresh: float, prediction: Prediction
) -> list[tuple[str, Panels, list[int]]]:
    """(name, panels, ids of the classes in them) of images spread over the list.

    models: those to show, by name; labels_by: the one that gives pseudo labels.
    """
    first = next(iter(models.values()))
    device = next(first.parameters()).device
    rows = []
    for index in sorted({round(i) for i in np.linspace(0, len(source.ids) - 1, COUNT)}):
        sample = ValSet(source)[index]
        if isinstance(sample, UserError):
            raise sample
        img = normalize(sample["img_x"][None].to(device), first.backbone)
        dates = tensor_images(sample["img_x"])
        panels = [(name, _small(date, Image.Resampling.BOX)) for name, date in zip(source.spec.date_names, dates, strict=True)]
        labels = {"truth": sample["mask_x"].numpy()} | {name: _ids(prediction.class_scores(model, img)) for name, model in models.items()}
        panels += [(name, _painted(ids, source.spec)) for name, ids in labels.items()]
        if labels_by is not None:
            panels += _pseudo_label_panels(prediction.class_scores(labels_by, img), source.spec, thresh, prediction)
        seen = sorted({int(k) for ids in labels.values() for k in np.unique(ids)} - {IGNORE})
        rows.append((sample["name_x"], panels, seen))
    return rows


def _pseudo_label_panels(scores: Tensor, spec: DatasetSpec, thresh: float, prediction: Prediction) -> Panels:
    conf = prediction.probabilities(scores).amax(dim=1)[0].float().cpu().numpy()
    kept = np.where(conf >= thresh, _ids(scores), IGNORE).astype(np.uint8)
    share = 100 * float((conf >= thresh).mean())
    return [
        ("confidence, dark: 0, yellow: 1", _small(picture.heat(conf), Image.Resampling.BILINEAR)),
        (f"kept as pseudo label, {share:.0f} %", _painted(kept, spec)),
    ]
