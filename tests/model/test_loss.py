"""Losses at their edges, and every labelled criterion against a brute-force version (METHOD.md 3)."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataset import spec
from model.loss import (
    CRITERIA,
    IGNORE,
    balanced_weights,
    check_criterion,
    cross_entropy,
    labeled_loss,
    mask_ratio,
    ohem,
    semi_loss,
    unlabeled_loss,
)  # fmt: skip

CE: dict[str, Any] = {"name": "CELoss", "kwargs": {"ignore_index": 255}}


def test_the_ignored_value_is_the_data_sets() -> None:
    """model/ may not import dataset/, so that the number stands in both."""
    assert IGNORE == spec.IGNORE


def brute_ohem(pred: Tensor, mask: Tensor, thresh: float, min_kept: int) -> float:
    """Pixel by pixel. Ignored pixels count as probability 1, the min_kept-th smallest is the threshold, equal is kept."""
    prob = pred.double().softmax(1)
    valid, every = [], []
    for b in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                label = int(mask[b, y, x])
                if label == 255:
                    every.append(1.0)
                else:
                    valid.append(float(prob[b, label, y, x]))
                    every.append(valid[-1])
    if min_kept > 0 and len(valid) >= min_kept:
        bound = max(thresh, sorted(every)[min_kept - 1])
        valid = [p for p in valid if p <= bound]
    return sum(-math.log(p) for p in valid) / len(valid) if valid else 0.0


def given_case(seed: int, ignored: float, levels: int) -> tuple[Tensor, Tensor]:
    """Logits of a few values only, so that many probabilities tie."""
    g = torch.Generator().manual_seed(seed)
    pred = torch.randint(0, levels, (2, 3, 4, 5), generator=g).double()
    mask = torch.randint(0, 3, (2, 4, 5), generator=g)
    mask[torch.rand(2, 4, 5, generator=g) < ignored] = 255
    return pred, mask


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ignored=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    levels=st.sampled_from([1, 2, 3, 50]),
    thresh=st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]),
    min_kept=st.sampled_from([0, 1, 2, 7, 19, 20, 39, 40, 41, 1000]),
)
def test_ohem(seed: int, ignored: float, levels: int, thresh: float, min_kept: int) -> None:
    pred, mask = given_case(seed, ignored, levels)
    assert float(ohem(pred, mask, thresh, min_kept)) == pytest.approx(brute_ohem(pred, mask, thresh, min_kept), rel=1e-9, abs=1e-12)


def one_row(probabilities: list[float]) -> tuple[Tensor, Tensor]:
    """Two classes, one row of pixels whose true class has these probabilities."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack((p.log(), (1 - p).log()))[None, :, None], torch.zeros(1, 1, len(p), dtype=torch.long)


@pytest.mark.parametrize(
    ("thresh", "min_kept", "kept"),
    [
        (0.5, 1, [0.1, 0.3, 0.3]),  # thresh decides
        (0.2, 2, [0.1, 0.3, 0.3]),  # the second smallest decides, and its tie is kept
        (0.2, 4, [0.1, 0.3, 0.3, 0.8]),
        (0.2, 6, [0.1, 0.3, 0.3, 0.8, 0.9]),  # fewer valid pixels than min_kept: plain CE
        (0.2, 0, [0.1, 0.3, 0.3, 0.8, 0.9]),  # min_kept 0: plain CE
    ],
)
def test_ohem_by_hand(thresh: float, min_kept: int, kept: list[float]) -> None:
    pred, mask = one_row([0.3, 0.9, 0.1, 0.3, 0.8])
    assert float(ohem(pred, mask, thresh, min_kept)) == pytest.approx(-sum(map(math.log, kept)) / len(kept))


def test_ignored_pixels_count_as_certain() -> None:
    """Four valid pixels and min_kept 4: the bound is the largest of them, never an ignored one."""
    pred, mask = one_row([0.3, 0.9, 0.1, 0.3, 0.8])
    mask[..., 1] = 255
    assert float(ohem(pred, mask, 0.0, 4)) == pytest.approx(-sum(map(math.log, [0.3, 0.1, 0.3, 0.8])) / 4)


