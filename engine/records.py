"""What a run writes down: log lines and TensorBoard scalars as the authors' runs have them, and metrics.jsonl (METHOD.md 5)."""

from __future__ import annotations

import logging
import pprint
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dataset.spec import DatasetSpec
from engine import image_counts, metric, metrics_file, pseudo_quality
from engine.board import Board
from engine.method import EMA, Method, judged
from engine.metrics_file import Epoch
from engine.resume import METRICS
from model.segmenter import Segmenter
from util.error import reason

Scores = dict[str, Any]  # what `metric.scores` returns


@dataclass
class Best:
    """The best evaluation so far of one model: its score (mIoU; change detection: IoU of the changed class), accuracy and epoch."""

    score: float = 0.0
    accuracy: float = 0.0
    epoch: int = 0


KEPT = 1000  # warnings of a run that its page may show


class _Warnings(logging.Handler):
    """Keeps the warnings and errors of a log, and writes them to metrics.jsonl. A disk that is full costs lines there, never the run."""

    def __init__(self, kept: deque[str], metrics: Path) -> None:
        super().__init__(logging.WARNING)
        self.kept, self.metrics = kept, metrics

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.kept.append(f"{datetime.now().isoformat(' ', 'seconds')} {text}")
        with suppress(OSError):
            metrics_file.append(self.metrics, "warning", {"text": text})


