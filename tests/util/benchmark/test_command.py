"""python -m util.benchmark: the table, its JSON and its exit code."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dataset.batch import make_batch
from tests.conftest import command
from tests.util.benchmark.recipes import recipe
from util.benchmark import __main__, step
from util.benchmark.data import host_batch
from util.benchmark.loop import busy
from util.benchmark.measure import AT_LEAST, AT_MOST, Row, ratio, seconds

SETTINGS = ("backbone=dinov2_tiny", "crop_size=28", "batch_size=1")
SMALL = ["--config", "configs/pascal.yaml", "--rounds", "1", *(part for setting in SETTINGS for part in ("--set", setting))]


def test_step_prints_its_table_and_writes_it(tmp_path: Path) -> None:
    done = command("-m", "util.benchmark", "step", *SMALL, "--device", "cpu", "--json", str(tmp_path / "out.json"))
    found = json.loads((tmp_path / "out.json").read_text())
    assert done.returncode == any(row["met"] is False for row in found["rows"]), done.stderr
    assert {"gpu", "cpu", "cores", "threads", "versions"} <= found["machine"].keys()
    assert "| step, dinov2_tiny, 28, 1+1 images: fp32 |" in done.stdout
    for row in found["rows"]:
        assert row["value"] > 0
        assert f"| {row['figure']} | {row['value']:.3g} {row['unit']} |" in done.stdout


@pytest.mark.parametrize(("bound", "code"), [(0.0, None), (1e6, 1)])
def test_a_missed_goal_is_exit_code_1(
    bound: float, code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(step, "CPU_GOAL", (AT_LEAST, bound))
    ended = None
    try:
        __main__.main(["step", *SMALL, "--device", "cpu"])
    except SystemExit as end:
        ended = end.code
    assert ended == code
    assert ("1 goals missed: step, dinov2_tiny" in capsys.readouterr().out) == (code == 1)


def test_alternatives_take_turns_and_warm_rounds_do_not_count() -> None:
    calls: list[str] = []
    times = seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, warm=1)
    assert calls == ["a", "b"] * 3
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    row = ratio("x", [2.0, 8.0, 3.0], [1.0, 2.0, 1.0], (AT_LEAST, 3.5))
    assert (row.value, row.low, row.high, row.met) == (3.0, 2.0, 4.0, False)
    assert Row("x", 3.0, "GiB", (AT_MOST, 3.0)).met is True
    assert Row("x", 3.0, "GiB").met is None


def test_busy_time_counts_overlaps_once() -> None:
    assert busy([(0, 2), (1, 3), (5, 6), (5.5, 5.75)]) == 4


class Reads(TorchDispatchMode):
    """Operations for which the host waits for a device: a number read, or an output whose size depends on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith(self.WAITING):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_with_views_made_on_the_device_reads_nothing_but_its_norm() -> None:
    criterion = {"name": "OHEM", "kwargs": {"ignore_index": 255, "thresh": 0.7, "min_kept": 500}}
    cfg = recipe("pascal", backbone="dinov2_tiny", crop_size=56, batch_size=2, criterion=criterion)
    made = step.Alternatives(cfg, 21, torch.device("cpu"))
    trainer = made.trainer()
    raw = host_batch(cfg, 21, on_device=True)
    with Reads() as reads:
        batch = make_batch(raw, torch.device("cpu"), made.drop)
        trainer.update([batch])
    assert reads.seen == []  # Trainer._agree copies two numbers to the host, which is no such operation
