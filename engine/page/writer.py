"""What a run shows of itself after every epoch: report.html, and pictures and shares of pseudo labels for TensorBoard."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset import picture
from dataset.batch import Batch
from dataset.loader import Data
from engine import metric
from engine.page.render import PageData, data_uri, render
from engine.page.samples import sample_panels
from engine.records import Record
from engine.update import Trainer
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

KEPT = "report.json"
WARNINGS = 30  # the latest ones that the page shows


class _Warnings(logging.Handler):
    """Keeps the warnings and errors of the log for the page."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record.created))} {record.getMessage()}")
        del self.kept[:-WARNINGS]


def peak_memory(device: torch.device) -> float | None:
    """The largest memory so far in MiB: of the GPU's tensors, or of this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@torch.no_grad()
def kept_shares(labels_by: nn.Module, batches: Sequence[Batch], nclass: int, thresh: float, world: World) -> list[float]:
    """Share in percent of all unlabelled pixels of one step, padding apart, whose pseudo label counts, for each class.

    All processes must call it.
    """
    counts = torch.zeros(nclass + 1, dtype=torch.int64, device=world.device)
    for batch in batches:
        pseudo, conf = pseudo_label(labels_by, batch.img_u_w)
        valid = batch.ignore_u != 255
        counts[:-1] += torch.bincount(pseudo[valid & (conf >= thresh)], minlength=nclass)
        counts[-1] += valid.sum()
    *kept, whole = world.sum_(counts).tolist()
    return [100 * count / max(1, whole) for count in kept]


class Watch:
    """The page of one run, and its pictures for TensorBoard. Every process makes one and calls it alike; only the first one writes.

    The page's figures are kept in report.json beside it, so that a run that goes on keeps its curves. first: epoch it begins with.
    """

    def __init__(self, cfg: Config, data: Data, world: World, folder: Path, record: Record, first: int) -> None:
        self.cfg, self.data, self.world, self.folder, self.record = cfg, data, world, folder, record
        spec = data.spec
        settings = asdict(cfg) | {"processes": world.size, "shards": data.sampler.shards, "eval_mode": data.eval_mode}
        split = Path(cfg.labeled_id_path).parent.name
        self.labeled: Mapping[int, int] | None = None  # pixels of each class, counted when somebody asks
        self.page = PageData(
            title=" \u00b7 ".join((record.method.name, cfg.dataset, split, cfg.backbone)),
            settings=settings,
            classes=list(spec.classes),
            palette=list(spec.palette),
            figures={key: figure.label for key, figure in metric.FIGURES[spec.task].items()},
            labels=dict(record.method.labels),
            models=list(record.method.models),
            judged=record.judged,
            total_epochs=cfg.epochs,
            memory_name="peak GPU memory" if world.device.type == "cuda" else "peak memory",
        )
        if world.main and first > 0:
            self._restore(first)
        record.log.addHandler(_Warnings(self.page.warnings))
        self.begin(0)

    def _restore(self, first: int) -> None:
        """Takes over the epochs before `first`; a page that is missing or torn costs the curves before, never the run."""
        try:
            old = json.loads((self.folder / KEPT).read_text(encoding="utf-8"))
            epochs, warnings = [row for row in old["epochs"] if row["epoch"] < first], list(old["warnings"])
        except (OSError, ValueError, KeyError, TypeError):
            self.record.log.warning(f"{self.folder / KEPT}: missing or not readable; the curves of the page begin with epoch {first}")
        else:
            self.page.epochs, self.page.warnings = epochs, warnings

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
        matrices: list[Tensor] | None,
        trainer: Trainer,
        batches: Sequence[Batch],
    ) -> None:
        """Adds an epoch.

        means: of its training scalars; matrices: confusion counts, None where it was not evaluated; batches: of its last step.
        """
        page, board = self.page, self.record.board
        models = {name: model.eval() for name, model in trainer.models.items()}
        if trainer.labels_by is not None and batches:
            page.kept = kept_shares(trainer.labels_by, batches, len(page.classes), self.cfg.conf_thresh, self.world)
            for name, share in zip(page.classes, page.kept, strict=True):
                board.add(f"pseudo_labels/{name}", share, epoch)
        if not self.world.main:
            return
        row = self._row(epoch, means, matrices)
        page.epochs.append(row | ({"kept": page.kept} if page.kept else {}))
        if "images_per_second" in row:
            board.add("train/images_per_second", row["images_per_second"], epoch)
        if matrices is not None:
            page.confusion = matrices[page.judged].tolist()
            page.at_zero = self._at_zero(matrices[page.judged])
            self._draw_samples(epoch, models, trainer.labels_by)
        self._write()

    def _at_zero(self, matrix: Tensor) -> dict[int, str]:
        """Why the classes that have been at 0 in every evaluation stay there."""
        page = self.page
        ious = [row["scores"][page.models[page.judged]]["iou"] for row in page.evaluated]
        stay = [k for k, name in enumerate(page.classes) if not any(iou[name] for iou in ious)]
        if not stay:
            return {}
        if self.labeled is None:
            self.labeled = labeled_classes(self.data.labeled)
        seen = [row["kept"] for row in page.epochs if row.get("kept")]
        found = reasons(matrix, self.labeled, [sum(shares) for shares in zip(*seen, strict=True)] if seen else None)
        return {k: found[k] for k in stay}

    def _draw_samples(self, epoch: int, models: dict[str, Segmenter], labels_by: Segmenter | None) -> None:
        cfg, page = self.cfg, self.page
        try:
            rows = sample_panels(self.data.validation, models, labels_by, cfg.conf_thresh, self.data.eval_mode, cfg.crop_size)
        except UserError as error:  # an image that was evaluated a moment ago: no reason to end a run
            self.record.log.warning(f"{error}; this epoch has no sample panels")
            return
        page.samples = [(name, [(caption, data_uri(image)) for caption, image in panels]) for name, panels in rows]
        for i, (_, panels) in enumerate(rows):
            drawn = picture.row([image for _, image in panels], [caption for caption, _ in panels])
            self.record.board.draw(f"samples/{i}", drawn, epoch)

    def _row(self, epoch: int, means: dict[str, float], matrices: list[Tensor] | None) -> dict[str, Any]:
        sampler = self.data.sampler
        images = (sampler.steps - self.first_step) * sampler.batch * sampler.shards * len(sampler.streams)
        row: dict[str, Any] = dict(means) | {"epoch": epoch, "seconds": time.monotonic() - self.started}
        row["memory"] = peak_memory(self.world.device)
        if images:  # a run that went on after the epoch's last step did none
            row["images_per_second"] = images / max(1e-9, self.train_seconds)
        if matrices is not None:
            row["scores"] = {name: metric.scores(matrix, self.data.spec) for name, matrix in zip(self.page.models, matrices, strict=True)}
        return row

    def _write(self) -> None:
        """Writes report.json and report.html; a disk that does not take them is told, and training goes on."""
        self.page.updated = time.strftime("as of %Y-%m-%d %H:%M:%S")
        kept = {"epochs": self.page.epochs, "warnings": self.page.warnings}
        path = self.folder / "report.html"
        try:
            write_atomic(self.folder / KEPT, lambda file: file.write(json.dumps(kept).encode()))
            write_atomic(path, lambda file: file.write(render(self.page).encode()))
        except OSError as error:
            self.record.log.error(f"{path}: cannot be written ({reason(error)}); the next epoch tries again")
