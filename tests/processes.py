"""Python functions on several processes, joined as a launcher would join them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(size: int, command: list[str], timeout: float = 300) -> list[str]:
    """Runs `python COMMAND...` in the repository on `size` processes. Returns the output of each; raises where one fails."""
    port = str(free_port())
    running = []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        env = os.environ | {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        env |= {name: str(value) for name, value in place.items()} if size > 1 else {}
        running.append(
            subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, output in zip(running, outputs, strict=True):
        if process.returncode:
            raise AssertionError(f"a process ended with {process.returncode}:\n{output}")
    return outputs
