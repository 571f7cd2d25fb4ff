"""Why classes have an IoU of 0: never labelled, never pseudo-labelled, never predicted."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from dataset.list_files import label_pixels
from dataset.source import Source
from engine import metric
from util.error import UserError

MOST = 5000  # masks that are read to see which classes are labelled; of a longer list nothing is said


def labeled_classes(source: Source) -> Mapping[int, int] | None:
    """Labelled pixels of each class id; None where the list is too long to read, or one of its files cannot be read."""
    try:
        return label_pixels(source) if len(source.ids) <= MOST else None
    except UserError:
        return None


def reasons(matrix: Tensor, labeled: Mapping[int, int] | None, kept: Sequence[float] | None = None) -> dict[int, str]:
    """For each class of IoU 0 what is known of it, in words.

    matrix: confusion counts (K, K). labeled: see `labeled_classes`. kept: pseudo labels of each class, in any unit; None where there are
    none, or nobody has counted them.
    """
    truth, predicted, iou = matrix.sum(1).tolist(), matrix.sum(0).tolist(), metric.iou(matrix).tolist()
    out = {}
    for k in (k for k, value in enumerate(iou) if value == 0):
        words = []
        if labeled is not None and not labeled.get(k, 0):
            words.append("in no labelled mask")
        if kept is not None and not kept[k]:
            words.append("never a pseudo label")
        if not truth[k]:
            words.append("in no mask that is scored")
        words.append("predicted, but nowhere right" if predicted[k] else "never predicted")
        out[k] = ", ".join(words)
    return out
