"""Prediction and evaluation, shared by the training loop and the commands (METHOD.md 4)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.batch import normalize
from dataset.loader import WHOLE, with_room
from dataset.semi import Source, ValSet, batches, collate_whole
from engine import metric
from model.encoder import Encoder
from model.segmenter import Segmenter
from util.dist import World, to_device
from util.error import UserError
from util.signals import start_worker

LARGE = 2  # a scene of change detection with a side of more than this many training crops is seen in windows
WINDOWS = 4  # windows of an image that go through the model at once


def nearest_multiple(side: int, multiple: int, least: int = 1) -> int:
    """The multiple of `multiple` nearest to `side` pixels, half up, at least `multiple` and `least`, a multiple of it or less."""
    return max(multiple, least, (side + multiple // 2) // multiple * multiple)


def check_window(window: int | None, model: Segmenter) -> None:
    """Raises UserError for windows (--tile) that are smaller than what the model can see; None: no windows were asked for."""
    if window is not None and window < model.multiple:
        raise UserError(f"--tile: found {window}, expected {model.multiple} or more")


def check_mode(encoder: Encoder, mode: str, window: int) -> None:
    """Raises UserError for an encoder that takes images of one size alone, unless it sees windows of that size."""
    if encoder.fixed_size and (mode, window) != ("sliding_window", encoder.multiple):
        found = f"windows of {window}" if mode == "sliding_window" else "whole images"
        size = encoder.multiple
        raise UserError(
            f"eval_mode: found {found}, expected windows of {size}, the one size that this backbone takes; "
            f"set eval_mode=sliding_window and crop_size={size}"
        )


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=True)


def predict_whole(model: Segmenter, img: Tensor) -> Tensor:
    """Logits (B, K, H, W) of normalised images (B, C, H, W) of any size: resized to the model's multiple and back."""
    size = img.shape[-2:]
    fitting = [nearest_multiple(side, model.multiple, model.backbone.least) for side in size]
    return _resize(model(_resize(img, fitting)), size)


def window_starts(side: int, window: int, cut: bool = False) -> list[int]:
    """Where the windows of one direction begin: a step of two thirds, the last one flush with the border.

    cut: the steps are taken as long as they lead into the image; windows that reach out of it are cut off.
    """
    last = max(0, side - window)
    return [*range(0, side, window * 2 // 3)] if cut else [*range(0, last, window * 2 // 3), last]


def predict_sliding(model: Segmenter, img: Tensor, window: int) -> Tensor:
    """Sum of the windows' softmax (B, K, H, W). A side shorter than the window is seen whole, resized as in `predict_whole`."""
    batch, _, height, width = img.shape
    rows, cols = (window_starts(side, window, model.cut_windows) for side in (height, width))
    corners = [(y, x) for y in rows for x in cols]
    group = 1 if model.cut_windows else max(1, WINDOWS // batch)  # windows of one size go through the model at once
    total: Tensor | None = None
    for first in range(0, len(corners), group):
        part = corners[first : first + group]
        probs = predict_whole(model, torch.cat([img[..., y : y + window, x : x + window] for y, x in part])).softmax(dim=1)
        if total is None:
            total = probs.new_zeros(batch, probs.shape[1], height, width)
        for (y, x), prob in zip(part, probs.split(batch), strict=True):
            total[..., y : y + window, x : x + window] += prob
    assert total is not None
    return total


def predict(model: Segmenter, img: Tensor, mode: str, window: int, scales: Sequence[float] = (1.0,), flip: bool = False) -> Tensor:
    """Scores (B, K, H, W) whose argmax is the prediction: logits, or sums of softmax over windows and augmented views.

    mode: "original" or "sliding_window" with windows of `window` pixels. scales, flip: test-time augmentation; every scale of the
    image is predicted, with flip its mirror image too, and their probabilities are added at the original size.
    Raises UserError where the model cannot see images so.
    """
    check_mode(model.backbone, mode, window)
    if tuple(scales) == (1.0,) and not flip:
        return predict_sliding(model, img, window) if mode == "sliding_window" else predict_whole(model, img)
    size = img.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        view = img if scale == 1 else _resize(img, [max(1, int(side * scale + 0.5)) for side in size])
        for mirror in (False, True) if flip else (False,):
            prob = probabilities(predict(model, view.flip(-1) if mirror else view, mode, window), mode)
            prob = _resize(prob.flip(-1) if mirror else prob, size)
            total = prob if total is None else total + prob
    assert total is not None
    return total


def probabilities(scores: Tensor, mode: str) -> Tensor:
    """What `predict` returned without augmentation, as probabilities that sum to 1 over the classes."""
    if mode == "original":
        return scores.softmax(dim=1)
    return scores / scores.sum(dim=1, keepdim=True)


def validation_loader(source: Source, world: World, workers: int) -> DataLoader:
    """Every image of the list exactly once, spread over the processes, decoded ahead by `workers` processes where there is room."""
    own = range(world.rank, len(source.ids), world.size)
    options: dict[str, Any] = {"worker_init_fn": start_worker, "pin_memory": world.device.type == "cuda"}
    workers = with_room(workers, WHOLE * world.local_size)
    return DataLoader(ValSet(source), batch_size=1, sampler=list(own), num_workers=workers, collate_fn=collate_whole, **options)


@torch.no_grad()
def evaluate(models: Sequence[Segmenter], loader: Iterable[Any], mode: str, window: int, nclass: int, world: World) -> list[Tensor]:
    """Confusion matrix (K, K) int64, exact over all processes, of each model."""
    totals = torch.zeros(len(models), nclass, nclass, dtype=torch.int64, device=world.device)
    for batch in on_device(loader, world.device, models[0].backbone):
        for i, model in enumerate(models):
            pred = predict(model, batch["img"], mode, window).argmax(dim=1)
            totals[i] += metric.confusion(pred, batch["mask"], nclass)
    return list(world.sum_(totals).cpu())


def on_device(loader: Iterable[Any], device: torch.device, encoder: Encoder) -> Iterator[dict[str, Any]]:
    """The loader's mini-batches: img (B, C, H, W) normalised, mask (B, H, W) long, name."""
    for batch in batches(loader):
        yield {
            "img": normalize(to_device(batch["img"], device), encoder),
            "mask": to_device(batch["mask"], device).long(),
            "name": batch["name"],
        }
