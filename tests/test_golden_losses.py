"""A short run of each method in METHODS keeps the numbers in golden_losses.json, on one process and on two.

Renew them after a change that is meant to move them: `python -m tests.test_golden_losses`, and say why in the commit.

TOLERANCE is what float32 leaves open on any CPU. Rounding moves a loss by 1e-7 and a gradient by 1e-6 of it. Where a gradient is nothing
but rounding, AdamW makes up to a whole step of it, but there, by definition, the loss hardly changes: kernels of SSE4.1, AVX2 and AVX-512,
on one thread and two, agree to 1e-5 in losses and 3e-5 in gradient norms. What is left are thresholds. A ReLU that rounding turns is up to
1e-3 of a gradient, and six steps of lr 3e-4 to 9e-4 can make as much of a loss. A pixel whose confidence crosses conf_thresh is 3e-4 of the
mask ratio (1 of 3136) and 5e-4 of loss_s; no confidence is nearer to it than 1.4e-6 here, ten times what the kernels differ by.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import build_model
from tests.conftest import ROOT, Tiny, command, make_tiny

FILE = Path(__file__).with_name("golden_losses.json")
TOLERANCE = {
    "train/loss_all": 2e-3,
    "train/loss_x": 2e-3,
    "train/loss_s": 1e-2,
    "train/loss_w_fp": 1e-2,
    "train/grad_norm": 2e-2,
}  # relative
PIXELS = 5e-3  # absolute, of the mask ratio: a share of pixels that may cross the threshold
SETTINGS = ("shards=2", "conf_thresh=0.21", "eval_every=2", "epochs=2")
METHODS = {"unimatch_v2": (), "unimatch_v1": (), "fixmatch": (), "supervised": ("batch_size=20", "epochs=1")}


def run(tiny: Tiny, method: str, processes: int, save: Path) -> dict[str, list[float]]:
    """Scalars of each step, under their TensorBoard names."""
    args = tiny.args(save, *SETTINGS, *METHODS[method], unlabeled=method != "supervised")
    done = command(f"{method}.py", *args, processes=processes)
    assert done.returncode == 0, done.stderr
    board = EventAccumulator(str(save)).Reload()
    names = [tag for tag in board.Tags()["scalars"] if tag in TOLERANCE or tag == "train/mask_ratio"]
    return {name: [round(event.value, 7) for event in board.Scalars(name)] for name in sorted(names)}


def start() -> float:
    """Sum of the absolute weights that a run starts from: PyTorch 2.11 draws others than 2.13."""
    torch.manual_seed(0)
    return sum(float(p.detach().abs().sum()) for p in build_model("dinov2_tiny", 6).parameters())


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_kept(tiny: Tiny, tmp_path: Path, method: str, processes: int) -> None:
    kept = json.loads(FILE.read_text())
    if start() != pytest.approx(kept["start"], rel=1e-6):
        pytest.skip("this PyTorch draws other random weights than the one that made the file")
    found, expected = run(tiny, method, processes, tmp_path), kept[method]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        ratio = name.endswith("mask_ratio")
        assert found[name] == pytest.approx(values, rel=None if ratio else TOLERANCE[name], abs=PIXELS if ratio else None), name


def renew() -> None:
    """Writes the numbers of one process."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = make_tiny(Path(folder) / "tiny")
        numbers = {"start": start()} | {method: run(tiny, method, 1, Path(folder) / method) for method in METHODS}
    FILE.write_text(json.dumps(numbers, indent=1) + "\n")
    sys.stdout.write(f"{FILE.relative_to(ROOT)} renewed\n")


if __name__ == "__main__":
    renew()
