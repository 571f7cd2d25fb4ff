"""What the tests share: a small data set of real files, the commands on it, and the shared data where there is some."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests import ranks
from tests.server import Server, serve
from util import download

# Small models on a busy machine: threads that wait for each other cost more than they give. OMP_NUM_THREADS=2 tests with two.
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra: pip install -r requirements-extra.txt")


def pytest_configure(config: pytest.Config) -> None:
    """The tests are about a CPU's bits: they see no GPU, but for those of `-m gpu`."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@dataclass(frozen=True)
class Tiny:
    """A data set of 6 labelled, 12 unlabelled and 4 validation images (odd sizes, both orientations), with lists and a config."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "tiny.yaml"

    def args(self, save_path: Path | str, *settings: str, unlabeled: bool = True) -> list[str]:
        """Command line of a method; settings are `key=value`."""
        lists = ["--labeled-id-path", f"{self.root}/labeled.txt"]
        lists += ["--unlabeled-id-path", f"{self.root}/unlabeled.txt"] if unlabeled else []
        chosen = [part for setting in settings for part in ("--set", setting)]
        return ["--config", str(self.config), *lists, "--save-path", str(save_path), *chosen]


def write_image(path: Path, width: int, height: int, seed: int) -> np.ndarray:
    """A JPEG of coloured blocks on noise; returns its mask of class ids 0..5 with some 255, (height, width) uint8."""
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.integers(0, 6, (3, 4)), np.ones((height // 3 + 1, width // 4 + 1)))[:height, :width].astype(np.uint8)
    colours = np.random.default_rng(0).integers(40, 216, (6, 3))
    pixels = colours[mask] + rng.normal(0, 20, (height, width, 3))
    mask[:2] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return mask


def make_tiny(root: Path) -> Tiny:
    """Writes the files of a Tiny data set below `root`."""
    lists = {"labeled": range(6), "unlabeled": range(6, 18), "val": range(18, 22)}
    for name, numbers in lists.items():
        lines = []
        for i in numbers:
            width, height = ((57, 43), (43, 61), (90, 70))[i % 3]
            mask = write_image(root / f"images/{i}.jpg", width, height, i)
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / f"masks/{i}.png")
            lines.append(f"images/{i}.jpg masks/{i}.png")
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    values = {
        "dataset": "demo",
        "data_root": str(root),
        "val_id_path": str(root / "val.txt"),
        "test_id_path": str(root / "val.txt"),
        "backbone": "dinov2_tiny",
        "pretrained": None,
        "crop_size": 28,
        "batch_size": 2,
        "epochs": 2,
        "lr": 3e-4,
        "lr_multi": 3.0,
        "conf_thresh": 0.2,
        "num_workers": 0,
        "nclass": 6,
        "supervised_length": 240,
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(values))
    return Tiny(root)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The data set, shared by all tests: do not change its files (use `make_tiny` for a copy of your own)."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of CamVid, golden numbers and public logs; skips where there is none."""
    path = os.environ.get("UNIMATCH_SHARED")
    if not path:
        pytest.skip("UNIMATCH_SHARED is not set: it names the folder of CamVid, golden numbers and public logs")
    return Path(path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server to download from, which misbehaves on demand; pauses and timeouts are short."""
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "TIMEOUT", 1.0)
    with serve() as running:
        yield running


def command(*words: str | Path, processes: int = 0, cwd: Path = ROOT, timeout: float = 120, **env: str) -> subprocess.CompletedProcess:
    """Runs a Python command of the project as a user would; processes > 0 starts that many, without the launcher (tests/ranks.py)."""
    if processes:
        return ranks.start([str(word) for word in words], processes, cwd, timeout, env)
    full = [sys.executable, *(str(word) for word in words)]
    return subprocess.run(full, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=timeout)
