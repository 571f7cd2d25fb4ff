"""What a run says on the screen beside the lines of its log: what it is at its start, where it is, and what it has made at its end.

Each of these lines begins with "# ", by which readers of a captured screen, such as Slurm's, know that no figure is in it. They count
epochs from 1; the number that an epoch has in the log, which counts from 0, is called so.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from dataset.loader import LISTS, Data
from engine.page.render import PageData
from engine.resume import BEST, LATEST, LOG, METRICS, PAGE
from model.weights import default_path
from util.config import Config
from util.dist import World
from util.log import say
from util.progress import Progress, count, duration


def begin(cfg: Config, data: Data, title: str, world: World, epoch: int, step: int) -> None:
    """Says what starts. title: the method's; epoch, step: where it starts, counted from 0."""
    spec, sampler = data.spec, data.sampler
    counts = [f"{len(data.labeled.ids)} labelled"]
    counts += [f"{sampler.streams['u'].listed} unlabelled"] if "u" in sampler.streams else []
    validation = count(len(data.validation.ids), f"validation {spec.noun}")
    batch = " + ".join(str(stream.batch) for name, stream in sampler.streams.items() if name in LISTS)
    shards = f"on each of {sampler.shards} shards" if sampler.shards > 1 else "on one shard"
    by = f"{world.size} processes" if world.size > 1 else "one process"
    say(f"# {title} on {spec.name}, {spec.nclass} classes: {', '.join(counts)} and {validation}.")
    work = f"{count(cfg.epochs, 'epoch')} of {count(sampler.steps, 'step')}. A step sees {batch} {spec.noun}s {shards}"
    say(f"# {work}, by {by} on {_device(world)}, {cfg.precision}.")
    say(f"# Encoder {cfg.backbone}, model {cfg.model}, crop {cfg.crop_size}. {_start(cfg, epoch, step, sampler.steps)}")
    files = f"{LOG}, {METRICS}, {PAGE}, {LATEST}, {BEST}"
    say(f"# Files in {cfg.save_path}: {files}. All settings follow. These lines count epochs from 1, the log counts them from 0.")


def _start(cfg: Config, epoch: int, step: int, steps: int) -> str:
    """Where a run starts. epoch, step: counted from 0; steps: of an epoch."""
    if epoch >= cfg.epochs:
        return "This run is finished already: nothing is left to train."
    if epoch or step:
        return f"Resumes in epoch {epoch + 1} of {cfg.epochs}, after {step} of {count(steps, 'step')}."
    return f"Starts from {_weights(cfg)}."


def _weights(cfg: Config) -> str:
    if cfg.init:
        return cfg.init
    return str(default_path(cfg.backbone)) if cfg.pretrained == "auto" else cfg.pretrained or "random weights"


def _device(world: World) -> str:
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else {"cpu": "the CPU"}.get(world.device.type, "the GPU")


def steps(world: World, total: int, done: int, epochs: int) -> Progress:
    """The progress of training. done: steps before this start."""
    progress: Progress

    def where() -> str:
        return f"epoch {min(epochs, (progress.done - 1) * epochs // total + 1)} of {epochs}"

    progress = Progress(total, "step", world.main, done, "# ", where, apart=20, lines=100)
    return progress


def evaluation(world: World, images: int, title: str = "evaluation") -> Progress:
    """The progress of an evaluation. images: of this process."""
    return Progress(images, "image", world.main, title=f"# {title}: ", apart=20, leave=False)


def end(page: PageData, folder: Path) -> None:
    """Says what a finished run has made and what can be done with it."""
    best = folder / BEST
    time = duration(sum(row.seconds for row in page.epochs))
    say(f"# Finished: {count(page.total_epochs, 'epoch')} in {time}.")
    if page.best:
        rows = {"best": page.best, "last": page.evaluated[-1]}
        epochs = {word: f"in epoch {row.epoch + 1} ({row.epoch} in the log)" for word, row in rows.items()}
        scores = [f"{word} {page.score(row, page.judged):.2f} {epochs[word]}" for word, row in rows.items()]
        say(f"# {page.figure} ({page.judged}): {', '.join(scores)}.")
    say(f"# Curves, classes and pictures: {folder / PAGE}")
    if best.exists():
        path, out = (shlex.quote(str(one)) for one in (best, folder / "predictions"))
        say(f"# Next: python evaluate.py --checkpoint {path}")
        inputs = "--pair BEFORE AFTER" if page.spec.bitemporal else "IMAGE_OR_FOLDER"
        say(f"#       python predict.py --checkpoint {path} --out {out} {inputs}")
