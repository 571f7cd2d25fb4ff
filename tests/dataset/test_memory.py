"""A small /dev/shm is found before it kills loader processes."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset.loader import check_shared_memory
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
        check_shared_memory(cfg, 4, semi=True, workers=4, processes=1, folder=str(small))


@pytest.mark.parametrize(
    ("free", "workers", "processes", "fits"), [(200, 4, 1, True), (200, 4, 2, False), (100, 4, 1, False), (0, 0, 1, True)]
)
def test_need_grows_with_workers_and_processes(
    cfg: Config, free: int, workers: int, processes: int, fits: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=2**20))
    if fits:
        check_shared_memory(cfg, 4, True, workers, processes, str(tmp_path))
    else:
        with pytest.raises(UserError, match=f"found {free} MiB free"):
            check_shared_memory(cfg, 4, True, workers, processes, str(tmp_path))


@pytest.mark.parametrize("strong", [True, False])
def test_the_estimate_is_close_to_what_a_mini_batch_has(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, strong: bool) -> None:
    from dataset.semi import ImageList, Source, Sources, TrainSet, collate
    from dataset.spec import get_spec

    cfg = load_config(str(tiny.config))
    spec = get_spec("demo")
    sources = {s: Sources([Source(spec, cfg.data_root, ImageList(f"{tiny.root}/{n}.txt", spec.task, s == "x"))]) for s, n in
               {"x": "labeled", "u": "unlabeled"}.items()}  # fmt: skip
    data = TrainSet(sources, 28, 0, strong_views=strong)
    batch = collate([data[(("x", 0, i, i), ("u", 0, i, i))] for i in range(2)])
    real = sum(value.nbytes for value in batch.values() if hasattr(value, "nbytes"))  # type: ignore[union-attr]
    need = 0.0

    def room(path: str) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=need, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", room)
    need = real * 2  # two mini-batches of one worker
    check_shared_memory(cfg, 2, True, 1, 1, str(tmp_path), strong)
    need = real * 2 * 0.93
    with pytest.raises(UserError):
        check_shared_memory(cfg, 2, True, 1, 1, str(tmp_path), strong)
