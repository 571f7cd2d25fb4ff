"""Prediction and evaluation, shared by the training loop and the commands (METHOD.md 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.batch import Batch, make_batch
from dataset.loader import WHOLE, with_room
from dataset.semi import ValSet, batches, collate
from dataset.source import Source
from dataset.spec import IGNORE, DatasetSpec
from engine import metric
from model.encoder import Encoder
from model.segmenter import Segmenter
from util.config import Config
from util.dist import World
from util.error import UserError
from util.progress import Progress
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
    if encoder.fixed_size and (mode == "original" or window != encoder.multiple):
        found = "whole images" if mode == "original" else f"windows of {window}"
        size = encoder.multiple
        raise UserError(
            f"eval_mode: found {found}, expected windows of {size}, the one size that this backbone takes; "
            f"set eval_mode=sliding_window and crop_size={size}"
        )


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=True)


def predict_whole(model: Segmenter, img: Tensor) -> Tensor:
    """Logits (B, K, H, W) of normalised images (B, C, H, W) of any size: resized to the model's multiple and back."""
    if model.depends_on_batch and len(img) > 1:
        return torch.cat([predict_whole(model, one) for one in img.split(1)])
    size = img.shape[-2:]
    fitting = [nearest_multiple(side, model.multiple, model.backbone.least) for side in size]
    return _resize(model(_resize(img, fitting)), size)


def window_starts(side: int, window: int, cut: bool = False, step: int | None = None) -> list[int]:
    """Where the windows of one direction begin: a step (two thirds) after the other, the last one flush with the border.

    cut: the steps are taken as long as they lead into the image; windows that reach out of it are cut off.
    """
    last = max(0, side - window)
    step = step or window * 2 // 3
    return [*range(0, side, step)] if cut else [*range(0, last, step), last]


def predict_sliding(model: Segmenter, img: Tensor, window: int, border: str = "flush") -> Tensor:
    """Sum of the windows' softmax (B, K, H, W). A side shorter than the window is seen whole, resized as in `predict_whole`.

    border: see `Prediction`.
    """
    cut = border == "cut"
    starts = [window_starts(side, window, cut) for side in img.shape[-2:]]
    return _add_windows(img, window, starts, lambda part: predict_whole(model, part).softmax(dim=1), one_by_one=cut)


