"""The whole loop on a GPU, loader included: how long the GPU waits, and how often the host reads from it."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

import unimatch_v2
from util.benchmark.data import write_images
from util.benchmark.measure import AT_MOST, Row, wait_for
from util.config import Config
from util.dist import World
from util.signals import StopSignals
from util.training import Run

IDLE_GOAL = (AT_MOST, 5.0)
READS_GOAL = (AT_MOST, 1.0)
WARM, STEPS = 8, 12
READS = "Memcpy DtoH"  # the profiler's name of a copy from the GPU to the host


def busy(spans: list[tuple[float, float]]) -> float:
    """Length of the union of (start, end) spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def rows(cfg: Config, device: torch.device, precision: str = "bf16") -> list[Row]:
    """STEPS steps of a run from files, after WARM steps that do not count. Only for an NVIDIA GPU."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, 500, 375, "jpg", 6.0)
        lines = (root / "list.txt").read_text().splitlines()
        count = (WARM + STEPS + 1) * cfg.batch_size
        (root / "list.txt").write_text("".join(f"{line}\n" for line in (lines * count)[:count]))
        listed = str(root / "list.txt")
        cfg = replace(
            cfg, data_root=str(root), labeled_id_path=listed, unlabeled_id_path=listed, val_id_path=listed, pretrained=None,
            save_path=str(root / "run"), shards=1, epochs=1, precision=precision,
        )  # fmt: skip
        (root / "run").mkdir()
        with StopSignals() as signals:
            run = Run(cfg, unimatch_v2.step, True, World(device=device), signals)
            return _profile(run, device, f"{cfg.backbone}, {cfg.crop_size}, {precision}")


def _profile(run: Run, device: torch.device, what: str) -> list[Row]:
    steps = run.updates(0, 0)
    list(islice(steps, WARM))
    wait_for(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        list(islice(steps, STEPS))
        wait_for(device)
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    spans = [(event.time_range.start, event.time_range.end) for event in events]
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    reads = sum(READS in event.name for event in events) / STEPS
    note = f"{whole / STEPS / 1000:.4g} ms a step over {STEPS} steps, profiled"
    return [
        Row(f"GPU idle in the loop, {what}", 100 * (1 - busy(spans) / whole), "%", IDLE_GOAL, note=note),
        Row(f"host reads of an optimiser step, {what}", reads, "a step", READS_GOAL),
    ]
