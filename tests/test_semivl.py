"""SemiVL: its step against tests/semivl_literal.py, and a run through the real commands. Golden numbers: tests/golden."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import fixmatch
import predict
import semivl
from dataset.batch import Batch
from engine.update import Learner
from model.guide import Guide
from model.semseg.vlm import VLM, make_clip
from scripts import export, text
from scripts.report import read_log
from scripts.report.render import markdown
from scripts.report.tables import build_tables, encoder_name
from semivl import METHOD, Settings, Teacher
from tests import semivl_literal as literal
from tests.conftest import Tiny, command
from tests.model.test_vlm import lively, network
from tests.pairs import make_pairs
from tests.test_train import stopped_at
from util import checkpoint
from util.error import UserError

B, SIDE, CLASSES = 2, 64, 3


def learned(**options: bool) -> VLM:
    """A network whose confidences spread around the threshold."""
    model = network(SIDE, CLASSES, **options)
    with torch.no_grad():
        model.decode_head.head.weight.mul_(200)
    model.train()
    return model


def guide() -> Guide:
    encoder = make_clip("clip_tiny", skips=(), grid=4)
    lively(encoder)
    rows = torch.randn(4, 512, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Guide(encoder, rows, [0, 1, 1, 2])


def given_batch(it: int, channels: tuple[int, ...]) -> Batch:
    g = torch.Generator().manual_seed(it)
    images = torch.randn(7, B, 3, SIDE, SIDE, generator=g, dtype=torch.float64)
    mask = torch.randint(0, CLASSES, (B, SIDE, SIDE), generator=g)
    mask[:, :4] = 255
    ignore, ignore_o = torch.zeros(2, B, SIDE, SIDE, dtype=torch.uint8)
    ignore[1, :, 50:], ignore_o[0, 40:] = 255, 255
    box1, box2 = torch.zeros(2, B, SIDE, SIDE, dtype=torch.bool)
    box1[0, 3:40, 5:50], box1[1, 20:64, 0:30], box2[1, 0:32, 18:64] = True, True, True
    drop = 2.0 * torch.randint(0, 2, (2 * B, sum(channels)), generator=g).double()
    second = Batch(torch.empty(0), torch.empty(0), images[4], images[5], images[6], ignore_o)
    return Batch(images[0], mask, images[1], images[2], images[3], ignore, box1, box2, drop, second=second)


def config(**keys: Any) -> Settings:
    made: dict[str, Any] = {"dataset": "demo", "data_root": "", "backbone": "clip_tiny", "crop_size": SIDE, "epochs": 1, "batch_size": B}
    return Settings(**(made | {"lr": 1e-4, "conf_thresh": 0.6, "guidance_thresh": 0.5} | keys))


@pytest.mark.parametrize(("mode", "options"), [("pixelwise", {}), ("pixelavg", {"conv_encoder": True})], ids=["pixelwise", "pixelavg"])
def test_steps_are_those_of_the_second_writing(mode: str, options: dict[str, bool]) -> None:
    """Losses and gradients of two steps; with batch statistics, too."""
    ours, theirs, frozen = learned(**options), learned(**options), guide()
    cfg = config(conf_mode=mode, guidance_weight=0.3)
    for it, progress in enumerate((0.0, 0.75)):
        batch = replace(given_batch(it, ours.channels), progress=progress)
        loss, stats = METHOD.step(ours, Teacher(ours, frozen), batch, cfg)
        expected = literal.losses(theirs, frozen, batch, mode, 0.6, (0.3, 0.5), progress)
        assert ours.training
        assert 0.05 < float(stats["mask_ratio"]) < 0.95
        assert set(stats) == set(expected) >= set(METHOD.labels)
        for name, value in expected.items():
            assert float(value.detach()) > 0, name
            torch.testing.assert_close(stats[name].double(), value.detach().double(), rtol=1e-6, atol=0, msg=name)
        loss.backward()
        expected["loss_all"].backward()
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None) == (not p.requires_grad)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-11, msg=name)
        for (name, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12, msg=name)


def test_without_a_valid_pixel_the_loss_is_0() -> None:
    pred, label = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    conf, ignore = torch.ones(2, 4, 4), torch.full((2, 4, 4), 255)
    assert float(semivl.confidence_weighted_loss(pred, label, conf, ignore)) == 0
    assert float(semivl.guidance_loss(pred, ignore)) == 0


def test_the_guidance_falls_to_nothing_over_the_run() -> None:
    """The loop says how much of the run is done; the guide itself never learns."""
    model, frozen = learned(), guide()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    method = replace(METHOD, guided=lambda student, cfg, hollow: Teacher(student, frozen))
    learner = Learner(config(), model, method, total_steps=4)
    for it in range(3):
        stats = {name: float(value) for name, value in learner.update([given_batch(it, model.channels)]).items()}
        own = (stats["loss_x"] + (stats["loss_s1"] + stats["loss_s2"]) / 4 + stats["loss_fp"] / 2) / 2
        guided = (stats["loss_mc_s1"] + stats["loss_mc_s2"]) / 4 + stats["loss_mc_fp"] / 2
        assert stats["loss_all"] == pytest.approx(own + 0.1 * (1 - it / 4) * guided, rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert set(learner.state()) >= {"model", "optimizer"}
    assert not any("encoder." in name for name in learner.state()["model"]), "the guide is in no checkpoint"


def test_channels_are_dropped_for_labelled_and_unlabelled_images_alike() -> None:
    assert METHOD.draw is not None
    factors = METHOD.draw(32, (192, 192, 512), torch.Generator().manual_seed(0), config())
    assert factors.shape == (64, 896)
    assert set(factors.unique().tolist()) == {0, 2}
    assert float(factors.mean()) == pytest.approx(1, abs=0.02)


SETTINGS = ("backbone=clip_tiny", "crop_size=64", "guidance_thresh=0.2", "conf_thresh=0.15")


@pytest.fixture(scope="module")
def texts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "demo.pth"
    text.main(["--config", str(tiny.config), "--random", "--out", str(path)])
    return str(path)


@pytest.fixture(scope="module")
def trained(tiny: Tiny, texts: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "exp/demo/semivl/clip_tiny/92"
    semivl.main(tiny.args(folder, *SETTINGS, f"text={texts}"))
    return folder


def test_the_log_names_every_loss(trained: Path) -> None:
    log = (trained / "train.log").read_text()
    number = r"\d\.\d{3}"
    losses = "".join(rf", Loss {name}: {number}" for name in ("x", "s1", "s2", "fp", "mc_s1", "mc_s2", "mc_fp"))
    assert re.search(rf"Iters: 0, Total loss: {number}{losses}, Mask ratio: {number}\n", log)
    assert "EMA" not in log
    board = EventAccumulator(str(trained)).Reload()
    assert len(board.Scalars("train/loss_mc_fp")) == 12
    assert board.Scalars("train/loss_mc_s1")[0].value > 0
    assert board.Scalars("train/loss_s1")[0].value > 0
    state = checkpoint.load(trained / "best.pth")
    assert "model_ema" not in state
    assert "text" in state["model"]


def test_the_report_reads_its_log(trained: Path) -> None:
    run = read_log(trained / "train.log")[0]
    assert (run.method, run.backbone, run.epochs_done, run.statistic, run.unread_lines) == ("semivl", "clip_tiny", 2, "miou", 0)
    assert "SemiVL" in markdown(build_tables([run]), [run], [])
    assert encoder_name("clip_base") == "CLIP-Base", "as the published tables call it"


def test_two_processes_compute_what_one_does(tiny: Tiny, texts: str, tmp_path: Path) -> None:
    """Two shards, each with its second draw and its guide; the processes' gradients need no search for unused parameters."""
    settings = (*SETTINGS, f"text={texts}", "epochs=1", "shards=2", "device=cpu")
    logs = []
    for count in (1, 2):
        done = command("semivl.py", *tiny.args(tmp_path / str(count), *settings), processes=count)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [line.split("] ")[1] for line in (tmp_path / f"{count}/train.log").read_text().splitlines() if "Iters" in line]
        logs.append([float(number) for number in re.findall(r"\d+\.\d+", "".join(lines))])
    assert len(logs[0]) == 3 * 9
    assert logs[1] == pytest.approx(logs[0], abs=2e-3)


