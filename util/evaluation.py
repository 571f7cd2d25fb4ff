"""Evaluation, shared by the training loop and the command: one pass over the data for any number of models (spec.md 4)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dataset.batch import normalize
from dataset.semi import Source, ValSet, batches, collate
from model.backbone.dinov2 import PATCH
from util import metric
from util.dist import World
from util.signals import ignore_in_worker


def nearest_multiple(side: int) -> int:
    """The multiple of 14 nearest to `side` pixels, half up, at least 14."""
    return max(PATCH, (side + PATCH // 2) // PATCH * PATCH)


def predict_whole(model: nn.Module, img: Tensor) -> Tensor:
    """Logits (B, K, H, W) of normalised images (B, C, H, W) of any size: resized to multiples of 14 and back."""
    size = img.shape[-2:]
    fitting = [nearest_multiple(side) for side in size]
    logits = model(F.interpolate(img, fitting, mode="bilinear", align_corners=True))
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def window_starts(side: int, window: int) -> list[int]:
    """Where the windows of one direction begin: a step of two thirds, the last one flush with the border."""
    last = max(0, side - window)
    return [*range(0, last, window * 2 // 3), last]


def predict_sliding(model: nn.Module, img: Tensor, window: int) -> Tensor:
    """Sum of the windows' softmax (B, K, H, W). A side shorter than the window is seen whole, resized as in `predict_whole`."""
    height, width = img.shape[-2:]
    total: Tensor | None = None
    for y in window_starts(height, window):
        for x in window_starts(width, window):
            prob = predict_whole(model, img[..., y : y + window, x : x + window]).softmax(dim=1)
            if total is None:
                total = prob.new_zeros(*prob.shape[:2], height, width)
            total[..., y : y + window, x : x + window] += prob
    assert total is not None
    return total


def predict(model: nn.Module, img: Tensor, mode: str, window: int) -> Tensor:
    """Scores (B, K, H, W) whose argmax is the prediction. mode: "original" or "sliding_window" with windows of `window` pixels."""
    return predict_sliding(model, img, window) if mode == "sliding_window" else predict_whole(model, img)


def validation_loader(source: Source, world: World, workers: int) -> DataLoader:
    """Every image of the list exactly once, spread over the processes."""
    own = range(world.rank, len(source.ids), world.size)
    return DataLoader(
        ValSet(source), batch_size=1, sampler=list(own), num_workers=workers, collate_fn=collate, worker_init_fn=ignore_in_worker
    )


@torch.no_grad()
def evaluate(models: Sequence[nn.Module], loader: Iterable[Any], mode: str, window: int, nclass: int, world: World) -> list[Tensor]:
    """Confusion matrix (K, K) int64, exact over all processes, of each model."""
    totals = torch.zeros(len(models), nclass, nclass, dtype=torch.int64, device=world.device)
    for batch in _on_device(loader, world.device):
        for i, model in enumerate(models):
            pred = predict(model, batch["img"], mode, window).argmax(dim=1)
            totals[i] += metric.confusion(pred, batch["mask"], nclass)
    return list(world.sum_(totals).cpu())


def _on_device(loader: Iterable[Any], device: torch.device) -> Iterator[dict[str, Any]]:
    for batch in batches(loader):
        yield {
            "img": normalize(batch["img"].to(device, non_blocking=True)),
            "mask": batch["mask"].to(device, non_blocking=True).long(),
        }
