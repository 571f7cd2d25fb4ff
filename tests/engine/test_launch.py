"""The launcher ends as the first failed worker ended, without reports of its own; which workers it restarts, on one node and several."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import unimatch_v2
from engine.launch import choose_port
from tests import crash
from tests.conftest import ROOT, Tiny
from util import checkpoint
from util.error import UserError

WORKER = """
import os, sys, time
from pathlib import Path
from util.error import UserError, run
rank, what, folder = os.environ["RANK"], sys.argv[1], Path(sys.argv[2])
if (folder.parent / "lost").exists():
    what = "ok"
(folder / rank).touch()
while len(list(folder.iterdir())) < 2:
    time.sleep(0.02)
def main(argv):
    if what == "user error" or rank == "1" and what == "lone user error":
        raise UserError("config: no such key")
    if what == "lone user error":
        time.sleep(1)
        raise RuntimeError("the other one is gone")  # as a collective operation says
if "user error" in what:
    run(main, [])
if rank == "1" and what == "code":
    sys.exit(7)
if what == "node 0 first":
    time.sleep(0 if rank == "0" else 2)
    sys.exit(7 if rank == "0" else 1)
if rank == "0" and what == "lose node 1":
    while not (folder.parent / "lost").exists():
        time.sleep(0.02)
    sys.exit(7)
if rank == "1" and what == "kill":
    os.kill(os.getpid(), 9)
if what != "ok":
    time.sleep(60)
"""


ONE_NODE = ("--nproc_per_node=2", "--master_addr=localhost", "--master_port=0")


def two_nodes(*options: str) -> list[tuple[str, ...]]:
    """The options of the launchers of two nodes with one worker each. Node 0, which the other one waits for, comes second."""
    common = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={choose_port(0)}", *options)
    return [(*common, f"--node_rank={rank}") for rank in (1, 0)]


def launch(tmp_path: Path, what: str, options: tuple[str, ...] = ONE_NODE) -> "subprocess.Popen[str]":
    """A launcher of two workers that meet, then end as `what` says."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    (tmp_path / "ranks").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "engine.launch", *options]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, str(script), what, str(tmp_path / "ranks")], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("ok", 0, ""),
        ("user error", 2, "error: config: no such key\n"),
        ("lone user error", 2, "error: config: no such key\n"),
        ("code", 7, "error: rank 1 ended with exit code 7\n"),
        ("kill", 137, "error: rank 1 was ended by SIGKILL\n"),
    ],
)
def test_exit_code_and_message_are_the_workers(tmp_path: Path, what: str, code: int, line: str) -> None:
    """An error of the user is not tried again."""
    restarts = ("--max_restarts=3",) if "user error" in what else ()
    with launch(tmp_path, what, (*ONE_NODE, *restarts)) as process:
        _, stderr = process.communicate(timeout=300)
    assert (process.returncode, stderr) == (code, line)


def test_an_error_of_the_user_on_one_node_ends_all_nodes_and_is_not_restarted(tmp_path: Path) -> None:
    nodes = [launch(tmp_path, "lone user error", options) for options in two_nodes("--max_restarts=3")]
    errors = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [2, 2]
    assert errors[0] == "error: config: no such key\n"
    assert errors[1].splitlines()[-1] == "error: rank 1 ended with exit code 2: config: no such key"
    assert "restart" not in errors[1]


def test_all_nodes_report_the_first_failure(tmp_path: Path) -> None:
    nodes = [launch(tmp_path, "node 0 first", options) for options in two_nodes()]
    errors = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [7, 7]
    assert errors == ["error: rank 0 ended with exit code 7\n"] * 2


def test_a_node_that_is_lost_and_comes_again_joins_the_restart(tmp_path: Path) -> None:
    options = two_nodes("--max_restarts=1")
    lost, node = [launch(tmp_path, "lose node 1", given) for given in options]
    while len(list((tmp_path / "ranks").iterdir())) < 2:
        time.sleep(0.05)
    twin = launch(tmp_path, "ok", options[0])
    assert twin.communicate(timeout=300)[1] == "error: NODE_RANK: found 1, which another launcher of this run has; each node has its own\n"
    assert twin.returncode == 2
    for pid in crash.family(lost.pid):
        os.kill(pid, signal.SIGKILL)
    lost.communicate()
    (tmp_path / "lost").touch()
    time.sleep(1)
    again = launch(tmp_path, "ok", options[0])
    errors = [process.communicate(timeout=300)[1] for process in (again, node)]
    assert (again.returncode, node.returncode) == (0, 0), errors
    # PyTorch may warn besides, in words of its own, of a connection that the other side's end has closed
    own = [[line for line in text.splitlines() if line.startswith(("rank ", "error: "))] for text in errors]
    assert own == [["rank 0 ended with exit code 7; restart 1 of 1"]] * 2
    assert not [text for text in errors if "Traceback" in text or "stopped: " in text]


