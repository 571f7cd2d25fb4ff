"""Killed anywhere, a run ends in the same bits; it resumes only from a checkpoint of its own."""

import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import supervised
import unimatch_v2
from engine import records as record
from engine import resume
from engine import trainer as training
from tests import crash
from tests.conftest import ROOT, Tiny, command, make_tiny
from util import checkpoint, files
from util.error import StoppedError, UserError
from util.signals import REQUEUE, StopSignals

QUICK = ("batch_size=1", "crop_size=14", "save_every=0")  # 6 steps an epoch, and a save at each read


class Killed(BaseException):
    """Ends a run where nothing expects it."""


def make_half(root: Path) -> Tiny:
    """The small data set with half of its unlabelled images."""
    half = make_tiny(root)
    listed = half.root / "unlabeled.txt"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:6]))
    return half


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_half(tmp_path_factory.mktemp("half"))


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    unimatch_v2.main(tiny.args(folder, *QUICK))
    return folder


def die_at(count: int, original: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
    """`original`, until its call number `count` kills the run, before or after it has done its work."""
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count and not after:
            raise Killed
        out = original(*args, **kwargs)
        if len(calls) == count:
            raise Killed
        return out

    return wrapped


def killed(args: list[str], target: object, name: str, count: int, after: bool = False) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, die_at(count, getattr(target, name), after))
        with pytest.raises(Killed):
            unimatch_v2.main(args)


PLACES: dict[str, tuple[object, str, int, bool]] = {
    "before the first step": (training.Learner, "update", 1, False),
    "inside the first epoch": (training.Learner, "update", 3, True),
    "before the evaluation": (training, "evaluate", 1, False),
    "after the evaluation, before its save": (training, "evaluate", 1, True),
    "inside the second epoch": (training.Learner, "update", 9, False),
    "writing a log line": (record.Record, "iteration", 8, True),
    "writing a checkpoint": (torch, "save", 5, True),
    "between the two renames": (os, "replace", 10, True),
    "writing best.pth": (os, "link", 1, False),
    "between best.pth and latest.pth": (os, "link", 1, True),
    "before the last save": (training, "evaluate", 2, True),
}


