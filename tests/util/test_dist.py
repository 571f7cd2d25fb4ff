"""Processes, devices and CPUs as the environment says."""

import os
import socket
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, command
from util.dist import World, _check_gpus, cpu_count, deterministic, processes
from util.error import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, "SLURM_CPUS_PER_TASK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def test_an_operation_without_a_fixed_order_is_named() -> None:
    with pytest.raises(UserError, match=r"deterministic: .*upsample_x.*; set deterministic=false"), deterministic(True):
        raise RuntimeError("upsample_x does not have a deterministic implementation, but you set ...")
    with pytest.raises(RuntimeError, match="a bug"), deterministic(True):
        raise RuntimeError("a bug")
    assert not torch.are_deterministic_algorithms_enabled()


def test_without_torchrun_there_is_one_process_also_inside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    with processes("cpu") as world:
        assert (world.rank, world.size, world.main) == (0, 1, True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("0", "2", None, "2"), "LOCAL_RANK: found None"),
        (("0", "two", "0", "1"), "WORLD_SIZE: found 'two'"),
        (("5", "2", "0", "1"), "RANK=5 of WORLD_SIZE=2"),
        (("0", "1", "0", "4"), "of 4 do not fit"),
    ],
)
def test_a_broken_environment_is_named(values: tuple[str | None, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(TORCHRUN, values, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words), processes("cpu"):
        pass


@pytest.mark.parametrize(
    ("master", "words"),
    [
        ((None, None), "the 2 processes cannot meet .*MASTER_ADDR expected, but not set"),
        (("localhost", None), "MASTER_PORT expected, but not set"),
        (("localhost", "port"), "'port'"),
        (("localhost", "busy"), "EADDRINUSE"),
    ],
)
def test_processes_that_cannot_meet_say_so(master: tuple[str | None, str | None], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as server:
        values = (*("0", "2", "0", "2"), master[0], str(server.getsockname()[1]) if master[1] == "busy" else master[1])
        for name, value in zip((*TORCHRUN, "MASTER_ADDR", "MASTER_PORT"), values, strict=True):
            if value is not None:
                monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"environment: .*{words}.*; start them with scripts/train.sh"), processes("cpu"):
            pass


THREADS = """
import contextlib, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from util.dist import average_gradients, processes
from util.error import UserError
def train(world):
    net = average_gradients(torch.nn.Linear(1, 1), world)
    net(torch.ones(1, 1)).sum().backward()
    if sys.argv[2] == "user error":
        raise UserError("a user error")
def gloo():
    for task in pathlib.Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it ended just now
            if "gloo" in task.read_text():
                return True
try:
    with processes("cpu") as world:
        train(world)
except UserError as error:
    kept = error
end = time.monotonic() + 5
while gloo() and time.monotonic() < end:  # the system lists a thread for a moment after its end
    time.sleep(0.05)
sys.stdout.write(f"gloo: {bool(gloo())} of {world.size}\\n")
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a system without /proc")
@pytest.mark.parametrize("end", ["good", "user error"])
def test_nothing_of_a_group_outlives_it(end: str, tmp_path: Path) -> None:
    """A thread of gloo's that meets the end of the interpreter can abort the process, though all its work is done."""
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    done = command(script, ROOT, end, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["gloo: False of 2"] * 2


def test_cpus_follow_affinity_and_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    here = len(os.sched_getaffinity(0))
    assert cpu_count() == here
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert cpu_count() == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "512")
    assert cpu_count() == here


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)])
def test_cpus_follow_the_quota_of_a_container(quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr("util.dist.CPU_QUOTA", str(tmp_path / "cpu.max"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cpu_count() == expected


def test_shards_are_spread_without_gap_or_overlap() -> None:
    for size in (1, 2, 4):
        owned = [shard for rank in range(size) for shard in World(rank, size).own_shards(4)]
        assert owned == [0, 1, 2, 3]


def test_too_few_gpus_say_what_may_hide_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match=r"device: found 2 GPU\(s\), expected 4, one per process; start 2 or fewer"):
        _check_gpus(2, 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"device: found 0 GPUs \(CUDA_VISIBLE_DEVICES is ''\), expected 1; .*; set device=cpu"):
        _check_gpus(0, 1)
    _check_gpus(4, 4)
