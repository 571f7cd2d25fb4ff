"""What a training method is: each method's file says once what the loop, the log, the page, the benchmark and the report ask."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataset.batch import Batch, Reads
from model.segmenter import Segmenter
from model.spec import architecture
from util.config import Config
from util.error import UserError
from util.files import ROOT

# step(student, teacher, batch, cfg) -> the scalar loss of a mini-batch, and the stats: detached scalars by their names
Step = Callable[[Any, Any, Batch, Config], tuple[Tensor, dict[str, Tensor]]]
# draw(unlabelled images, channels of the encoder's maps, generator, the method's settings) -> factors of feature dropout for `Batch.drop`
Draw = Callable[[int, tuple[int, ...], torch.Generator, Any], Tensor]
# guided(the model that labels, the method's settings, whether only shapes are asked for) -> what the step gets as its teacher
Guided = Callable[[Segmenter, Any, bool], nn.Module]
# labels of the stats of `model.loss.semi_loss`, as the published logs print them
SEMI_LABELS = {"loss_all": "Total loss", "loss_x": "Loss x", "loss_s": "Loss s", "mask_ratio": "Mask ratio"}

STUDENT, EMA = "student", "EMA"  # the models of a run, by their names in log and page
WEIGHTS = {STUDENT: "model", EMA: "model_ema"}  # and where a checkpoint has their weights

DEFAULT = "unimatch_v2"  # the method that commands take where none is named; scripts/setup.sh has it too


@dataclass(frozen=True)
class Method:
    """A method by its parts. The file that defines it is named like it and calls it METHOD.

    step: computes a mini-batch's loss. What it may read of a mini-batch is `Batch`. reads: which images it gets; reads_of: these by its
        settings, where they depend on one.
    labels: the stats that an iteration's log line shows, {name: label}, in order. TensorBoard gets every stat, as train/<name>. The page
        draws those whose names begin with "loss" in one chart, "mask_ratio" (model/loss.py) in percent, any other in a chart of its own.
    teacher: who gives the pseudo labels. "ema": the moving average of the student, which is evaluated too. "student": the student
        itself, and there is no average. None: nobody, the method reads labelled images alone.
    draw: draws `Batch.drop` from (seed, step, shard).
    guided: makes of the model that labels what the step gets as its teacher, where that is more: a frozen model beside it (semivl.py).
        It refuses a model that the method cannot train.
    thresholded: whether `conf_thresh` decides which pseudo labels count; else all do.
    optimizer: adamw | sgd, where the config leaves it open.
    config: the class of its settings, with the keys of its own.
    programs: the same method as another program of the authors has it, by the program's name (`program_of`).
    title: what the report's tables call it; empty: its name.
    """

    name: str
    step: Step
    labels: Mapping[str, str] = field(default_factory=lambda: {"loss_all": "Total loss"})
    teacher: str | None = "ema"
    reads: Reads = Reads()
    reads_of: Callable[[Any], Reads] | None = None
    draw: Draw | None = None
    guided: Guided | None = None
    thresholded: bool = True
    optimizer: str = "adamw"
    config: type[Config] = Config
    programs: Mapping[str, Method] = field(default_factory=dict)
    title: str = ""

    @property
    def semi(self) -> bool:
        """Whether it reads unlabelled images."""
        return self.reads.unlabeled > 0

    @property
    def models(self) -> tuple[str, ...]:
        """The models that a run evaluates, by their names in log and page."""
        return (STUDENT, EMA) if self.teacher == "ema" else (STUDENT,)

    def factors(self, cfg: Config, channels: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        """`Batch.drop` of a mini-batch; None where the method draws nothing. channels: of the encoder's maps."""
        return self.draw(self.reads.images(cfg.batch_size).get("u", 0), channels, generator, cfg) if self.draw else None

    def teacher_of(self, task: str, chosen: str | None = None) -> str | None:
        """Who gives the pseudo labels in a run: the `chosen` one of the config, else as published: in change detection the student."""
        if self.teacher != "ema":
            return self.teacher
        return chosen or ("student" if task == "change" else "ema")

    def teachers(
        self, cfg: Config, student: Segmenter, average: Segmenter | None, hollow: bool = False
    ) -> tuple[Segmenter | None, nn.Module | None]:
        """The model that gives the pseudo labels, and what the step gets as its teacher; None where nobody labels.

        cfg: settled; average: the moving average of the student, where there is one; hollow: only shapes are asked for.
        """
        labels_by = {"ema": average, "student": student, None: None}[cfg.teacher]
        return labels_by, self.guided(labels_by, cfg, hollow) if self.guided and labels_by is not None else labels_by

    def of(self, cfg: Config) -> Method:
        """The method as the program has it that a run follows. Raises UserError where the config names one that has no such method."""
        program = program_of(cfg)
        if cfg.program == "unimatch_v1" and program not in self.programs:
            raise UserError(f"program: found unimatch_v1, which has no {self.name}; remove it")
        method = self.programs.get(program, self)
        if method.teacher == "student" and cfg.teacher == "ema":
            advice = "set program=unimatch_v2" if self.teacher == "ema" else "remove it"
            raise UserError(f"teacher: found ema, but {self.name} has no average in the program {program}; {advice}")
        reads = method.reads if method.reads_of is None else method.reads_of(cfg)
        return method if reads == method.reads else replace(method, reads=reads)

    def settled(self, cfg: Config, task: str) -> Config:
        """The config with what it leaves to method and encoder filled in."""
        model, optimizer = architecture(cfg.backbone, cfg.model), cfg.optimizer or self.optimizer
        settled = replace(cfg, teacher=self.teacher_of(task, cfg.teacher), model=model, program=program_of(cfg), optimizer=optimizer)
        return settled if self.thresholded else replace(settled, conf_thresh=0.0)


@cache
def method_names() -> tuple[str, ...]:
    """The methods of this program: the files at its top that define METHOD."""
    # not the hidden files of an editor or of macOS beside them
    files = [path for path in ROOT.glob("*.py") if path.stem.isidentifier() and path.is_file()]
    return tuple(sorted(path.stem for path in files if "\nMETHOD = " in path.read_text(encoding="utf-8", errors="replace")))


def get_method(name: str) -> Method:
    """The method of a name among `method_names`. Its file stands above this room: it is imported when it is asked for."""
    method: Method = importlib.import_module(name).METHOD
    return method


def method_for(config: str, name: str | None) -> Method:
    """The method of a name; without one, that whose recipes the config's folder holds, such as configs/semivl, else DEFAULT."""
    folder = Path(config).resolve().parent.name
    return get_method(name or (folder if folder in method_names() else DEFAULT))


def program_of(cfg: Config) -> str:
    """The authors' program that a run follows where they differ: `program` of the config, else the one that the architecture is from."""
    return cfg.program or ("unimatch_v1" if architecture(cfg.backbone, cfg.model) == "deeplabv3plus" else "unimatch_v2")


def judged(models: tuple[str, ...], task: str) -> int:
    """Which of `models` the published rule looks at (METHOD.md 4): the EMA where there is one, but the student in change detection."""
    return models.index(EMA) if EMA in models and task != "change" else 0


def shard_seed(seed: int, step: int, shard: int, *stream: int) -> int:
    """The seed of what a shard draws in a step (counted over all epochs), so that any number of processes draws the same.

    stream: distinguishes what is drawn for different purposes.
    """
    state = np.random.SeedSequence((seed, step, shard, *stream)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
