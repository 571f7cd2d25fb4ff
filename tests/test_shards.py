"""A recipe for 4 shards on 1, 2 and 4 processes: the same mini-batches, the same gradients, the same weights in the end."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import command, make_tiny
from util import checkpoint

METHODS = ("supervised", "unimatch_v2")  # FixMatch on two processes: tests/test_golden_losses.py
RUNS = {1: METHODS, 2: METHODS, 4: METHODS[1:]}  # by the number of processes
BESIDE_ONE = [(size, method) for size in (2, 4) for method in RUNS[size]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run of each method (tests/shard_run.py) on each number of processes: <processes>/<method>/."""
    folder = tmp_path_factory.mktemp("shards")
    tiny = make_tiny(folder / "data")
    listed = (tiny.root / "unlabeled.txt").read_text()
    (tiny.root / "unlabeled.txt").write_text(listed * 3)  # 36 images: 4 steps an epoch, and an order that needs no padding
    for size, methods in RUNS.items():
        done = command("-m", "tests.shard_run", tiny.root, folder / str(size), *methods, processes=size, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def mini_batches(folder: Path, step: int) -> list[list]:
    """What the shards saw in a step, in the order of the shards."""
    paths = sorted(folder.glob(f"batches-{step}-*.pth"))
    return [shard for path in paths for shard in torch.load(path, weights_only=True)]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


@pytest.mark.parametrize(("size", "method"), BESIDE_ONE)
def test_the_shards_see_the_same_images_boxes_and_dropout(runs: Path, size: int, method: str) -> None:
    for step in (0, 1):
        one, many = (mini_batches(runs / str(n) / method, step) for n in (1, size))
        assert len(one) == len(many) == 4
        for a, b in zip(one, many, strict=True):
            assert a[:2] == b[:2], "names of the labelled and the unlabelled images"
            assert all(torch.equal(x, y) for x, y in zip(a[2:], b[2:], strict=True))


def test_the_shards_differ_from_each_other(runs: Path) -> None:
    shards = mini_batches(runs / "1/unimatch_v2", 0)
    assert len({tuple(names) for _, names, *_ in shards}) == 4
    assert not torch.equal(shards[0][4], shards[1][4]), "dropout factors"


@pytest.mark.parametrize(("size", "method"), BESIDE_ONE)
def test_first_gradients_agree_in_float32(runs: Path, size: int, method: str) -> None:
    one, many = (torch.load(runs / str(n) / method / "gradients32.pth", weights_only=True) for n in (1, size))
    seen = [name for name, grad in one.items() if grad is not None and grad.norm() > 0]
    assert len(seen) > 80
    total = torch.cat([one[name].flatten() for name in seen]).norm()
    for name in seen:
        assert float((one[name] - many[name]).norm()) < 1e-5 * float(total), name  # a sum of four in another order: 2^-23 of it


@pytest.mark.parametrize(("size", "method"), BESIDE_ONE)
def test_final_weights_agree_in_float64_after_a_stop_in_the_middle(runs: Path, size: int, method: str) -> None:
    one, many = (checkpoint.load(runs / str(n) / method / "float64/latest.pth") for n in (1, size))
    assert one["epoch"] == many["epoch"] == 1
    for key in ("model",) if method == "supervised" else ("model", "model_ema"):
        for name, value in one[key].items():
            assert value.dtype == torch.float64
            assert relative(many[key][name], value) < 1e-9, name  # AdamW divides rounding (1e-16 of gradients) by its eps, 1e-8


@pytest.mark.parametrize("size", RUNS)
def test_the_runs_were_really_stopped_in_the_middle_of_an_epoch(runs: Path, size: int) -> None:
    log = (runs / str(size) / "unimatch_v2/float64/train.log").read_text()
    assert "Load from checkpoint at epoch 0, 2 steps of the next" in log


@pytest.mark.parametrize("size", RUNS)
def test_only_one_process_saves(runs: Path, size: int) -> None:
    """Were all to save, each would move the other's file away: previous.pth would be of the same step as latest.pth."""
    folder = runs / str(size) / "unimatch_v2/float64"
    states = [checkpoint.load(folder / name) for name in ("previous.pth", "latest.pth")]
    assert [(state["epoch"], state["step"]) for state in states] == [(0, 2), (1, 0)]
