"""Two runs from one seed on a GPU, with and without `deterministic: true`: are they the same bits, and what does it cost? By hand:

python -m tests.gpu_seeds
"""

import re
import tempfile
import time
from datetime import datetime
from pathlib import Path

import torch

import unimatch_v2
from tests.conftest import Tiny, make_tiny
from util import checkpoint
from util.error import UserError, run

CROPS = (518, 252)  # at 518 the position embedding is used as it is, elsewhere it is resized: bicubic, whose gradient may differ each time


def seconds_per_step(log: Path) -> float:
    """From the times of the lines of the last epoch."""
    lines = re.findall(r"\[(.{23})\]\[    INFO\] Iters: (\d+)", log.read_text())[-8:]
    times = [(datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f"), int(step)) for when, step in lines]
    return (times[-1][0] - times[0][0]).total_seconds() / (times[-1][1] - times[0][1])


def compare(tiny: Tiny, folder: Path, crop: int, wanted: str) -> None:
    """Runs twice and prints whether the teachers are the same bits."""
    states = []
    for i in (1, 2):
        out = folder / f"{crop}{wanted}{i}"
        settings = ("backbone=dinov2_small", f"crop_size={crop}", "batch_size=4", "epochs=1", "num_workers=8", "shards=1")
        begin = time.monotonic()
        unimatch_v2.main(tiny.args(out, *settings, "device=cuda", f"deterministic={wanted}"))
        whole = time.monotonic() - begin
        states.append(checkpoint.load(out / "latest.pth")["model_ema"])
        print(f"crop {crop}, deterministic={wanted}: {seconds_per_step(out / 'train.log'):.4f} s a step, {whole:.0f} s in all")
    same = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    print(f"crop {crop}, deterministic={wanted}: same bits: {same}", flush=True)


def main(argv: list[str]) -> None:
    if not torch.cuda.is_available():
        raise UserError(
            "tests.gpu_seeds: found no CUDA GPU, expected one: a CPU gives the same bits anyway; run it on a machine with a GPU"
        )
    with tempfile.TemporaryDirectory() as name:
        tiny = make_tiny(Path(name) / "data")
        path = tiny.root / "unlabeled.txt"
        path.write_text("\n".join((path.read_text().splitlines() * 40)[:320]) + "\n")
        for crop in CROPS:
            for wanted in ("true", "false"):
                compare(tiny, Path(name), crop, wanted)


if __name__ == "__main__":
    run(main)
