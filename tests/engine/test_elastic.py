"""Failures and several nodes: who is started again, what is said last, and that the run ends as one without failures."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.elastic import own_address
from engine.launch import choose_port
from tests.conftest import ROOT, Tiny
from util import checkpoint
from util.error import UserError

# A method in which, once, something is killed at step 4 of 6: a rank or a loader process.
METHOD = """
import os, signal, sys
from pathlib import Path
import unimatch_v2
from dataset.semi import TrainSet
from engine import update as trainer
from util.error import run
what, mark = sys.argv.pop(1), Path(sys.argv.pop(1))
update, sample = trainer.Trainer.update, TrainSet.__getitem__
def killing_update(self, *args, **kwargs):
    if what == "rank" and self.it == 4 and self.world.rank == self.world.size - 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, *args, **kwargs)
def killing_sample(self, keys):
    if what == "worker" and keys[0][1] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return sample(self, keys)
trainer.Trainer.update, TrainSet.__getitem__ = killing_update, killing_sample
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
    """Weights of a run on 2 processes to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with start(folder, tiny, "nothing", "run", "--nproc_per_node=2", "--master_port=0") as process:
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return weights(folder / "run")


def test_a_killed_rank_is_started_again_and_the_run_ends_as_if_nothing_had_been(tiny: Tiny, tmp_path: Path, undisturbed: dict) -> None:
    with start(tmp_path, tiny, "rank", "run", "--nproc_per_node=2", "--master_port=0", "--max_restarts=1") as process:
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "rank 1 was ended by SIGKILL; restart 1 of 1\n" in stderr
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(tmp_path / "run").items())
    assert "Load from checkpoint at epoch 0, 1 steps of the next" in (tmp_path / "run/train.log").read_text()


def test_two_nodes_train_together_and_both_start_again(tiny: Tiny, tmp_path: Path, undisturbed: dict) -> None:
    common = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={choose_port(0)}", "--max_restarts=1")
    nodes = [start(tmp_path, tiny, "rank", "run", *common, f"--node_rank={rank}", f"--local_addr=127.0.0.{rank + 1}") for rank in (1, 0)]
    outputs = [node.communicate(timeout=150)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "rank 1 was ended by SIGKILL; restart 1 of 1\n" in outputs[0]
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(tmp_path / "run").items())


def test_a_rank_that_dies_on_one_node_ends_the_other_node(tiny: Tiny, tmp_path: Path) -> None:
    common = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={choose_port(0)}")
    begin = time.monotonic()
    nodes = [start(tmp_path, tiny, "rank", "run", *common, f"--node_rank={rank}", f"--local_addr=127.0.0.{rank + 1}") for rank in (1, 0)]
    outputs = [node.communicate(timeout=90)[1].splitlines() for node in nodes]
    assert time.monotonic() - begin < 60, "start, four steps and the end"
    assert nodes[0].returncode == 137
    assert outputs[0][-1] == "error: rank 1 was ended by SIGKILL"
    assert nodes[1].returncode != 0
    assert outputs[1][-1].endswith("(where another node's worker ended first, the cause is there)")


def test_a_killed_loader_process_is_the_last_line(tiny: Tiny, tmp_path: Path) -> None:
    with start(tmp_path, tiny, "worker", "run", "--nproc_per_node=1", "--master_port=0", settings=("num_workers=1",)) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    last = stderr.splitlines()[-1]
    assert last.startswith("error: rank 0 ended with exit code 1: RuntimeError: DataLoader worker (pid"), last


def test_a_users_mistake_is_not_tried_again(tiny: Tiny, tmp_path: Path) -> None:
    options = ("--nproc_per_node=2", "--master_port=0", "--max_restarts=3")
    with start(tmp_path, tiny, "nothing", "run", *options, settings=("nclass=7",)) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "restart" not in stderr
    assert stderr.count("nclass: found 7") == 1


def test_torchrun_decides_inside_a_slurm_allocation(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROCID": "1", "NTASKS": "2", "LOCALID": "1", "NODEID": "1", "JOB_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with start(tmp_path, tiny, "nothing", "run", "--nproc_per_node=1", "--master_port=0", settings=("epochs=1",)) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "'ngpus': 1" in (tmp_path / "run/train.log").read_text()


def test_node_rank_and_master_are_checked() -> None:
    command = [sys.executable, "-m", "engine.launch", "--nnodes=2", "--node_rank=2", "--nproc_per_node=1", "unimatch_v2.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "error: NODE_RANK: found 2, expected 0 to 1 for NNODES=2; each node has its own\n"
    assert done.returncode == 2
    with pytest.raises(UserError, match=r"MASTER_ADDR: nowhere\.invalid is not known here"):
        own_address("nowhere.invalid", 29500, 1)
    with pytest.raises(UserError, match=r"MASTER_ADDR: 255\.255\.255\.255 .*give the name or address of node 0"):
        own_address("255.255.255.255", 29500, 1)  # no connection goes there
    assert own_address("127.0.0.2", 29500, 1).startswith("127.")
