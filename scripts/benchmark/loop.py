"""The whole loop on a GPU, loader included: how long the GPU waits, how often the host reads from it, and where the host waits for it."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

import unimatch_v2
from dataset.custom import spec_of
from engine.trainer import Run
from scripts.benchmark.data import mask_values, write_images
from scripts.benchmark.measure import AT_MOST, Row, attempt, wait_for
from util.config import Config
from util.dist import World, check_compiler
from util.error import UserError
from util.signals import StopSignals

IDLE_GOAL = (AT_MOST, 5.0)
READS_GOAL = (AT_MOST, 1.0)
WARM, WATCHED, STEPS = 8, 4, 24  # more traced steps than the loader has mini-batches ready (8 processes, 2 each), and as many to make
READS = "Memcpy DtoH"  # the profiler's name of a copy from the GPU to the host
WAITS = "called a synchronizing CUDA operation"  # PyTorch's warning, one for each time
SIZE = (500, 375)  # width and height of the images


def busy(spans: list[tuple[float, float]]) -> float:
    """Length of the union of (start, end) spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def take(steps: Iterator[Any], count: int) -> None:
    """Does that many steps and keeps nothing of them: mini-batches that stay would have the allocator ask the driver for memory."""
    for _ in islice(steps, count):
        pass


@contextmanager
def small_run(cfg: Config, device: torch.device, steps: int) -> Iterator[Run]:
    """A run of `cfg`, of segmentation, with one shard and epochs of `steps` steps on images drawn for it. Its log goes to stderr."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, *SIZE, "jpg", 6.0, mask_values(spec_of(cfg)))
        lines = (root / "list.txt").read_text().splitlines()
        count = steps * cfg.batch_size
        (root / "list.txt").write_text("".join(f"{line}\n" for line in (lines * count)[:count]))
        listed = str(root / "list.txt")
        cfg = replace(
            cfg, data_root=str(root), data_root_u=None, labeled_id_path=listed, unlabeled_id_path=listed, val_id_path=listed,
            test_id_path=None, pretrained=None, init=None, save_path=str(root / "run"), shards=1, epochs=1,
        )  # fmt: skip
        (root / "run").mkdir()
        with redirect_stdout(sys.stderr):
            run = Run(cfg, unimatch_v2.METHOD, World(device=device), StopSignals())
        yield run


def rows(cfg: Config, device: torch.device) -> Iterator[Row]:
    """STEPS steps of a run from files, after WARM steps that do not count and WATCHED ones. Only for an NVIDIA GPU.

    Compiled, unless the machine has no compiler.
    """
    try:
        check_compiler(device)
        compiled = True
    except UserError:
        compiled = False
    what = f"{cfg.backbone}, {cfg.crop_size}, bf16{', compile' if compiled else ''}"
    with small_run(replace(cfg, precision="bf16", compile=compiled), device, WARM + WATCHED + 2 * STEPS) as run:
        steps = run.updates(0, 0)
        take(steps, WARM)
        figure = f"times that the host waits for the GPU, {what}"
        yield from attempt(figure, partial(watch, steps, device, figure))
        yield from attempt(f"GPU idle in the loop, {what}", partial(trace, steps, device, what))


def waits(caught: Iterable[warnings.WarningMessage]) -> Counter[str]:
    """{file:line: how often} of PyTorch's warnings of operations for which the host waits."""
    return Counter(f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno}" for one in caught if WAITS in str(one.message))


def watch(steps: Iterator[Any], device: torch.device, figure: str) -> Iterator[Row]:
    """How often a step has the host wait for the GPU, for copies to it too, and at which lines. PyTorch does not see all of them."""
    wait_for(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            take(steps, WATCHED)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = waits(caught)
    note = ", ".join(f"{line} x {count / WATCHED:g}" for line, count in found.most_common())
    yield Row(figure, found.total() / WATCHED, "a step", note=note)


def trace(steps: Iterator[Any], device: torch.device, what: str) -> list[Row]:
    """What the profiler sees of STEPS steps."""
    wait_for(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        take(steps, STEPS)
        wait_for(device)
    return judge(profiler.events() or (), what)


def judge(events: Iterable[Any], what: str) -> list[Row]:
    """The share of time in which the GPU does nothing, and copies from it a step. Raises UserError for a profile without a GPU."""
    # an annotation spans the kernels that it names and the time between them
    events = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    if not events:
        raise UserError("torch.profiler: found no work of the GPU, expected kernels; CUPTI may be missing or not allowed here")
    spans = [(event.time_range.start, event.time_range.end) for event in events]  # microseconds
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    reads = sum(READS in event.name for event in events) / STEPS
    note = f"{whole / STEPS / 1000:.4g} ms a step over {STEPS} steps, profiled; {len(spans) / STEPS:.0f} kernels and copies a step"
    return [
        Row(f"GPU idle in the loop, {what}", 100 * (1 - busy(spans) / whole), "%", IDLE_GOAL, note=note),
        Row(f"host reads of an optimiser step, {what}", reads, "a step", READS_GOAL),
    ]
