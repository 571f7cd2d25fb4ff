"""Kills real runs with `kill -9` at random moments, starts them again, and compares the end with an uninterrupted run's.

    sh scripts/crash_test.sh 50

Runs have 1 or 2 processes and 0, 1 or 3 loader workers, and save after nearly every step. Most kills come after the first log line:
until then there is little to break. One run in seven is started by the real command; the others are forked from this process, which
has everything imported already, and are otherwise the same.
"""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import unimatch_v2
from engine.launch import bind
from tests.conftest import ROOT, Tiny, make_tiny
from util import checkpoint
from util.error import run

TIMES = {"train/images_per_second"}  # scalars that a clock decides
MACHINE = ("time", "seconds", "memory", "images_per_second")  # of metrics.jsonl: what the machine decides
FORK = multiprocessing.get_context("fork")
CASES = [(processes, workers) for workers in (0, 1, 3) for processes in (1, 2)]


def arguments(tiny: Tiny, folder: Path, workers: int) -> list[str]:
    fixed = (f"num_workers={workers}", "shards=2", "batch_size=1", "epochs=2", "save_every=0.003", "device=cpu")
    return tiny.args(folder, *fixed)


def _rank(argv: list[str], env: dict[str, str], out: str) -> None:
    """A training process, in a child of this one."""
    with open(out, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    run(unimatch_v2.main, argv)


def _ranks(argv: list[str], processes: int, out: str) -> None:
    """What the launcher does: `processes` training processes, and an end when one of them fails."""
    fixed = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(bind(0))}
    children = [FORK.Process(target=_rank, args=(argv, fixed | {"RANK": str(r), "LOCAL_RANK": str(r)}, out)) for r in range(processes)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(max(abs(child.exitcode or 0) for child in children))


class Job:
    """A running command: real=True starts it as a user would, else it is forked. Its output goes to `folder`.out."""

    def __init__(self, tiny: Tiny, folder: Path, processes: int, workers: int, real: bool = False) -> None:
        self.out = f"{folder}.out"
        argv = arguments(tiny, folder, workers)
        self.fork: ForkProcess | None = None
        if real:
            launcher = ["-m", "engine.launch", f"--nproc_per_node={processes}", "--master_addr=localhost", "--master_port=0"]
            command = [sys.executable, *(launcher if processes > 1 else []), "unimatch_v2.py", *argv]
            with open(self.out, "a") as out:
                env = os.environ | {"OMP_NUM_THREADS": "1"}
                self.command = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)
            self.pid = self.command.pid
        else:
            several = FORK.Process(target=_ranks, args=(argv, processes, self.out))
            self.fork = several if processes > 1 else FORK.Process(target=_rank, args=(argv, {}, self.out))
            self.fork.start()
            self.pid = self.fork.pid or 0

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.fork.exitcode if self.fork else self.command.poll()

    def finish(self, timeout: float = 600) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        code = self.poll()
        if code is None:
            self.kill()
            raise TimeoutError(Path(self.out).read_text()[-3000:])
        return code

    def succeed(self) -> None:
        if self.finish() != 0:
            raise RuntimeError(f"exit code {self.poll()}\n" + Path(self.out).read_text()[-3000:])

    def kill(self) -> None:
        """kill -9 for all its processes, stopped first so that none sees another one go."""
        members = family(self.pid)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        while self.poll() is None:
            time.sleep(0.01)


