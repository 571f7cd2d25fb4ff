"""The final test: a run's best model on the test list, once, where another list selected it (METHOD.md 4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from dataset.loader import Data
from dataset.semi import Source
from engine import metric
from engine.evaluation import evaluate, validation_loader
from engine.method import WEIGHTS
from engine.resume import BEST
from model.segmenter import Segmenter
from util import checkpoint
from util.config import Config
from util.dist import World
from util.files import write_atomic

FILE = "test.json"  # under the save path: the scores, so that a run that is started again does not test again


def scores(matrix: Tensor, change: bool) -> dict[str, float]:
    """The figures of a confusion matrix in percent, by the names they have in the log."""
    iou, accuracy = metric.iou(matrix), metric.pixel_accuracy(matrix)
    if not change:
        return {"mIoU": float(iou.mean()), "pixel accuracy": accuracy}
    figures = {"changed IoU": float(iou[1]), "unchanged IoU": float(iou[0]), "overall accuracy": accuracy}
    return figures | metric.changed_class(matrix)


def final_test(cfg: Config, data: Data, source: Source, models: dict[str, Segmenter], world: World) -> list[str]:
    """Loads best.pth into the models and scores them on `source`, over all processes; writes test.json. Returns the lines for the log.

    Where test.json has the scores of this best.pth and this list already, they are taken from there.
    """
    folder, path = Path(cfg.save_path), str(Path(cfg.save_path) / BEST)
    best = checkpoint.load(path, mapped=True)
    made_for = {"epoch": int(best["epoch"]), "list": source.ids.path, "sha256": source.ids.sha256}
    result = world.gather([_read(folder / FILE)])[0]  # the first process's, for all: on a network disk others may see another one
    if {key: result.get(key) for key in made_for} != made_for:
        for name, model in models.items():
            key = WEIGHTS[name]
            checkpoint.load_strictly(model, checkpoint.weights(best, key, path), path, "it is of another run")
        loader = validation_loader(source, world, data.workers)
        spec, mode = data.spec, data.eval_mode
        matrices = evaluate([model.eval() for model in models.values()], loader, mode, cfg.crop_size, spec.nclass, world)
        figures = {name: scores(matrix, spec.task == "change") for name, matrix in zip(models, matrices, strict=True)}
        result = made_for | {"images": len(source.ids), "scores": figures}
        if world.main:
            write_atomic(folder / FILE, lambda file: file.write(json.dumps(result, indent=1).encode()))
    return [
        f"Test of best.pth (epoch {result['epoch']}) on {result['list']}, {name}: "
        + ", ".join(f"{figure} {value:.2f}" for figure, value in values.items())
        for name, values in result["scores"].items()
    ]


def _read(path: Path) -> dict[str, Any]:
    """What an earlier start has left; nothing where there is none or it cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
