"""The loop that a GPU's idle time is measured in: what of it a CPU can run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import DeviceType

from scripts.benchmark import loop
from tests.scripts.benchmark.recipes import recipe
from unimatch_v2 import METHOD
from util.error import UserError


# 150 classes, another root and several lists of unlabelled images; OHEM; pairs
@pytest.mark.parametrize("name", ["ade20k_coco241k", "cityscapes_extra", "levir"])
def test_every_kind_of_recipe_runs_on_drawn_images(name: str, capsys: pytest.CaptureFixture) -> None:
    own: dict[str, Any] = {"init": "another run's best.pth", "test_id_path": "absent.txt", "pretrained": "absent.pth"}
    cfg = recipe(name, backbone="dinov2_tiny", crop_size=28, batch_size=2, num_workers=0, **own)
    with loop.small_run(cfg, METHOD, torch.device("cpu"), steps=2, size=(50, 38)) as run:
        found = list(run.updates(0, 0))
        root = Path(run.cfg.data_root)
    assert len(found) == 2
    assert run.learner.skipped == 0
    assert not root.exists()
    said = capsys.readouterr()
    assert said.out == "", "the log must not come between the rows of the table"
    assert "batch_size" in said.err


def event(name: str, start: float, end: float, device: DeviceType = DeviceType.CUDA, note: bool = False) -> SimpleNamespace:
    return SimpleNamespace(name=name, device_type=device, is_user_annotation=note, time_range=SimpleNamespace(start=start, end=end))


def test_idle_time_and_reads_of_a_profile() -> None:
    kernels = [event("gemm", 0, 40), event("Memcpy HtoD", 30, 50), event("Memcpy DtoH (Device -> Pageable)", 90, 100), event("x", 32, 35)]
    others = [event("cudaLaunchKernel", 0, 500, DeviceType.CPU), event("Optimizer.step#AdamW.step", 0, 100, note=True)]
    idle, reads = loop.judge([*kernels, *others], "x")
    assert idle.value == pytest.approx(40)
    assert reads.value == 1 / loop.STEPS
    with pytest.raises(UserError, match=r"torch\.profiler: found no work of the GPU"):
        list(loop.judge(others[:1], "x"))