def pixels_of(pred: Tensor, mask: Tensor) -> list[tuple[list[float], int]]:
    """(probability of each class, true class) of every labelled pixel."""
    prob = pred.double().softmax(1).permute(0, 2, 3, 1).reshape(-1, pred.shape[1]).tolist()
    return [(p, label) for p, label in zip(prob, mask.flatten().tolist(), strict=True) if label != 255]


def brute_pixelwise(pred: Tensor, mask: Tensor, gamma: float, weights: list[float]) -> float:
    """Cross-entropy (gamma 0) and focal loss, pixel by pixel."""
    total = weight = 0.0
    for p, label in pixels_of(pred, mask):
        total += -weights[label] * (1 - p[label]) ** gamma * math.log(p[label])
        weight += weights[label]
    return total / weight if weight else 0.0


def brute_dice(prob: list[float], truth: list[bool]) -> float:
    both = sum(p for p, true in zip(prob, truth, strict=True) if true)
    return 1 - 2 * both / (sum(prob) + sum(truth))


def brute_lovasz(prob: list[float], truth: list[bool]) -> float:
    """The extension as it is defined: the errors, largest first, times what each pixel adds to the set function |M| / |G or M|."""
    errors = sorted(((abs(true - p), i) for i, (p, true) in enumerate(zip(prob, truth, strict=True))), key=lambda one: -one[0])
    wrong, total, before = set[int](), 0.0, 0.0
    members = {i for i, true in enumerate(truth) if true}
    for error, i in errors:
        wrong.add(i)
        now = len(wrong) / len(members | wrong)
        total += error * (now - before)
        before = now
    return total


