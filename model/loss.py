"""Losses of the three methods (METHOD.md 3)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from util.error import UserError


def cross_entropy(pred: Tensor, mask: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean cross-entropy over labelled pixels. pred: logits (B, K, H, W); mask: (B, H, W) long. 0 where no pixel is labelled."""
    # not reduction="sum", which CUDA adds up in any order
    total = F.cross_entropy(pred, mask, ignore_index=ignore_index, reduction="none").sum()
    return total / (mask != ignore_index).sum().clamp(min=1)


def ohem(pred: Tensor, mask: Tensor, thresh: float, min_kept: int, ignore_index: int = 255) -> Tensor:
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
    return cross_entropy(pred, mask, ignore_index)


def _smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest. Sorted on CUDA, whose kthvalue works through all of them with one block of threads."""
    return values.sort().values[k - 1] if values.is_cuda else values.kthvalue(k).values


def labeled_loss(pred: Tensor, mask: Tensor, criterion: dict[str, Any]) -> Tensor:
    """Loss on labelled images by the config's `criterion`: {name: CELoss | OHEM, kwargs: {...}}."""
    kwargs = criterion.get("kwargs") or {}
    if criterion["name"] == "CELoss":
        return cross_entropy(pred, mask, **kwargs)
    return ohem(pred, mask, **kwargs)


def check_criterion(criterion: dict[str, Any]) -> None:
    """Raises UserError for a criterion that `labeled_loss` would not understand."""
    allowed = {"CELoss": {"ignore_index"}, "OHEM": {"ignore_index", "thresh", "min_kept"}}
    name, kwargs = criterion.get("name"), criterion.get("kwargs") or {}
    if name not in tuple(allowed):  # it may be a list, which has no hash
        raise UserError(f"criterion.name: found {name!r}, expected CELoss or OHEM; correct the config")
    if not isinstance(kwargs, dict):
        raise UserError(f"criterion.kwargs: found {kwargs!r}, expected `key: value` pairs; correct the config")
    if unknown := set(kwargs) - allowed[name] or set(criterion) - {"name", "kwargs"}:
        found = ", ".join(sorted(map(str, unknown)))
        raise UserError(f"criterion: found {found}, expected name and kwargs with {', '.join(sorted(allowed[name]))}; correct the config")
    if name == "OHEM" and not {"thresh", "min_kept"} <= set(kwargs):
        raise UserError("criterion.kwargs: OHEM needs thresh (a probability) and min_kept (pixels); add them to the config")
    if (inner := kwargs.get("ignore_index", 255)) != 255:
        raise UserError(
            f"criterion.kwargs.ignore_index: found {inner!r}, expected 255, which masks hold once they are read; "
            "the value in the mask files is the key ignore_index"
        )
    thresh, kept = kwargs.get("thresh", 0), kwargs.get("min_kept", 0)
    if type(thresh) not in (int, float) or not 0 <= thresh <= 1:
        raise UserError(f"criterion.kwargs.thresh: found {thresh!r}, expected a probability from 0 to 1; correct it in the config")
    if type(kept) is not int or kept < 0:
        raise UserError(f"criterion.kwargs.min_kept: found {kept!r}, expected a whole number of pixels; correct it in the config")


def unlabeled_loss(pred: Tensor, pseudo: Tensor, conf: Tensor, ignore: Tensor, thresh: float) -> Tensor:
    """Cross-entropy against pseudo labels where the teacher is confident, averaged over all pixels that are not padding.

    pred: logits (B, K, H, W); pseudo: (B, H, W) long; conf: (B, H, W) in [0, 1]; ignore: (B, H, W), 255 on padding.
    """
    valid = ignore != 255
    loss = F.cross_entropy(pred, pseudo, reduction="none")
    return (loss * (valid & (conf >= thresh))).sum() / valid.sum().clamp(min=1)


def mask_ratio(conf: Tensor, ignore: Tensor, thresh: float) -> Tensor:
    """Share of confident pixels among those that are not padding, before CutMix: what the log calls the mask ratio."""
    valid = ignore != 255
    return (valid & (conf >= thresh)).sum() / valid.sum().clamp(min=1)


def semi_loss(loss_x: Tensor, loss_s: Tensor, weight: float, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What a semi-supervised step returns: (loss_x + w * loss_s) / (1 + w), the mean of the two at the published w = 1, and the stats."""
    loss = (loss_x + weight * loss_s) / (1 + weight)
    return loss, {"loss_all": loss.detach(), "loss_x": loss_x.detach(), "loss_s": loss_s.detach(), "mask_ratio": ratio}
