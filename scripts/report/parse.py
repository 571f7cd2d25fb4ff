"""One training log -> its runs, by the published rule (METHOD.md 4). Reads every shape of METHOD.md 5, and counts what it cannot read.

A run of ours is read from the metrics.jsonl beside its log, where that has all epochs of the log (measured.py).

A resumed session continues the run: epochs that it repeats replace the
earlier ones. A session that starts again at epoch 0 replaces the run, or begins another one when its header names another experiment.
"""

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine import metric
from engine.method import STUDENT, judged
from scripts.report.identity import CHANGE_DATASETS, CLASSIFICATION_DATASETS, OWN, Identity, identify, origin, own_method
from scripts.report.lines import EMA_PREFIX, is_number, read_lines
from scripts.report.measured import read_metrics
from scripts.report.sessions import Session, read_sessions, starts_again
from util.config import may_change
from util.error import UserError
from util.progress import count

SAMPLES = 5  # unread lines that are shown of a log
SAMPLE_LENGTH = 160
_NO_SCORE = {"best": None, "epoch": None, "last": None}
MAX_BYTES = 1 << 28  # a log of the longest published run has 2 MB
# header keys that may differ between two runs of one experiment; every other one is a setting
_NOT_SETTINGS = (may_change() - {"init", "val_id_path"}) | {
    *("seed", "port", "local_rank", "ngpus", "output_path", "checkpoint", "data_root_l", "pretrained_path"),
    *("workers", "host", "commit", "version", "torch", "method"),
}


@dataclass
class Run:
    """One training run as its log records it. Epochs count from 0, figures are percentages in two decimals; None: the log does not say.

    epochs: planned; epochs_done: distinct epochs whose figure is in the log (`eval_every` above 1: all up to the last figure);
    complete: the last planned epoch is among them.
    statistic: which figure `best` and `last` are: ema_miou, miou, changed_iou, ema_acc1 or acc1.
    best: its maximum (ties: the later epoch, `best_epoch`); last: that of the last epoch. accuracy, last_accuracy: change detection's
    overall accuracy of the same epochs. scores: the same of the student and of the EMA, each {best, epoch, last}.
    origin: who made the log (identity.py). row: the label of its row, once a table has it.
    nan_iterations: iteration lines with a nan, or with a mean that is none; sec_per_iter: median between neighbouring ones of an epoch.
    test: the same figure of best.pth on the list that had no say in its choice; labeled_images: how many an epoch trains on.
    unread_lines: lines of the log that are none of a run, with samples; notes: what a reader should know before using the figures.
    """

    log: str
    method: str | None
    dataset: str | None
    split: str | None
    backbone: str | None
    task: str
    epochs: int | None
    epochs_done: int
    complete: bool
    resumed: bool
    statistic: str
    best: float | None
    best_epoch: int | None
    last: float | None
    accuracy: float | None
    nan_iterations: int
    sec_per_iter: float | None
    ngpus: int | None
    seed: int | None = None
    unread_lines: int = 0
    unread_samples: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    last_accuracy: float | None = None
    scores: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    origin: str = OWN
    settings: dict[str, str] = field(default_factory=dict)
    row: str = ""
    test: float | None = None
    labeled_images: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The stable keys and the counts, as plain values: all that the log itself says."""
        return {key: value for key, value in asdict(self).items() if key not in ("settings", "row", "labeled_images")}

    def figure(self, kind: str, last: bool = False, statistic: str | None = None) -> float | int | None:
        """Its number in a table's cell, of the best or the last epoch. kind: a table's; statistic: another figure than the run's own."""
        if kind == "cd_oa":
            return self.last_accuracy if last else self.accuracy
        return self.scores.get(statistic or self.statistic, {}).get("last" if last else "best")


def read_log(path: Path) -> list[Run]:
    """The runs of a log file, nearly always one.

    Raises UserError when the file cannot be read or has no line of a training log in it.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: found no regular file, expected a training log; give the log itself or its folder")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: found {path.stat().st_size} bytes, expected a training log of at most {MAX_BYTES}; leave it out")
        text = path.read_bytes().decode("utf-8", errors="replace")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}), expected a training log; check the path and its permissions") from error
    sessions, unread = read_sessions(read_lines(text))
    if lines := read_metrics(path, MAX_BYTES):
        own, _ = read_sessions(lines)
        if _evaluated(own) >= _evaluated(sessions):
            sessions = own
    if all(session.empty for session in sessions):
        found = f"{count(len(unread), 'line')}, none of them of a training log" if unread else "an empty file"
        raise UserError(f"{path}: found {found}, expected a log of a training run; leave it out")
    runs = [_summarise(group, path) for group in _group(sessions, path)]
    for run in runs:
        run.unread_lines, run.unread_samples = len(unread), _samples(unread)
        if nul := text.count("\0"):
            run.notes.append(f"{count(nul, 'NUL byte')} skipped")
    return runs


def _evaluated(sessions: list[Session]) -> set[int]:
    return {epoch for session in sessions for epoch in session.epochs}


def _samples(unread: Iterable[str]) -> list[str]:
    """The first different unread lines, those that look like damaged records before warnings of other programs."""
    different = sorted(dict.fromkeys(line[:SAMPLE_LENGTH] for line in unread), key=lambda line: not line.startswith("["))
    return different[:SAMPLES]


def _group(sessions: list[Session], path: Path) -> list[list[Session]]:
    """Sessions of the same run, together. Only a start at epoch 0 under another experiment's header begins another run."""
    groups: list[list[Session]] = []
    for session in sessions:
        other = groups and starts_again(session, groups[-1]) and identify(session.header, path) != identify(groups[-1][0].header, path)
        if other or not groups:
            groups.append([session])
        else:
            groups[-1].append(session)
    return groups


