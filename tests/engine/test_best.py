"""Which epoch is the best one: the published rule (METHOD.md 4)."""

import logging

import pytest
import torch
from torch import Tensor

import supervised
import unimatch_v2
from dataset.spec import get_spec
from engine import metric
from engine.records import Record


def counts(right: int, nclass: int) -> Tensor:
    """A confusion matrix that is better the larger `right` is."""
    return torch.eye(nclass, dtype=torch.int64) * right + 10


@pytest.mark.parametrize(
    ("dataset", "semi", "followed"),
    [("pascal", True, "ema"), ("pascal", False, "student"), ("levir", True, "student"), ("levir", False, "student")],
)
def test_best_follows_the_published_rule_and_ties_go_to_the_later_epoch(dataset: str, semi: bool, followed: str) -> None:
    spec = get_spec(dataset)
    record = Record(logging.getLogger("silent"), None, spec, (unimatch_v2 if semi else supervised).METHOD, {"teacher": "ema"})
    scores = [(50, 40), (40, 50), (60, 30), (40, 50), (60, 30)]  # student, EMA
    expected = {"ema": [True, True, False, True, False], "student": [True, False, True, False, True]}[followed]
    found = []
    for epoch, both in enumerate(scores):
        own = [metric.scores(counts(right, spec.nclass), spec) for right in (both if semi else both[:1])]
        found.append(record.evaluation(epoch, "original", own))
    assert found == expected
    state = record.state()
    assert state["best_epoch"] == 4
    assert not semi or state["best_epoch_ema"] == 3


def test_change_detection_keeps_the_accuracy_of_the_same_epoch() -> None:
    spec = get_spec("levir")
    record = Record(logging.getLogger("silent"), None, spec, supervised.METHOD, {"teacher": None})
    # first: less of the changed class found, but more pixels right altogether
    for epoch, matrix in enumerate(([[900, 0], [60, 40]], [[800, 30], [20, 150]])):
        record.evaluation(epoch, "original", [metric.scores(torch.tensor(matrix), spec)])
    state = record.state()
    assert state["previous_best_iou"] == pytest.approx(100 * 150 / 200)
    assert state["previous_best_acc"] == pytest.approx(95.0)
