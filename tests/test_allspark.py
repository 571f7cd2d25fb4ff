"""AllSpark: its step and its memory over shards, and runs through the real commands. Golden numbers: tests/golden."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import allspark
import evaluate
import fixmatch
import predict
from allspark import METHOD, Settings
from dataset.batch import Batch
from engine.update import Learner
from model.backbone.mit import MiT
from model.segmenter import Segmenter
from model.spec import ENCODERS
from scripts import export
from scripts.report import read_log
from scripts.report.render import markdown
from scripts.report.tables import build_tables
from tests.conftest import ROOT, Tiny, command
from tests.model.test_allspark import network, undropped
from tests.pairs import make_pairs
from tests.test_train import stopped_at
from util import checkpoint
from util.error import UserError

B, SIDE, CLASSES = 2, 40, 3
POINTERS, QUEUE = "decoder.allspark.attn.queue_ptr", "decoder.allspark.attn.kv_queue"
OHEM = {"name": "OHEM", "kwargs": {"ignore_index": 255, "thresh": 0.4, "min_kept": 200}}


def learned() -> Segmenter:
    model = network(SIDE).train()
    undropped(model)
    return model


def given_batch(it: int) -> Batch:
    g = torch.Generator().manual_seed(it)
    images = torch.randn(2, B, 3, SIDE, SIDE, generator=g, dtype=torch.float64)
    mask = torch.randint(0, CLASSES, (B, SIDE, SIDE), generator=g)
    mask[:, :4] = 255
    ignore = torch.zeros(B, SIDE, SIDE, dtype=torch.uint8)
    ignore[1, :, 30:] = 255
    return Batch(images[0], mask, images[1], ignore_u=ignore)


def config(**keys: Any) -> Settings:
    made: dict[str, Any] = {"dataset": "demo", "data_root": "", "backbone": "mit_b0", "model": "allspark", "crop_size": SIDE}
    made |= {"epochs": 4, "batch_size": B, "lr": 1e-3, "memory_epoch": 1, "batch_norm": "per_shard"}
    return Settings(**(made | keys))


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_the_step(epoch: int) -> None:
    """The student labels in eval mode all pixels, padding too; from the epoch on that is set, labelled images read the memory."""
    ours, theirs, batch = learned(), learned(), replace(given_batch(0), epoch=epoch)
    loss, stats = METHOD.step(ours, ours, batch, config())
    assert ours.training
    with torch.no_grad():
        guide = theirs.eval()(batch.img_u_w)
    logits = theirs.train()(torch.cat((batch.img_x, batch.img_u_w)), guide=guide, memory=epoch >= 1)
    log = logits.log_softmax(1)
    labeled = [-log[i, batch.mask_x[i, y, x], y, x] for i in range(B) for y in range(4, SIDE) for x in range(SIDE)]
    chosen = guide.max(1).indices
    unlabeled = -log[B:].gather(1, chosen[:, None]).mean()
    expected = (torch.stack(labeled).mean() + unlabeled) / 2
    torch.testing.assert_close(stats["loss_x"], torch.stack(labeled).mean().detach())
    torch.testing.assert_close(stats["loss_u"], unlabeled.detach())
    torch.testing.assert_close(stats["loss_all"], expected.detach())
    loss.backward()
    expected.backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-11, msg=name)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_other_criteria_hold_for_labelled_images_alone() -> None:
    batch = given_batch(0)
    plain, mined = (METHOD.step(learned(), learned(), batch, config(**keys))[1] for keys in ({}, {"criterion": OHEM}))
    assert float(mined["loss_x"]) > 1.02 * float(plain["loss_x"])
    assert torch.equal(mined["loss_u"], plain["loss_u"])


def after(learner: Learner, *batches: Batch) -> dict[str, Tensor]:
    """What the model remembers after a step."""
    learner.update(batches)
    return {name: value.clone() for name, value in learner.student.memory().items()}


def test_the_first_shards_memory_stays_and_every_shard_begins_with_the_same() -> None:
    first, second = given_batch(0), given_batch(1)
    one, other, both = (Learner(config(memory_epoch=0, batch_norm="frozen"), learned(), METHOD, 8) for _ in range(3))
    expected, elsewhere = after(one, first), after(other, second)
    found = after(both, first, second)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(elsewhere[POINTERS], expected[POINTERS])
    # the second shard read what it wrote itself, and not what the first one did
    torch.testing.assert_close(both.losses, torch.cat((one.losses, other.losses)), rtol=1e-12, atol=0)


def test_a_skipped_step_puts_the_memory_and_the_statistics_back() -> None:
    learner = Learner(config(), learned(), METHOD, 8)
    after(learner, given_batch(0))
    before = {name: value.clone() for name, value in learner.student.state_dict().items()}
    bad = replace(given_batch(1), img_x=torch.full((B, 3, SIDE, SIDE), float("nan"), dtype=torch.float64))
    learner.update([given_batch(2), bad])
    assert learner.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in learner.student.state_dict().items())
    learner.update([given_batch(2), given_batch(3)])
    assert not any(torch.equal(value, before[name]) for name, value in learner.student.memory().items())


def test_the_epoch_follows_from_the_step() -> None:
    learner = Learner(config(), learned(), METHOD, 8)
    epochs: list[int] = []

    def step(student: Any, teacher: Any, batch: Batch, cfg: Any) -> tuple[Tensor, dict[str, Tensor]]:
        epochs.append(batch.epoch)
        return METHOD.step(student, teacher, batch, cfg)

    learner.method = replace(METHOD, step=step)
    for it in range(5):
        learner.update([given_batch(it)])
    assert epochs == [0, 0, 1, 1, 2]


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Runs with an encoder of one block in each stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "mit_b0", replace(ENCODERS["mit_b0"], build=partial(MiT, (8, 16, 20, 32), (1, 1, 1, 1))))
        yield


SETTINGS = ("backbone=mit_b0", "model=allspark", "crop_size=48", "memory_epoch=1", "lr=0.005")


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "exp/demo/allspark/mit_b0/92"
    allspark.main(tiny.args(folder, *SETTINGS))
    return folder


def test_the_log_names_every_loss(trained: Path) -> None:
    log = (trained / "train.log").read_text()
    number = r"\d\.\d{3}"
    assert re.search(rf"Iters: 0, Total loss: {number}, Loss x: {number}, Loss u: {number}\n", log)
    assert re.search(r"Epoch: 1, LR: 0\.00\d+, Previous best: ", log)
    assert "EMA" not in log
    assert "'conf_thresh': 0.0" in log, "there is no threshold, whatever the config says"
    board = EventAccumulator(str(trained)).Reload()
    assert len(board.Scalars("train/loss_u")) == 12
    shares = sum(board.Scalars(tag)[0].value for tag in board.Tags()["scalars"] if tag.startswith("pseudo_labels/"))
    assert shares == pytest.approx(100, abs=1e-3), "of the pixels that are not padding"
    state = checkpoint.load(trained / "best.pth")
    assert "model_ema" not in state
    assert state["model"][POINTERS].sum() > 0
    assert len(state["optimizer"]["param_groups"][1]["params"]) == 29


def test_the_report_reads_its_log(trained: Path) -> None:
    run = read_log(trained / "train.log")[0]
    assert (run.method, run.backbone, run.epochs_done, run.statistic, run.unread_lines) == ("allspark", "mit_b0", 2, "miou", 0)
    assert "| AllSpark |" in re.sub(" +", " ", markdown(build_tables([run]), [run], [])), "a row of the published method"


PROCESSES = """
import sys, torch
from engine.update import Learner
from tests.test_allspark import METHOD, config, given_batch, learned
from util.dist import processes
with processes("cpu") as world:
    out = {}
    for mode in ("frozen", "sync")[: world.size]:  # statistics of all shards need a process for each
        learner = Learner(config(epochs=3, shards=2, batch_norm=mode, lr=0.01), learned(), METHOD, 3, world)
        for it in range(3):
            learner.update([given_batch(2 * it + shard) for shard in world.own_shards(2)])
        states = world.gather([learner.student.state_dict()])
        assert all(torch.equal(value, states[-1][name]) for name, value in states[0].items()), mode
        out[mode] = states[0]
    if world.main:
        torch.save(out, sys.argv[1])
