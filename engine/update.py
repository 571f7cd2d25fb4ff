"""The optimiser step that all methods share: loss, gradients, optimiser, learning rate, moving average (METHOD.md 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dataset.batch import Batch
from dataset.sampler import run_shards
from engine.batch_norm import average_buffers_, prepare_batch_norm_
from engine.ema import Ema, make_teacher
from engine.method import WEIGHTS, Method, shard_seed
from engine.optimizer import load_optimizer_, make_optimizer, set_rate_
from engine.schedule import poly
from engine.step_memory import StepMemory
from model.segmenter import Segmenter
from util import checkpoint
from util.config import Config
from util.dist import World, average_gradients, check_compiler
from util.error import UserError
from util.precision import autocast, inference, loss_scaler

_IN_MODEL = 1  # a stream of seeds of its own, beside that of Method.draw


class Learner:
    """Student, teacher and optimiser of a run, and the update that all methods share.

    `it` counts the optimiser steps done of `total_steps`. `teacher`: the moving average of the student, where the method has one;
    `labels_by`: the model that gives the pseudo labels; `models`: those that are evaluated, by name.
    A step whose loss or gradient is not finite changes neither weights, buffers nor teacher: `skipped` counts these, `skipped_in_row` those
    since the last good one. After an update, `losses` has one loss a shard, `grad_norm` is the gradient's norm, and `stop` says
    whether a process was asked to stop.
    """

    def __init__(self, cfg: Config, model: Segmenter, method: Method, total_steps: int, world: World | None = None) -> None:
        self.cfg = cfg = method.settled(cfg, "change" if model.bitemporal else "segmentation")
        self.method = method
        self.total_steps = total_steps
        self.it = self.skipped = self.skipped_in_row = 0
        self.stop = False
        self.grad_norm = self.losses = torch.zeros(())
        self.world = world = world or World()
        self.student = model.to(world.device)
        self.student.backbone.checkpointing = cfg.activation_checkpointing
        if cfg.lock_backbone:
            self.student.backbone.requires_grad_(False)
        self.statistics = prepare_batch_norm_(self.student, cfg.batch_norm, run_shards(cfg, world.size), world)
        self.teacher = make_teacher(self.student) if method.teacher == "ema" else None
        # the models that are evaluated
        self.models = dict(zip(method.models, filter(None, (self.student, self.teacher)), strict=True))
        self.ema = Ema(self.teacher, self.student) if self.teacher is not None else None
        self.labels_by, self.step_teacher = method.teachers(cfg, self.student, self.teacher)
        if cfg.compile:
            check_compiler(world.device)
            torch._dynamo.config.optimize_ddp = False  # would cut the compiled parts, between which gradients travel in any case
            self.student.compile_parts_()
            if self.teacher is not None:
                self.teacher.compile_parts_()
        # what the method calls: the student, or its wrapper that averages gradients
        self.net = average_gradients(self.student, world, cfg.grad_compression)
        self.optimizer = make_optimizer(self.student, cfg)
        self.scaler = loss_scaler(cfg.precision, world.device)

    def autocast(self) -> AbstractContextManager[None]:
        """Inside, models compute in the run's precision."""
        return autocast(self.cfg.precision, self.world.device)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Inside, models compute without gradients, in the run's precision, but not compiled: images have too many sizes for that.

        The teacher and a frozen encoder get their 16-bit weights once, not for every image: autocast keeps those that require a gradient.
        """
        frozen = [p for model in self.models.values() for p in model.parameters() if not p.requires_grad]
        try:
            for p in frozen:
                p.requires_grad = True
            with torch.no_grad(), inference(self.cfg.precision, self.world.device), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            for p in frozen:
                p.requires_grad = False

    @property
    def lr(self) -> float:
        """The encoder's learning rate for the next step."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next step belongs to."""
        return self.it * self.cfg.epochs // self.total_steps

    def _dated(self, batch: Batch) -> Batch:
        """The mini-batch with what it says of the time."""
        return replace(batch, progress=self.it / self.total_steps, epoch=self.epoch)

    def update(self, batches: Sequence[Batch], stop: bool = False, meanwhile: Callable[[], None] | None = None) -> dict[str, Tensor]:
        """One optimiser step from one mini-batch per own shard. Returns the stats, detached, averaged over these shards.

        stop: this process was asked to stop. meanwhile: called while the device computes the gradient, before the host waits for it.
        """
        self.student.train()
        # beside the buckets in which the processes exchange them, gradients of several shards would be held twice
        self.optimizer.zero_grad(set_to_none=not isinstance(self.net, DistributedDataParallel))
        before = [buffer.clone() for buffer in self.statistics]
        memory = StepMemory(self.student, self.world)
        all_stats, losses = [], []
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            memory.begin_shard(i)
            # what a model draws for itself (stochastic depth) is the same on any number of processes, and after a resume
            torch.manual_seed(shard_seed(self.cfg.seed, self.it, self.world.rank * len(batches) + i, _IN_MODEL))
            with self.net.no_sync() if isinstance(self.net, DistributedDataParallel) and not last else nullcontext():
                with self.autocast():
                    loss, stats = self.method.step(self.net, self.step_teacher, self._dated(batch), self.cfg)
                self.scaler.scale(loss / len(batches)).backward()
            all_stats.append(stats)
            losses.append(loss.detach())
        self.losses = torch.stack(losses)
        if meanwhile is not None:
            meanwhile()
        self.scaler.unscale_(self.optimizer)
        if self._agree(stop):
            self.optimizer.step()
            memory.end_step(len(batches))
            if self.cfg.batch_norm == "per_shard":
                average_buffers_(self.statistics, self.world)
            if self.ema is not None:
                self.ema.update(self.it)
        else:
            for buffer, value in zip(self.statistics, before, strict=True):
                buffer.copy_(value)
            memory.undo()
        self.scaler.update()
        set_rate_(self.optimizer, poly(self.cfg.lr, self.it, self.total_steps))
        self.it += 1
        return {name: torch.stack([stats[name] for stats in all_stats]).mean() for name in all_stats[0]}

    def _agree(self, stop: bool) -> bool:
        """Whether this step counts, the same on all processes: are all losses and the gradient finite? The one host read of a step."""
        grads = [p.grad for p in self.student.parameters() if p.grad is not None]
        self.grad_norm = torch.nn.utils.get_total_norm(grads)
        # 0 * loss is 0, or nan for a loss that is not finite; the gradient is already the same everywhere
        words = torch.stack((self.grad_norm + (0 * self.losses).sum(), self.grad_norm.new_full((), float(stop))))
        norm, asked = self.world.sum_(words).tolist()
        self.stop = asked > 0
        good = math.isfinite(norm)
        self.skipped += not good
        self.skipped_in_row = 0 if good else self.skipped_in_row + 1
        return good

    def state(self) -> dict[str, Any]:
        """Weights and optimiser, under the names that the authors' checkpoints have."""
        state: dict[str, Any] = {WEIGHTS[name]: model.state_dict() for name, model in self.models.items()}
        state |= {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return state | {"skipped": self.skipped, "skipped_in_row": self.skipped_in_row}

    def load_state(self, state: dict[str, Any], source: str) -> None:
        """Resumes from `state` or from a checkpoint of the authors. Raises UserError where it does not fit."""
        hint = "was it made with another backbone, data set or method? Resume with the same command or use another --save-path"
        for name, model in self.models.items():
            key = WEIGHTS[name]
            if key not in state:
                raise UserError(f"{source}: has no {key!r}, the {name} of a semi-supervised run; {hint}")
            checkpoint.load_strictly(model, model.accept_(checkpoint.weights(state, key, source)), source, hint)
        self.skipped, self.skipped_in_row = state.get("skipped", 0), state.get("skipped_in_row", 0)
        if state.get("scaler"):  # only runs in fp16 have something in it
            self.scaler.load_state_dict(state["scaler"])
        try:
            load_optimizer_(self.optimizer, state["optimizer"])
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{source}: its optimiser state does not fit ({error}); {hint}") from error
