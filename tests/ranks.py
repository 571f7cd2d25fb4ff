"""Several processes of a command, distinguished by the environment variables that the launcher sets.

They are forked from a process that has PyTorch in memory: an interpreter takes 3 seconds to get there, more than most tests compute. What
the launcher does, and what happens while an interpreter ends, is tested with real ones.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine.launch import bind

CONTEXT = multiprocessing.get_context("forkserver")  # not fork: a process that has computed on two threads cannot be forked
CONTEXT.set_forkserver_preload(["pytest", "torch._dynamo", "torch.utils.tensorboard"])


def _rank(words: list[str], cwd: Path, env: dict[str, str], files: list[str], method: str) -> None:
    """What `python WORDS...` does, in a process that is there already; stdout and stderr go to the ends of two files."""
    multiprocessing.set_start_method(method, force=True)  # for loader workers: it would be forkserver, as of this process
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for stream, name in enumerate(files, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), stream)
    module = words[0] == "-m"
    sys.argv = words[module:]
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


def start(words: list[str], processes: int, cwd: Path, timeout: float, env: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs `python WORDS...` in so many processes. returncode is that of the first one that failed."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/stdout", f"{folder}/stderr"]
        given = os.environ | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(bind(0))} | env
        given["LOCAL_WORLD_SIZE"] = given["WORLD_SIZE"]
        envs = [given | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        ranks = [CONTEXT.Process(target=_rank, args=(words, cwd, own, files, multiprocessing.get_start_method())) for own in envs]
        for name in files:
            Path(name).touch()
        end = time.monotonic() + timeout
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(max(0.0, end - time.monotonic()))
        hang = [rank for rank in ranks if rank.exitcode is None]
        for rank in hang:
            rank.kill()
            rank.join()
        out, err = (Path(name).read_text() for name in files)
        if hang:
            raise subprocess.TimeoutExpired(words, timeout, out, err)
        return subprocess.CompletedProcess(words, next((rank.exitcode for rank in ranks if rank.exitcode), 0), out, err)