def predict_slide(model: Segmenter, img: Tensor, window: int) -> Tensor:
    """Mean of the windows' logits (B, K, H, W), as mmsegmentation has it, here with a step of five sixths."""
    starts = [window_starts(side, window, step=max(1, window * 5 // 6)) for side in img.shape[-2:]]
    counts = _add_windows(img[:1], window, starts, lambda part: part.new_ones(len(part), 1, *part.shape[-2:]))
    return _add_windows(img, window, starts, lambda part: predict_whole(model, part)) / counts


def _add_windows(
    img: Tensor, window: int, starts: Sequence[Sequence[int]], score: Callable[[Tensor], Tensor], one_by_one: bool = False
) -> Tensor:
    """Sum (B, K, H, W) of what `score` makes of windows. starts: of rows, then of columns. one_by_one: where windows differ in size."""
    batch, _, height, width = img.shape
    corners = [(y, x) for y in starts[0] for x in starts[1]]
    group = 1 if one_by_one else max(1, WINDOWS // batch)
    total: Tensor | None = None
    for first in range(0, len(corners), group):
        part = corners[first : first + group]
        scores = score(torch.cat([img[..., y : y + window, x : x + window] for y, x in part]))
        if total is None:
            total = scores.new_zeros(batch, scores.shape[1], height, width)
        for (y, x), own in zip(part, scores.split(batch), strict=True):
            total[..., y : y + window, x : x + window] += own
    assert total is not None
    return total


@dataclass(frozen=True)
class Prediction:
    """How images are predicted, which the loop, evaluate.py and predict.py share (METHOD.md 4).

    mode: "original" sees images whole; "sliding_window" in windows of `window` pixels, whose probabilities are added; "slide" in such
    windows, whose logits are averaged. border: windows of "sliding_window" that would reach out of the image are moved back to its border
    ("flush") or cut off there ("cut"). scales, flip: test-time augmentation; every scale of the image is predicted, with flip its mirror
    image too, and their probabilities are added at the original size. whole: images with a longer side, in pixels, are seen in windows
    whatever the mode.
    """

    mode: str
    window: int
    border: str = "flush"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    whole: float = math.inf

    @classmethod
    def of(
        cls,
        cfg: Config,
        spec: DatasetSpec,
        model: Segmenter,
        mode: str | None = None,
        window: int | None = None,
        scenes: bool = False,
        **more: Any,
    ) -> Prediction:
        """As a run of this config evaluates, or with another mode, or in windows of `window` pixels. scenes: images may be large;
        pairs that are far larger than training crops are seen in windows, unless a mode is given. more: `scales` and `flip`.

        Raises UserError where the model cannot see images so.
        """
        whole = LARGE * cfg.crop_size if scenes and spec.bitemporal and mode is None and window is None else math.inf
        mode = mode or ("sliding_window" if window else cfg.eval_mode or spec.eval_mode)
        window = window or cfg.crop_size
        check_mode(model.backbone, mode, window)
        return cls(mode, window, "cut" if model.cut_windows else "flush", whole=whole, **more)

    def _windows(self, size: Sequence[int]) -> bool:
        return self.mode == "sliding_window" or max(size) > self.whole

    @property
    def _augmented(self) -> bool:
        return self.scales != (1.0,) or self.flip

    def class_scores(self, model: Segmenter, img: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Scores (B, K, H, W) whose argmax is the prediction, of normalised images (B, C, H, W): logits, or sums of softmax over windows
        and augmented views.

        size: H and W, where the model sees the images at another size (`dataset.semi.to_predict`).
        """
        if size is not None and tuple(size) != img.shape[-2:]:
            return _resize(self.class_scores(model, img), size)
        size = img.shape[-2:]
        windows = self._windows(size)
        if not self._augmented:
            if self.mode == "slide":
                return predict_slide(model, img, self.window)
            return predict_sliding(model, img, self.window, self.border) if windows else predict_whole(model, img)
        mode = "slide" if self.mode == "slide" else "sliding_window" if windows else "original"
        plain = Prediction(mode, self.window, self.border)
        total: Tensor | None = None
        for scale in self.scales:
            view = img if scale == 1 else _resize(img, [max(1, int(side * scale + 0.5)) for side in size])
            for mirror in (False, True) if self.flip else (False,):
                prob = plain.probabilities(plain.class_scores(model, view.flip(-1) if mirror else view))
                prob = _resize(prob.flip(-1) if mirror else prob, size)
                total = prob if total is None else total + prob
        assert total is not None
        return total

    def probabilities(self, scores: Tensor) -> Tensor:
        """What `class_scores` returned, as probabilities that sum to 1 over the classes."""
        if self._augmented or (self.mode != "slide" and self._windows(scores.shape[-2:])):
            return scores / scores.sum(dim=1, keepdim=True)
        return scores.softmax(dim=1)

    def __str__(self) -> str:
        text = "whole images" if self.mode == "original" else f"sliding windows of {self.window} px"
        scales = " ".join(f"{scale:g}" for scale in self.scales)
        if self.mode == "original" and self.whole < math.inf:
            text += f", in windows of {self.window} px where a side is longer than {self.whole:g} px"
        return text + (f", scales {scales}" if self.scales != (1.0,) else "") + (", mirrored too" if self.flip else "")


def validation_loader(source: Source, world: World, workers: int) -> DataLoader:
    """Every image of the list exactly once, spread over the processes, decoded ahead by `workers` processes where there is room."""
    own = range(world.rank, len(source.ids), world.size)
    options: dict[str, Any] = {"worker_init_fn": start_worker, "pin_memory": world.device.type == "cuda"}
    workers = with_room(workers, WHOLE * world.local_size)
    return DataLoader(ValSet(source), batch_size=1, sampler=list(own), num_workers=workers, collate_fn=collate, **options)


class Labeler(NamedTuple):
    """The model that gives the pseudo labels, by its index among those that are evaluated, and the confidence from which they count."""

    index_of_model: int
    thresh: float


class Counts(NamedTuple):
    """What an evaluation counts, exact over all processes, on the CPU.

    matrices: confusion counts (K, K) int64 of each model. images: `metric.sums` of each image, (models, N, 3, K) int64, in the order of
    the list. confident: confusion counts of the labeler, of confident pixels alone; None without one.
    """

    matrices: list[Tensor]
    images: Tensor
    confident: Tensor | None


@torch.no_grad()
def evaluate(
    models: Sequence[Segmenter],
    loader: Iterable[Any],
    prediction: Prediction,
    nclass: int,
    world: World,
    labeler: Labeler | None = None,
    progress: Progress | None = None,
    each: Callable[[Tensor, Tensor], None] | None = None,
) -> Counts:
    """Predicts every image with each model, and counts. loader: of this process's images, as `validation_loader` spreads them.

    each: called with the prediction of every image by every model, and with its mask: class ids (B, H, W).
    """
    images = []
    totals = torch.zeros(len(models) + 1, nclass, nclass, dtype=torch.int64, device=world.device)
    with progress or Progress(0, "image", shown=False) as progress:
        for raw in batches(loader):
            batch = make_batch(raw, world.device, models[0].backbone)
            images.append(_count_(totals, models, batch, prediction, labeler, each))
            progress.update()
    *matrices, confident = world.sum_(totals).cpu()
    parts = world.gather([torch.stack(images).cpu() if images else totals.new_zeros(0, len(models), 3, nclass).cpu()])
    return Counts(matrices, _in_order(parts), confident if labeler is not None else None)


def _count_(
    totals: Tensor,
    models: Sequence[Segmenter],
    batch: Batch,
    prediction: Prediction,
    labeler: Labeler | None,
    each: Callable[[Tensor, Tensor], None] | None,
) -> Tensor:
    """Adds the confusion counts of an image to `totals`, of each model and of the labeler's confident pixels; returns its `metric.sums`."""
    mask, nclass = batch.mask_x, totals.shape[-1]
    sums = []
    for i, model in enumerate(models):
        scores = prediction.class_scores(model, batch.img_x, mask.shape[-2:])
        pred = scores.argmax(dim=1)
        matrix = metric.confusion(pred, mask, nclass)
        totals[i] += matrix
        sums.append(metric.sums(matrix))
        if each is not None:
            each(pred, mask)
        if labeler is not None and i == labeler.index_of_model:
            conf = prediction.probabilities(scores).amax(dim=1)
            totals[-1] += metric.confusion(pred, torch.where(conf >= labeler.thresh, mask, IGNORE), nclass)
    return torch.stack(sums)


def _in_order(parts: list[Tensor]) -> Tensor:
    """Counts of all images (models, N, 3, K), of which process r of R has those at r, r + R and so on, each (n, models, 3, K)."""
    whole = parts[0].new_zeros(sum(map(len, parts)), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        own = whole[rank :: len(parts)]
        count = min(len(own), len(part))  # they are equal, unless the run was stopped in between
        own[:count] = part[:count]
    return whole.transpose(0, 1)
