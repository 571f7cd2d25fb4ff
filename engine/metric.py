"""Confusion matrix, boundary counts, and the scores made of them, in percent (METHOD.md 4)."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.spec import IGNORE, DatasetSpec


class Figure(NamedTuple):
    """The names of a score. label: for people; log, tag: in published log lines and in TensorBoard, where it stands there (METHOD.md 5)."""

    label: str
    log: str | None = None
    tag: str | None = None


# the scores that sum up an evaluation, by task and by their keys in `scores`; an epoch is chosen by the first one of its task
FIGURES: dict[str, dict[str, Figure]] = {
    "segmentation": {
        "miou": Figure("mIoU", "MeanIoU", "mIoU"),
        "pixel_accuracy": Figure("pixel accuracy"),
        "mean_accuracy": Figure("mean accuracy"),
        "frequency_weighted_iou": Figure("frequency-weighted IoU"),
    },
    "change": {
        "changed_iou": Figure("changed IoU", "Changed IoU", "changed_IoU"),
        "unchanged_iou": Figure("unchanged IoU", "Unchanged IoU", "unchanged_IoU"),
        "overall_accuracy": Figure("overall accuracy", "Overall Accuracy", "overall_accuracy"),
        "precision": Figure("precision", tag="changed_precision"),
        "recall": Figure("recall", tag="changed_recall"),
        "f1": Figure("F1", tag="changed_F1"),
    },
}


def chosen_by(task: str) -> str:
    """The score that chooses a run's best epoch, by its key in `scores`: mIoU, or the IoU of the changed class."""
    return next(iter(FIGURES[task]))


def test_lines(result: dict[str, Any], task: str) -> list[str]:
    """A line for each model of a final test. result: as in test.json (engine/final_test.py)."""
    begin = f"Test of best.pth (epoch {result['epoch']}, selected on {result['selected_on']}) on {result['list']}"
    return [
        f"{begin}, {model}: " + ", ".join(f"{figure.label} {scores[key]:.2f}" for key, figure in FIGURES[task].items())
        for model, scores in result["scores"].items()
    ]


def confusion(pred: Tensor, mask: Tensor, nclass: int) -> Tensor:
    """Counts (K, K) int64 on the tensors' device: row = true class, column = predicted class. Ignored pixels do not count."""
    return _count(mask * nclass + pred, mask != IGNORE, nclass * nclass).view(nclass, nclass)


def _count(ids: Tensor, counted: Tensor, cells: int) -> Tensor:
    """How often each of 0..cells - 1 occurs among the `ids` that are `counted`: int64 (cells,)."""
    index = torch.where(counted, ids, cells).flatten()  # the others get a cell of their own
    # bincount, and taking only those that count, would wait for a GPU to count them
    return torch.zeros(cells + 1, dtype=torch.int64, device=ids.device).scatter_add_(0, index, torch.ones_like(index))[:-1]


def sums(matrix: Tensor) -> Tensor:
    """Pixels of each class that are right, true and predicted, (3, K), from confusion counts (K, K): enough for its IoU."""
    return torch.stack((matrix.diagonal(), matrix.sum(1), matrix.sum(0)))


