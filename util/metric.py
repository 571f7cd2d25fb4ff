"""Confusion matrix and the scores made of it (spec.md 4)."""

import torch
from torch import Tensor


def confusion(pred: Tensor, mask: Tensor, nclass: int, ignore_index: int = 255) -> Tensor:
    """Counts (K, K) int64 on the tensors' device: row = true class, column = predicted class. Pixels with ignore_index do not count."""
    valid = mask != ignore_index
    return torch.bincount(mask[valid] * nclass + pred[valid], minlength=nclass * nclass).reshape(nclass, nclass)


def iou(matrix: Tensor) -> Tensor:
    """IoU of each class in percent, float64 (K,). A class that is absent everywhere scores 0."""
    matrix = matrix.double()
    intersection = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - intersection
    return 100 * intersection / (union + 1e-10)


def changed_class(matrix: Tensor) -> dict[str, float]:
    """Precision, recall and F1 of the changed class of change detection in percent, from a (2, 2) matrix; 0 where undefined."""
    (_, false_alarm), (missed, hit) = matrix.tolist()
    return {
        "precision": 100 * hit / max(1, hit + false_alarm),
        "recall": 100 * hit / max(1, hit + missed),
        "F1": 200 * hit / max(1, 2 * hit + false_alarm + missed),
    }


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of scored pixels whose class is right, in percent."""
    return float(100 * matrix.diagonal().sum() / matrix.sum().clamp(min=1))
