"""Training steps and evaluations beside a literal way of doing the same; peak memory, and what activation checkpointing costs.

The literal way is as plain as it can be written: float32, eager, softmax(QK^T)V; losses read back every step; a pass over the images for
each model that is evaluated.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dataset.batch import Batch, make_batch
from dataset.custom import spec_of
from dataset.demo.photograph import SIZE, drawn_source
from dataset.source import Source
from engine.ema import ema_decay, make_teacher
from engine.evaluation import Prediction, evaluate, validation_loader
from engine.footprint import GIB, DryRun
from engine.method import DEFAULT, Method
from engine.optimizer import make_optimizer, set_rate_
from engine.schedule import poly
from engine.update import Learner
from model import configured_model
from model.segmenter import Segmenter
from model.text import give_text_
from scripts.benchmark.data import host_batch, images
from scripts.benchmark.measure import AT_LEAST, AT_MOST, Row, attempt, matrix_rate, ratio, seconds
from util.config import Config
from util.dist import World
from util.precision import inference, matmul_precision

STEPS_IN_ALL = 1000  # of the learning rate schedule; any number would do
GOAL, CPU_GOAL = (AT_LEAST, 6.0), (AT_LEAST, 1.0)  # of a step in bf16 with compile on a GPU; in fp32 elsewhere
PEAK_GOAL, TIME_GOAL = (AT_MOST, 24.0), (AT_MOST, 1.35)  # of activation checkpointing in fp32
EVALUATION_GOAL = (AT_LEAST, 3.0)  # of bf16; in fp32 both ways wait for the same matrix products, at all but the full rate
VARIED = [(350 + 16 * i, 375) for i in range(24)]  # sizes of images, so far apart that each has another number of patches
SETTINGS = ("fp32", "bf16, compile", "bf16", "tf32", "fp16", "fp32, compile")  # of a step on a GPU; what says most comes first


class LiteralLoop:
    """Student, its moving average and optimiser; `update` is one optimiser step from one mini-batch on the host."""

    def __init__(self, cfg: Config, method: Method, model: Segmenter, device: torch.device) -> None:
        self.cfg, self.method, self.device, self.it = method.settled(cfg, spec_of(cfg).task), method, device, 0
        self.student = copy.deepcopy(model).to(device)
        self.student.frozen_statistics = cfg.batch_norm == "frozen"
        if cfg.lock_backbone:
            self.student.backbone.requires_grad_(False)
        self.student.train()
        self.average = make_teacher(self.student) if method.teacher == "ema" else None
        _, self.teacher = method.teachers(self.cfg, self.student, self.average)
        ours = make_optimizer(self.student, self.cfg)
        groups = [{name: group[name] for name in ("params", "lr", "factor", "weight_decay")} for group in ours.param_groups]
        sgd = isinstance(ours, torch.optim.SGD)
        self.optimizer = torch.optim.SGD(groups, momentum=cfg.momentum) if sgd else torch.optim.AdamW(groups)

    def update(self, batch: Batch) -> dict[str, float]:
        """batch: images (B, C, S, S) float, normalised on the host. Returns the stats as numbers."""
        set_rate_(self.optimizer, poly(self.cfg.lr, max(0, self.it - 1), STEPS_IN_ALL))
        with sdpa_kernel(SDPBackend.MATH):
            loss, stats = self.method.step(self.student, self.teacher, self.moved(batch), self.cfg)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            decay = ema_decay(self.it)
            for t, s in zip(self.average.state_dict().values(), self.student.state_dict().values(), strict=True):
                t.copy_(t * decay + s * (1 - decay) if t.is_floating_point() else s)
        self.it += 1
        return {name: value.item() for name, value in stats.items()}

    def moved(self, batch: Batch) -> Batch:
        """The mini-batch on the device."""
        fields: dict[str, Any] = dict(vars(batch))
        for name, value in fields.items():
            if isinstance(value, (Tensor, Batch)):
                fields[name] = value.to(self.device) if isinstance(value, Tensor) else self.moved(value)
        return Batch(**fields)


def started_model(cfg: Config) -> Segmenter:
    """A run's model with random weights, always the same."""
    spec = spec_of(cfg)
    torch.manual_seed(0)
    model = configured_model(cfg, spec.nclass, spec.task)
    give_text_(model, cfg, spec.classes)
    return model


