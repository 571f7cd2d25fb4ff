"""Losses at their edges, and OHEM against a brute-force version (METHOD.md 3)."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.loss import labeled_loss, mask_ratio, ohem, semi_loss, unlabeled_loss

CE: dict[str, Any] = {"name": "CELoss", "kwargs": {"ignore_index": 255}}


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


OHEM: dict[str, Any] = {"name": "OHEM", "kwargs": {"ignore_index": 255, "thresh": 0.7, "min_kept": 5}}


@pytest.mark.parametrize("criterion", [CE, OHEM])
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