def family(pid: int) -> list[int]:
    """A process and everything that it started, directly or not. Linux only."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, own in parents.items() if own == parent]
    return found


def figures(folder: Path) -> list[str]:
    """The lines of train.log that have figures of epochs, iterations or evaluations, without their times."""
    lines = (folder / "train.log").read_text().splitlines()
    return [line.split("] ", 1)[1] for line in lines if re.search(r"\] (=====|Iters|\*\*\*\*\* Evaluation|.*skipped)", line)]


def scalars(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """What TensorBoard shows: (step, value) of each scalar that the clock does not change. nan as text, so that it equals itself."""
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag not in TIMES]
    return {tag: [(event.step, str(event.value)) for event in board.Scalars(tag)] for tag in tags}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, apart from starts and their warnings, without what the machine decides."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in MACHINE} for row in rows if row["kind"] not in ("start", "warning")]


def compare(a: Path, b: Path) -> list[str]:
    """What differs between two finished runs; nothing when they are bit-identical."""
    out = []
    for name in ("latest.pth", "best.pth"):
        one, two = (checkpoint.load(folder / name) for folder in (a, b))
        for key in ("model", "model_ema"):
            out += [f"{name} {key} {k}" for k in one[key] if not torch.equal(one[key][k], two[key][k])]
        for i, state in one["optimizer"]["state"].items():
            out += [f"{name} optimizer {i} {k}" for k in state if not torch.equal(state[k], two["optimizer"]["state"][i][k])]
        volatile = ("model", "model_ema", "optimizer", "files", "config", "seconds")
        out += [f"{name} {k}: {one[k]} {two[k]}" for k in one if k not in volatile and one[k] != two[k]]
    if figures(a) != figures(b):
        out.append("log figures: " + "; ".join(sorted(set(figures(a)) ^ set(figures(b)))[:4] or ["order or number"]))
    if metrics(a) != metrics(b):
        out.append("metrics.jsonl")
    left, right = scalars(a), scalars(b)
    tags = (left.keys() | right.keys()) - TIMES
    out += [f"TensorBoard {tag}" for tag in sorted(tags) if left.get(tag) != right.get(tag)]
    return out


def written(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def kill_once(job: Job, folder: Path, seconds: tuple[float, float], rng: random.Random) -> float:
    """Kills a run at any moment, or (four of five) after it has begun. seconds: start-up and whole of such a run. Returns when."""
    clock = time.monotonic()
    begun = rng.random() < 0.8
    if begun:
        size = written(folder / "train.log")
        while job.poll() is None and written(folder / "train.log") == size:
            time.sleep(0.01)
    time.sleep(rng.uniform(0, seconds[1] - begun * seconds[0]))
    job.kill()
    return time.monotonic() - clock


def uninterrupted(tiny: Tiny, folder: Path, processes: int) -> tuple[float, float]:
    """A whole run. Returns the seconds until it has begun, and until its end."""
    clock = time.monotonic()
    job = Job(tiny, folder, processes, 0)
    while job.poll() is None and not written(folder / "train.log"):
        time.sleep(0.02)
    begun = time.monotonic() - clock
    job.succeed()
    return begun, time.monotonic() - clock


def main(count: int, seed: int = 0, cases: list[tuple[int, int]] = CASES) -> int:
    """Prints one line a kill and the sum. Returns how many of the `count` kills changed something."""
    torch.set_num_threads(1)  # a child of a process with threads could not start its own
    rng = random.Random(seed)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tiny = make_tiny(root / "data")
        whole = {processes: root / f"whole{processes}" for processes, _ in cases}
        seconds = {processes: uninterrupted(tiny, folder, processes) for processes, folder in whole.items()}
        same = 0
        for i in range(count):
            processes, workers = cases[i % len(cases)]
            folder, real = root / f"{i}", i % 7 == 6  # 7 and the 6 cases: each of them comes to be real
            after = kill_once(Job(tiny, folder, processes, workers, real), folder, seconds[processes], rng)
            Job(tiny, folder, processes, workers, real).succeed()
            found = compare(whole[processes], folder)
            same += not found
            how = f"{processes} process(es), {workers} worker(s){', real command' if real else ''}"
            print(f"{i + 1}: {how}, killed after {after:.1f} s: {'; '.join(found[:5]) or 'identical'}", flush=True)
            for path in folder.glob("*.pth"):
                path.unlink()
    print(f"{same}/{count} identical in {time.monotonic() - begin:.0f} s")
    return count - same


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50, int(sys.argv[2]) if len(sys.argv) > 2 else 0) > 0)
