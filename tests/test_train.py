"""The methods end to end: real files, real processes, real logs and TensorBoard files."""

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fixmatch
import supervised
import unimatch_v1
import unimatch_v2
from dataset.batch import Batch
from engine import mini_batches
from engine import trainer as training
from engine.update import Learner
from tests.conftest import Tiny, command
from util import checkpoint
from util.error import StoppedError, UserError

METHODS = {"supervised": supervised, "fixmatch": fixmatch, "unimatch_v1": unimatch_v1, "unimatch_v2": unimatch_v2}
# supervised training repeats the labelled list, here to 24 images: 12 steps of twice 1
SHORT: dict[str, tuple[str, ...]] = dict.fromkeys(METHODS, ()) | {"supervised": ("batch_size=1", "supervised_length=24")}


def figures(log: Path) -> list[str]:
    """The lines of a log with figures, without time stamps."""
    kept = ("Iters", "Class", "MeanIoU", "Epoch:")
    return [line.split("] ", 1)[1] for line in log.read_text().splitlines() if any(word in line for word in kept)]


@pytest.mark.parametrize("name", METHODS)
def test_method_trains_evaluates_and_leaves_what_people_need(name: str, tiny: Tiny, tmp_path: Path) -> None:
    METHODS[name].main(tiny.args(tmp_path, *SHORT[name], unlabeled=name != "supervised"))
    log = (tmp_path / "train.log").read_text()
    assert re.search(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\]\[    INFO\] \{'backbone': 'dinov2_tiny',$", log, re.M)
    semi = name != "supervised"
    pattern = r"MeanIoU: \d+\.\d\d, EMA: \d+\.\d\d$" if semi else r"MeanIoU: \d+\.\d\d$"
    epochs = 2
    assert len(re.findall(r"\*\*\*\*\* Evaluation original \*\*\*\*\* >>>> " + pattern, log, re.M)) == epochs
    assert len(re.findall(r"Class \[5 cross\] IoU: \d", log)) == epochs
    latest, best = (checkpoint.load(tmp_path / f"{which}.pth") for which in ("latest", "best"))
    assert {"model", "optimizer", "epoch"} <= latest.keys()
    assert ("model_ema" in latest) == semi
    assert latest["epoch"] == epochs - 1
    assert best["epoch"] == best["best_epoch_ema" if semi else "best_epoch"]
    board = EventAccumulator(str(tmp_path)).Reload()
    steps = 6 if semi else 12
    assert [e.step for e in board.Scalars("train/loss_all")] == list(range(epochs * steps))
    assert [e.step for e in board.Scalars("eval/mIoU")] == list(range(epochs))
    tags = set(board.Tags()["scalars"])
    assert ({"train/loss_s", "train/mask_ratio", "eval/mIoU_ema", "eval/disc_IoU_ema"} <= tags) == semi


def test_learning_lowers_the_loss_and_raises_the_score(tiny: Tiny, tmp_path: Path) -> None:
    unimatch_v2.main(tiny.args(tmp_path, "epochs=20", "eval_every=4", "lr=1e-3", "conf_thresh=0.95"))
    lines = figures(tmp_path / "train.log")
    losses = [float(m[1]) for line in lines if (m := re.search(r"Loss x: (\d+\.\d+)", line))]
    scores = [float(m[1]) for line in lines if (m := re.search(r"MeanIoU: (\d+\.\d+)", line))]
    assert losses[-1] < 0.6 * losses[0]
    assert len(scores) == 5, "eval_every=4 of 20 epochs"
    assert scores[-1] > scores[0] + 10, "one class everywhere would score about 3"


def test_teacher_lags_behind_the_student_and_neither_is_the_start(tiny: Tiny, tmp_path: Path) -> None:
    fixmatch.main(tiny.args(tmp_path, "epochs=1"))
    state = checkpoint.load(tmp_path / "latest.pth")
    name = "head.scratch.output_conv.2.weight"
    assert not torch.equal(state["model"][name], state["model_ema"][name])


@pytest.mark.parametrize("name", METHODS)
def test_a_run_stopped_between_epochs_ends_like_an_uninterrupted_one(name: str, tiny: Tiny, tmp_path: Path) -> None:
    module, semi = METHODS[name], name != "supervised"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    module.main(tiny.args(whole, *SHORT[name], unlabeled=semi))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.trainer.Trainer._evaluate", stop_after(1))
        with pytest.raises(KeyboardInterrupt):
            module.main(tiny.args(parts, *SHORT[name], unlabeled=semi))
    module.main(tiny.args(parts, *SHORT[name], unlabeled=semi))
    a, b = (checkpoint.load(folder / "latest.pth") for folder in (whole, parts))
    for key in ("model", "model_ema") if semi else ("model",):
        assert all(torch.equal(a[key][k], b[key][k]) for k in a[key])
    assert figures(whole / "train.log")[-7:] == figures(parts / "train.log")[-7:]
    assert "Load from checkpoint at epoch 0" in (parts / "train.log").read_text()


def stop_after(evaluations: int):
    """An evaluation that works `evaluations` times and is then interrupted."""
    from engine.trainer import Trainer

    original = Trainer._evaluate
    done: list[int] = []

    def evaluate(self: Trainer, epoch: int) -> Any:
        if len(done) == evaluations:
            raise KeyboardInterrupt
        done.append(epoch)
        return original(self, epoch)

    return evaluate


def stopped_at(step: int, main: Callable[[list[str]], None], args: list[str]) -> None:
    """Starts a run that is asked to stop in its step `step`, counted over all epochs, and saves."""
    original = Learner.update

    def update(self: Learner, batches: Any, stop: bool = False, meanwhile: Any = None) -> dict[str, torch.Tensor]:
        return original(self, batches, stop or self.it == step, meanwhile)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", update)
        with pytest.raises(StoppedError, match="saved in"):
            main(args)


def test_a_finished_run_started_again_ends_at_once_and_stays_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    unimatch_v2.main(tiny.args(tmp_path, "epochs=1"))
    before = checkpoint.load(tmp_path / "latest.pth")
    unimatch_v2.main(tiny.args(tmp_path, "epochs=1"))
    after = checkpoint.load(tmp_path / "latest.pth")
    assert all(torch.equal(before["model"][k], after["model"][k]) for k in before["model"])


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_do_what_one_does(name: str, tiny: Tiny, tmp_path: Path) -> None:
    args = [name + ".py", *tiny.args("", "shards=2", "epochs=1", "num_workers=1", *SHORT[name], unlabeled=name != "supervised")]
    logs = {}
    for processes in (1, 2):
        args[args.index("--save-path") + 1] = str(tmp_path / str(processes))
        done = command(*args, processes=processes)
        assert done.returncode == 0, done.stderr
        logs[processes] = figures(tmp_path / str(processes) / "train.log")
    assert logs[1][:3] == logs[2][:3], "first steps: equal in all printed digits"
    assert len(logs[1]) == len(logs[2])
    assert "it/s" not in (tmp_path / "2" / "train.log").read_text(), "no progress bar in the log"


def test_workers_and_who_makes_the_views_change_nothing(tiny: Tiny, tmp_path: Path) -> None:
    ways = [(0, "worker", 1), (2, "worker", 1), (2, "device", 1), (0, "device", 2), (1, "auto", 2)]
    runs: dict[int, list[dict[str, torch.Tensor]]] = {1: [], 2: []}
    for i, (workers, views, shards) in enumerate(ways):
        unimatch_v2.main(tiny.args(tmp_path / str(i), "epochs=1", f"num_workers={workers}", f"views={views}", f"shards={shards}"))
        runs[shards].append(checkpoint.load(tmp_path / str(i) / "latest.pth")["model"])
    for first, *others in runs.values():
        assert others
        assert all(torch.equal(first[k], other[k]) for other in others for k in first)


def test_the_next_mini_batch_is_made_before_the_host_waits(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is never left without work while mini-batches are made. It holds those of two steps, no more."""
    order: list[str] = []
    held: list[int] = []

    def noted(target: object, name: str) -> None:
        original = getattr(target, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            order.append(name)
            held.append(sum(type(thing) is Batch for thing in gc.get_objects()))
            return original(*args, **kwargs)

        monkeypatch.setattr(target, name, call)

    noted(mini_batches, "make_batch")
    noted(training.Learner, "_agree")
    fixmatch.main(tiny.args(tmp_path, "epochs=1"))
    assert order == ["make_batch"] + ["make_batch", "_agree"] * 5 + ["_agree"], "6 steps"
    assert max(held) == 2


def test_one_list_for_two_purposes_is_told(tiny: Tiny, tmp_path: Path) -> None:
    own = f"{tiny.root}/val.txt"
    unimatch_v2.main([*tiny.args(tmp_path, "epochs=1"), "--labeled-id-path", own, "--unlabeled-id-path", own])
    log = (tmp_path / "train.log").read_text()
    assert ("device: found no GPU, training on the CPU with 1 process\n" in log) == (not torch.cuda.is_available())
    assert "the labelled and the unlabelled list are the same: there is nothing more to learn from than the labels" in log
    for kind in ("labelled", "unlabelled"):
        assert f"validation images that are on the {kind} list too: 4 of 4; the score is of images that it was trained with" in log


def test_labelled_images_in_the_lists_that_score_are_told(tiny: Tiny, tmp_path: Path) -> None:
    labeled, val, test = (tmp_path / name for name in ("labeled.txt", "val.txt", "test.txt"))
    lines = [f"images/{i}.jpg masks/{i}.png\n" for i in range(22)]
    labeled.write_text("".join(lines[:6]))
    val.write_text("".join(lines[5:8]))
    test.write_text("".join([*lines[18:], *lines[:2]]))
    arguments = tiny.args(tmp_path / "run", "epochs=1", f"val_id_path={val}", f"test_id_path={test}")
    fixmatch.main([*arguments, "--labeled-id-path", str(labeled)])
    log = (tmp_path / "run/train.log").read_text()
    assert "validation images that are on the labelled list too: 1 of 3;" in log
    assert "validation images that are on the unlabelled list too: 2 of 3;" in log
    assert "test images that are on the labelled list too: 2 of 6;" in log
    assert "test images that are on the unlabelled list" not in log


def test_fewer_than_eight_steps_an_epoch_log_every_step(tiny: Tiny, tmp_path: Path) -> None:
    fixmatch.main(tiny.args(tmp_path, "epochs=1"))
    assert [line.split(",")[0] for line in figures(tmp_path / "train.log") if "Iters" in line] == [f"Iters: {i}" for i in range(6)]


def test_init_starts_from_another_run_and_counts_from_zero(tiny: Tiny, tmp_path: Path) -> None:
    supervised.main(tiny.args(tmp_path / "a", "epochs=1", *SHORT["supervised"], unlabeled=False))
    fixmatch.main(tiny.args(tmp_path / "b", "epochs=1", "lr=1e-12", f"init={tmp_path}/a/best.pth"))
    a, b = checkpoint.load(tmp_path / "a/best.pth"), checkpoint.load(tmp_path / "b/latest.pth")
    name = "head.scratch.output_conv.2.weight"
    torch.testing.assert_close(a["model"][name], b["model"][name], atol=1e-6, rtol=0)  # six steps of at most 3e-12
    assert b["epoch"] == 0


def test_init_takes_over_all_but_the_layer_of_other_classes(tiny: Tiny, tmp_path: Path) -> None:
    supervised.main(tiny.args(tmp_path / "a", "epochs=1", *SHORT["supervised"], unlabeled=False))
    state = checkpoint.load(tmp_path / "a/best.pth")["model"]
    for name in ("head.scratch.output_conv.2.weight", "head.scratch.output_conv.2.bias"):
        state[name] = torch.cat((state[name], state[name]))  # twelve classes
    checkpoint.save(state, tmp_path / "other.pth")
    fixmatch.main(tiny.args(tmp_path / "b", "epochs=1", "lr=1e-12", f"init={tmp_path}/other.pth"))
    assert "other.pth has another number of classes; the last layer" in (tmp_path / "b/train.log").read_text()
    found = checkpoint.load(tmp_path / "b/latest.pth")["model"]
    for name, value in state.items():
        if "output_conv.2" not in name:
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)  # six steps of at most 3e-12


def test_a_locked_encoder_keeps_its_weights(tiny: Tiny, tmp_path: Path) -> None:
    unimatch_v2.main(tiny.args(tmp_path, "epochs=1", "lock_backbone=true", "seed=3"))
    torch.manual_seed(3)
    from model import build_model

    start, end = build_model("dinov2_tiny", 6).state_dict(), checkpoint.load(tmp_path / "latest.pth")["model"]
    changed = {k for k in start if not torch.equal(start[k], end[k])}
    assert changed
    assert all(k.startswith("head.") for k in changed)


def test_more_processes_than_shards_warns_and_trains(tiny: Tiny, tmp_path: Path) -> None:
    done = command("fixmatch.py", *tiny.args(tmp_path, "shards=1", "epochs=1"), processes=2)
    assert done.returncode == 0, done.stderr
    assert "2 processes for a recipe of 1 shards" in (tmp_path / "train.log").read_text()


def test_shards_that_do_not_divide_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    import logging

    from dataset.loader import shard_count
    from util.config import load_config
    from util.dist import World

    cfg = load_config(str(tiny.config), ["shards=4"])
    assert [shard_count(cfg, World(size=w), logging.Logger("x")) for w in (1, 2, 4, 8)] == [4, 4, 4, 8]
    with pytest.raises(UserError, match="start 1, 2, 4"):
        shard_count(cfg, World(size=3), logging.Logger("x"))


WITHOUT_UNIX = """
import os, signal, sys
for name in ("fcntl", "resource"):
    sys.modules[name] = None  # importing it fails
del os.sched_getaffinity, signal.SIGUSR1
import unimatch_v2
for epochs in (1, 2):
    unimatch_v2.main([*sys.argv[1:], "--set", f"epochs={epochs}"])
"""


def test_a_system_without_what_only_unix_has_trains(tiny: Tiny, tmp_path: Path) -> None:
    done = command("-c", WITHOUT_UNIX, *tiny.args(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Load from checkpoint at epoch 0" in (tmp_path / "train.log").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "epoch 2 of 2" in page
    assert "peak memory" not in page, "nobody knows it there"
