"""What a run shows of itself after every epoch: report.html, and pictures and shares of pseudo labels for TensorBoard."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from dataset import picture
from dataset.batch import Batch
from dataset.loader import Data
from dataset.spec import IGNORE
from engine import metric
from engine.evaluation import Counts, Prediction
from engine.metrics_file import Epoch, finite, read_epochs
from engine.page.render import PageData, data_uri, render
from engine.page.samples import sample_panels
from engine.pseudo_quality import current, quality_of, warnings
from engine.records import Record
from engine.resume import LOG, METRICS, PAGE
from engine.update import Learner
from engine.zero import labeled_classes, reasons
from model.pseudo import pseudo_label
from model.segmenter import Segmenter
from util.config import Config
from util.dist import World
from util.error import UserError, reason
from util.files import write_atomic

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

WARNINGS = 30  # the latest ones that the page shows
# time and message, which runs on over indented lines
_WARNING = re.compile(r"^\[([^\],]{19}),\d{3}\]\[ *(?:WARNING|ERROR)\] (.*(?:\n  .*)*)", re.MULTILINE)


def latest_warnings(log: Path, begin: int = 0) -> list[str]:
    """The latest warnings and errors in a log from byte `begin` on, each with its time; none where it cannot be read.

    Of those about the pseudo labels, which are repeated as a run goes on, the last of each kind.
    """
    try:
        text = log.read_bytes()[begin:].decode("utf-8", errors="replace")
    except OSError:
        return []
    return current([f"{when} {message}" for when, message in _WARNING.findall(text)])[-WARNINGS:]


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


class PageWriter:
    """The page of one run, and its pictures for TensorBoard. Every process makes one and calls it alike; only the first one writes.

    A run that is resumed takes the curves before from metrics.jsonl and the warnings from the log. first: epoch it begins with.
    """

    def __init__(self, cfg: Config, data: Data, world: World, folder: Path, record: Record, prediction: Prediction, first: int) -> None:
        self.cfg, self.data, self.world, self.folder, self.record = cfg, data, world, folder, record
        self.log, self.prediction = folder / LOG, prediction
        settings = asdict(cfg) | {"processes": world.size, "shards": data.sampler.shards, "eval_mode": prediction.mode}
        split = Path(cfg.labeled_id_path).parent.name
        self.labeled: Mapping[int, int] | None = None  # pixels of each class, counted when somebody asks
        self.page = PageData(
            title=" \u00b7 ".join((record.method.name, cfg.dataset, split, cfg.backbone)),
            settings=settings,
            spec=data.spec,
            method=record.method,
            total_epochs=cfg.epochs,
            memory_name="peak GPU memory" if world.device.type == "cuda" else "peak memory",
        )
        # a new run in the folder of an earlier one may continue its log
        self.log_begin = self.log.stat().st_size if world.main and not record.board.start else 0
        if world.main and first > 0:
            self._restore(first)
        self.begin(0)

    def _restore(self, first: int) -> None:
        """Takes over the epochs before `first`; those that are missing or torn cost their points of the curves, never the run."""
        path, page = self.folder / METRICS, self.page

        def fits(row: Epoch) -> bool:  # resume=force may change models and classes
            named = [own["iou"] for own in row.scores.values()] + ([row.pseudo_quality["classes"]] if row.pseudo_quality else [])
            return tuple(row.scores) == page.method.models and all(tuple(own) == page.spec.classes for own in named)

        with suppress(OSError):
            page.epochs = [row for row in read_epochs(path) if row.epoch < first and (not row.scores or fits(row))]
        if (found := len(page.epochs)) < first:
            self.record.log.warning(f"{path}: found {found} of the {first} epochs so far; the page's curves lack the others")

    def begin(self, step: int) -> None:
        """An epoch begins, `step` of its steps are done."""
        self.started, self.first_step = time.monotonic(), step

    def trained(self) -> None:
        """The steps of the epoch are done."""
        self.train_seconds = time.monotonic() - self.started

    def epoch(
        self,
        epoch: int,
        means: dict[str, float],
        counts: Counts | None,
        learner: Learner,
        batches: Sequence[Batch],
    ) -> None:
        """Adds an epoch.

        means: of its training scalars; counts: of its evaluation, if it has one; batches: of its last step.
        """
        page, board = self.page, self.record.board
        models = {name: model.eval() for name, model in learner.models.items()}
        kept: dict[str, float] = {}
        if learner.labels_by is not None and batches:
            kept = kept_shares(learner.labels_by, batches, page.spec.classes, self.cfg.conf_thresh, self.world)
        if not self.world.main:
            return
        row = self._row(epoch, means, counts, learner.it, kept)
        self.record.finished(row)
        page.epochs.append(row)
        if learner.labels_by is not None:
            last = epoch + 1 == self.cfg.epochs
            for text in warnings(page.epochs, self._labeled, page.spec.classes, self.cfg.conf_thresh, last):
                self.record.log.warning(text)
        if row.images_per_second is not None:
            board.add("train/images_per_second", row.images_per_second, epoch)
        for name, share in row.pseudo_labels.items():
            board.add(f"pseudo_labels/{name}", share, epoch)
        if counts is not None:
            matrix = counts.matrices[self.record.judged]
            page.confusion = matrix.tolist()
            page.at_zero = self._at_zero(matrix)
            self._draw_samples(epoch, models, learner.labels_by)
        self._write()

    def tested(self, lines: list[str]) -> None:
        """Adds the score of best.pth on the test list. A run that was finished before keeps its page, which has more than is read back."""
        if self.world.main and self.page.updated:
            self.page.tested = lines
            self._write()

    def _at_zero(self, matrix: Tensor) -> dict[str, str]:
        """Why the classes that have been at 0 in every evaluation stay there, by name."""
        page, classes = self.page, self.page.spec.classes
        stay = {k: name for k, name in enumerate(classes) if not any(row.scores[page.judged]["iou"][name] for row in page.evaluated)}
        if not stay:
            return {}
        seen = [row.pseudo_labels for row in page.epochs if row.pseudo_labels]
        kept = [sum(shares.get(name, 0) for shares in seen) for name in classes] if seen else None
        found = reasons(matrix, self._labeled(), kept)
        return {name: found[k] for k, name in stay.items()}

    def _labeled(self) -> Mapping[int, int] | None:
        """Labelled pixels of each class id, counted when somebody asks for the first time."""
        if self.labeled is None:
            self.labeled = labeled_classes(self.data.labeled)
        return self.labeled

    def _draw_samples(self, epoch: int, models: dict[str, Segmenter], labels_by: Segmenter | None) -> None:
        cfg, page = self.cfg, self.page
        try:
            rows = sample_panels(self.data.validation, models, labels_by, cfg.conf_thresh, self.prediction)
        except UserError as error:  # an image that was evaluated a moment ago: no reason to end a run
            self.record.log.warning(f"{error}; this epoch has no sample panels")
            return
        page.samples = [(name, [(caption, data_uri(image)) for caption, image in panels], seen) for name, panels, seen in rows]
        for i, (_, panels, _) in enumerate(rows):
            drawn = picture.row([image for _, image in panels], [caption for caption, _ in panels])
            self.record.board.draw(f"samples/{i}", drawn, epoch)

    def _row(self, epoch: int, means: dict[str, float], counts: Counts | None, step: int, kept: dict[str, float]) -> Epoch:
        sampler, spec = self.data.sampler, self.data.spec
        a_step = sampler.batch * sampler.shards
        images = (sampler.steps - self.first_step) * a_step * len(sampler.streams)
        scores = [metric.scores(matrix, spec) for matrix in (counts.matrices if counts else [])]
        return Epoch(
            epoch=epoch,
            step=step,
            seconds=time.monotonic() - self.started,
            memory=peak_memory(self.world.device),
            # a run that was resumed after the epoch's last step did none
            images_per_second=images / max(1e-9, self.train_seconds) if images else None,
            means=finite(means),
            pseudo_labels=kept,
            scores=dict(zip(self.record.method.models, scores, strict=False)),
            pseudo_quality=quality_of(counts, spec.classes) if counts else {},
            labeled_images=sampler.steps * a_step,
        )

    def _write(self) -> None:
        """Writes report.html; a disk that does not take it is reported in the log, and training continues."""
        self.page.updated = time.strftime("as of %Y-%m-%d %H:%M:%S")
        self.page.warnings = latest_warnings(self.log, self.log_begin)
        path = self.folder / PAGE
        try:
            write_atomic(path, lambda file: file.write(render(self.page).encode()))
        except OSError as error:
            self.record.log.error(f"{path}: cannot be written ({reason(error)}); the next epoch tries again")
