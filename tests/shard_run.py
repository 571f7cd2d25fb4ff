"""One process of the runs of test_shards.py: given the folder of a Tiny data set, one to save in, and methods.

For each method: the gradients of the first step in float32; then two epochs in float64, stopped in the middle of the second and
continued, as a user would after a preemption. The data path stays what it is (float32), so only the summation order can differ.
"""

import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from engine import evaluation, mini_batches, update
from engine import trainer as training
from engine.page import samples
from tests.conftest import Tiny
from util.config import parse_command
from util.dist import World, processes
from util.error import StoppedError
from util.signals import StopSignals

SHARDS, STOP_AT = 4, 5  # 4 steps an epoch: the second step of the second epoch


class Probe(update.Learner):
    """Notes what the steps get and what comes out of the first; asks for a stop, as Slurm does, at step STOP_AT."""

    folder: Path
    stop_at = -1

    def update(self, batches: Any, stop: bool = False, meanwhile: Callable[[], None] | None = None) -> dict[str, Tensor]:
        if self.it < 2:
            keys = ("name_x", "name_u", "img_u_s2", "box2", "drop")
            torch.save([[getattr(b, k) for k in keys] for b in batches], self.folder / f"batches-{self.it}-{self.world.rank}.pth")
        if self.it == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        stats = super().update(batches, stop or self.it == self.stop_at, meanwhile)
        if self.it == 1 and self.world.main:
            torch.save({name: p.grad for name, p in self.student.named_parameters()}, self.folder / "gradients.pth")
        return stats


def to_double(batch: Any) -> Any:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return type(batch)(**{k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in fields.items()})


def fit(name: str, world: World, args: list[str], stop_at: int) -> None:
    """Runs a method until its end or its stop."""
    Probe.stop_at = stop_at
    method = importlib.import_module(name).METHOD
    with StopSignals() as signals:
        try:
            training.Trainer(parse_command(args, None, method.semi, method.config), method, world, signals).fit()
        except StoppedError:
            assert stop_at >= 0


def main(data: str, out: str, *names: str) -> None:
    tiny = Tiny(Path(data))
    make_batch, start_model, normalize = mini_batches.make_batch, training.start_model, samples.normalize
    training.Learner = Probe  # type: ignore[misc]
    with processes("cpu") as world:
        for name in names:
            # supervised: twice the mini-batch, so 3 steps an epoch on 4 shards, and 8 images that make no fourth
            settings = [f"shards={SHARDS}", "epochs=2", "eval_every=2", "batch_size=2", "supervised_length=56"]
            Probe.folder = Path(out) / name
            Probe.folder.mkdir(parents=True, exist_ok=True)
            fit(name, world, tiny.args(Probe.folder / "float32", *settings), stop_at=2)
            if world.main:
                (Probe.folder / "gradients.pth").rename(Probe.folder / "gradients32.pth")
            with (
                patch.object(mini_batches, "make_batch", lambda *a: to_double(make_batch(*a))),
                patch.object(training, "start_model", lambda *a, **k: start_model(*a, **k).double()),
                patch.object(evaluation, "make_batch", lambda *a: to_double(make_batch(*a))),
                patch.object(samples, "normalize", lambda *a: normalize(*a).double()),
            ):
                args = tiny.args(Probe.folder / "float64", *settings)
                fit(name, world, args, STOP_AT)
                fit(name, world, args, stop_at=-1)


if __name__ == "__main__":
    main(*sys.argv[1:])
