"""Asked to stop, a run saves, says how to resume it, and ends with the code that a batch script turns into a requeue."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import unimatch_v2
from engine import trainer as training
from engine.metrics_file import read_epochs
from tests import crash
from tests.conftest import ROOT, Tiny
from util import checkpoint
from util.error import StoppedError, run
from util.signals import REQUEUE, STOP_FILE, StopSignals

QUICK = ("batch_size=1", "crop_size=14")


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    unimatch_v2.main(tiny.args(folder, *QUICK))
    return folder


def signal_at(count: int, number: int, target: Any, name: str) -> pytest.MonkeyPatch:
    """The call number `count` of a function is interrupted by a signal to this process."""
    patch, original, calls = pytest.MonkeyPatch(), getattr(target, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    patch.setattr(target, name, wrapped)
    return patch


@pytest.mark.parametrize(
    ("number", "code", "place", "where"),
    [
        (signal.SIGTERM, REQUEUE, (5, training.Learner, "update"), "epoch 1 of 2, step 6 of 12"),
        (signal.SIGUSR1, REQUEUE, (2, training, "evaluate"), "epoch 2 of 2, step 12 of 12"),
        (signal.SIGINT, 130, (12, training.Learner, "update"), "epoch 1 of 2, step 12 of 12"),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    number: int,
    code: int,
    place: tuple[int, Any, str],
    where: str,
    tiny: Tiny,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped = tmp_path / "stopped"
    handler = signal.getsignal(number)
    patch = signal_at(place[0], number, *place[1:])
    with pytest.raises(SystemExit) as end:
        run(unimatch_v2.main, tiny.args(stopped, *QUICK))
    patch.undo()
    assert end.value.code == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"stopped: {where}, saved in {stopped}/latest.pth; the same command resumes from there"
    assert signal.getsignal(number) == handler, "the handlers are as before"
    state = checkpoint.load(stopped / "latest.pth")
    assert 0 < state["seconds"] < 1000
    checkpoint.save(state | {"seconds": 1000.0}, stopped / "latest.pth")
    unimatch_v2.main(tiny.args(stopped, *QUICK))
    assert crash.compare(whole, stopped) == []
    speeds = [row.images_per_second for row in read_epochs(stopped / "metrics.jsonl")]
    assert speeds.count(None) == (place[0] != 5), "an epoch that only had its evaluation left has no speed, not 0"
    assert all(speed > 0 for speed in speeds if speed is not None)
    seconds = [row.seconds for row in read_epochs(stopped / "metrics.jsonl")]
    assert [one > 1000 for one in seconds] == [place[0] != 2, place[0] == 2], "the time before the stop counts, once"


def test_the_launcher_passes_a_signal_on_and_all_ranks_save(tiny: Tiny, tmp_path: Path) -> None:
    """The real thing: launcher, two ranks, a loader worker each, and a signal to everybody as batch systems send it."""
    crash.uninterrupted(tiny, tmp_path / "whole", 2)
    job = crash.Job(tiny, tmp_path / "run", 2, 1, real=True)
    while not (tmp_path / "run/train.log").exists() or "Iters" not in (tmp_path / "run/train.log").read_text():
        assert job.poll() is None, Path(job.out).read_text()
        time.sleep(0.05)
    for pid in crash.family(job.pid):
        os.kill(pid, signal.SIGUSR1)
    assert job.finish(60) == REQUEUE, Path(job.out).read_text()
    text = Path(job.out).read_text()
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("stopped: ")
    crash.Job(tiny, tmp_path / "run", 2, 0).succeed()
    assert crash.compare(tmp_path / "whole", tmp_path / "run") == []


def test_a_dead_rank_ends_the_others_with_the_cause_on_the_last_line(tiny: Tiny, tmp_path: Path) -> None:
    launcher = ["-m", "engine.launch", "--nproc_per_node=2", "--master_addr=localhost", "--master_port=0"]
    args = tiny.args(tmp_path / "run", *QUICK, "epochs=500", "shards=2")
    with subprocess.Popen([sys.executable, *launcher, "unimatch_v2.py", *args], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / "run/train.log"
        while not log.exists() or "Iters" not in log.read_text():
            time.sleep(0.1)
        ranks = [
            pid for pid in crash.family(process.pid) if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes().replace(b"LOCAL_RANK", b"")
        ]
        begin = time.monotonic()
        os.kill(ranks[0], signal.SIGKILL)
        stderr = process.communicate(timeout=60)[1]
    assert time.monotonic() - begin < 60
    assert process.returncode == 137
    assert stderr.splitlines()[-1] == "error: rank 1 was ended by SIGKILL"
    assert checkpoint.load(tmp_path / "run/latest.pth")["epoch"] >= -1


def test_ranks_whose_launcher_is_gone_save_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    signals = StopSignals()
    assert not signals.caught
    another = os.getppid() + 1
    monkeypatch.setattr(os, "getppid", lambda: another)
    assert signals.caught
    assert signals.code == REQUEUE


def test_a_run_without_a_launcher_outlives_the_shell_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    signals = StopSignals()
    another = os.getppid() + 1
    monkeypatch.setattr(os, "getppid", lambda: another)
    assert not signals.caught


def test_the_launchers_file_is_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    signals = StopSignals()
    assert not signals.caught
    (tmp_path / "stop").write_text(str(int(signal.SIGINT)))
    assert signals.caught
    assert signals.code == 130


def test_a_second_interrupt_ends_at_once() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.caught
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_stop_on_a_full_disk_says_that_nothing_was_saved(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from util.error import UserError

    original = checkpoint.save

    def save(state: dict[str, Any], path: Path, keep: Path | None = None, also: Path | None = None) -> None:
        if state["step"]:
            raise UserError(f"{path}: cannot be saved (No space left on device)")
        original(state, path, keep, also)

    monkeypatch.setattr(checkpoint, "save", save)
    patch = signal_at(3, signal.SIGTERM, training.Learner, "update")
    with pytest.raises(StoppedError, match=r"could not be saved: .* has an older checkpoint"):
        unimatch_v2.main(tiny.args(tmp_path, *QUICK))
    patch.undo()
    assert torch.load(tmp_path / "latest.pth", weights_only=True)["step"] == 0