class Alternatives:
    """The literal loop and trainers with several settings, from the same weights, on the same mini-batch."""

    def __init__(self, cfg: Config, method: Method, device: torch.device) -> None:
        self.cfg, self.method, self.device = replace(cfg, shards=1), method, device
        self.model = started_model(cfg)
        self.drop = method.factors(cfg, self.model.channels, torch.Generator())
        # one normalised float tensor a view, in pageable memory, as a plain DataLoader leaves it: copies of it block
        self.batch = make_batch(host_batch(cfg, method.reads), torch.device("cpu"), self.model.backbone, self.drop)

    def learner(self, **settings: Any) -> Learner:
        """A learner of the same weights, with some keys of the config changed."""
        cfg, model = replace(self.cfg, **settings), copy.deepcopy(self.model)
        return Learner(cfg, model, self.method, STEPS_IN_ALL, world=World(device=self.device))

    def ours(self, **settings: Any) -> Callable[[], Any]:
        """A step from what the real loader leaves: for a GPU, images still to be made (`views: auto`), in page-locked memory.

        As in Trainer.updates, a step finds its mini-batch made, and makes the next one while the device computes its gradient.
        """
        learner, gpu = self.learner(**settings), self.device.type == "cuda"
        raw = host_batch(self.cfg, self.method.reads, on_device=gpu, pin=gpu)
        make = partial(make_batch, raw, self.device, self.model.backbone, self.drop)
        made = [make()]

        def update() -> None:
            with matmul_precision(learner.cfg.precision, self.device):
                learner.update([made.pop()], meanwhile=lambda: made.append(make()))

        return update


def of_method(method: Method) -> str:
    """Which method a row is of; that of most rows is not named."""
    return "" if method.name == DEFAULT else f" of {method.name}"


def step_row(cfg: Config, method: Method, device: torch.device, name: str, rounds: int, figure: str) -> Iterator[Row]:
    """The product's step in one of SETTINGS beside the literal one: two at a time, all together would not fit into the memory.

    Beside it, the operations that it needs as a share of what a matrix product reaches here.
    """
    made, gpu, precision = Alternatives(cfg, method, device), device.type == "cuda", name.removesuffix(", compile")
    literal = partial(LiteralLoop(cfg, method, made.model, device).update, made.batch)
    ours = made.ours(precision=precision, compile=name != precision)
    times = seconds({"literal": literal, "ours": ours}, rounds, device, warm=3 if gpu else 1)
    rate = matrix_rate(device, precision)
    work = DryRun(cfg, method).step()[1].work.total() / 1e12
    note = f"{work:.3g} TFLOP, {work / median(times['ours']) / rate:.0%} of a matrix product's {rate:.3g} TFLOP/s"
    goals = {"bf16, compile": GOAL} if gpu else {"fp32": CPU_GOAL}
    yield ratio(figure, times["literal"], times["ours"], goals.get(name), note)


def step_rows(cfg: Config, method: Method, device: torch.device, args: argparse.Namespace) -> Iterator[Row]:
    """A step of `cfg` with --only, or all SETTINGS on a GPU, beside the literal one."""
    gpu = device.type == "cuda"
    sizes = [cfg]
    if not (gpu or args.config or args.set):
        # what two cores do in minutes: a smaller encoder, the published crop and a small one
        small = replace(cfg, backbone="dinov2_small")
        sizes = [replace(small, crop_size=112, batch_size=4), replace(small, crop_size=518, batch_size=1)]
    for size in sizes:
        for name in [args.only] if args.only else list(SETTINGS) if gpu else ["fp32", "bf16"]:
            figure = f"step{of_method(method)}, {size.backbone}, {size.crop_size}, {images(size, method)} images: {name}"
            yield from attempt(figure, device, step_row, size, method, device, name, args.rounds, figure)


