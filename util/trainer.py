"""The one loop: optimiser step, learning rate, EMA teacher, evaluation, checkpoints, for every method (spec.md 3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dataset.batch import Batch, make_batch
from dataset.loader import Data, open_data
from dataset.semi import batches
from model import build_model
from model.dropout import complementary_factors
from model.loss import check_criterion
from model.semseg.dpt import DPT
from model.weights import default_path
from util import checkpoint
from util.config import Config, parse_command
from util.dist import World, processes
from util.ema import ema_update_, make_teacher
from util.error import UserError
from util.evaluation import evaluate, validation_loader
from util.final import final_test
from util.log import open_log
from util.record import Averages, Record
from util.schedule import poly

Step = Callable[..., tuple[Tensor, dict[str, Tensor]]]
READ_EVERY = 50  # steps between reads of the scalars on the device, where no log line falls due sooner


class Trainer:
    """Student, teacher and optimiser of a run, and the update that all methods share.

    step(student, teacher, batch, cfg) -> (loss, stats) is the method. `it` counts the optimiser steps done of `total_steps`.
    semi=False: no teacher.
    """

    def __init__(self, cfg: Config, model: DPT, step: Step, total_steps: int, semi: bool = True, world: World | None = None) -> None:
        self.cfg = cfg
        self.step = step
        self.total_steps = total_steps
        self.it = 0
        world = world or World()
        check_criterion(cfg.criterion)
        self.student = model.to(world.device)
        if cfg.lock_backbone:
            self.student.backbone.requires_grad_(False)
        self.teacher = make_teacher(self.student) if semi else None
        self.net: nn.Module = self.student  # what the method calls: the student, or its wrapper that averages gradients
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.net = DistributedDataParallel(self.student, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
        # all parameters, frozen ones too: the authors' optimiser states count them by place
        encoder = list(self.student.backbone.parameters())
        decoder = [p for name, p in self.student.named_parameters() if "backbone" not in name]
        groups = [{"params": encoder, "lr": cfg.lr}, {"params": decoder, "lr": cfg.lr * cfg.lr_multi}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)

    @property
    def lr(self) -> float:
        """The encoder's learning rate for the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def update(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One optimiser step from one mini-batch per own shard. Returns the stats, detached, averaged over these shards."""
        self.student.train()
        self.optimizer.zero_grad()
        labels_by = self.student if self.cfg.teacher == "student" else self.teacher
        all_stats = []
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            with self.net.no_sync() if isinstance(self.net, DistributedDataParallel) and not last else nullcontext():
                loss, stats = self.step(self.net, labels_by, batch, self.cfg)
                (loss / len(batches)).backward()
            all_stats.append(stats)
        self.optimizer.step()
        rate = poly(self.cfg.lr, self.it, self.total_steps)
        for group, multiple in zip(self.optimizer.param_groups, (1, self.cfg.lr_multi), strict=True):
            group["lr"] = rate * multiple
        if self.teacher is not None:
            ema_update_(self.teacher, self.student, self.it)
        self.it += 1
        return {name: torch.stack([stats[name] for stats in all_stats]).mean() for name in all_stats[0]}

    def state(self) -> dict[str, Any]:
        """Weights and optimiser, under the names that the authors' checkpoints have."""
        state = {"model": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state if self.teacher is None else state | {"model_ema": self.teacher.state_dict()}

    def load_state(self, state: dict[str, Any], source: str) -> None:
        """Goes on from `state` or a checkpoint of the authors. Raises UserError where it does not fit."""
        hint = "was it made with another backbone, data set or method? Resume with the same command or use another --save-path"
        checkpoint.load_strictly(self.student, checkpoint.weights(state, "model"), source, hint)
        if self.teacher is not None:
            checkpoint.load_strictly(self.teacher, checkpoint.weights(state, "model_ema"), source, hint)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{source}: its optimiser state does not fit ({error}); {hint}") from error


class Run:
    """A training run from its files: data, trainer, record; resumes from latest.pth under the save path."""

    def __init__(self, cfg: Config, step: Step, semi: bool, world: World) -> None:
        self.cfg = cfg
        self.world = world
        self.folder = Path(cfg.save_path)
        self._make_folder()
        self.log = open_log(self.folder / "train.log" if world.main else None)
        self.data = open_data(cfg, world, semi, self.log)
        torch.manual_seed(cfg.seed)
        model = start_model(cfg, self.data)
        self.steps = self.data.sampler.steps
        self.trainer = Trainer(cfg, model, step, self.steps * cfg.epochs, semi, world)
        self.record = Record(self.log, self.folder if world.main else None, self.data.spec, semi, cfg.teacher == "ema")
        self.averages = Averages(world)
        self.last_save, self.save_seconds = time.monotonic(), 0.0
        batch = cfg.batch_size if semi else 2 * cfg.batch_size
        self.record.header(asdict(cfg) | {"ngpus": world.size, "nclass": self.data.spec.nclass, "batch_size": batch}, model)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".write-test-{self.world.rank}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror}); give another --save-path") from error

    def fit(self) -> None:
        """Trains from the beginning, or from where latest.pth left off, to the last epoch."""
        first, start = self._resume()
        progress = tqdm(total=self.trainer.total_steps, initial=self.trainer.it, disable=None if self.world.main else True, unit="step")
        for epoch in range(first, self.cfg.epochs):
            self.record.epoch(epoch, self.trainer.lr)
            self._train_epoch(epoch, start, progress)
            start = 0
            best = self._evaluate(epoch) if self._evaluation_due(epoch) else False
            self.averages.reset()
            self._save(epoch, 0, ("best.pth", "latest.pth") if best else ("latest.pth",))
        progress.close()
        self._test()
        self.record.close()

    def _train_epoch(self, epoch: int, start: int, progress: tqdm) -> None:
        for i, shards in enumerate(self._mini_batches(epoch, start), start):
            self.averages.add(self.trainer.update(shards))
            progress.update()
            due = i % max(1, self.steps // 8) == 0
            if due or (i + 1) % READ_EVERY == 0 or i + 1 == self.steps:
                rows = self.averages.read()
                self.record.steps(self.trainer.it - len(rows), rows)
                if self._save_due() and i + 1 < self.steps:
                    self._save(epoch - 1, i + 1, ("latest.pth",))
            if due:
                self.record.iteration(i, self.trainer.lr, self.averages.means())

    def _mini_batches(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        """The mini-batches of the own shards, for each step from `start` on."""
        sampler, width = self.data.sampler, self.trainer.student.backbone.width
        sampler.set_epoch(epoch, start)
        raw = batches(self.data.loader)
        for step in range(start, self.steps):
            out = []
            for shard, mini_batch in zip(sampler.own, islice(raw, len(sampler.own)), strict=True):
                # complementary dropout comes from (seed, step, shard), so any number of processes draws the same
                seed = np.random.SeedSequence((self.cfg.seed, epoch * self.steps + step, shard)).generate_state(1, np.uint64)
                generator = torch.Generator().manual_seed(int(seed[0] >> np.uint64(1)))
                drop = complementary_factors(self.cfg.batch_size, width, generator)
                out.append(make_batch(mini_batch, self.world.device, drop))
            yield out

    def _evaluation_due(self, epoch: int) -> bool:
        return (epoch + 1) % self.cfg.eval_every == 0 or epoch + 1 == self.cfg.epochs

    def _evaluate(self, epoch: int) -> bool:
        models = [m.eval() for m in (self.trainer.student, self.trainer.teacher) if m is not None]
        loader = validation_loader(self.data.validation, self.world, self.data.workers)
        mode, spec = self.data.eval_mode, self.data.spec
        matrices = evaluate(models, loader, mode, self.cfg.crop_size, spec.nclass, self.world)
        return self.record.evaluation(epoch, mode, matrices)

    def _test(self) -> None:
        """Scores best.pth on the test list where another list selected it. The models keep its weights: nothing comes after."""
        if self.data.test is None:
            return
        self.world.wait()  # until the first process has written best.pth
        for line in final_test(self.cfg, self.data, self.data.test, self.trainer.student, self.trainer.teacher, self.world):
            self.log.info(line)

    def _save_due(self) -> bool:
        seconds = max(300.0, 100 * self.save_seconds) if self.cfg.save_every is None else 60 * self.cfg.save_every
        return self.world.main and time.monotonic() - self.last_save >= seconds

    def _save(self, epoch: int, step: int, names: Sequence[str]) -> None:
        """Writes checkpoints. epoch: the last finished one; step: steps done in the epoch after it."""
        if not self.world.main:
            return
        begin = time.monotonic()
        state = self.trainer.state() | self.record.state()
        state |= {"epoch": epoch, "step": step, "averages": {"sums": self.averages.sums, "count": self.averages.count}}
        state |= {"config": asdict(self.cfg), "lists": self.data.lists, "torch": str(torch.__version__)}
        for name in names:
            checkpoint.save(state, self.folder / name)
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - begin

    def _resume(self) -> tuple[int, int]:
        """Loads latest.pth where there is one. Returns the epoch and the step in it to go on with."""
        path = self.folder / "latest.pth"
        if not path.exists():
            return 0, 0
        state = checkpoint.load(path)
        self.trainer.load_state(state, str(path))
        self.record.load_state(state)
        epoch, step = int(state["epoch"]) + 1, int(state.get("step", 0))
        self.averages.reset(**state.get("averages", {}))
        self.trainer.it = epoch * self.steps + step
        self.log.info("************ Load from checkpoint at epoch %i\n", epoch - 1)
        return epoch, step


def start_model(cfg: Config, data: Data) -> DPT:
    """The model a run starts from: `init`, else the encoder weights of `pretrained`, else random weights."""
    pretrained = None if cfg.init else str(default_path(cfg.backbone)) if cfg.pretrained == "auto" else cfg.pretrained
    model = build_model(cfg.backbone, data.spec.nclass, data.spec.task, pretrained)
    if cfg.init:
        state = checkpoint.load(cfg.init)
        weights = checkpoint.weights(state, "model_ema" if "model_ema" in state else "model")
        checkpoint.load_strictly(model, weights, cfg.init, "`init` needs a run with the same backbone, classes and task")
    return model


def train(step: Step, argv: list[str], description: str | None, semi: bool = True) -> None:
    """The command of a method: reads the command line, joins the processes, trains."""
    cfg = parse_command(argv, description, semi)
    with processes(cfg.device) as world:
        Run(cfg, step, semi, world).fit()
