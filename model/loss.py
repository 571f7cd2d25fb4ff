"""Losses of all methods (METHOD.md 3)."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from util.error import UserError

Weights = Sequence[float] | None
IGNORE = 255  # of masks, as dataset/spec.py has it


def cross_entropy(pred: Tensor, mask: Tensor, ignore_index: int = IGNORE, class_weights: Weights = None) -> Tensor:
    """Mean cross-entropy over labelled pixels. pred: logits (B, K, H, W); mask: (B, H, W) long. 0 where no pixel is labelled.

    class_weights: a pixel counts as much as the weight of its true class, in the sum and in what it is divided by.
    """
    return _pixel_mean(F.cross_entropy(pred, mask, ignore_index=ignore_index, reduction="none"), mask, ignore_index, class_weights)


def _pixel_mean(loss: Tensor, mask: Tensor, ignore_index: int, class_weights: Weights) -> Tensor:
    """Weighted mean of the losses (B, H, W) of labelled pixels. They are 0 elsewhere."""
    valid = mask != ignore_index
    if class_weights is None:
        # not reduction="sum", which CUDA adds up in any order
        return loss.sum() / valid.sum().clamp(min=1)
    weight = _tensor(class_weights, mask.device)[mask.masked_fill(~valid, 0)] * valid
    return _quotient((loss * weight).sum(), weight.sum())


def _quotient(total: Tensor, weight: Tensor) -> Tensor:
    """The quotient total / weight, 0 where no pixel counts."""
    return total / torch.where(weight > 0, weight, 1)


def _tensor(class_weights: Sequence[float], device: torch.device) -> Tensor:
    if class_weights == "auto":
        raise UserError("criterion.kwargs.class_weights: found auto, which stands for a run's labelled list, expected numbers here")
    return weights_on(tuple(class_weights), device)


@cache
def weights_on(class_weights: tuple[float, ...], device: torch.device) -> Tensor:
    """The values on the device, copied once: a copy in each step would wait for a GPU."""
    return torch.tensor(class_weights, dtype=torch.float32, device=device)


def ohem(pred: Tensor, mask: Tensor, thresh: float, min_kept: int, ignore_index: int = IGNORE, class_weights: Weights = None) -> Tensor:
    """Online hard example mining: cross-entropy over the pixels whose true class has probability <= a threshold.

    The threshold is `thresh`, or the `min_kept`-th smallest probability of the mini-batch where that is larger, so that at
    least `min_kept` pixels are kept (equal is kept). With fewer valid pixels than `min_kept`, or min_kept 0: plain cross-entropy.
    """
    valid = mask != ignore_index
    if min_kept > 0 and min_kept <= mask.numel():
        target = mask.masked_fill(~valid, 0)
        with torch.no_grad():
            prob = pred.softmax(dim=1).gather(1, target[:, None]).squeeze(1).masked_fill(~valid, 1.0)
            bound = _smallest(prob.flatten(), min_kept).clamp(min=thresh)
            bound = bound.masked_fill(valid.sum() < min_kept, torch.inf)  # too few valid pixels: keep all, without reading the count
        mask = mask.masked_fill(prob > bound, ignore_index)
    return cross_entropy(pred, mask, ignore_index, class_weights)


def _smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest value. It is found by sorting on CUDA, whose kthvalue works through all of them with one block of threads."""
    return values.sort().values[k - 1] if values.is_cuda else values.kthvalue(k).values


def focal(pred: Tensor, mask: Tensor, gamma: float = 2.0, ignore_index: int = IGNORE, class_weights: Weights = None) -> Tensor:
    """Focal loss (Lin et al. 2017): cross-entropy times (1 - p)^gamma, p the true class's probability; its mean as in `cross_entropy`."""
    loss = F.cross_entropy(pred, mask, ignore_index=ignore_index, reduction="none")
    # 1 - p; not quite 0, where a gamma below 1 would have an infinite gradient
    missing = (-torch.expm1(-loss)).clamp(min=1e-6)
    return _pixel_mean(loss * missing**gamma, mask, ignore_index, class_weights)