def peak(cfg: Config, method: Method, device: torch.device, figure: str) -> list[Row]:
    """The fullest moment of a step in GiB: measured on an NVIDIA GPU, elsewhere calculated for one."""
    goal = PEAK_GOAL if cfg.activation_checkpointing and cfg.precision == "fp32" else None
    if device.type != "cuda":
        return [Row(figure, [sum(DryRun(cfg, method).step()[0].values()) / GIB], "GiB", goal, "calculated for a GPU")]
    update = Alternatives(cfg, method, device).ours()
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):  # AdamW's moments come with the first step
        update()
    return [Row(figure, [torch.cuda.max_memory_allocated(device) / GIB], "GiB", goal, "torch.cuda.max_memory_allocated")]


def checkpointing(cfg: Config, method: Method, device: torch.device, rounds: int, figure: str) -> Iterator[Row]:
    """Seconds of a step with activation checkpointing over those without."""
    made = Alternatives(cfg, method, device)
    times = seconds({on: made.ours(activation_checkpointing=on == "with") for on in ("without", "with")}, rounds, device)
    more = [a / b for a, b in zip(times["with"], times["without"], strict=True)]
    note = f"{1000 * median(times['without']):.4g} -> {1000 * median(times['with']):.4g} ms"
    yield Row(figure, more, "x without", TIME_GOAL if cfg.precision == "fp32" else None, note)


def memory_rows(cfg: Config, method: Method, device: torch.device, args: argparse.Namespace) -> Iterator[Row]:
    """Peaks of a step of `cfg`, and its seconds with checkpointing over those without."""
    what = f"peak memory{of_method(method)}, {cfg.backbone}, crop {cfg.crop_size}, {images(cfg, method)} images"
    for precision, on in product(("fp32", "bf16"), (False, True)):
        figure = f"{what}, {precision}{', activation checkpointing' * on}"
        yield from attempt(figure, device, peak, replace(cfg, precision=precision, activation_checkpointing=on), method, device, figure)
    timed = cfg if device.type == "cuda" or args.config or args.set else replace(cfg, backbone="dinov2_small", crop_size=252)
    for precision in ("fp32", "bf16"):
        figure = f"seconds with activation checkpointing{of_method(method)}, {timed.backbone}, crop {timed.crop_size}, {precision}"
        yield from attempt(figure, device, checkpointing, replace(timed, precision=precision), method, device, args.rounds, figure)


def score(
    groups: list[list[Segmenter]],
    source: Source,
    prediction: Prediction,
    device: torch.device,
    arithmetic: Callable[[], AbstractContextManager],
) -> None:
    """Evaluates each group of models in a pass over the images of its own, inside `arithmetic()`."""
    world, workers = World(device=device), 4 if device.type == "cuda" else 0  # loader processes
    for models in groups:
        with arithmetic():
            evaluate(models, validation_loader(source, world, workers), prediction, source.spec.nclass, world)


def evaluation_rows(cfg: Config, method: Method, device: torch.device, args: argparse.Namespace) -> Iterator[Row]:
    """The models that a run evaluates over a short list, from the files to the confusion matrices: images of one size, then of many."""
    count = 64 if device.type == "cuda" else 4  # images of a round
    if not (device.type == "cuda" or args.config or args.set):
        cfg = replace(cfg, backbone="dinov2_small")  # what two cores do in minutes
    spec = spec_of(cfg)
    models = [started_model(cfg).eval().to(device) for _ in method.models]
    prediction = Prediction.of(cfg, spec, models[0])
    for words, sizes in ((f"{SIZE[0]} x {SIZE[1]}", [SIZE]), (f"{len(VARIED)} sizes", VARIED)):
        with TemporaryDirectory() as folder:
            source = drawn_source(Path(folder), spec, sizes, count=count)
            alone = [[model] for model in models]
            ways = {"literal": partial(score, alone, source, prediction, device, partial(sdpa_kernel, SDPBackend.MATH))}
            for precision in ("fp32", "bf16"):
                ways[precision] = partial(score, [models], source, prediction, device, partial(inference, precision, device))
            literal, *ours = seconds(ways, args.rounds, device).items()
        for precision, times in ours:
            figure = f"evaluation of {' and '.join(method.models)}, {cfg.backbone}, {count} images of {words}: {precision}"
            yield ratio(figure, literal[1], times, EVALUATION_GOAL if precision == "bf16" else None, f"{count} images a round")
