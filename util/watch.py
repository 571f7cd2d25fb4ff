"""What a run shows of itself after every epoch: report.html, and the same figures and pictures for TensorBoard."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset.batch import Batch
from dataset.loader import Data
from model.pseudo import pseudo_label
from util import metric
from util.config import Config
from util.dist import World
from util.files import write_atomic
from util.report.page import PageData, data_uri, render
from util.samples import sample_panels

WARNINGS = 30  # the latest ones that the page shows


class _Warnings(logging.Handler):
    """Keeps the warnings and errors of the log for the page."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record.created))} {record.getMessage()}")
        del self.kept[:-WARNINGS]


def peak_memory(device: torch.device) -> float:
    """The largest memory so far in MiB: of the GPU's tensors, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@torch.no_grad()
def kept_shares(labels_by: nn.Module, batches: Sequence[Batch], nclass: int, thresh: float, world: World) -> Tensor:
    """Share in percent (K,) of all unlabelled pixels of one step, padding apart, whose pseudo label counts, for each class.

    All processes must call it.
    """
    counts = torch.zeros(nclass + 1, dtype=torch.float64, device=world.device)
    for batch in batches:
        pseudo, conf = pseudo_label(labels_by, batch.img_u_w)
        valid = batch.ignore_u != 255
        counts[:-1] += torch.bincount(pseudo[valid & (conf >= thresh)], minlength=nclass)
        counts[-1] += valid.sum()
    world.sum_(counts)
    return (100 * counts[:-1] / counts[-1].clamp(min=1)).cpu()


class Watch:
    """The page of one run. Every process makes one and calls it alike; only the first one writes.

    Its figures are kept in report.json beside the page, so that a run that goes on keeps its curves. first: epoch it begins with.
    """

    def __init__(
        self, cfg: Config, data: Data, world: World, folder: Path, log: logging.Logger, method: str, semi: bool, first: int
    ) -> None:
        self.cfg, self.data, self.world, self.folder, self.log = cfg, data, world, folder, log
        spec = data.spec
        settings = asdict(cfg) | {"processes": world.size, "shards": data.sampler.shards, "eval_mode": data.eval_mode}
        split = Path(cfg.labeled_id_path).parent.name
        self.page = PageData(
            title=" \u00b7 ".join((method, cfg.dataset, split, cfg.backbone)),
            settings=settings,
            classes=list(spec.classes),
            palette=list(spec.palette),
            score="changed IoU" if spec.task == "change" else "mIoU",
            models=["student", "EMA"] if semi else ["student"],
            judged=1 if semi and spec.task != "change" else 0,
            total_epochs=cfg.epochs,
            memory_name="peak GPU memory" if world.device.type == "cuda" else "peak memory",
        )
        if first > 0:
            self._restore(first)
        log.addHandler(_Warnings(self.page.warnings))
        self.begin()

    def _restore(self, first: int) -> None:
        """Takes over the epochs before `first`; a page that is missing or torn costs the curves before, never the run."""
        try:
            old = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
            self.page.epochs = [row for row in old["epochs"] if row["epoch"] < first]
            self.page.warnings = old["warnings"]
        except (OSError, ValueError, KeyError, TypeError):
            self.log.info("report.json is not readable: the page's curves begin with epoch %i", first)

    def begin(self, step: int = 0) -> None:
        """An epoch begins, `step` of its steps are done."""
        self.started, self.first_step = time.monotonic(), step

    def trained(self) -> None:
        """The steps of the epoch are done."""
        self.train_seconds = time.monotonic() - self.started

    def epoch(
        self, epoch: int, means: dict[str, float], matrices: list[Tensor] | None, models: Sequence[nn.Module], batches: Sequence[Batch]
    ) -> tuple[Tensor | None, list[Any]]:
        """Adds an epoch and writes the page. Returns the pseudo labels' shares per class and the sample panels, for TensorBoard.

        matrices: confusion counts of student and EMA, None where it was not evaluated; models: student and EMA; batches: of the last step.
        """
        cfg, world, page = self.cfg, self.world, self.page
        labels_by = models[0] if cfg.teacher == "student" or len(models) == 1 else models[1]
        shares = None
        if len(models) > 1 and batches:
            shares = kept_shares(labels_by.eval(), batches, len(page.classes), cfg.conf_thresh, world)
            page.kept = shares.tolist()
        if not world.main:
            return None, []
        page.epochs.append(self._row(epoch, means, matrices))
        rows: list[Any] = []
        if matrices is not None:
            page.confusion = matrices[page.judged].tolist()
            student, teacher = models[0].eval(), models[1] if len(models) > 1 else None
            rows = sample_panels(self.data.validation, student, teacher, labels_by, cfg.conf_thresh, self.data.eval_mode, cfg.crop_size)
            page.samples = [(name, [(caption, data_uri(image)) for caption, image in panels]) for name, panels in rows]
        self._write()
        return shares, rows

    def _row(self, epoch: int, means: dict[str, float], matrices: list[Tensor] | None) -> dict[str, Any]:
        sampler = self.data.sampler
        images = (sampler.steps - self.first_step) * sampler.batch * sampler.shards * len(sampler.streams)
        row: dict[str, Any] = dict(means) | {"epoch": epoch, "seconds": time.monotonic() - self.started}
        row |= {"images_per_second": images / max(1e-9, self.train_seconds), "memory": peak_memory(self.world.device)}
        if matrices is not None:
            ious = [metric.iou(matrix) for matrix in matrices]
            row["iou"] = [iou.tolist() for iou in ious]
            row["scores"] = [float(iou[1] if self.page.score == "changed IoU" else iou.mean()) for iou in ious]
            row["accuracy"] = [metric.pixel_accuracy(matrix) for matrix in matrices]
        return row

    def _write(self) -> None:
        """Writes report.json and report.html; a disk that does not take them is told, and training goes on."""
        self.page.updated = time.strftime("as of %Y-%m-%d %H:%M:%S")
        kept = {"epochs": self.page.epochs, "warnings": self.page.warnings}
        try:
            write_atomic(self.folder / "report.json", lambda file: file.write(json.dumps(kept).encode()))
            write_atomic(self.folder / "report.html", lambda file: file.write(render(self.page).encode()))
        except OSError as error:
            self.log.error(f"{self.folder / 'report.html'}: cannot be written ({error.strerror}); the next epoch tries again")
