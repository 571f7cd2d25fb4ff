"""What a run's pseudo labels are worth: measured on the validation images of each evaluation, whose truth is known (METHOD.md 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from engine import metric
from engine.evaluation import Counts
from engine.metrics_file import Epoch
from util.progress import count

# how the warnings begin, by which those of a kind are known as a run repeats them
NONE_YET = "No pseudo label has reached conf_thresh"
NEVER = "Some labelled classes have not been among the pseudo labels so far"


def quality(confident: Tensor, pixels: int, classes: Sequence[str]) -> dict[str, Any]:
    """Figures in percent, under the keys of metrics.jsonl. confident: confusion counts (K, K) of the confident pixels among `pixels`.

    share: of all scored pixels, those that are confident. right: of these, those whose class is the true one; None where there are none.
    classes: {name: share and right} of the pixels that are confident of the class.
    """
    counts, right = confident.sum(0).tolist(), metric.precision(confident).tolist()
    named = {
        name: {"share": 100 * number / max(1, pixels), "right": value if number else None}
        for name, number, value in zip(classes, counts, right, strict=True)
    }
    whole = sum(counts)
    return {
        "share": 100 * whole / max(1, pixels),
        "right": metric.pixel_accuracy(confident) if whole else None,
        "classes": named,
    }


def quality_of(counts: Counts, classes: Sequence[str]) -> dict[str, Any]:
    """The `quality` of the pseudo labels in an evaluation; nothing where no model gives any."""
    if counts.confident is None:
        return {}
    return quality(counts.confident, int(counts.matrices[0].sum()), classes)


def log_lines(found: Mapping[str, Any], thresh: float) -> list[str]:
    """Of the figures of `quality`, in the words that the report knows (scripts/report/lines.py)."""
    first = f"Pseudo labels on the validation images: {found['share']:.2f} % of pixels from confidence {thresh:g} on"
    if found["right"] is None:
        return [first]
    named = [
        f"{name} {own['right']:.2f} ({own['share']:.2f})" if own["right"] is not None else f"{name} none"
        for name, own in found["classes"].items()
    ]
    return [f"{first}, {found['right']:.2f} % of them right", f"Pseudo labels right, % (share of pixels): {', '.join(named)}"]


def warnings(
    epochs: Sequence[Epoch], labeled: Callable[[], Mapping[int, int] | None], classes: Sequence[str], thresh: float, last: bool
) -> list[str]:
    """What the finished `epochs` lack, after 1, 2, 4, 8 and so on of them, and after the last one.

    labeled: counts the labelled pixels of each class id, if anybody can; it may take its time, and is called where it matters alone.
    """
    measured = [row for row in epochs if row.pseudo_labels or row.pseudo_quality]
    if not any(row.means.get("mask_ratio") or any(_shares(row).values()) for row in measured):
        text = (
            f"{NONE_YET} ({thresh:g}) in {count(len(epochs), 'epoch')}. If this lasts, unlabelled images teach nothing: lower conf_thresh."
        )
        return [text] if measured and (last or _doubled(len(epochs))) else []
    evaluated = [row for row in measured if row.pseudo_quality]
    if not evaluated or evaluated[-1] is not epochs[-1] or not (last or _doubled(len(evaluated))):
        return []
    never = {k: name for k, name in enumerate(classes) if not any(_shares(row).get(name, 0) for row in measured)}
    pixels = (labeled() if never else None) or {}
    named = [name for k, name in never.items() if pixels.get(k, 0)]
    return [f"{NEVER}, neither on the validation images nor in the last step of an epoch: {', '.join(named)}."] if named else []


def current(warnings: Sequence[str]) -> list[str]:
    """Warnings of a run in their order, without those of this module that a later one of their kind has replaced."""
    latest = {_kind(text): text for text in warnings}
    return [text for text in warnings if _kind(text) is None or latest[_kind(text)] is text]


def _kind(warning: str) -> str | None:
    return next((kind for kind in (NONE_YET, NEVER) if kind in warning), None)


def _shares(row: Epoch) -> dict[str, float]:
    """Share of the pseudo labels of each class, of the epoch's last step and of its evaluation together."""
    evaluated = {name: own["share"] for name, own in row.pseudo_quality.get("classes", {}).items()}
    return {name: row.pseudo_labels.get(name, 0) + evaluated.get(name, 0) for name in row.pseudo_labels | evaluated}


def _doubled(number: int) -> bool:
    """Whether it is 1, 2, 4, 8 and so on."""
    return number & (number - 1) == 0