def _summarise(sessions: list[Session], path: Path) -> Run:
    """The figures of a run from its sessions; the first header names the run, the last one says what it was asked to reach."""
    epochs, notes = _merge(sessions)
    headers = [session.header for session in sessions if session.header] or [{}]
    identity = identify(headers[0], path)
    if identity.method is None and any(session.perturbed for session in sessions):  # V1's own headers and paths do not name it
        identity = replace(identity, method="unimatch_v1")
    task = _task(headers[0].get("task"), identity, epochs)
    statistic = _statistic(identity, task, epochs)
    measured = {epoch: figures for epoch, figures in epochs.items() if statistic in figures}
    last = max(measured, default=None)
    chosen = statistic.removeprefix(EMA_PREFIX)
    names = (chosen, EMA_PREFIX + chosen)
    scores = {name: _score(epochs, name) for name in names if any(name in figures for figures in epochs.values())}
    own: dict[str, Any] = scores.get(statistic, _NO_SCORE)
    planned = _integer(headers[-1].get("epochs"))
    # a run that is evaluated only now and then has done all epochs up to its last figure
    done = last + 1 if last is not None and (_integer(headers[-1].get("eval_every")) or 1) > 1 else len(measured)
    intervals = [interval for session in sessions for interval in session.intervals]
    return Run(
        log=str(path),
        method=identity.method,
        dataset=identity.dataset,
        split=identity.split,
        backbone=identity.backbone,
        task=task,
        epochs=planned,
        epochs_done=done,
        complete=bool(planned and last is not None and last + 1 >= planned),
        resumed=any((one.loaded or one.first_epoch) and (one.epochs or one.iterations) for one in sessions),
        statistic=statistic,
        best=own["best"],
        best_epoch=own["epoch"],
        last=own["last"],
        accuracy=_figure(measured, own["epoch"], "overall_accuracy"),
        nan_iterations=sum(session.nan_iterations for session in sessions),
        sec_per_iter=round(statistics.median(intervals), 4) if intervals else None,
        ngpus=_integer(headers[-1].get("ngpus")),
        seed=identity.seed,
        notes=notes + _notes(sessions, done, last),
        last_accuracy=_figure(measured, last, "overall_accuracy"),
        scores=scores,
        origin=origin(headers[0], path),
        test=sessions[-1].tested.get(statistic),
        labeled_images=next((one.labeled_images for one in reversed(sessions) if one.labeled_images is not None), None),
        settings={key: value for key, value in headers[-1].items() if key not in _NOT_SETTINGS},
    )


def _merge(sessions: list[Session]) -> tuple[dict[int, dict[str, float]], list[str]]:
    """Every epoch's figures; of an epoch that was redone, the later ones."""
    epochs: dict[int, dict[str, float]] = {}
    notes = []
    for i, session in enumerate(sessions):
        if starts_again(session, sessions[:i]):
            notes.append(f"{count(len(epochs), 'epoch')} of an earlier start not counted: a later one began again at epoch 0")
            epochs = {}
        epochs.update(session.epochs)
    return epochs, notes


def _notes(sessions: list[Session], done: int, last: int | None) -> list[str]:
    """What is missing in the log, in words."""
    notes = []
    if last is not None and done <= last:
        notes.append(f"{count(last + 1 - done, 'epoch')} before epoch {last} without a figure in this log")
    if guessed := sum(session.guessed for session in sessions):
        notes.append(f"{count(guessed, 'epoch line')} lost: counted on from the one before")
    if tests := sessions[-1].tests:
        notes.append("the figure here is of the list that chose the epoch. " + "; ".join(tests))
    if not any(session.header for session in sessions):
        notes.append("no header: what the run is was taken from the file's name and folders")
    return notes


def _task(stated: str | None, identity: Identity, epochs: dict[int, dict[str, float]]) -> str:
    """From the figures; before the first one from the config's `task`, which built-in data sets leave open, and the data set."""
    names = {name for figures in epochs.values() for name in figures}
    if "changed_iou" in names or (not names and (stated == "change" or identity.dataset in CHANGE_DATASETS)):
        return "change"
    if names & {"acc1", EMA_PREFIX + "acc1"} or (not names and identity.dataset in CLASSIFICATION_DATASETS):
        return "classification"
    return "segmentation"


def _statistic(identity: Identity, task: str, epochs: dict[int, dict[str, float]]) -> str:
    """Which figure is the published one: the student's for change detection and labelled-only runs, else the EMA's where it is logged."""
    name = "acc1" if task == "classification" else metric.chosen_by(task)
    if task == "change":
        return name
    has_ema = any(EMA_PREFIX + name in figures for figures in epochs.values())
    own = own_method(identity.method)
    student = own is not None and own.models[judged(own.models, task)] == STUDENT
    return name if student or (epochs and not has_ema) else EMA_PREFIX + name


def _score(epochs: dict[int, dict[str, float]], name: str) -> dict[str, float | int | None]:
    """Best and last of a figure over the epochs that have it."""
    measured = {epoch: figures for epoch, figures in epochs.items() if name in figures}
    numbers = [(figures[name], epoch) for epoch, figures in measured.items() if is_number(figures[name])]
    best = max(numbers)[1] if numbers else None  # the pair's order makes the later epoch win a tie
    return {"best": _figure(measured, best, name), "epoch": best, "last": _figure(measured, max(measured, default=None), name)}


def _figure(measured: dict[int, dict[str, float]], epoch: int | None, name: str) -> float | None:
    value = None if epoch is None else measured[epoch].get(name)
    return value if is_number(value) else None


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 10 else None
