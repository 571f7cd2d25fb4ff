"""The launcher ends as the first failed worker ended, with its exit code and without reports of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.launch import choose_port
from util.error import UserError

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import os, sys, time
from pathlib import Path
from util.error import UserError, run
rank, what, folder = os.environ["RANK"], sys.argv[1], Path(sys.argv[2])
(folder / rank).touch()
while len(list(folder.iterdir())) < 2:
    time.sleep(0.02)
def main(argv):
    if what == "mistake" or rank == "1" and what == "lone mistake":
        raise UserError("config: no such key")
    if what == "lone mistake":
        time.sleep(1)
        raise RuntimeError("the other one is gone")  # as a collective operation says
if "mistake" in what:
    run(main, [])
if rank == "1" and what == "code":
    sys.exit(7)
if rank == "1" and what == "kill":
    os.kill(os.getpid(), 9)
if what != "ok":
    time.sleep(60)
"""


def launch(tmp_path: Path, what: str) -> "subprocess.Popen[str]":
    """Two workers that meet, then end as `what` says."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    (tmp_path / "ranks").mkdir()
    command = [sys.executable, "-m", "engine.launch", "--nproc_per_node=2", "--master_addr=localhost", "--master_port=0"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, str(script), what, str(tmp_path / "ranks")], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("ok", 0, ""),
        ("mistake", 2, "error: config: no such key\n"),
        ("lone mistake", 2, "error: config: no such key\n"),
        ("code", 7, "error: rank 1 ended with exit code 7\n"),
        ("kill", 137, "error: rank 1 was ended by SIGKILL\n"),
    ],
)
def test_exit_code_and_message_are_the_workers(tmp_path: Path, what: str, code: int, line: str) -> None:
    with launch(tmp_path, what) as process:
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (code, line)


def test_the_second_signal_to_the_launcher_ends_the_workers(tmp_path: Path) -> None:
    with launch(tmp_path, "wait") as process:
        while len(list((tmp_path / "ranks").iterdir())) < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # asks the workers to end
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)  # ends them
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (143, "error: stopped by SIGTERM\n")


def test_ports() -> None:
    free = choose_port(0)
    assert choose_port(free) == free
    with socket.create_server(("127.0.0.1", free)) as server:
        server.listen()
        with pytest.raises(UserError, match=rf"{free} cannot be used \(Address already in use\); \d+ is free"):
            choose_port(free)
        assert choose_port(free, nodes=2, node_rank=1) == free  # opened on another machine
    with pytest.raises(UserError, match="2 nodes"):
        choose_port(0, nodes=2)
    with pytest.raises(UserError, match="1 to 65535"):
        choose_port(70000)


def test_a_missing_script_is_one_line() -> None:
    command = [sys.executable, "-m", "engine.launch", "--nproc_per_node=2", "unimatch.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: unimatch.py: no such file; expected a method such as unimatch_v2.py\n"