@pytest.mark.parametrize("place", PLACES)
def test_killed_at(place: str, tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    args = tiny.args(tmp_path, *QUICK)
    killed(args, *PLACES[place])
    unimatch_v2.main(args)
    assert crash.compare(whole, tmp_path) == []
    assert not list(tmp_path.glob(".*.tmp")), "what a killed save leaves is removed"


def test_an_ablation_killed_in_the_middle_ends_in_the_same_bits(tiny: Tiny, tmp_path: Path) -> None:
    """One view, dropped before the classifier, on two shards; the second run also computes the encoder's blocks twice."""
    settings = (*QUICK, "epochs=1", "shards=2", "strong_views=1", "dropout=independent", "dropout_at=classifier")
    unimatch_v2.main(tiny.args(tmp_path / "whole", *settings))
    args = tiny.args(tmp_path / "killed", *settings, "activation_checkpointing=true")
    killed(args, training.Learner, "update", 2, after=True)
    unimatch_v2.main(args)
    states = [checkpoint.load(tmp_path / name / "latest.pth") for name in ("whole", "killed")]
    for part in ("model", "model_ema"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    with pytest.raises(UserError, match="strong_views: 1, now 2"):
        unimatch_v2.main(tiny.args(tmp_path / "whole", *settings, "strong_views=2"))


def test_comparing_sees_a_difference(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "other")
    with open(tmp_path / "other/train.log", "a") as log:
        log.write("[2026-01-01 00:00:00,000][    INFO] Iters: 0, LR: 0.1\n")
    state = checkpoint.load(whole / "latest.pth")
    state["model"]["head.scratch.output_conv.2.bias"][0] += 1e-6
    checkpoint.save(state, tmp_path / "other/latest.pth")
    found = crash.compare(whole, tmp_path / "other")
    assert len(found) == 2


def test_random_kills_of_real_processes() -> None:
    assert crash.main(1, seed=1, cases=[(2, 1)]) == 0  # more of them by hand: scripts/crash_test.sh


def test_finished_mini_batches_are_not_decoded_again(tiny: Tiny, tmp_path: Path) -> None:
    from dataset import source

    args = tiny.args(tmp_path, *QUICK, "epochs=1")
    killed(args, training.Learner, "update", 4)
    opened: list[str] = []
    original = source.open_image

    def count(root: str, path: str) -> Any:
        opened.append(path)
        return original(root, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "open_image", count)
        unimatch_v2.main(args)
    looked_at = 1 + 3  # validation images: the first one before the first step, and those on the run's page
    assert len(opened) == 3 * 2 + 4 + looked_at, "3 steps of one labelled and one unlabelled image, and 4 validation images"


def test_a_torn_or_corrupt_checkpoint_falls_back_and_says_so(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    killed(tiny.args(tmp_path / "start", *QUICK), training.Learner, "update", 10)
    for damage in ("torn", "flipped", "missing"):
        folder = tmp_path / damage
        shutil.copytree(tmp_path / "start", folder)
        args = tiny.args(folder, *QUICK)
        latest = folder / "latest.pth"
        content = bytearray(latest.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "missing":
            latest.unlink()
        else:
            latest.write_bytes(content if damage == "flipped" else content[:-1000])
        unimatch_v2.main(args)
        log = (folder / "train.log").read_text()
        assert "latest.pth: " in log
        assert "resuming from previous.pth" in log
        assert (folder / "latest.pth.damaged").exists() == (damage != "missing"), "it does not take the place of the good one"
        checkpoint.load(folder / "previous.pth")
        assert crash.compare(whole, folder) == []


def test_no_readable_checkpoint_is_an_error_and_harms_nothing(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("latest.pth", "previous.pth"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"latest\.pth.*previous\.pth.*no checkpoint is left"):
        unimatch_v2.main(tiny.args(tmp_path))
    assert (tmp_path / "latest.pth").read_bytes() == b"PK\x03\x04"


CHANGES = {
    "lr": ("lr=0.001", "lr: 0.0003, now 0.001"),
    "batch_size": ("batch_size=2", "batch_size: 1, now 2"),
    "encoder": ("backbone=dinov2_small", "backbone: 'dinov2_tiny', now 'dinov2_small'"),
    "seed": ("seed=1", "seed: 0, now 1"),
    "shards": ("shards=2", "shards: 1, now 2"),
    "fewer epochs": ("epochs=1", "epochs: 2, now 1"),
    "criterion": ("criterion={name: OHEM, kwargs: {thresh: 0.7, min_kept: 100}}", "criterion: "),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_config_is_refused_with_the_difference(what: str, tiny: Tiny, whole: Path) -> None:
    setting, words = CHANGES[what]
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir() if path.name != ".lock"}
    with pytest.raises(UserError) as error:
        unimatch_v2.main(tiny.args(whole, *QUICK, setting))
    assert words in str(error.value)
    assert "latest.pth" in str(error.value)
    assert "--set resume=force" in str(error.value)
    assert before == {path: path.stat().st_mtime_ns for path in whole.iterdir() if path.name != ".lock"}


def test_another_list_content_is_refused_another_place_is_not(whole: Path, tmp_path: Path) -> None:
    moved = make_half(tmp_path / "moved")  # the same files elsewhere
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    unimatch_v2.main(moved.args(run, *QUICK))
    with open(moved.root / "unlabeled.txt", "a") as ids:
        ids.write("images/0.jpg None\n")
    with pytest.raises(UserError, match=r"content of list 'u': SHA-256 \w{12}, now \w{12}"):
        unimatch_v2.main(moved.args(run, *QUICK))


def test_force_goes_on_and_says_what_changed(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    unimatch_v2.main(tiny.args(tmp_path / "run", *QUICK, "lr=0.001", "epochs=3", "resume=force"))
    assert "resume=force: the run was started with lr: 0.0003, now 0.001" in (tmp_path / "run/train.log").read_text()
    assert checkpoint.load(tmp_path / "run/latest.pth")["epoch"] == 2


def test_more_epochs_and_other_workers_may_be_asked_for(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    unimatch_v2.main(tiny.args(tmp_path / "run", *QUICK, "epochs=3", "num_workers=1", "eval_every=3"))
    assert checkpoint.load(tmp_path / "run/latest.pth")["epoch"] == 2


def test_the_method_is_part_of_a_run(tiny: Tiny, whole: Path) -> None:
    with pytest.raises(UserError, match=r"method: 'unimatch_v2', now 'supervised'"):
        supervised.main(tiny.args(whole, *QUICK, unlabeled=False))


def test_an_authors_checkpoint_goes_on_with_the_next_epoch(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    state = checkpoint.load(whole / "best.pth")
    known = ("model", "model_ema", "optimizer", "previous_best", "previous_best_ema", "best_epoch", "best_epoch_ema")
    old = {key: state[key] for key in known} | {"epoch": 0}
    old["model"] = {f"module.{key}": value for key, value in old["model"].items()}
    checkpoint.save(old, tmp_path / "latest.pth")
    (tmp_path / "train.log").write_text("an older log\n")
    unimatch_v2.main(tiny.args(tmp_path, *QUICK))
    log = (tmp_path / "train.log").read_text()
    assert log.startswith("an older log\n")
    assert "Load from checkpoint at epoch 0\n" in log
    assert "Epoch: 1," in log
    assert "best.pth: not there" not in log


def test_a_best_epoch_that_is_not_on_the_disk_is_told(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    """An authors' latest.pth came here without its best.pth, and no epoch here beats it."""
    checkpoint.save(
        checkpoint.load(whole / "latest.pth") | {"epoch": 0, "previous_best": 99.0, "previous_best_ema": 99.0}, tmp_path / "latest.pth"
    )
    unimatch_v2.main(tiny.args(tmp_path, *QUICK))
    assert "best.pth: does not exist: no epoch of this start was better" in (tmp_path / "train.log").read_text().splitlines()[-1]


def test_a_full_disk_costs_a_save_and_no_more(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    """The disk is full for the saves 4 to 6 and for one log line; training continues, and ends with a good checkpoint."""
    original, calls = os.fsync, []

    def full(descriptor: int) -> None:
        if ".pth" in os.readlink(f"/proc/self/fd/{descriptor}"):
            calls.append(1)
            if 4 <= len(calls) <= 6:
                assert checkpoint.load(tmp_path / "latest.pth")["step"] <= 4, "the last good one is there"
                raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        unimatch_v2.main(tiny.args(tmp_path, *QUICK))
    log = (tmp_path / "train.log").read_text()
    assert log.count("latest.pth: cannot be saved (No space left on device); the checkpoints before it stay, and the next save") == 3
    assert crash.compare(whole, tmp_path) == []


@pytest.mark.parametrize("lasting", [False, True])
def test_the_last_epoch_is_saved_or_the_run_has_not_ended_well(lasting: bool, tiny: Tiny, tmp_path: Path) -> None:
    original = os.fsync
    failed: list[int] = []

    def full(descriptor: int) -> None:
        if ".pth" in os.readlink(f"/proc/self/fd/{descriptor}") and (tmp_path / "latest.pth").exists() and (lasting or not failed):
            failed.append(1)
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    args = tiny.args(tmp_path, "epochs=1", "save_every=60")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        if lasting:
            with pytest.raises(UserError, match=r"latest\.pth: the last epoch is not saved; make room"):
                unimatch_v2.main(args)
        else:
            unimatch_v2.main(args)
    assert checkpoint.load(tmp_path / "latest.pth")["epoch"] == (-1 if lasting else 0)
    unimatch_v2.main(args)
    assert checkpoint.load(tmp_path / "best.pth")["epoch"] == 0


@pytest.mark.parametrize(("minutes", "places"), [("60", [(-1, 0), (0, 0)]), ("0", [(-1, i) for i in range(7)] + [(0, 0)])])
def test_saves_inside_an_epoch_are_save_every_minutes_apart(
    minutes: str, places: list[tuple[int, int]], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, int]] = []
    monkeypatch.setattr(checkpoint, "save", lambda state, *_, **__: saved.append((state["epoch"], state["step"])))
    unimatch_v2.main(tiny.args(tmp_path, *QUICK, "epochs=1", f"save_every={minutes}"))
    assert saved == places


def test_a_disk_full_from_the_start_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError, match=r"No space left on device"):
            unimatch_v2.main(tiny.args(tmp_path, *QUICK))


def test_a_write_that_fails_inside_torch_is_a_clear_line(tmp_path: Path) -> None:
    class Full:
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_atomic", lambda path, write, keep, also: write(Full()))
        with pytest.raises(UserError, match=r"x\.pth: cannot be saved \(No space left on device\)"):
            checkpoint.save({"a": torch.zeros(100000)}, tmp_path / "x.pth")


def test_a_full_disk_at_the_best_epoch_says_what_best_pth_lacks(tiny: Tiny, tmp_path: Path) -> None:
    original = checkpoint.save

    def save(state: Any, path: Path, keep: Path | None = None, also: Path | None = None) -> None:
        if also is not None:
            raise UserError(f"{path}: cannot be saved (No space left on device)")
        original(state, path, keep, also)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(UserError, match="the last epoch is not saved"):
            unimatch_v2.main(tiny.args(tmp_path, *QUICK))
    assert "the next save tries again" in (tmp_path / "train.log").read_text()
    assert "best.pth does not get this epoch, the best one so far" in (tmp_path / "train.log").read_text()
    assert not (tmp_path / "best.pth").exists()


def test_best_alone_is_not_overwritten(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "best.pth", tmp_path)
    before = (tmp_path / "best.pth").read_bytes()
    with pytest.raises(UserError, match=r"best\.pth: found without latest\.pth; move it away to start again, copy it to latest\.pth"):
        unimatch_v2.main(tiny.args(tmp_path, *QUICK))
    assert (tmp_path / "best.pth").read_bytes() == before
    shutil.copy(tmp_path / "best.pth", tmp_path / "latest.pth")
    unimatch_v2.main(tiny.args(tmp_path, *QUICK))
    ended, expected = (checkpoint.load(folder / "latest.pth")["model_ema"] for folder in (tmp_path, whole))
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


def test_a_start_that_failed_before_its_first_step_binds_nobody(tiny: Tiny, tmp_path: Path) -> None:
    killed(tiny.args(tmp_path, *QUICK, "lr=0.1"), training.Learner, "update", 1)
    assert resume.is_start(checkpoint.load(tmp_path / "latest.pth"))
    unimatch_v2.main(tiny.args(tmp_path, *QUICK, "epochs=1"))
    assert checkpoint.load(tmp_path / "latest.pth")["config"]["lr"] == 3e-4


def test_a_finished_run_says_so_and_how_to_go_on(tiny: Tiny, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole, tmp_path / "run")
    unimatch_v2.main(tiny.args(tmp_path / "run", *QUICK))
    assert "run: all 2 epochs are done; --set epochs=N trains on" in capsys.readouterr().err


def test_processes_that_see_different_folders_are_told(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    """As on two nodes whose save path is a disk of their own: only the first one has a checkpoint."""
    shutil.copytree(whole, tmp_path / "0/run")
    (tmp_path / "1").mkdir()
    words = [str(word) for word in tiny.args(Path("run"), *QUICK)]
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); import unimatch_v2; os.chdir({str(tmp_path)!r} + '/' + os.environ['RANK']); "
    )
    (tmp_path / "start.py").write_text(code + f"from util.error import run; run(unimatch_v2.main, {words!r})\n")
    done = command(tmp_path / "start.py", processes=2)
    assert done.returncode != 0
    assert "error: run: the processes find different checkpoints; expected the same folder on all machines" in done.stderr


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    signals = StopSignals()
    with (
        resume.claimed(tmp_path, signals),
        pytest.raises(UserError, match="another run is writing to it"),
        resume.claimed(tmp_path, signals, patience=0.1),
    ):
        pass
    with StopSignals() as asked, resume.claimed(tmp_path, signals):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError, match="nothing is done yet") as stopped, resume.claimed(tmp_path, asked):
            pass
    assert stopped.value.code == REQUEUE
    with resume.claimed(tmp_path, signals), open(tmp_path / ".lock") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_lost_tensorboard_files_and_logs_are_no_obstacle(tiny: Tiny, tmp_path: Path) -> None:
    args = tiny.args(tmp_path, *QUICK)
    killed(args, training.Learner, "update", 8)
    for path in resume.written_files(tmp_path):
        path.unlink()
    unimatch_v2.main(args)
    assert checkpoint.load(tmp_path / "latest.pth")["epoch"] == 1


def test_files_that_came_from_elsewhere_stay(tiny: Tiny, tmp_path: Path) -> None:
    args = tiny.args(tmp_path, *QUICK)
    killed(args, training.Learner, "update", 8)
    (tmp_path / "events.out.tfevents.1.other").write_bytes(b"x" * 10)
    (tmp_path / "notes.json").write_text(json.dumps(1))
    unimatch_v2.main(args)
    assert (tmp_path / "events.out.tfevents.1.other").stat().st_size == 10
    assert (tmp_path / "notes.json").exists()
