"""What a run measures of an epoch besides losses and scores: its time, its memory, its images, and the shares of its pseudo labels."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dataset.batch import Batch
from dataset.loader import LISTS, Data
from dataset.spec import IGNORE
from engine.evaluation import Counts
from engine.metrics_file import Epoch, finite
from engine.update import Learner
from model.pseudo import pseudo_label
from util.dist import World

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_memory(device: torch.device) -> float | None:
    """The largest memory so far in MiB: of the GPU's tensors, or of this process; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@torch.no_grad()
def kept_shares(labels_by: nn.Module, batches: Sequence[Batch], classes: Sequence[str], thresh: float, world: World) -> dict[str, float]:
    """Share in percent of all unlabelled pixels of one step, padding apart, whose pseudo label counts, for each class.

    All processes must call it.
    """
    counts = torch.zeros(len(classes) + 1, dtype=torch.int64, device=world.device)
    for batch in batches:
        pseudo, conf = pseudo_label(labels_by, batch.img_u_w)
        valid = batch.ignore_u != IGNORE
        counts[:-1] += torch.bincount(pseudo[valid & (conf >= thresh)], minlength=len(classes))
        counts[-1] += valid.sum()
    *kept, whole = world.sum_(counts).tolist()
    return {name: 100 * count / max(1, whole) for name, count in zip(classes, kept, strict=True)}


@dataclass(frozen=True)
class Evaluation:
    """What the evaluation of an epoch has found. scores: of each model, as `metric.scores` has them; quality: what the pseudo labels are
    worth, empty where there are none; best: whether no epoch before it was better.
    """

    counts: Counts
    scores: dict[str, dict[str, Any]]
    quality: dict[str, Any]
    best: bool


class EpochMeter:
    """Measures the epochs of a run, one after the other. Every process has one and calls it alike."""

    def __init__(self, data: Data, learner: Learner) -> None:
        self.data, self.learner = data, learner
        self.begin(0)

    def begin(self, step: int, seconds: float = 0.0) -> None:
        """An epoch begins, or is resumed: `step` of its steps are done, in so many seconds."""
        self.started, self.first_step, self.before = time.monotonic(), step, seconds

    def seconds(self) -> float:
        """How long the epoch has taken so far, without the time between a stop and the next start."""
        return self.before + time.monotonic() - self.started

    def trained(self) -> None:
        """The steps of the epoch are done."""
        self.train_seconds = time.monotonic() - self.started

    def epoch(self, epoch: int, means: dict[str, float], evaluation: Evaluation | None, batches: Sequence[Batch]) -> Epoch:
        """The epoch, which is finished. means: of its training scalars; evaluation: None where it has none; batches: of its last step."""
        sampler, learner = self.data.sampler, self.learner
        # images of a step, of each list; the second draw is of the same ones
        a_step = {name: stream.batch * sampler.shards for name, stream in sampler.streams.items() if name in LISTS}
        images = (sampler.steps - self.first_step) * sum(a_step.values())
        kept: dict[str, float] = {}
        if learner.labels_by is not None and batches:
            kept = kept_shares(learner.labels_by.eval(), batches, self.data.spec.classes, learner.cfg.conf_thresh, learner.world)
        return Epoch(
            epoch=epoch,
            step=learner.it,
            seconds=self.seconds(),
            memory=peak_memory(learner.world.device),
            # a run that was resumed after the epoch's last step did none
            images_per_second=images / max(1e-9, self.train_seconds) if images else None,
            means=finite(means),
            pseudo_labels=kept,
            scores=evaluation.scores if evaluation else {},
            pseudo_quality=evaluation.quality if evaluation else {},
            labeled_images=sampler.steps * a_step["x"],
        )
