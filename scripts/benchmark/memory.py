"""Peak memory of a training step, and what activation checkpointing costs in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch

from dataset.custom import spec_of
from scripts.benchmark.footprint import GIB, footprint
from scripts.benchmark.measure import AT_MOST, Row, attempt, release, seconds
from scripts.benchmark.step import Alternatives
from util.config import Config

PEAK_GOAL = (AT_MOST, 24.0)
TIME_GOAL = (AT_MOST, 1.35)
CPU_SIZE = 252  # crop whose seconds are measured where there is no GPU


def peak(cfg: Config, device: torch.device, precision: str, checkpointing: bool, what: str) -> Iterator[Row]:
    """The fullest moment of a step in GiB: measured on an NVIDIA GPU, elsewhere calculated for one."""
    goal = PEAK_GOAL if checkpointing and precision == "fp32" else None
    if device.type != "cuda":
        cfg = replace(cfg, precision=precision, activation_checkpointing=checkpointing)
        total = footprint(cfg, spec_of(cfg), "unimatch_v2").total
        yield Row(what, total / GIB, "GiB", goal, note="calculated for a GPU")
        return
    release(device)
    torch.cuda.reset_peak_memory_stats(device)
    update = Alternatives(cfg, device).ours(precision=precision, activation_checkpointing=checkpointing)
    for _ in range(2):  # AdamW's moments come with the first step
        update()
    yield Row(what, torch.cuda.max_memory_allocated(device) / GIB, "GiB", goal, note="torch.cuda.max_memory_allocated")


def cost(cfg: Config, device: torch.device, precision: str, rounds: int, what: str) -> Iterator[Row]:
    """Seconds of a step with activation checkpointing over those without."""
    release(device)
    made = Alternatives(cfg, device)
    kinds = {str(on): made.ours(precision=precision, activation_checkpointing=on) for on in (False, True)}
    times = seconds(kinds, rounds, device)
    parts = [a / b for a, b in zip(times["True"], times["False"], strict=True)]
    note = f"{1000 * median(times['False']):.4g} -> {1000 * median(times['True']):.4g} ms"
    yield Row(what, median(parts), "x without", TIME_GOAL if precision == "fp32" else None, min(parts), max(parts), note)


def rows(cfg: Config, device: torch.device, rounds: int) -> Iterator[Row]:
    """Peaks of a step of `cfg`, and its seconds with checkpointing over those without."""
    for precision in ("fp32", "bf16"):
        what = f"peak memory, {cfg.backbone}, crop {cfg.crop_size}, {cfg.batch_size}+{cfg.batch_size} images, {precision}"
        for on, figure in ((False, what), (True, f"{what}, activation checkpointing")):
            yield from attempt(figure, partial(peak, cfg, device, precision, on, figure))
    timed = cfg if device.type == "cuda" else replace(cfg, backbone="dinov2_small", crop_size=CPU_SIZE)
    for precision in ("fp32", "bf16"):
        what = f"seconds with activation checkpointing, {timed.backbone}, crop {timed.crop_size}, {precision}"
        yield from attempt(what, partial(cost, timed, device, precision, rounds, what))