def test_a_resumed_run_has_the_same_bits(trained: Path, tiny: Tiny, texts: str, tmp_path: Path) -> None:
    """From inside an epoch, with recomputed blocks; the frozen guide is made again."""
    args = tiny.args(tmp_path, *SETTINGS, f"text={texts}")
    stopped_at(8, semivl.main, [*args, "--set", "activation_checkpointing=true"])
    state = checkpoint.load(tmp_path / "latest.pth")
    assert (state["epoch"], state["step"]) == (0, 3), "of 6"
    semivl.main(args)
    whole, resumed = (checkpoint.load(folder / "latest.pth")["model"] for folder in (trained, tmp_path))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_its_checkpoint_needs_no_other_file(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The embeddings of the classes' names are in it. The images are predicted at another size, with averaged logits."""
    settings = [word for setting in (*SETTINGS[:2], "img_scale=[256,64]", "eval_mode=slide") for word in ("--set", setting)]
    common = ["--config", str(tiny.config), "--checkpoint", str(trained / "best.pth"), *settings]
    evaluate.main([*common, "--json", str(tmp_path / "s.json"), "--worst", "1", "--out", str(tmp_path / "worst")])
    scores = json.loads((tmp_path / "s.json").read_text())
    assert (scores["images"], scores["mode"], scores["window"]) == (4, "slide", 64)
    image = tiny.root / "images/18.jpg"
    predict.main([*common, "--probabilities", "--out", str(tmp_path / "out"), str(image)])
    assert Image.open(tmp_path / "out/18.png").size == Image.open(image).size
    probabilities = np.load(tmp_path / "out/18.npz")["probabilities"]
    assert np.allclose(probabilities.astype(float).sum(0), 1, atol=1e-2)
    export.main(["--checkpoint", str(trained / "best.pth"), "--format", "torch", "--out", str(tmp_path / "m.pt")])
    assert "text" in torch.load(tmp_path / "m.pt")["model"]
    with pytest.raises(UserError, match="model vlm has no ONNX form; give --format torch or safetensors"):
        export.main(["--checkpoint", str(trained / "best.pth"), "--format", "onnx", "--out", str(tmp_path / "m.onnx")])


def test_a_checkpoint_of_the_authors(trained: Path, tiny: Tiny, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with `module.`, the frozen copy inside, the text elsewhere: the same scores, or one line that says how to make the text."""
    own = checkpoint.load(trained / "best.pth")["model"]
    theirs = {f"module.{name}": value for name, value in own.items() if name != "text"}
    theirs |= {f"module.clip_encoder.{name}": value for name, value in make_clip("clip_tiny").state_dict().items()}
    torch.save({"model": theirs, "epoch": 3}, tmp_path / "theirs.pth")
    settings = [word for setting in SETTINGS[:2] for word in ("--set", setting)]
    found = []
    for path, more in ((trained / "best.pth", []), (tmp_path / "theirs.pth", ["--set", f"text={texts}"])):
        evaluate.main(["--config", str(tiny.config), "--checkpoint", str(path), *settings, *more, "--json", str(tmp_path / "s.json")])
        found.append(json.loads((tmp_path / "s.json").read_text())["miou"])
    assert found[0] == found[1] > 0
    monkeypatch.chdir(tmp_path)  # the demo's text may have been made in the repository
    with pytest.raises(
        UserError, match=r"pretrained/text_demo.pth: no such file of text embeddings.*python -m model.text --config .*tiny.yaml"
    ):
        evaluate.main(["--config", str(tiny.config), "--checkpoint", str(tmp_path / "theirs.pth"), *settings])


def test_another_data_set_starts_from_its_weights_with_its_own_words(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The decoder does not depend on the number of classes."""
    values = ["dataset=mine", "classes=[a,b,c,d,e,f,g]", f"text={tmp_path / 't.pth'}", f"init={trained / 'best.pth'}"]
    settings = [word for setting in values for word in ("--set", setting)]
    text.main(["--config", str(tiny.config), "--random", *settings, "--set", "nclass=7"])
    semivl.main(tiny.args(tmp_path / "run", *SETTINGS, *values, "nclass=7", "epochs=1", f"val_id_path={tiny.root}/val.txt"))
    state = checkpoint.load(tmp_path / "run/latest.pth")["model"]
    torch.testing.assert_close(state["text"], torch.nn.functional.normalize(text.random_rows(list("abcdefg")), dim=1))
    start = checkpoint.load(trained / "best.pth")["model"]
    name = "backbone.layers.0.ffn.layers.1.weight"
    assert torch.equal(state[name], start[name]), "frozen, so as it was there"


REFUSED: list[tuple[tuple[str, ...], str]] = [
    ((), r"pretrained/text_demo.pth: no such file of text embeddings, which model vlm needs; make it with python -m model.text --config"),
    (("backbone=dinov2_tiny", "crop_size=28"), "model: found dpt, expected vlm, for semivl labels by the classes' names"),
    (("guidance_text=none.pth", "text={texts}"), "none.pth: no such file of text embeddings"),
    (("conf_mode=pixel",), "conf_mode: found 'pixel', expected one of pixelwise, pixelavg"),
    (("img_scale=[512]",), r"img_scale: found \[512\], expected two sides in pixels"),
    (("teacher=ema", "text={texts}"), "teacher: found ema, but semivl has no average"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=[words[:30] for _, words in REFUSED])
def test_user_errors(
    settings: tuple[str, ...], words: str, tiny: Tiny, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = [setting.format(texts=texts) for setting in settings]
    with pytest.raises(UserError, match=words) as error:
        semivl.main(tiny.args(tmp_path / "run", *SETTINGS, *chosen))
    assert len(str(error.value).splitlines()) == 1


def test_change_detection_is_refused(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs")
    text.main(["--config", str(pairs.config), "--random", "--out", str(tmp_path / "t.pth")])
    with pytest.raises(UserError, match="dataset: found demo_change, of change detection, expected single images"):
        semivl.main(pairs.args(tmp_path / "run", *SETTINGS, f"text={tmp_path / 't.pth'}"))


def test_other_methods_train_its_model(tiny: Tiny, texts: str, tmp_path: Path) -> None:
    fixmatch.main(tiny.args(tmp_path, *SETTINGS[:2], f"text={texts}", "epochs=1"))
    state = checkpoint.load(tmp_path / "latest.pth")
    torch.testing.assert_close(state["model_ema"]["text"], state["model"]["text"])
