"""The final test: a run's best model on the test list, once, where another list selected it (METHOD.md 4)."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.loader import Data
from dataset.source import Source
from engine import image_counts, metric
from engine.evaluation import Prediction, evaluate, validation_loader
from engine.method import WEIGHTS, judged
from engine.resume import BEST, TEST
from engine.screen import evaluation
from model.segmenter import Segmenter
from util import checkpoint
from util.config import Config
from util.dist import World
from util.error import StoppedError, reason
from util.files import write_atomic
from util.progress import count
from util.signals import StopSignals


def selection(validation: Source, test: Source | None) -> str:
    """The line of the log that says which list selects the best epoch, and which one it is then scored on."""
    noun = validation.spec.noun
    selects = f"Selection: the best epoch by {validation.ids.path} ({count(len(validation.ids), noun)})"
    if test is None:
        return f"{selects}; no other list scores it, so its score is of the images that chose it, as in the published tables"
    return f"{selects}; best.pth is scored once, at the end, on {test.ids.path} ({count(len(test.ids), noun)})"


def final_test(
    cfg: Config,
    data: Data,
    source: Source,
    models: dict[str, Segmenter],
    prediction: Prediction,
    world: World,
    log: logging.Logger,
    signals: StopSignals,
) -> tuple[dict[str, Any], list[str]]:
    """Loads best.pth into the models and scores them on `source`, over all processes; writes test.json and the counts of its images.

    Returns what test.json has, and the lines for the log. Where test.json already has the scores of these weights on this list, they are
    taken from it. A disk that is full costs these files, never the scores. Raises StoppedError when asked to stop.
    """
    folder, path, spec = Path(cfg.save_path), str(Path(cfg.save_path) / BEST), data.spec
    shown = metric.FIGURES[spec.task]
    best = checkpoint.load(path, mapped=True)
    made_for = {"epoch": int(best["epoch"]), "selected_on": data.validation.ids.path}
    made_for |= {"list": source.ids.path, "sha256": source.ids.sha256}
    # the first process's, for all: on a network disk others may see another one
    found = (_read(folder / TEST, list(shown)), _digest(best, models)) if world.main else ({}, "")
    result, made_for["weights"] = world.gather([found])[0]
    if {key: result.get(key) for key in made_for} != made_for:
        for name, model in models.items():
            key = WEIGHTS[name]
            checkpoint.load_strictly(model, model.accept_(checkpoint.weights(best, key, path)), path, "it is of another run")
        loader = validation_loader(source, world, data.workers)
        progress = evaluation(world, len(loader), "test")
        counts = evaluate(
            [model.eval() for model in models.values()], signals.until(loader), prediction, spec.nclass, world, None, progress
        )
        if world.any(signals.caught):
            raise StoppedError("all epochs are done and saved, the test of best.pth is not; the same command does it", signals.code)
        scores = {name: metric.scores(matrix, spec) for name, matrix in zip(models, counts.matrices, strict=True)}
        result = made_for | {"images": len(source.ids), "scores": scores}
        own = counts.images[judged(tuple(models), spec.task)]
        if world.main:
            _keep(folder, result, own, int(best["epoch"]), source.ids.sha256, log)
    return result, metric.test_lines(result, spec.task)


def _digest(state: dict[str, Any], models: dict[str, Segmenter]) -> str:
    """SHA-256 of the models' weights in a checkpoint."""
    digest = hashlib.sha256()
    for name in models:
        for tensor in state.get(WEIGHTS[name], {}).values():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _keep(folder: Path, result: dict[str, Any], counts: Tensor, epoch: int, sha256: str, log: logging.Logger) -> None:
    """Writes the scores, and the counts of the images."""
    try:
        image_counts.save(folder / image_counts.FILES["test"], counts, epoch, sha256)
        write_atomic(folder / TEST, lambda file: file.write(json.dumps(result, indent=1).encode()))
    except OSError as error:
        log.error(f"{folder / TEST}: cannot be written ({reason(error)}); make room, and the same command tests again")


def _read(path: Path, figures: list[str]) -> dict[str, Any]:
    """What an earlier start has left; nothing where it is missing, cannot be read or lacks one of the `figures`."""
    try:
        found = json.loads(path.read_bytes())
        complete = all(key in own for own in found["scores"].values() for key in figures)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return found if complete else {}
