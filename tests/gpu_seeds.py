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
from tests.conftest import make_tiny
from util import checkpoint
from util.error import UserError, run


def seconds_per_step(log: Path) -> float:
    """From the times of the lines of the last epoch."""
    lines = re.findall(r"\[(.{23})\]\[    INFO\] Iters: (\d+)", log.read_text())[-8:]
    times = [(datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f"), int(step)) for when, step in lines]
    return (times[-1][0] - times[0][0]).total_seconds() / (times[-1][1] - times[0][1])


def main(argv: list[str]) -> None:
    if not torch.cuda.is_available():
        raise UserError(
            "tests.gpu_seeds: found no CUDA GPU, expected one: a CPU gives the same bits anyway; run it on a machine with a GPU"
        )
    with tempfile.TemporaryDirectory() as name:
        tiny = make_tiny(Path(name) / "data")
        path = tiny.root / "unlabeled.txt"
        path.write_text("\n".join((path.read_text().splitlines() * 40)[:320]) + "\n")
        for wanted in ("true", "false"):
            states = []
            for i in (1, 2):
                out = Path(name) / f"{wanted}{i}"
                settings = ("backbone=dinov2_small", "crop_size=518", "batch_size=4", "epochs=1", "num_workers=8", "shards=1")
                begin = time.monotonic()
                unimatch_v2.main(tiny.args(out, *settings, "device=cuda", f"deterministic={wanted}"))
                states.append(checkpoint.load(out / "latest.pth")["model_ema"])
                print(
                    f"deterministic={wanted}: {seconds_per_step(out / 'train.log'):.4f} s a step, {time.monotonic() - begin:.0f} s in all"
                )
            print(f"deterministic={wanted}: same bits: {all(torch.equal(states[0][k], states[1][k]) for k in states[0])}", flush=True)


if __name__ == "__main__":
    run(main)