"""


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Three steps of two shards, two of them with the memory, which is the first shard's for all."""
    (tmp_path / "steps.py").write_text(PROCESSES)
    states = []
    for count in (1, 2):
        path = tmp_path / f"{count}.pth"
        done = command(tmp_path / "steps.py", path, processes=count, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr[-2000:]
        states.append(torch.load(path))
    for name, value in states[0]["frozen"].items():
        torch.testing.assert_close(states[1]["frozen"][name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert int(states[1]["sync"]["decoder.decoder.linear_fuse.bn.num_batches_tracked"]) == 3


def test_statistics_of_all_shards_need_a_process_for_each() -> None:
    with pytest.raises(UserError, match="batch_norm: the statistics of 2 shards need 2 processes, found 1"):
        Learner(config(shards=2, batch_norm="sync"), learned(), METHOD, 8)


def test_a_run_resumed_inside_an_epoch_has_the_same_bits(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The memory too; with recomputed blocks until the stop."""
    args = tiny.args(tmp_path, *SETTINGS)
    stopped_at(8, allspark.main, [*args, "--set", "activation_checkpointing=true"])
    state = checkpoint.load(tmp_path / "latest.pth")
    assert (state["epoch"], state["step"]) == (0, 3), "of 6"
    allspark.main(args)
    whole, resumed = (checkpoint.load(folder / "latest.pth") for folder in (trained, tmp_path))
    assert all(torch.equal(resumed["model"][name], value) for name, value in whole["model"].items())
    for i, moments in whole["optimizer"]["state"].items():
        assert torch.equal(resumed["optimizer"]["state"][i]["momentum_buffer"], moments["momentum_buffer"])


def options(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_its_checkpoint_evaluates_predicts_and_is_exported(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    """In windows too; an image's prediction is the same whatever is predicted with it."""
    common = ["--config", str(tiny.config), "--checkpoint", str(trained / "best.pth"), *options(*SETTINGS[:3])]
    best = max(float(score) for score in re.findall(r"MeanIoU: (\d+\.\d+)", (trained / "train.log").read_text()))
    evaluate.main([*common, "--json", str(tmp_path / "s.json")])
    assert json.loads((tmp_path / "s.json").read_text())["miou"] == pytest.approx(best, abs=0.006)
    evaluate.main([*common, "--mode", "sliding_window", "--tile", "40", "--json", str(tmp_path / "w.json")])
    for size in ("1", "4"):
        predict.main([*common, "--batch-size", size, "--probabilities", "--out", str(tmp_path / size), str(tiny.root / "images")])
    names = [path.name for path in (tmp_path / "1").glob("*.npz")]
    assert len(names) == 22
    for name in names:
        assert np.array_equal(*(np.load(tmp_path / size / name)["probabilities"] for size in ("1", "4")))
    assert Image.open(tmp_path / "4/18.png").size == Image.open(tiny.root / "images/18.jpg").size
    export.main(["--checkpoint", str(trained / "best.pth"), "--format", "torch", "--out", str(tmp_path / "m.pt")])
    about = json.loads(torch.load(tmp_path / "m.pt")["meta"])
    assert (about["model"], about["multiple"], about["border"]) == ("allspark", 1, "cut")


def test_an_onnx_file_takes_one_image(trained: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export.main(["--checkpoint", str(trained / "best.pth"), "--format", "onnx", "--out", str(tmp_path / "m.onnx")])
    sides = onnx.load(str(tmp_path / "m.onnx")).graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_value or side.dim_param for side in sides] == [1, 3, "height", "width"]


def test_a_checkpoint_of_the_authors(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    """`module.` before the names, a memory for another crop: the same scores. A run resumes from it, with the crop that it is for."""
    own = checkpoint.load(trained / "latest.pth")
    theirs = {"model": {f"module.{name}": value for name, value in own["model"].items()}, "optimizer": own["optimizer"], "epoch": 1}
    theirs |= {"best_epoch": 1, "previous_best": 0.5}
    (tmp_path / "run").mkdir()
    torch.save(theirs, tmp_path / "run/latest.pth")
    found = []
    for path, crop in ((trained / "latest.pth", 48), (tmp_path / "run/latest.pth", 48), (tmp_path / "run/latest.pth", 80)):
        settings = options(*SETTINGS[:2], f"crop_size={crop}", "eval_mode=original")
        evaluate.main(["--config", str(tiny.config), "--checkpoint", str(path), *settings, "--json", str(tmp_path / "s.json")])
        found.append(json.loads((tmp_path / "s.json").read_text())["miou"])
    assert found[0] == found[1] == found[2] > 0
    with pytest.raises(UserError, match="crop_size: found crops with 9 positions in the last map, expected 4"):
        allspark.main(tiny.args(tmp_path / "run", *SETTINGS, "crop_size=80", "epochs=3"))
    torch.save(theirs, tmp_path / "run/latest.pth")
    allspark.main(tiny.args(tmp_path / "run", *SETTINGS, "epochs=3"))
    log = (tmp_path / "run/train.log").read_text()
    assert "Load from checkpoint at epoch 1" in log
    assert "Epoch: 2" in log


def test_another_data_set_starts_from_its_weights_without_its_memory(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    values = ["dataset=mine", "classes=[a,b,c,d,e,f,g]", "nclass=7", f"init={trained / 'best.pth'}", f"val_id_path={tiny.root}/val.txt"]
    stopped_at(0, allspark.main, tiny.args(tmp_path, *SETTINGS, *values, "crop_size=70"))
    memory = checkpoint.load(tmp_path / "latest.pth")["model"]
    assert memory[QUEUE].shape == (7, 32, 9)
    assert int(memory[POINTERS].sum()) == 2 * 32, "of one step"


def test_change_detection(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs")
    allspark.main(pairs.args(tmp_path / "run", *SETTINGS, "epochs=1"))
    assert "Loss u: " in (tmp_path / "run/train.log").read_text()


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("model=null", "backbone=mit_b0"), "model: found dpt, expected allspark, whose decoder the method is about"),
    (("crop_size=64",), r"crop_size: found 64, expected no multiple of 32: .* set crop_size=65"),
    (("teacher=ema",), "teacher: found ema, but allspark has no average in the program unimatch_v2; remove it"),
    (("backbone=dinov2_tiny", "crop_size=70"), "model: found allspark with backbone dinov2_tiny, expected one of mit_b0"),
    (("memory_epochs=3",), "memory_epochs: no such config key of this method; the nearest is 'memory_epoch'"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=[words[:30] for _, words in REFUSED])
def test_user_errors(settings: tuple[str, ...], words: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as error:
        allspark.main(tiny.args(tmp_path / "run", *SETTINGS, *settings))
    assert len(str(error.value).splitlines()) == 1


def test_other_methods_do_not_train_its_model(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model: found allspark, which method allspark alone trains"):
        fixmatch.main(tiny.args(tmp_path, *SETTINGS[:3]))
