"""What a run shows of itself after every epoch: report.html, and pictures and shares of pseudo labels for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from dataset import picture
from dataset.loader import Data
from engine.evaluation import Counts, Prediction
from engine.metrics_file import Epoch
from engine.page.render import PageData, data_uri, render
from engine.page.samples import sample_panels
from engine.pseudo_quality import current
from engine.records import Record
from engine.resume import PAGE
from engine.update import Learner
from engine.zero_iou import reasons
from model.segmenter import Segmenter
from util.config import Config
from util.dist import World
from util.error import UserError, reason
from util.files import write_atomic

WARNINGS = 30  # the latest ones that the page shows


class PageWriter:
    """The page of one run, and its pictures for TensorBoard. Every process makes one and calls it alike; only the first one writes.

    A run that is resumed has the curves and the warnings before in its record. labeled_pixels: of each class id.
    """

    def __init__(
        self,
        cfg: Config,
        data: Data,
        world: World,
        folder: Path,
        record: Record,
        prediction: Prediction,
        labeled_pixels: Callable[[], Mapping[int, int] | None],
    ) -> None:
        self.cfg, self.data, self.world, self.folder, self.record = cfg, data, world, folder, record
        self.prediction, self.labeled_pixels = prediction, labeled_pixels
        settings = record.settings | {"shards": data.sampler.shards, "eval_mode": prediction.mode}
        split = Path(cfg.labeled_id_path).parent.name
        self.page = PageData(
            title=" \u00b7 ".join((record.method.name, cfg.dataset, split, cfg.backbone)),
            settings=settings,
            spec=data.spec,
            method=record.method,
            total_epochs=cfg.epochs,
            memory_name="peak GPU memory" if world.device.type == "cuda" else "peak memory",
            epochs=record.epochs,
        )

    def epoch(self, row: Epoch, counts: Counts | None, learner: Learner) -> None:
        """Adds an epoch. counts: of its evaluation, if it has one."""
        if not self.world.main:
            return
        page = self.page
        if counts is not None:
            matrix = counts.matrices[self.record.judged]
            page.confusion = matrix.tolist()
            page.at_zero = self._at_zero(matrix)
            self._draw_samples(row.epoch, {name: model.eval() for name, model in learner.models.items()}, learner.labels_by)
        self._write()

    def tested(self, lines: list[str]) -> None:
        """Adds the score of best.pth on the test list. A run that was finished before keeps its page, which has more than is read back."""
        if self.world.main and self.page.updated:
            self.page.tested = lines
            self._write()

    def _at_zero(self, matrix: Tensor) -> dict[str, str]:
        """Why the classes whose IoU is 0 in an evaluation are there, by name."""
        classes = self.page.spec.classes
        if matrix.diag().all():
            return {}
        seen = [row.pseudo_labels for row in self.page.epochs if row.pseudo_labels]
        kept = [sum(shares.get(name, 0) for shares in seen) for name in classes] if seen else None
        return {classes[k]: why for k, why in reasons(matrix, self.labeled_pixels(), kept).items()}

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

    def _write(self) -> None:
        """Writes report.html; a disk that does not take it is reported in the log, and training continues."""
        self.page.updated = time.strftime("as of %Y-%m-%d %H:%M:%S")
        # warnings about the pseudo labels are repeated in later epochs: the last of each kind is shown
        self.page.warnings = current(list(self.record.warnings))[-WARNINGS:]
        path = self.folder / PAGE
        try:
            write_atomic(path, lambda file: file.write(render(self.page).encode()))
        except OSError as error:
            self.record.log.error(f"{path}: cannot be written ({reason(error)}); the next epoch tries again")