def dice(pred: Tensor, mask: Tensor, ce: float = 0.0, ignore_index: int = IGNORE, class_weights: Weights = None) -> Tensor:
    """Soft Dice loss (Milletari et al. 2016): for a class, 1 - 2 sum(p g) / (sum(p) + sum(g)) over the mini-batch's labelled pixels.

    p: the class's probability, g: 1 where it is the true class, else 0. The (weighted) mean of the classes that are labelled in the
    mini-batch. ce: cross-entropy, times this, is added.
    """
    prob, truth, valid = _by_class(pred, mask, ignore_index)
    both, labeled = ((prob * truth).sum((0, 2, 3)), truth.sum((0, 2, 3)))
    losses = 1 - 2 * both / ((prob * valid).sum((0, 2, 3)) + labeled).clamp(min=1)
    return _class_mean(losses, labeled, class_weights) + _added(ce, pred, mask, ignore_index, class_weights)


def lovasz(pred: Tensor, mask: Tensor, ce: float = 0.0, ignore_index: int = IGNORE, class_weights: Weights = None) -> Tensor:
    """Lovasz-Softmax (Berman et al. 2018): the convex extension of 1 - IoU of a class, over the mini-batch's labelled pixels.

    With the errors |g - p| in descending order it is their sum, each times what IoU loses when its pixel joins the wrong ones. The
    (weighted) mean of the classes that are labelled in the mini-batch. ce: as in `dice`.
    """
    prob, truth, valid = _by_class(pred, mask, ignore_index)
    labeled = truth.sum((0, 2, 3))
    errors = (truth.to(prob.dtype) - prob).abs() * valid  # an ignored pixel has none: it comes last and adds nothing
    losses = [_lovasz_class(errors[:, k].flatten(), truth[:, k].flatten()) for k in range(pred.shape[1])]
    return _class_mean(torch.stack(losses), labeled, class_weights) + _added(ce, pred, mask, ignore_index, class_weights)


def _lovasz_class(errors: Tensor, truth: Tensor) -> Tensor:
    ordered, order = errors.sort(descending=True, stable=True)
    # counts, not float sums: CUDA has no order for those
    found = truth[order].cumsum(0)
    loss = 1 - (found[-1] - found) / (found[-1] + torch.arange(1, len(found) + 1, device=found.device) - found)  # 1 - IoU
    return (ordered * loss.diff(prepend=loss.new_zeros(1))).sum()


