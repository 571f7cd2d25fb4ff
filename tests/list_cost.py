"""What a long list costs: time and memory of reading it, and what a worker process copies of it.

    python -m tests.list_cost 240000

prints, against a list of one line: seconds of CPU, MB of resident memory after reading and at its peak, and the private memory (MB) that a
forked worker gains by reading every entry once. Linux only (/proc).
"""

import gc
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from dataset.lists import ImageList

MB = 1024.0  # KB


def rollup(name: str) -> float:
    """A line of this process's memory in MB: Rss (resident) or Private_Dirty (its own, not shared with its parent)."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / MB
    raise KeyError(name)


def peak() -> float:
    """The largest resident memory so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB


def worker(images: ImageList, pipe: Connection) -> None:
    """Reads every entry as an epoch does and sends what that made private."""
    gc.collect()
    before = rollup("Private_Dirty")
    for i in range(len(images)):
        images[i]
    pipe.send(rollup("Private_Dirty") - before)


def cost(lines: int) -> dict[str, float]:
    """The four figures of a list of that many lines, as long as COCO's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        with open(path, "w") as file:
            file.writelines(f"train2017/{i:012d}.jpg masks/train2017/{i:012d}.png\n" for i in range(lines))
        begin, rss, top = time.process_time(), rollup("Rss"), peak()
        images = ImageList(str(path), "segmentation", masks=False)
        out = {"seconds": time.process_time() - begin, "resident": rollup("Rss") - rss, "peak": peak() - top}
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    child = fork.Process(target=worker, args=(images, there))
    child.start()
    out["copied"] = here.recv()
    child.join()
    return out


if __name__ == "__main__":
    empty, full = cost(1), cost(int(sys.argv[1]))
    print(" ".join(f"{name} {full[name] - empty[name]:.2f}" for name in full))
