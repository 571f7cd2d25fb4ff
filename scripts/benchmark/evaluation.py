"""Evaluating student and teacher on images of Pascal's size: against a pass for each of them, image by image, with numpy's histograms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dataset.batch import normalize
from dataset.custom import spec_of
from dataset.lists import ImageList
from dataset.semi import Source
from engine.evaluation import evaluate, validation_loader
from model import build_model
from model.encoder import Encoder
from scripts.benchmark.data import mask_values, write_images
from scripts.benchmark.literal import literal_evaluation, literal_model
from scripts.benchmark.measure import AT_LEAST, Row, ratio, seconds
from scripts.benchmark.step import matrix_rate, operations
from util.config import Config
from util.dist import World
from util.precision import autocast

GOAL = (AT_LEAST, 3.0)  # in float32 both ways wait for the same matrix products, at all but the full rate
LENGTH = {"cpu": 4, "cuda": 64}  # images of a round
WORKERS = {"cpu": 0, "cuda": 4}  # loader processes of ours; the literal way has as many
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LiteralList:
    """The images one by one, read anew in each pass: (C, H, W) float, normalised, and class ids (H, W)."""

    def __init__(self, source: Source, workers: int, encoder: Encoder) -> None:
        self.encoder = encoder
        self.loader = validation_loader(source, World(), workers)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            yield normalize(batch["img"], self.encoder)[0], batch["mask"][0].long()


def rows(cfg: Config, device: torch.device, rounds: int) -> Iterator[Row]:
    """Both models over a short list, from the files to the IoU of each class; in float32, and ours in bfloat16 too."""
    spec = spec_of(cfg)
    nclass = spec.nclass
    torch.manual_seed(0)
    models = [build_model(cfg.backbone, nclass).eval().to(device) for _ in range(2)]
    plain = [literal_model(model) for model in models]
    world = World(device=device)
    workers = WORKERS.get(device.type, 0)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, 500, 375, "jpg", 6.0, mask_values(spec))
        lines = (root / "list.txt").read_text().splitlines()
        count = LENGTH.get(device.type, LENGTH["cpu"])
        (root / "list.txt").write_text("".join(f"{line}\n" for line in (lines * count)[:count]))
        source = Source(spec, str(root), ImageList(str(root / "list.txt"), "segmentation", masks=True))

        def literal() -> Any:
            return literal_evaluation(plain, LiteralList(source, workers, models[0].backbone), nclass, device)

        def ours(precision: str) -> Any:
            with autocast(precision, device):
                return evaluate(models, validation_loader(source, world, workers), "original", 0, nclass, world)

        ways = {precision: partial(ours, precision) for precision in PRECISIONS}
        times = seconds({"literal": literal, **ways}, rounds, device)
        work = operations(ways["fp32"])
    what = f"evaluation of student and teacher, {cfg.backbone}, {count} images of 500 x 375"
    for precision, dtype in PRECISIONS.items():
        goal = GOAL if precision == "bf16" else None
        yield ratio(f"{what}: {precision}", times["literal"], times[precision], goal, f"{count} images a round")
        least = work / 1e12 / matrix_rate(device, dtype)
        yield ratio(f"{what}: {precision}, if nothing but matrix products took time", times["literal"], [least] * rounds)