def brute_regions(region: Callable[[list[float], list[bool]], float], pred: Tensor, mask: Tensor, weights: list[float]) -> float:
    """The weighted mean over the classes that are labelled."""
    pixels = pixels_of(pred, mask)
    present = sorted({label for _, label in pixels})
    total = sum(weights[k] * region([p[k] for p, _ in pixels], [label == k for _, label in pixels]) for k in present)
    weight = sum(weights[k] for k in present)
    return total / weight if weight else 0.0


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ignored=st.sampled_from([0.0, 0.3, 0.97, 1.0]),
    levels=st.sampled_from([1, 2, 50]),
    weights=st.sampled_from([None, [1.0, 1.0, 1.0], [0.5, 2.0, 7.0], [0.0, 1.0, 0.0]]),
    gamma=st.sampled_from([0.0, 0.5, 2.0, 3.0]),
    ce=st.sampled_from([0.0, 0.7]),
)
def test_criteria(seed: int, ignored: float, levels: int, weights: list[float] | None, gamma: float, ce: float) -> None:
    pred, mask = given_case(seed, ignored, levels)
    counts = weights or [1.0] * 3
    plain = brute_pixelwise(pred, mask, 0, counts)
    expected = {
        "CELoss": (plain, {}),
        "Focal": (brute_pixelwise(pred, mask, gamma, counts), {"gamma": gamma}),
        "Dice": (brute_regions(brute_dice, pred, mask, counts) + ce * plain, {"ce": ce}),
        "Lovasz": (brute_regions(brute_lovasz, pred, mask, counts) + ce * plain, {"ce": ce}),
    }
    for name, (value, kwargs) in expected.items():
        criterion = {"name": name, "kwargs": kwargs | {"class_weights": weights}}
        check_criterion(criterion, 3)
        assert float(labeled_loss(pred, mask, criterion)) == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_class_weights_are_those_of_pytorch() -> None:
    pred, mask = given_case(3, 0.3, 50)
    weights = [0.2, 3.0, 1.5]
    expected = F.cross_entropy(pred, mask, torch.tensor(weights, dtype=torch.float64), ignore_index=255)
    assert float(cross_entropy(pred, mask, class_weights=weights)) == pytest.approx(float(expected), rel=1e-6)
    kept = {"name": "OHEM", "kwargs": {"thresh": 1.0, "min_kept": 1, "class_weights": weights}}
    assert float(labeled_loss(pred, mask, kept)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", ["CELoss", "Focal", "Dice", "Lovasz"])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 7.0]])
def test_gradients(name: str, weights: list[float] | None) -> None:
    """Against differences of the loss itself. (Lovasz has none where two errors are equal: here they are not.)"""
    g = torch.Generator().manual_seed(0)
    pred = torch.randn(2, 3, 2, 3, generator=g, dtype=torch.float64, requires_grad=True)
    mask = torch.randint(0, 3, (2, 2, 3), generator=g)
    mask[0, 0] = 255
    criterion = {"name": name, "kwargs": {"class_weights": weights}}
    assert torch.autograd.gradcheck(lambda logits: labeled_loss(logits, mask, criterion), (pred,), eps=1e-5, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_a_certain_pixel_has_a_gradient(gamma: float) -> None:
    pred = torch.tensor([[[[80.0]], [[-80.0]]]], requires_grad=True)
    labeled_loss(pred, torch.zeros(1, 1, 1, dtype=torch.long), {"name": "Focal", "kwargs": {"gamma": gamma}}).backward()
    assert pred.grad is not None
    assert torch.isfinite(pred.grad).all()


def test_a_perfect_prediction_costs_nothing() -> None:
    mask = torch.tensor([[[0, 1, 2], [255, 1, 0]]])
    pred = 200.0 * F.one_hot(mask.masked_fill(mask == 255, 0), 3).permute(0, 3, 1, 2)
    for name in ("CELoss", "Focal", "Dice", "Lovasz"):
        assert float(labeled_loss(pred, mask, {"name": name})) == pytest.approx(0, abs=1e-6)
        assert float(labeled_loss(-pred, mask, {"name": name})) > 0.5


def test_balanced_weights() -> None:
    assert balanced_weights([0, 50, 50]) == [round(1 / math.log(1.02), 4), *[round(1 / math.log(1.52), 4)] * 2]
    assert balanced_weights([0, 0]) == [50.4983, 50.4983]


OHEM: dict[str, Any] = {"name": "OHEM", "kwargs": {"ignore_index": 255, "thresh": 0.7, "min_kept": 5}}
OTHERS: list[dict[str, Any]] = [{"name": name, "kwargs": {"class_weights": [1, 2, 3]}} for name in CRITERIA if name != "OHEM"]


@pytest.mark.parametrize("criterion", [CE, OHEM, *OTHERS], ids=lambda one: f"{one['name']} {len(one['kwargs'])}")
def test_nothing_labelled_is_zero_with_zero_gradient(criterion: dict[str, Any]) -> None:
    pred = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = labeled_loss(pred, torch.full((2, 4, 5), 255), criterion)
    loss.backward()
    assert float(loss.detach()) == 0
    assert pred.grad is not None
    assert not pred.grad.any()


def test_nothing_valid_in_an_unlabelled_loss_is_zero() -> None:
    pred = torch.randn(2, 3, 4, 5, requires_grad=True)
    padding = torch.full((2, 4, 5), 255, dtype=torch.uint8)
    loss = unlabeled_loss(pred, torch.zeros(2, 4, 5, dtype=torch.long), torch.ones(2, 4, 5), padding, 0.95)
    loss.backward()
    assert float(loss.detach()) == 0
    assert pred.grad is not None
    assert not pred.grad.any()
    assert float(mask_ratio(torch.ones(2, 4, 5), padding, 0.95)) == 0


def test_nothing_confident_is_zero_but_counts_all_pixels() -> None:
    pred, conf = torch.randn(1, 2, 1, 4), torch.tensor([[[0.95, 0.94, 0.96, 1.0]]])
    ignore = torch.tensor([[[0, 0, 0, 255]]], dtype=torch.uint8)
    label = torch.tensor([[[0, 1, 1, 0]]])
    logp = pred.log_softmax(1)[0, :, 0]
    expected = -(logp[0, 0] + logp[1, 2]) / 3  # 0.95 is confident; padding is neither counted nor learned from
    assert float(unlabeled_loss(pred, label, conf, ignore, 0.95)) == pytest.approx(float(expected))
    assert float(mask_ratio(conf, ignore, 0.95)) == pytest.approx(2 / 3)
    assert float(unlabeled_loss(pred, label, conf, ignore, 1.01)) == 0


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 2.5), (0.5, 2.0), (2.0, 3.0), (4.0, 3.4), (0.0, 1.0)])
def test_total_loss(weight: float, expected: float) -> None:
    """Figure 6 weighs the two parts and keeps their scale."""
    loss, stats = semi_loss(torch.tensor(1.0), torch.tensor(4.0), weight, torch.tensor(0.5))
    assert float(loss) == float(stats["loss_all"]) == pytest.approx(expected)