class Record:
    """Log lines, scalars and metrics of one run. Only the first process writes; the others call the same methods to no effect.

    settings: by name, as they are in effect; start: steps that were done before.
    """

    def __init__(
        self, log: logging.Logger, folder: Path | None, spec: DatasetSpec, method: Method, settings: dict[str, Any], start: int = 0
    ) -> None:
        self.log = log
        self.board = Board(folder, start, log)
        self.folder = folder
        self.metrics = folder and folder / METRICS
        self.spec = spec
        self.method = method
        self.averaged = EMA in method.models
        self.change = spec.bitemporal
        self.best = [Best() for _ in method.models]
        self.judged = judged(method.models, spec.task)
        self.epochs: list[Epoch] = []  # that are finished, in their order
        self.settings = settings
        self._measure("start", {"step": start, "method": method.name, "settings": settings})
        self.warnings: deque[str] = deque(maxlen=KEPT)
        if self.metrics is not None:
            with suppress(OSError):
                self.warnings.extend(metrics_file.read_warnings(self.metrics))
            log.addHandler(_Warnings(self.warnings, self.metrics))
        # A published change detection run has the student as its teacher and still says just "EMA".
        self.ema = EMA if settings["teacher"] == "ema" or self.change else f"{EMA} (not used as teacher)"

    def header(self, model: Segmenter) -> None:
        """The lines that a start begins with: the settings by name, and the numbers of parameters."""
        # sorted, but as in the authors' logs the backbone comes first
        ordered = sorted(self.settings.items(), key=lambda item: (item[0] != "backbone", item[0]))
        text = pprint.pformat(dict(ordered), sort_dicts=False)
        self.log.info("%s\n", text)
        self.board.text("config", "".join(f"    {line}\n" for line in text.splitlines()))
        parts: dict[str, list[nn.Module]] = {"Total": [model], "Encoder": [model.backbone], "Decoder": model.decoder_parts()}
        counts = {name: sum(p.numel() for part in own for p in part.parameters()) for name, own in parts.items()}
        lines = [f"{name} params: {count / 1e6:.1f}M" for name, count in counts.items()]
        lines = lines if self.averaged and not self.change else lines[:1]
        lines[-1] += "\n"
        for line in lines:
            self.log.info(line)

    def epoch(self, epoch: int, lr: float) -> None:
        """The line an epoch starts with: its learning rate and the best scores so far."""

        def scores(best: Best) -> str:
            return f"Changed IoU: {best.score:.2f}, Overall Accuracy: {best.accuracy:.2f}" if self.change else f"{best.score:.2f}"

        rate = f" LR: {lr:.7f}," if self.change or not self.averaged else ""
        previous = "Previous best " if self.change else "Previous best: "
        line = f"===========> Epoch: {epoch},{rate} {previous}{scores(self.best[0])}"
        if self.averaged:
            line += f" @epoch-{self.best[0].epoch}, {self.ema}: {scores(self.best[1])} @epoch-{self.best[1].epoch}"
        self.log.info(line)

    def steps(self, first: int, rows: list[dict[str, float]]) -> None:
        """TensorBoard scalars of the steps from `first` (counted over all epochs) on."""
        for it, row in enumerate(rows, start=first):
            for name, value in row.items():
                self.board.add(f"train/{'loss_u_s' if self.change and name == 'loss_s' else name}", value, it)

    def skipped(self, it: int, total: int, in_row: int) -> None:
        """A step that changed nothing, because its loss or gradient was not finite."""
        self.log.warning(f"Step {it} skipped: loss or gradient is not finite ({in_row} in a row, {total} in all)")
        self.board.add("train/skipped_steps", total, it)

    def bad_images(self, epoch: int, problems: list[str]) -> None:
        """The files of an epoch that could not be read and were replaced (`bad_images: skip`)."""
        if problems:
            counts = sorted(Counter(problems).items())
            lines = "".join(f"\n  {problem}" + (f" ({count} samples)" if count > 1 else "") for problem, count in counts)
            self.log.warning(f"{len(problems)} samples of epoch {epoch} replaced, their files cannot be read:{lines}")
            self.board.add("train/bad_images", len(problems), epoch)

    def iteration(self, epoch: int, i: int, it: int, lr: float, means: dict[str, float]) -> None:
        """The lines of step `i` of an epoch. it: the step counted over all epochs; lr: of the encoder, for the next step;
        means: since the epoch's start.
        """
        values = [f"{label}: {means[name]:.3f}" for name, label in self.method.labels.items()]
        rate = [f"LR: {lr:.7f}"] if self.averaged and not self.change else []
        self.log.info(", ".join([f"Iters: {i}", *rate, *values]))
        self._measure("step", {"step": it, "epoch": epoch, "iteration": i, "lr": lr, "means": metrics_file.finite(means)})

    def restore(self, first: int) -> None:
        """Takes over the epochs before `first`; those that are missing or torn cost their points of the curves, never the run."""

        def fits(row: Epoch) -> bool:  # resume=force may change models and classes
            named = [own["iou"] for own in row.scores.values()] + ([row.pseudo_quality["classes"]] if row.pseudo_quality else [])
            return tuple(row.scores) == self.method.models and all(tuple(own) == self.spec.classes for own in named)

        if self.metrics is None:
            return
        with suppress(OSError):
            rows = metrics_file.read_epochs(self.metrics)
            self.epochs += [row for row in rows if row.epoch < first and (not row.scores or fits(row))]
        if (found := len(self.epochs)) < first:
            self.log.warning(f"{self.metrics}: found {found} of the {first} epochs so far; the page's curves lack the others")

    def finished(self, row: Epoch) -> None:
        """What was measured in an epoch that is finished."""
        self.epochs.append(row)
        self._measure("epoch", asdict(row))
        if row.images_per_second is not None:
            self.board.add("train/images_per_second", row.images_per_second, row.epoch)
        for name, share in row.pseudo_labels.items():
            self.board.add(f"pseudo_labels/{name}", share, row.epoch)

    def tested(self, result: dict[str, Any]) -> None:
        """What the final test has found."""
        self._measure("test", result)

    def warn_of_pseudo_labels(self, labeled_pixels: Callable[[], Mapping[int, int] | None], thresh: float, last: bool) -> None:
        """The warnings that the epochs so far give reason for. last: whether none comes after them."""
        if self.folder is not None:
            for text in pseudo_quality.warnings(self.epochs, labeled_pixels, self.spec.classes, thresh, last):
                self.log.warning(text)

    def _measure(self, kind: str, row: dict[str, Any]) -> None:
        """A line of metrics.jsonl. A disk that is full costs lines, never the run."""
        if self.metrics is None:
            return
        try:
            metrics_file.append(self.metrics, kind, row)
        except OSError as error:
            self.log.error(f"{self.metrics}: a line is lost ({reason(error)})")

    def pseudo_labels(self, epoch: int, found: dict[str, Any], thresh: float) -> None:
        """Lines and scalars of what the pseudo labels are worth: `pseudo_quality.quality`, empty where there are none."""
        if not found:
            return
        for line in pseudo_quality.log_lines(found, thresh):
            self.log.info(line)
        for name, own in {"all": found, **found["classes"]}.items():
            for key in ("share", "right"):
                if own[key] is not None:
                    self.board.add(f"pseudo_label_{key}/{name}", own[key], epoch)

    def evaluation(self, epoch: int, mode: str, scores: list[Scores]) -> bool:
        """Lines and scalars of an evaluation. scores: of the method's models.

        Returns whether this is the best epoch so far by the published rule (METHOD.md 4); of equal ones the later is.
        """
        if self.change:
            self._change_lines(scores)
        else:
            self._class_lines(mode, scores)
        for suffix, own in zip(("", "_ema"), scores, strict=False):
            self._board_scores(epoch, suffix, own)
        chosen = [own[metric.chosen_by(self.spec.task)] for own in scores]
        improved = [score >= best.score for score, best in zip(chosen, self.best, strict=True)]
        for i, better in enumerate(improved):
            if better:
                self.best[i] = Best(chosen[i], scores[i]["pixel_accuracy"], epoch)
        return improved[self.judged]

    def images(self, epoch: int, counts: Tensor, sha256: str, best: bool) -> None:
        """Keeps the counts of the evaluation's images, `Counts.images`. A disk that is full costs them, never the run."""
        if self.folder is None:
            return
        for name in ("best", "last") if best else ("last",):
            path = self.folder / image_counts.FILES[name]
            try:
                image_counts.save(path, counts[self.judged], epoch, sha256)
            except OSError as error:
                self.log.error(f"{path}: cannot be written ({reason(error)})")

    def _pair(self, name: str, values: list[float], between: str = ",") -> str:
        return f"{name}: {values[0]:.2f}" + (f"{between} {self.ema}: {values[1]:.2f}" if self.averaged else "")

    def _line(self, mode: str, key: str, scores: list[Scores], between: str = ",", end: str = "") -> None:
        name = metric.FIGURES[self.spec.task][key].log
        self.log.info(f"***** Evaluation {mode}***** >>>> {self._pair(str(name), [own[key] for own in scores], between)}{end}")

    def _class_lines(self, mode: str, scores: list[Scores]) -> None:
        for k, name in enumerate(self.spec.classes):
            pair = self._pair(f"Class [{k} {name}] IoU", [own["iou"][name] for own in scores])
            self.log.info(f"***** Evaluation ***** >>>> {pair}")
        self._line(f"{mode} ", "miou", scores, end="\n")

    def _change_lines(self, scores: list[Scores]) -> None:
        # the published logs have no such line, so it is in words that no reader of theirs takes for a figure
        keys = {key: metric.FIGURES["change"][key].label for key in ("precision", "recall", "f1")}
        values = [", ".join(f"{label} {own[key]:.2f}" for key, label in keys.items()) for own in scores]
        self.log.info(f"Changed class: {values[0]}" + (f", {self.ema}: {values[1]}" if self.averaged else ""))
        self._line("", "unchanged_iou", scores)
        self._line("", "changed_iou", scores, between=":")  # the published lines have a colon here
        self._line("", "overall_accuracy", scores, end="\n")

    def _board_scores(self, epoch: int, suffix: str, scores: Scores) -> None:
        named = {figure.tag: scores[key] for key, figure in metric.FIGURES[self.spec.task].items() if figure.tag}
        if not self.change:
            named |= {f"{name}_IoU": value for name, value in scores["iou"].items()}
        for name, value in named.items():
            # the published names put the suffix behind the figure: mIoU_ema, road_IoU_ema
            self.board.add(f"eval/{name}{suffix}", value, epoch)

    def state(self) -> dict[str, Any]:
        """Best values under the names that the authors' checkpoints have."""
        out: dict[str, Any] = {}
        for suffix, best in zip(("", "_ema"), self.best, strict=False):
            if self.change:
                out |= {f"previous_best{suffix}_iou": best.score, f"previous_best{suffix}_acc": best.accuracy}
            else:
                out[f"previous_best{suffix}"] = best.score
            out[f"best_epoch{suffix}"] = best.epoch
        return out

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over best values from a checkpoint, ours or the authors'."""
        for i, suffix in enumerate(("", "_ema")[: len(self.best)]):
            score = state.get(f"previous_best{suffix}_iou" if self.change else f"previous_best{suffix}", 0.0)
            accuracy = state.get(f"previous_best{suffix}_acc", 0.0)
            self.best[i] = Best(float(score), float(accuracy), int(state.get(f"best_epoch{suffix}", 0)))
