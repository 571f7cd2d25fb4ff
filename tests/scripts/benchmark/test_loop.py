"""The loop that a GPU's idle time is measured in: what of it a CPU can run."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import DeviceType

from dataset.custom import spec_of
from engine.update import Trainer
from scripts.benchmark import loop
from scripts.benchmark.data import mask_values
from tests.scripts.benchmark.recipes import recipe
from util.error import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SIZE", (50, 38))


def test_busy_time_counts_overlaps_once() -> None:
    assert loop.busy([(0, 2), (1, 3), (5, 6), (5.5, 5.75)]) == 4


# 11, 6 and 150 classes; another root and several lists of unlabelled images; OHEM
@pytest.mark.parametrize("name", ["camvid", "demo", "ade20k_coco241k", "cityscapes_extra"])
def test_every_segmentation_recipe_runs_on_drawn_images(name: str, capsys: pytest.CaptureFixture) -> None:
    own = {"init": "another run's best.pth", "test_id_path": "absent.txt", "pretrained": "absent.pth"}
    cfg = recipe(name, backbone="dinov2_tiny", crop_size=28, batch_size=2, num_workers=0, **own)
    with loop.small_run(cfg, CPU, steps=2) as run:
        found = list(run.updates(0, 0))
        root = Path(run.cfg.data_root)
    assert len(found) == 2
    assert run.trainer.skipped == 0
    assert not root.exists()
    said = capsys.readouterr()
    assert said.out == "", "the log must not come between the rows of the table"
    assert "batch_size" in said.err


def test_masks_hold_values_of_the_data_set() -> None:
    own = {"dataset": "own", "classes": ["land", "water"], "nclass": None, "label_map": {10: 0, 200: 1}}
    assert mask_values(spec_of(recipe("demo"))) == [0, 1, 2, 3, 4, 5]
    assert mask_values(spec_of(recipe("ade20k"))) == list(range(19))
    assert mask_values(spec_of(recipe("demo", **own))) == [10, 200]


def test_waits_are_counted_by_line() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            warnings.warn_explicit(f"{loop.WAITS} (Triggered internally at c10/cuda)", UserWarning, "/x/engine/update.py", 122)
        warnings.warn_explicit("Synchronization debug mode is a prototype feature", UserWarning, "/x/torch/cuda/__init__.py", 1)
    assert loop.waits(caught) == {"engine/update.py:122": 3}


def test_the_steps_that_are_watched_run_in_the_debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    agree = Trainer._agree

    def waiting(self: Trainer, stop: bool) -> bool:
        assert modes == ["warn"]
        warnings.warn(loop.WAITS, stacklevel=2)  # what PyTorch says of a GPU, from the line that waits
        return agree(self, stop)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(Trainer, "_agree", waiting)
    cfg = recipe("demo", backbone="dinov2_tiny", crop_size=28, batch_size=2, num_workers=0)
    with loop.small_run(cfg, CPU, steps=loop.WATCHED + 1) as run:
        steps = run.updates(0, 0)
        (row,) = loop.watch(steps, CPU, "waits")
        monkeypatch.setattr(Trainer, "_agree", agree)
        assert len(list(steps)) == 1
    assert (row.value, row.unit) == (1.0, "a step")
    assert row.note.startswith("engine/update.py:")
    assert row.note.endswith(" x 1")
    assert modes == ["warn", "default"]


def event(name: str, start: float, end: float, device: DeviceType = DeviceType.CUDA, note: bool = False) -> SimpleNamespace:
    return SimpleNamespace(name=name, device_type=device, is_user_annotation=note, time_range=SimpleNamespace(start=start, end=end))


def test_idle_time_and_reads_of_a_profile() -> None:
    kernels = [event("gemm", 0, 40), event("Memcpy HtoD", 30, 50), event("Memcpy DtoH (Device -> Pageable)", 90, 100)]
    others = [event("cudaLaunchKernel", 0, 500, DeviceType.CPU), event("Optimizer.step#AdamW.step", 0, 100, note=True)]
    idle, reads = loop.judge([*kernels, *others], "x")
    assert idle.value == pytest.approx(40)
    assert reads.value == 1 / loop.STEPS
    with pytest.raises(UserError, match=r"torch\.profiler: found no work of the GPU"):
        loop.judge(others[:1], "x")
