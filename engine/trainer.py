"""The one loop: a run from its files to its last epoch, with evaluation, log and checkpoints, for every method (METHOD.md 3)."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from dataset.batch import Batch
from dataset.list_files import label_pixels
from dataset.loader import open_data, shard_count, supervised, test_source
from dataset.preview import sheets
from engine import image_counts, metric, resume, screen
from engine.averages import AverageMeter
from engine.batch_norm import frozen_without_statistics
from engine.epoch import EpochMeter, Evaluation
from engine.evaluation import Labeler, Prediction, evaluate, validation_loader
from engine.final_test import final_test, selection
from engine.initial_model import start_model
from engine.method import Method, judged
from engine.mini_batches import mini_batches
from engine.page.writer import PageWriter
from engine.provenance import add_start, changed_versions, versions
from engine.pseudo_quality import quality_of
from engine.records import Record
from engine.saver import Saver
from engine.update import Learner
from engine.zero_iou import labeled_classes
from model.loss import numeric_criterion
from model.spec import check_crop, check_facts, encoder_facts, get_encoder
from util.config import Config, parse_command
from util.dist import World, deterministic, processes
from util.error import TRAIN_WITH_LESS, StoppedError, UserError, memory_lack
from util.log import open_log
from util.precision import matmul_precision, slow_precision
from util.progress import Progress
from util.signals import StopSignals

PREVIEWED = 8  # samples of the first step that TensorBoard shows
READ_EVERY = 50  # steps between reads of the scalars on the device, where no log line falls due sooner


class Trainer:
    """A training run from its files: data, learner, record; resumes from the checkpoint under the save path.

    Its state is a position (`epoch`, `step`: steps done in the epoch after `epoch`, the last finished one), learner, averages, record
    and the lengths of what it appends to. With all steps of an epoch done, the evaluation is still to come.
    """

    def __init__(self, cfg: Config, method: Method, world: World, signals: StopSignals) -> None:
        self.method, self.world, self.signals = method, world, signals
        self.folder = Path(cfg.save_path)
        world.wait()  # the first process has claimed the folder
        self.cfg = cfg = self._open_data(cfg)
        self.steps = self.data.sampler.steps
        self.config = self._effective()
        found = self._find()
        torch.manual_seed(cfg.seed)
        notes = self.data.short_epoch()
        model = start_model(cfg, self.data, notes, resumed=found is not None)
        self.prediction = Prediction.of(cfg, self.data.spec, model)
        self.learner = Learner(cfg, model, method, self.steps * cfg.epochs, world)
        self.averages = AverageMeter(world)
        self.epoch, self.step = -1, 0
        self.seconds = 0.0  # of this epoch before this start
        self.last: list[Batch] = []  # mini-batches of the last step
        self.bad_images: list[str] = []  # of this epoch, on all processes
        self.new_bad_images: list[str] = []  # of this process since the last read
        notes += self._load(*found) if found else []
        notes += frozen_without_statistics(self.learner.student)
        if world.main:
            add_start(self.folder, world.device, world.size)
        self._open_log(notes)
        self.saver = Saver(self.folder, cfg.save_every, self.log, world.main)
        if found:
            self.record.load_state(found[1])
            inside = f", {self.step} steps of the next" if self.step else ""
            self.log.info("************ Load from checkpoint at epoch %i%s\n", self.epoch, inside)
        else:
            if world.main:  # of an earlier run in the folder
                for name in (resume.TEST, *image_counts.FILES.values()):
                    (self.folder / name).unlink(missing_ok=True)
            self._save(required=True)  # finds a disk that is full before the first step, and says what belongs to this run

    def _open_data(self, cfg: Config) -> Config:
        """Opens the lists. Returns the config with what it leaves to data set, method and encoder filled in. Raises UserError."""
        check_crop(cfg.crop_size, get_encoder(cfg.backbone).facts())
        self.data = open_data(cfg, self.world, self.method.reads, open_log(None))
        criterion = numeric_criterion(cfg.criterion, self.data.spec.nclass, lambda: self._pixels(cfg))
        return replace(self.method.settled(cfg, self.data.spec.task), criterion=criterion)

    def _effective(self) -> dict[str, Any]:
        """The settings as they are in effect, for the checkpoint."""
        config = asdict(self.cfg) | {"shards": self.data.sampler.shards, "nclass": self.data.spec.nclass, "method": self.method.name}
        if not self.method.semi:  # earlier versions kept a teacher that nobody asked
            del config["teacher"]
        if self.cfg.classes:
            config["classes"] = list(self.data.spec.classes)  # the names themselves: a file of them may change
        return config

    def _open_log(self, notes: list[str]) -> None:
        """Opens log, TensorBoard and page, and writes what a run begins with."""
        cfg, world, spec = self.cfg, self.world, self.data.spec
        self.log = open_log(self.folder / resume.LOG if world.main else None)
        shown = {"ngpus": world.size, "nclass": spec.nclass, "batch_size": self.data.sampler.streams["x"].batch}
        self.record = Record(self.log, self.folder if world.main else None, spec, self.method, asdict(cfg) | shown, self.learner.it)
        if cfg.device == "auto" and world.device.type == "cpu":
            self.log.warning(f"device: found no GPU, training on the CPU with {world.size} process{'es' if world.size > 1 else ''}")
        if slow := slow_precision(cfg.precision, world.device):
            self.log.warning(slow)
        shard_count(cfg, world, self.log)  # says so where there are more processes than the recipe has shards
        test = test_source(cfg, spec, self.data.validation, self.log)
        lacking = world.any(test is None)  # its images may be missing on one machine alone
        if lacking and test is not None:
            self.log.warning("no test score at the end: another machine does not find the test images")
        self.test = None if lacking else test
        if world.main:
            screen.begin(cfg, self.data, self.method.title or self.method.name, world, self.epoch + 1, self.step)
        self.record.header(self.learner.student)
        self.log.info(selection(self.data.validation, self.test))
        self.record.restore(self.epoch + 1)
        # counted at the first call. A partial and no lambda: a lambda would hold this Trainer, and with it the loader's workers, to the end
        self.labeled_pixels = cache(partial(labeled_classes, self.data.labeled))
        self.page_writer = PageWriter(cfg, self.data, world, self.folder, self.record, self.prediction, self.labeled_pixels)
        self.meter = EpochMeter(self.data, self.learner)
        for note in self.data.shared_images(self.test) + notes:
            self.log.warning(note)

    def _pixels(self, cfg: Config) -> list[int]:
        """The labelled pixels of each class: the first process's, for all."""
        pixels = self.world.gather([label_pixels(self.data.labeled, cfg.bad_images == "skip") if self.world.main else None])[0]
        assert pixels is not None
        return [pixels[c] for c in range(self.data.spec.nclass)]

    def _find(self) -> tuple[Path, dict[str, Any], list[str]] | None:
        """The checkpoint to resume from; None where there is none, or a start with other settings, which has done no step yet."""
        found = resume.common_checkpoint(self.folder, self.world)
        if found and resume.is_start(found[1]) and resume.differences(found[1], self.config, self.data.lists, self.method.config):
            return None
        return found

    def _load(self, path: Path, state: dict[str, Any], problems: list[str]) -> list[str]:
        """Takes over a checkpoint. Returns the lines about it for the log."""
        notes = [f"{problem}; resuming from {path.name}" for problem in problems]
        changed = resume.check_same_run(path, state, self.config, self.data.lists, self.method.config, self.cfg.resume == "force")
        check_facts(state, self.cfg.backbone, self.learner.student.backbone, str(path))
        notes += [f"{change}: the bits may differ" for change in changed_versions(state.get("versions", {}))]
        notes += [f"resume=force: the run was started with {difference}" for difference in changed]
        if (planned := state.get("config", {}).get("epochs", self.cfg.epochs)) < self.cfg.epochs:
            notes.append(f"epochs: {planned}, now {self.cfg.epochs}: the steps so far had the learning rates of the shorter run")
        judges_ema = judged(self.method.models, self.data.spec.task) > 0
        if "config" not in state and judges_ema and (self.folder / resume.BEST).exists():
            best = float(state.get("previous_best_ema", 0.0))
            notes.append(
                f"{resume.BEST}: of the authors' program, which judges the student; an epoch whose EMA has more than {best:.2f} replaces it"
            )
        self.learner.load_state(state, str(path))
        self.epoch, self.step = int(state["epoch"]), min(int(state.get("step", 0)), self.steps)
        self.learner.it = (self.epoch + 1) * self.steps + self.step
        self.averages.reset(**state.get("averages", {}))
        self.bad_images = list(state.get("bad_images", []))
        self.seconds = float(state.get("seconds", 0))
        if self.world.main:
            resume.cut_files(self.folder, state.get("files"))
        return notes

    def fit(self) -> None:
        """Trains from the beginning, or from where the checkpoint left off, to the last epoch. Raises StoppedError when asked to stop."""
        if self.epoch + 1 >= self.cfg.epochs and self.world.main:
            done = "the only epoch is" if self.cfg.epochs == 1 else f"all {self.cfg.epochs} epochs are"
            print(f"{self.folder}: {done} done; --set epochs=N trains on", file=sys.stderr)
        best, saved = False, True
        progress = screen.steps(self.world, self.learner.total_steps, self.learner.it, self.cfg.epochs)
        for epoch in range(self.epoch + 1, self.cfg.epochs):
            if self.step == 0:
                self.record.epoch(epoch, self.learner.lr)
            self.meter.begin(self.step, self.seconds)
            self.seconds = 0.0
            self._train_epoch(epoch, progress)
            self.meter.trained()
            self.record.bad_images(epoch, self.bad_images)
            self.bad_images = []
            evaluation = self._evaluate(epoch) if self._evaluation_due(epoch) else None
            self.last = self.last or next(mini_batches(self.data, self.learner, epoch, self.steps - 1))[0]  # resumed after the last step
            with self.learner.scoring():
                self._finish(epoch, evaluation)
            self.averages.reset()
            self.epoch, self.step, self.new_bad_images = epoch, 0, []
            best = evaluation is not None and evaluation.best
            saved = self._save(best)
        progress.bar.close()
        if self.world.any(not saved) and self.world.any(not self._save(best)):  # no later save will try again
            raise UserError(f"{self.folder / resume.LATEST}: the last epoch is not saved; make room and start the same command again")
        best_file = self.folder / resume.BEST
        if self.world.any(best_file.exists()):  # the first process has written it; on a network disk, others may see it later
            self._test()
        else:
            self.log.warning(
                f"{best_file}: does not exist: no epoch of this start was better than the best before it; copy the file of that epoch here"
            )
        self.record.board.close()
        if self.world.main:
            screen.end(self.page_writer.page, self.folder)

    def _train_epoch(self, epoch: int, progress: Progress) -> None:
        for shards, stats in self.updates(epoch, self.step):
            i, self.step = self.step, self.step + 1
            self.last = shards if self.step == self.steps else []
            if self.learner.it == 1 and self.world.main:
                for name, image in sheets(shards, self.data.spec, self.learner.student.backbone, PREVIEWED).items():
                    self.record.board.draw(f"data/{name}", image, 0)
            self.averages.add(stats | {"grad_norm": self.learner.grad_norm}, counts=not self.learner.skipped_in_row)
            progress.update()
            if self.learner.skipped_in_row:
                self._log_skipped(shards)
            due = i % max(1, self.steps // 8) == 0
            if due or self.step % READ_EVERY == 0 or self.step == self.steps or self.learner.stop:
                rows = self.averages.read()
                self.record.steps(self.learner.it - len(rows), rows)
                if self.cfg.bad_images == "skip":
                    self.bad_images += self.world.gather(self.new_bad_images)
                    self.new_bad_images = []
                if due:
                    self.record.iteration(epoch, i, self.learner.it - 1, self.learner.lr, self.averages.means())
                    self.record.board.add("train/lr", self.learner.lr, self.learner.it - 1)  # a later step would be purged on resume
                if self.learner.stop:
                    self._stop()
                if self.saver.due():
                    self._save()
            del shards  # two steps' mini-batches are enough: this one's and the next one's

    def updates(self, epoch: int, start: int) -> Iterator[tuple[list[Batch], dict[str, Tensor]]]:
        """Does the steps of an epoch from `start` on; after each, its mini-batches and stats.

        While the device computes a step's gradient, the next mini-batches are made: it finds them waiting.
        """
        made = mini_batches(self.data, self.learner, epoch, start)
        upcoming = next(made, None)

        def prepare() -> None:
            nonlocal upcoming
            upcoming = next(made, None)

        while upcoming is not None:
            shards, bad = upcoming
            try:
                stats = self.learner.update(shards, self.signals.caught, prepare)
            except torch.OutOfMemoryError as error:
                raise UserError(f"{memory_lack(error)}; {self._with_less()}") from error
            self.new_bad_images += bad
            yield shards, stats

    def _with_less(self) -> str:
        """How a step gets by with less memory, in words."""
        try:
            from engine.footprint import with_less  # what it imports takes a second, and few runs need it

            return with_less(self.cfg, self.method, len(self.data.sampler.own))
        except Exception:  # such as a step of somebody's own that cannot run without storage: the lack is what is to be reported
            return TRAIN_WITH_LESS

    def _log_skipped(self, shards: list[Batch]) -> None:
        """Logs a skipped step. Raises UserError when it was the last of too many in a row."""
        learner = self.learner
        self.record.skipped(learner.it - 1, learner.skipped, learner.skipped_in_row)
        if learner.skipped_in_row < self.cfg.max_bad_steps:
            return
        named = zip(shards, learner.losses.tolist(), strict=True)
        pairs = self.world.gather([(math.isfinite(loss), [*b.name_x, *b.name_u]) for b, loss in named])
        worst = [names for finite, names in pairs if not finite] or [names for _, names in pairs]
        raise UserError(
            f"{self.folder / resume.LATEST}: stopped after {learner.skipped_in_row} steps in a row whose loss or gradient is not finite "
            f"(max_bad_steps); the checkpoint is good, the last mini-batch was {', '.join(name for names in worst for name in names)}; "
            f"look at these images, or resume with a lower lr and --set resume=force"
        )

    def _evaluation_due(self, epoch: int) -> bool:
        return (epoch + 1) % self.cfg.eval_every == 0 or epoch + 1 == self.cfg.epochs

    def _evaluate(self, epoch: int) -> Evaluation:
        models = [model.eval() for model in self.learner.models.values()]
        labels_by = self.learner.labels_by
        labeler = None if labels_by is None else Labeler(models.index(labels_by), self.cfg.conf_thresh)
        loader = validation_loader(self.data.validation, self.world, self.data.workers)
        with self.learner.scoring():
            progress = screen.evaluation(self.world, len(loader))
            counts = evaluate(models, self.signals.until(loader), self.prediction, self.data.spec.nclass, self.world, labeler, progress)
        if self.world.any(self.signals.caught):
            self._stop()  # what is evaluated so far is dropped: the checkpoint says that the evaluation is to come
        quality = quality_of(counts, self.data.spec.classes)
        self.record.pseudo_labels(epoch, quality, self.cfg.conf_thresh)
        scores = [metric.scores(matrix, self.data.spec) for matrix in counts.matrices]
        best = self.record.evaluation(epoch, self.prediction.mode, scores)
        self.record.images(epoch, counts.images, self.data.validation.ids.sha256, best)
        return Evaluation(counts, dict(zip(self.method.models, scores, strict=True)), quality, best)

    def _finish(self, epoch: int, evaluation: Evaluation | None) -> None:
        """Records and shows what was measured in an epoch."""
        row = self.meter.epoch(epoch, self.averages.means(), evaluation, self.last)
        self.record.finished(row)
        if self.learner.labels_by is not None:
            self.record.warn_of_pseudo_labels(self.labeled_pixels, self.cfg.conf_thresh, last=epoch + 1 == self.cfg.epochs)
        self.page_writer.epoch(row, evaluation.counts if evaluation else None, self.learner)

    def _test(self) -> None:
        """Scores best.pth on the test list where another list selected it. The models keep its weights: nothing comes after."""
        if self.test is None:
            return
        with self.learner.scoring():
            models = self.learner.models
            result, lines = final_test(self.cfg, self.data, self.test, models, self.prediction, self.world, self.log, self.signals)
        for line in lines:
            self.log.info(line)
        self.record.tested(result)
        self.page_writer.tested(lines)

    def _stop(self) -> NoReturn:
        saved = self._save()
        self.world.wait()  # a process that ends makes the launcher end the others
        where = f"epoch {self.epoch + 2} of {self.cfg.epochs}, step {self.step} of {self.steps}"  # from 1, as on the screen
        how = f"saved in {self.folder / resume.LATEST}" if saved else f"could not be saved: {self.folder} has an older checkpoint"
        raise StoppedError(f"{where}, {how}; the same command resumes from there", self.signals.code)

    def _state(self) -> dict[str, Any]:
        state = self.learner.state() | self.record.state() | {"epoch": self.epoch, "step": self.step}
        state |= {"averages": {"sums": self.averages.sums, "count": self.averages.counts}}
        state |= {"config": self.config, "lists": self.data.lists, "versions": versions(), "bad_images": self.bad_images}
        state["seconds"] = self.meter.seconds() if self.step else 0.0  # of the epoch that is begun
        state["encoder"] = encoder_facts(self.cfg.backbone, self.learner.student.backbone)
        self.record.board.flush()
        return state | {"files": resume.file_lengths(self.folder)}

    def _save(self, best: bool = False, required: bool = False) -> bool:
        return self.saver.save(self._state, best, required)


def train(method: Method, argv: list[str], description: str | None) -> None:
    """The command of a method: reads the command line, joins the processes, trains."""
    cfg = parse_command(argv, description, method.semi, method.config)
    cfg = cfg if method.semi else supervised(cfg)
    with (
        deterministic(cfg.deterministic),
        processes(cfg.device) as world,
        matmul_precision(cfg.precision, world.device),
        StopSignals() as signals,
        resume.claimed(Path(cfg.save_path), signals) if world.main else nullcontext(),
    ):
        # not kept in a variable: its loader and its gradients' buckets must end before the process group does, or the processes hang
        Trainer(cfg, method.of(cfg), world, signals).fit()