def test_the_second_signal_to_the_launcher_ends_the_workers(tmp_path: Path) -> None:
    with launch(tmp_path, "wait") as process:
        while len(list((tmp_path / "ranks").iterdir())) < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # asks the workers to end
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)  # ends them
        _, stderr = process.communicate(timeout=300)
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


# A method in which, once, something is killed at step 4 of 6: a rank or a loader process.
METHOD = """
import os, signal, sys
from pathlib import Path
import unimatch_v2
from dataset.semi import TrainSet
from engine import update as engine_update
from util.error import run
what, mark = sys.argv.pop(1), Path(sys.argv.pop(1))
update, sample = engine_update.Learner.update, TrainSet.__getitem__
def killing_update(self, *args, **kwargs):
    if what == "rank" and self.it == 4 and self.world.rank == self.world.size - 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, *args, **kwargs)
def killing_sample(self, keys):
    if what == "worker" and keys[0][1] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return sample(self, keys)
engine_update.Learner.update, TrainSet.__getitem__ = killing_update, killing_sample
run(unimatch_v2.main)
"""


def start(tmp_path: Path, tiny: Tiny, what: str, save: str, *options: str, settings: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """The launcher with `options` and the killing method; every step is saved."""
    script = tmp_path / "method.py"
    script.write_text(METHOD)
    args = tiny.args(tmp_path / save, "save_every=1e-9", "shards=2", *settings)
    command = [sys.executable, "-m", "engine.launch", *options, str(script), what, str(tmp_path / f"mark-{save}"), *args]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(folder / "latest.pth")
    assert state["epoch"] == 1, "both epochs are done"
    return state["model_ema"]


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a run to which nothing happens, on one process: the sum of two gradients has one order (tests/engine/test_steps.py)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    unimatch_v2.main(tiny.args(folder, "shards=2"))
    return weights(folder)


def test_a_killed_rank_is_started_again_and_the_run_ends_as_if_nothing_had_been(tiny: Tiny, tmp_path: Path, undisturbed: dict) -> None:
    with start(tmp_path, tiny, "rank", "run", "--nproc_per_node=2", "--master_port=0", "--max_restarts=1") as process:
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "rank 1 was ended by SIGKILL; restart 1 of 1\n" in stderr
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(tmp_path / "run").items())
    assert "Load from checkpoint at epoch 0, 1 steps of the next" in (tmp_path / "run/train.log").read_text()


def test_two_nodes_train_together_and_both_start_again(tiny: Tiny, tmp_path: Path, undisturbed: dict) -> None:
    nodes = [start(tmp_path, tiny, "rank", "run", *options) for options in two_nodes("--max_restarts=1")]
    outputs = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "rank 1 was ended by SIGKILL; restart 1 of 1\n" in outputs[0]
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(tmp_path / "run").items())


def test_a_rank_that_dies_on_one_node_ends_the_other_node(tiny: Tiny, tmp_path: Path) -> None:
    nodes = [start(tmp_path, tiny, "rank", "run", *options) for options in two_nodes()]
    outputs = [node.communicate(timeout=300)[1].splitlines() for node in nodes]  # not the hour that a process waits for others
    assert [node.returncode for node in nodes] == [137, 137]
    assert [output[-1] for output in outputs] == ["error: rank 1 was ended by SIGKILL"] * 2, "on both nodes"


def test_a_killed_loader_process_is_the_last_line(tiny: Tiny, tmp_path: Path) -> None:
    with start(tmp_path, tiny, "worker", "run", "--nproc_per_node=1", "--master_port=0", settings=("num_workers=1",)) as process:
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    last = stderr.splitlines()[-1]
    assert last.startswith("error: rank 0 ended with exit code 1: RuntimeError: DataLoader worker (pid"), last


def test_torchrun_decides_inside_a_slurm_allocation(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROCID": "1", "NTASKS": "2", "LOCALID": "1", "NODEID": "1", "JOB_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with start(tmp_path, tiny, "nothing", "run", "--nproc_per_node=1", "--master_port=0", settings=("epochs=1",)) as process:
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "'ngpus': 1" in (tmp_path / "run/train.log").read_text()


def test_node_rank_and_master_are_checked() -> None:
    command = [sys.executable, "-m", "engine.launch", "--nnodes=2", "--node_rank=2", "--nproc_per_node=1", "unimatch_v2.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "error: NODE_RANK: found 2, expected 0 to 1 for NNODES=2; each node has its own\n"
    assert done.returncode == 2
    unknown = [part.replace("node_rank=2", "node_rank=1") for part in command[:-1]]
    unknown += ["--master_addr=nowhere.invalid", "unimatch_v2.py"]
    done = subprocess.run(unknown, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: MASTER_ADDR: nowhere.invalid is not known here (")
    assert done.stderr.count("\n") == 1