def _overlap(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of each class's intersection and union, each float64 (..., K), from `sums` (..., 3, K)."""
    right, true, predicted = sums.double().unbind(-2)
    return right, true + predicted - right


def class_iou(sums: Tensor) -> Tensor:
    """IoU of each class in percent, float64 (..., K), from `sums` (..., 3, K). A class that is absent everywhere scores 0."""
    intersection, union = _overlap(sums)
    return 100 * intersection / (union + 1e-10)


def iou(matrix: Tensor) -> Tensor:
    """The same from confusion counts (K, K): float64 (K,)."""
    return class_iou(sums(matrix))


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of scored pixels whose class is right, in percent."""
    return 100 * int(matrix.diagonal().sum()) / max(1, int(matrix.sum()))


def recall(matrix: Tensor) -> Tensor:
    """Of each class's pixels the share that was found, float64 (K,): its accuracy. 0 for a class without a pixel."""
    return 100 * matrix.diagonal().double() / matrix.sum(1).clamp(min=1)


def precision(matrix: Tensor) -> Tensor:
    """Of the pixels given each class the share that is right, float64 (K,). 0 for a class that was never predicted."""
    return 100 * matrix.diagonal().double() / matrix.sum(0).clamp(min=1)


def f1(matrix: Tensor) -> Tensor:
    """Harmonic mean of precision and recall of each class, float64 (K,)."""
    return 200 * matrix.diagonal().double() / (matrix.sum(0) + matrix.sum(1)).clamp(min=1)


def scores(matrix: Tensor, spec: DatasetSpec) -> dict[str, Any]:
    """The scores of confusion counts (K, K) in percent, under the keys that evaluate.py, metrics.jsonl and test.json have.

    `iou` is {class: value}. Precision, recall and F1 of change detection are the changed class's.
    """
    values, accuracy = iou(matrix), pixel_accuracy(matrix)
    by_class = dict(zip(spec.classes, values.tolist(), strict=True))
    out: dict[str, Any] = {"miou": float(values.mean()), "pixel_accuracy": accuracy, "iou": by_class}
    out |= {"mean_accuracy": float(recall(matrix).mean()), "frequency_weighted_iou": frequency_weighted_iou(matrix)}
    if spec.bitemporal:
        out |= {"unchanged_iou": float(values[0]), "changed_iou": float(values[1]), "overall_accuracy": accuracy}
        out |= {"precision": float(precision(matrix)[1]), "recall": float(recall(matrix)[1]), "f1": float(f1(matrix)[1])}
    return out


def frequency_weighted_iou(matrix: Tensor) -> float:
    """Mean of the classes' IoU, weighted with their share of the true pixels."""
    return float((iou(matrix) * matrix.sum(1)).sum() / matrix.sum().clamp(min=1))


def present_iou(sums: Tensor, first: int = 0) -> Tensor:
    """Mean IoU over the classes from `first` on that are in the truth or the prediction: the score of an image. 100 where none is.

    sums: (N, 3, K), `sums` of each image. Returns percent, float64 (N,).
    """
    intersection, union = _overlap(sums[..., first:])
    classes = (union > 0).sum(1)
    return torch.where(classes > 0, 100 * (intersection / union.clamp(min=1)).sum(1) / classes, 100.0)


def boundary_band(labels: Tensor, distance: int) -> Tensor:
    """Bool (B, H, W): pixels within `distance` pixels (chessboard) of another label, or of the image's border.

    For each class this is its mask without its erosion by a square of 2 * distance + 1: the square around a pixel holds one label
    exactly where that label's mask survives the erosion, so one pooling serves all classes.
    """
    padded = F.pad(labels[:, None].float(), [distance] * 4, value=-1)
    size = 2 * distance + 1

    def pool(x: Tensor) -> Tensor:  # a square as a column, then a row: same maximum, less work
        return F.max_pool2d(F.max_pool2d(x, (size, 1), 1), (1, size), 1)

    return (pool(padded) != -pool(-padded))[:, 0]


def boundary_counts(pred: Tensor, mask: Tensor, nclass: int, distance: int) -> Tensor:
    """Counts (3, K) int64 for `boundary_iou`: band pixels on which both agree, of the truth, of the prediction.

    An ignored region borders on both: the prediction is ignored there too.
    """
    valid = mask != IGNORE
    pred = torch.where(valid, pred, IGNORE)
    true_band, pred_band = (valid & boundary_band(labels, distance) for labels in (mask, pred))
    both = true_band & pred_band & (mask == pred)
    return torch.stack([_count(ids, band, nclass) for ids, band in ((mask, both), (mask, true_band), (pred, pred_band))])


def boundary_iou(counts: Tensor) -> Tensor:
    """Boundary IoU (Cheng et al. 2021) of each class over a whole list in percent, float64 (K,), from summed `boundary_counts`."""
    both, true, pred = counts.double()
    return 100 * both / (true + pred - both + 1e-10)
