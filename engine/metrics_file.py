"""metrics.jsonl: what a run measures, in full precision, one JSON object on each line. The page and the report read it (METHOD.md 5).

Each line has its kind and its time. A line of kind "start" begins each start of the run: step (those that are done before, counted over
all epochs; 0 in a new run), method, settings (by name, as in the log). A line of kind "step" goes with each iteration line of the log: step
(counted over all epochs), epoch, iteration (position in the epoch), lr (of the encoder, for the next step), means (of every stat since the
epoch's start). A line of kind "epoch" holds an `Epoch`, one of kind "test" what engine/final_test.py has written to test.json, one of kind
"warning" the text of a warning or an error of the log.
"""

import errno
import json
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

Means = dict[str, float | None]


@dataclass(frozen=True)
class Epoch:
    """An epoch that is finished.

    step: optimiser steps done by its end, counted over all epochs. seconds: of training and evaluation. memory: peak so far in MiB,
    None where the system does not say. images_per_second: of training, None where a run was resumed after the epoch's last step.
    means: of its stats; None for one without a value in the steps that count. pseudo_labels: of all unlabelled pixels of its last step the
    share in percent whose pseudo label is confident and of the class; empty without a teacher. scores: {model: what `metric.scores`
    returns}, empty where it was not evaluated. pseudo_quality: what `quality` (engine/pseudo_quality.py) returns, empty where it was not
    evaluated, and without a teacher. labeled_images: how many it trained on, repetitions counted; None in files of earlier versions.
    """

    epoch: int
    step: int
    seconds: float
    memory: float | None
    images_per_second: float | None
    means: Means
    pseudo_labels: dict[str, float]
    scores: dict[str, dict[str, Any]]
    pseudo_quality: dict[str, Any] = field(default_factory=dict)
    labeled_images: int | None = None


def finite(means: Mapping[str, float]) -> Means:
    """Means as JSON can hold them: None for those that are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in means.items()}


def append(path: Path, kind: str, row: dict[str, Any]) -> None:
    """Appends a line, behind the end of a torn one. Raises OSError, and then leaves the file as it was."""
    time = datetime.now().isoformat(" ", "milliseconds")
    line = json.dumps({"kind": kind, "time": time, **row}, allow_nan=False).encode() + b"\n"
    with open(path, "a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(end)
            raise


def read_whole(path: Path) -> list[dict[str, Any]]:
    """All lines of a file, of every run in it. Raises OSError, or ValueError where one of them cannot be read."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _rows(path: Path) -> list[tuple[Any, dict[str, Any]]]:
    """The kind and the content of each line of the latest run in a file; lines that are torn are left out. Raises OSError."""
    rows: list[tuple[Any, dict[str, Any]]] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
            kind = row.pop("kind")
            if kind == "start" and row["step"] == 0:
                rows = []
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
        rows.append((kind, row))
    return rows


def read_warnings(path: Path) -> list[str]:
    """The warnings and errors of the run, each behind its time to the second. Raises OSError."""
    return [f"{str(row.get('time'))[:19]} {row.get('text')}" for kind, row in _rows(path) if kind == "warning"]


def read_epochs(path: Path) -> list[Epoch]:
    """The run's epochs in their order; of an epoch that was redone the last line counts, and with it nothing of what came after it.

    An earlier run in the same folder and lines that are torn are left out. Raises OSError.
    """
    epochs: list[Epoch] = []
    for kind, row in _rows(path):
        if kind != "epoch":
            continue
        try:
            found = Epoch(**{key: value for key, value in row.items() if key != "time"})
            operator.index(found.epoch)
        except (TypeError, AttributeError):
            continue
        if epochs and epochs[-1].epoch >= found.epoch:
            epochs = [one for one in epochs if one.epoch < found.epoch]
        epochs.append(found)
    return epochs