def _by_class(pred: Tensor, mask: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (B, K, H, W), whether each class is the true one (B, K, H, W), and whether a pixel is labelled (B, 1, H, W)."""
    valid = (mask != ignore_index)[:, None]
    classes = torch.arange(pred.shape[1], device=pred.device)[:, None, None]
    return pred.softmax(dim=1), (mask[:, None] == classes) & valid, valid


def _class_mean(losses: Tensor, labeled: Tensor, class_weights: Weights) -> Tensor:
    """Mean of the losses (K,) of classes with labelled pixels (K,)."""
    weight = (labeled > 0).to(losses.dtype)
    if class_weights is not None:
        weight = weight * _tensor(class_weights, losses.device)
    return _quotient((losses * weight).sum(), weight.sum())


def _added(ce: float, pred: Tensor, mask: Tensor, ignore_index: int, class_weights: Weights) -> Tensor | float:
    return ce * cross_entropy(pred, mask, ignore_index, class_weights) if ce else 0.0


CRITERIA: dict[str, Callable[..., Tensor]] = {"CELoss": cross_entropy, "OHEM": ohem, "Focal": focal, "Dice": dice, "Lovasz": lovasz}


def labeled_loss(pred: Tensor, mask: Tensor, criterion: dict[str, Any]) -> Tensor:
    """Loss on labelled images by the config's `criterion`: {name: one of CRITERIA, kwargs: {...}}. class_weights: one for each class."""
    return CRITERIA[criterion["name"]](pred, mask, **(criterion.get("kwargs") or {}))


def balanced_weights(pixels: Sequence[int]) -> list[float]:
    """The weights of `class_weights: auto`: 1 / ln(1.02 + share of the labelled pixels) (Paszke et al. 2016), from 1.4 to 50.5."""
    return [round(1 / math.log(1.02 + count / max(1, sum(pixels))), 4) for count in pixels]


# what a key of `kwargs` may be, and whether a value is
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "thresh": ("a probability from 0 to 1", lambda v: _number(v) and v <= 1),
    "min_kept": ("a whole number of pixels", lambda v: type(v) is int and v >= 0),
    "gamma": ("a number, 0 or more", lambda v: _number(v)),
    "ce": ("a number, 0 or more", lambda v: _number(v)),
}


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def check_criterion(criterion: dict[str, Any], nclass: int) -> None:
    """Raises UserError for a criterion that `labeled_loss` would not understand."""
    name, kwargs = criterion.get("name"), criterion.get("kwargs") or {}
    if name not in tuple(CRITERIA):  # it may be a list, which has no hash
        raise UserError(f"criterion.name: found {name!r}, expected one of {', '.join(CRITERIA)}; correct the config")
    if not isinstance(kwargs, dict):
        raise UserError(f"criterion.kwargs: found {kwargs!r}, expected `key: value` pairs; correct the config")
    allowed = {key: value for key, value in inspect.signature(CRITERIA[name]).parameters.items() if key not in ("pred", "mask")}
    if unknown := set(kwargs) - set(allowed) or set(criterion) - {"name", "kwargs"}:
        found = ", ".join(sorted(map(str, unknown)))
        raise UserError(f"criterion: found {found}, expected name and kwargs with {', '.join(sorted(allowed))}; correct the config")
    if lacking := [key for key, value in allowed.items() if value.default is value.empty and key not in kwargs]:
        raise UserError(f"criterion.kwargs: {name} needs {' and '.join(lacking)}, found no {lacking[0]}; add what is missing to the config")
    if (inner := kwargs.get("ignore_index", IGNORE)) != IGNORE:
        raise UserError(
            f"criterion.kwargs.ignore_index: found {inner!r}, expected {IGNORE}, which masks hold once they are read; "
            "the value in the mask files is the key ignore_index"
        )
    for key, (expected, fits) in _RULES.items():
        if key in kwargs and not fits(kwargs[key]):
            raise UserError(f"criterion.kwargs.{key}: found {kwargs[key]!r}, expected {expected}; correct it in the config")
    weights = kwargs.get("class_weights")
    if weights not in (None, "auto") and not (
        isinstance(weights, list) and len(weights) == nclass and all(map(_number, weights)) and any(weights)
    ):
        raise UserError(
            f"criterion.kwargs.class_weights: found {weights!r}, expected auto, or {nclass} numbers, one for each class, of 0 or more and "
            "not all 0; correct it in the config"
        )


def numeric_criterion(criterion: dict[str, Any], nclass: int, count: Callable[[], Sequence[int]]) -> dict[str, Any]:
    """The labelled criterion with numbers for `class_weights: auto`. Raises UserError for one that makes no sense.

    count: the labelled pixels of each class; called for `auto` alone.
    """
    check_criterion(criterion, nclass)
    kwargs = criterion.get("kwargs") or {}
    if kwargs.get("class_weights") != "auto":
        return criterion
    return criterion | {"kwargs": kwargs | {"class_weights": balanced_weights(count())}}


def unlabeled_loss(pred: Tensor, pseudo: Tensor, conf: Tensor, ignore: Tensor, thresh: float) -> Tensor:
    """Cross-entropy against pseudo labels where the teacher is confident, averaged over all pixels that are not padding.

    pred: logits (B, K, H, W); pseudo: (B, H, W) long; conf: (B, H, W) in [0, 1]; ignore: (B, H, W), 255 on padding.
    """
    valid = ignore != IGNORE
    loss = F.cross_entropy(pred, pseudo, reduction="none")
    return (loss * (valid & (conf >= thresh))).sum() / valid.sum().clamp(min=1)


def mask_ratio(conf: Tensor, ignore: Tensor, thresh: float) -> Tensor:
    """Share of confident pixels among those that are not padding, before CutMix: what the log calls the mask ratio."""
    valid = ignore != IGNORE
    return (valid & (conf >= thresh)).sum() / valid.sum().clamp(min=1)


def semi_loss(loss_x: Tensor, loss_s: Tensor, weight: float, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a semi-supervised step, (loss_x + w * loss_s) / (1 + w), the mean of the two at the published w = 1, and its stats."""
    loss = (loss_x + weight * loss_s) / (1 + weight)
    return loss, {"loss_all": loss.detach(), "loss_x": loss_x.detach(), "loss_s": loss_s.detach(), "mask_ratio": ratio}
