"""The whole loop on a GPU, loader included: how long the GPU waits, and how often the host reads from it."""

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

from dataset.custom import spec_of
from dataset.demo.photograph import SIZE, drawn_source
from engine.method import Method
from engine.trainer import Trainer
from scripts.benchmark.measure import AT_MOST, Row, attempt, wait_for
from util.config import Config
from util.dist import World
from util.error import UserError
from util.signals import StopSignals

IDLE_GOAL, READS_GOAL = (AT_MOST, 5.0), (AT_MOST, 1.0)
WARM, STEPS = 8, 24  # more traced steps than the loader has mini-batches ready (8 processes, 2 each), and as many to make
READS = "Memcpy DtoH"  # the profiler's name of a copy from the GPU to the host


@contextmanager
def small_run(cfg: Config, method: Method, device: torch.device, steps: int, size: tuple[int, int] = SIZE) -> Iterator[Trainer]:
    """A run of `cfg` with one shard and epochs of `steps` steps, on images of a (width, height) drawn for it. Its log goes to stderr."""
    with TemporaryDirectory() as root:
        drawn_source(Path(root), spec_of(cfg), [size], count=steps * max(method.reads.images(cfg.batch_size).values()))
        listed, save_path = f"{root}/list.txt", f"{root}/run"
        Path(save_path).mkdir()
        cfg = replace(cfg, data_root=root, labeled_id_path=listed, unlabeled_id_path=listed, val_id_path=listed, save_path=save_path)
        cfg = replace(cfg, shards=1, data_root_u=None, test_id_path=listed, pretrained=None, init=None)
        with redirect_stdout(sys.stderr):
            run = Trainer(cfg, method, World(device=device), StopSignals())
        yield run


def rows(cfg: Config, method: Method, device: torch.device, args: argparse.Namespace) -> Iterator[Row]:
    """STEPS steps of a run in bf16, as it is and compiled, from files, after WARM steps that do not count. Only for an NVIDIA GPU."""
    for compiled in (False, True):
        what = f"{method.name}, {cfg.backbone}, {cfg.crop_size}, bf16{', compile' * compiled}"
        yield from attempt(what, device, profiled, replace(cfg, precision="bf16", compile=compiled), method, device, what)


def profiled(cfg: Config, method: Method, device: torch.device, what: str) -> Iterator[Row]:
    """STEPS steps of a run after WARM of them, profiled, as rows."""
    with small_run(cfg, method, device, WARM + 2 * STEPS) as run:
        steps = run.updates(0, 0)
        deque(islice(steps, WARM), maxlen=0)  # keeps nothing: mini-batches that stay would have the allocator ask the driver for memory
        wait_for(device)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            deque(islice(steps, STEPS), maxlen=0)
            wait_for(device)
    yield from judge(profiler.events() or (), what)


def judge(events: Iterable[Any], what: str) -> Iterator[Row]:
    """The share of time in which the GPU does nothing, and copies from it a step. Raises UserError for a profile without a GPU."""
    # an annotation spans the kernels that it names and the time between them
    events = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    if not events:
        raise UserError("torch.profiler: found no work of the GPU, expected kernels; CUPTI may be missing or not allowed here")
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)  # microseconds
    idle, reached = 0.0, spans[0][0]
    for start, end in spans:  # they may overlap
        idle += max(0.0, start - reached)
        reached = max(reached, end)
    whole = reached - spans[0][0]
    note = f"{whole / STEPS / 1000:.4g} ms a step over {STEPS} steps, profiled; {len(spans) / STEPS:.0f} kernels and copies a step"
    yield Row(f"GPU idle in the loop, {what}", [100 * idle / whole], "%", IDLE_GOAL, note)
    reads = sum(READS in event.name for event in events) / STEPS
    yield Row(f"host reads of an optimiser step, {what}", [reads], "a step", READS_GOAL)
