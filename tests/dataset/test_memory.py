"""A small /dev/shm is found before it kills loader processes."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dataset.batch import Reads
from dataset.demo.photograph import drawn_source
from dataset.loader import WHOLE, check_shared_memory, with_room
from dataset.semi import TrainSet, collate
from dataset.source import Sources
from dataset.spec import get_spec
from tests.conftest import Tiny
from util.config import Config, load_config
from util.error import UserError


@pytest.fixture
def cfg(tiny: Tiny) -> Config:
    return load_config(str(tiny.config), ["crop_size=518", "batch_size=4"])


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root and a kernel that lets it")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_real_small_one(cfg: Config, small: Path) -> None:
    with pytest.raises(
        UserError, match=r"found 16 MiB free, expected 115 MiB .* 1 x 4 loader processes; .*--shm-size=1g, or set num_workers=0"
    ):
        check_shared_memory(cfg, reads=Reads(), workers=4, processes=1, folder=str(small))


@pytest.mark.parametrize(
    ("free", "workers", "processes", "fits"), [(200, 4, 1, True), (200, 4, 2, False), (100, 4, 1, False), (0, 0, 1, True)]
)
def test_need_grows_with_workers_and_processes(
    cfg: Config, free: int, workers: int, processes: int, fits: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=2**20))
    if fits:
        check_shared_memory(cfg, Reads(), workers, processes, str(tmp_path))
    else:
        with pytest.raises(UserError, match=f"found {free} MiB free"):
            check_shared_memory(cfg, Reads(), workers, processes, str(tmp_path))


@pytest.mark.parametrize(("free", "workers"), [(64, 0), (128, 1), (400, 3), (2**20, 4)])
def test_fewer_processes_decode_whole_images_where_there_is_little_room(
    free: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=2**20))
    assert with_room(4, WHOLE, str(tmp_path)) == workers  # 64 MiB is what Docker gives
    assert with_room(4, WHOLE, str(tmp_path / "not there")) == 4


@pytest.mark.parametrize(("on_device", "fits", "too_little"), [(False, 1.0, 0.93), (True, 1.4, 0.9)])
def test_the_estimate_is_close_to_large_mini_batches(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_device: bool, fits: float, too_little: float
) -> None:
    drawn = Sources([drawn_source(tmp_path, get_spec("pascal"), [(400, 300)])])
    data = TrainSet({"x": drawn, "u": drawn}, 84, 0, Reads(), on_device=on_device)
    mini_batches: list[Any] = [collate([data[(("x", epoch, i, i), ("u", epoch, i, i))] for i in range(4)]) for epoch in range(16)]
    tensors = [value for batch in mini_batches for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    real = sum(tensor.nbytes for tensor in tensors) / len(mini_batches)
    cfg = load_config(str(tiny.config), ["crop_size=84", "batch_size=4"])
    free = 0.0
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=1))
    free = real * 2 * fits  # two mini-batches of one worker
    check_shared_memory(cfg, Reads(), 1, 1, str(tmp_path), on_device)
    free = real * 2 * too_little
    with pytest.raises(UserError):
        check_shared_memory(cfg, Reads(), 1, 1, str(tmp_path), on_device)
    with pytest.raises(UserError, match=r"--shm-size=\d\dg, "):  # as docker reads it
        check_shared_memory(replace(cfg, batch_size=2**16), Reads(), 1, 1, str(tmp_path), on_device)
