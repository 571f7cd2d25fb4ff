"""A long run of a very small model: does it grow? By hand, about ten minutes:

    python -m tests.soak [steps]

Prints the memory of the training process and of its loader workers, their open files (each the least of five samples), and the sizes
of log and TensorBoard files over the run. Linux only.
"""

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import unimatch_v2
from model.backbone.dinov2 import DINOv2
from model.spec import ENCODERS, EncoderSpec
from tests.conftest import make_tiny
from tests.crash import FORK, _rank, family, scalars


def sample(pid: int) -> tuple[float, int]:
    """Resident memory in MiB and number of open files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main(steps: int) -> None:
    ENCODERS["soak"] = EncoderSpec("soak", partial(DINOv2, 24, 4, 1, (0, 1, 2, 3)), 8, (8, 8, 8, 8))
    assert unimatch_v2
    with tempfile.TemporaryDirectory() as name:
        tiny, out = make_tiny(Path(name) / "data"), Path(name) / "run"
        epochs = 40
        lines = (tiny.root / "unlabeled.txt").read_text().splitlines()
        (tiny.root / "unlabeled.txt").write_text("\n".join((lines * steps)[: steps // epochs]) + "\n")
        settings = ("backbone=soak", "crop_size=14", "batch_size=1", f"epochs={epochs}", "num_workers=2", "shards=1", "device=cpu")
        process = FORK.Process(target=_rank, args=(tiny.args(out, *settings), {"OMP_NUM_THREADS": "1"}, f"{out}.out"))
        process.start()
        assert process.pid
        rows: list[tuple[float, int, float, int, int]] = []
        clock, begin = 0.0, time.monotonic()
        while process.is_alive():
            time.sleep(0.2)
            try:
                members = [sample(pid) for pid in family(process.pid)[:3]]
            except (OSError, IndexError):
                continue
            if len(members) == 3 and time.monotonic() - clock > 2 and (out / "train.log").exists():
                clock = time.monotonic()
                rows.append(
                    (*members[0], max(m[0] for m in members[1:]), max(m[1] for m in members[1:]), (out / "train.log").stat().st_size)
                )
        print(f"exit code {process.exitcode}, {steps} steps in {time.monotonic() - begin:.0f} s, {len(rows)} samples")
        print("share  main MiB  files  worker MiB  files  log bytes")
        for share in (0.1, 0.25, 0.5, 0.75, 0.99):
            at = int(share * len(rows))
            row = [min(column) for column in zip(*rows[max(0, at - 4) : at + 1], strict=True)]  # an evaluation opens files for a moment
            print(f"{share:5.0%}  {row[0]:8.1f}  {row[1]:5}  {row[2]:10.1f}  {row[3]:5}  {row[4]:9}")
        read = scalars(out)
        print(f"TensorBoard: {len(read)} scalars, {len(read['train/loss_all'])} points of train/loss_all")
        print({path.name: path.stat().st_size for path in out.iterdir() if "tfevents" in path.name or path.suffix == ".log"})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20000)
