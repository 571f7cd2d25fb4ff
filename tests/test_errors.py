"""Broken situations: each ends with exit code 2 and one line, which says where the error is, what it is and how to fix it.

A row is (what is broken, what breaks it, words the line must hold). Most run `main(argv)` here; a few run as real commands.
"""

import importlib
import multiprocessing
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import fixmatch
import supervised
import unimatch_v2
from dataset.demo.__main__ import main as demo
from dataset.prepare.__main__ import main as prepare
from dataset.splits.__main__ import main as splits
from dataset.stage import main as stage
from evaluate import main as evaluate
from model import build_model
from predict import main as predict
from scripts.export import main as export
from scripts.report.__main__ import main as report
from tests.conftest import Tiny, command, make_tiny
from util.error import UserError, run

# Breaks a data set of its own and returns the arguments of the command.
Break = Callable[[Tiny, Path], list[str]]


def setting(*pairs: str) -> Break:
    """Only settings are wrong."""
    return lambda tiny, out: tiny.args(out, *pairs)


def line(name: str, text: str) -> Break:
    """The first line of a list is another one."""

    def broken(tiny: Tiny, out: Path) -> list[str]:
        path = tiny.root / f"{name}.txt"
        path.write_text("\n".join([text, *path.read_text().splitlines()[1:]]) + "\n")
        return tiny.args(out)

    return broken


def file(name: str, content: bytes | None) -> Break:
    """A file of the data set has other bytes, or is gone."""

    def broken(tiny: Tiny, out: Path) -> list[str]:
        path = tiny.root / name
        path.unlink() if content is None else path.write_bytes(content)
        return tiny.args(out)

    return broken


def mask(pixels: np.ndarray) -> Break:
    """The mask of the first labelled image (57 x 43) has other pixels."""

    def broken(tiny: Tiny, out: Path) -> list[str]:
        Image.fromarray(pixels).save(tiny.root / "masks/0.png")
        return tiny.args(out)

    return broken


def config(**values: object) -> Break:
    """The config file has other values; None removes a key."""

    def broken(tiny: Tiny, out: Path) -> list[str]:
        own = yaml.safe_load(tiny.config.read_text()) | values
        tiny.config.write_text(yaml.safe_dump({k: v for k, v in own.items() if v is not None}))
        return tiny.args(out)

    return broken


def without(*names: str) -> Break:
    """An argument is missing from the command line, its value too."""

    def broken(tiny: Tiny, out: Path) -> list[str]:
        args = tiny.args(out)
        for name in names:
            at = args.index(name)
            del args[at : at + 2]
        return args

    return broken


def save_path_below_a_file(tiny: Tiny, out: Path) -> list[str]:
    out.write_text("a file")
    return tiny.args(out / "run")


def checkpoint_file(content: object) -> Break:
    """latest.pth is something else: bytes as they are, other things saved by torch."""

    def broken(tiny: Tiny, out: Path) -> list[str]:
        out.mkdir()
        if isinstance(content, bytes):
            (out / "latest.pth").write_bytes(content)
        else:
            torch.save(content, out / "latest.pth")
        return tiny.args(out)

    return broken


def link(name: str, target: str) -> Break:
    """A file of the data set is a symbolic link."""

    def broken(tiny: Tiny, out: Path) -> list[str]:
        (tiny.root / name).unlink()
        (tiny.root / name).symlink_to(target)
        return tiny.args(out)

    return broken


def folder_instead(name: str) -> Break:
    """A file of the data set is a folder."""

    def broken(tiny: Tiny, out: Path) -> list[str]:
        (tiny.root / name).unlink()
        (tiny.root / name).mkdir()
        return tiny.args(out)

    return broken


def checkpoint_folder(tiny: Tiny, out: Path) -> list[str]:
    (out / "latest.pth").mkdir(parents=True)
    return tiny.args(out)


def trained(change: Callable[[dict], object], *pairs: str) -> Break:
    """There is a checkpoint as this command would write it at its start, with a change."""

    def broken(tiny: Tiny, out: Path) -> list[str]:
        model = build_model("dinov2_tiny", 6).state_dict()
        groups = [{"params": [], "lr": 1e-3}, {"params": [], "lr": 1e-3}]
        state = {"model": model, "model_ema": dict(model), "optimizer": {"state": {}, "param_groups": groups}, "epoch": 0, "step": 0}
        change(state)
        out.mkdir()
        torch.save(state, out / "latest.pth")
        return tiny.args(out, *pairs)

    return broken


ROWS: dict[str, tuple[Break, tuple[str, ...]]] = {
    # config
    "config missing": (lambda t, o: ["--config", "no/such.yaml", *t.args(o)[2:]], ("no/such.yaml", "no such config file")),
    "config is no YAML": (file("tiny.yaml", b"a: [1\n"), ("tiny.yaml", "not valid YAML")),
    "config is no mapping": (file("tiny.yaml", b"- a\n- b\n"), ("tiny.yaml", "found a list", "key: value")),
    "config is binary": (file("tiny.yaml", b"\xff\xfe\x00\x01"), ("tiny.yaml", "not valid YAML")),
    "key missing": (config(backbone=None), ("tiny.yaml", "`backbone`", "add it")),
    "key unknown": (config(batchsize=4), ("batchsize", "nearest is 'batch_size'")),
    "key of another program": (config(sync_bn=True), ("sync_bn", "no such config key of this method; remove it", "util/config.py")),
    "key unknown in --set": (setting("epoch=3"), ("epoch", "nearest is 'epochs'")),
    "--set without a value": (setting("epochs"), ("--set epochs", "expected key=value")),
    "type: word for a number": (setting("epochs=many"), ("epochs", "'many'", "expected int")),
    "type: fraction for a count": (setting("batch_size=2.5"), ("batch_size", "2.5", "expected int")),
    "type: number for a switch": (setting("lock_backbone=1"), ("lock_backbone", "expected bool")),
    "type: word for a rate": (setting("lr=fast"), ("lr", "'fast'", "expected float")),
    "type: list for a mapping": (setting("criterion=[1]"), ("criterion", "expected dict")),
    "epochs 0": (setting("epochs=0"), ("epochs", "found 0", "above 0")),
    "batch size negative": (setting("batch_size=-1"), ("batch_size", "found -1")),
    "crop no multiple of 14": (setting("crop_size=100"), ("crop_size", "found 100", "multiple of 14", "98")),
    "data set unknown": (setting("dataset=kitti"), ("dataset", "'kitti'", "cityscapes")),
    "backbone unknown": (setting("backbone=resnet51"), ("backbone", "'resnet51'", "resnet50", "docs/encoders.md")),
    "model unknown": (setting("model=deeplab"), ("model", "'deeplab'", "dpt")),
    "teacher unknown": (setting("teacher=mean"), ("teacher", "'mean'", "ema, student")),
    "dropout unknown": (setting("dropout=shared"), ("dropout", "'shared'", "complementary, independent, none")),
    "three strong views": (setting("strong_views=3"), ("strong_views", "found 3", "at most 2")),
    "classifier's dropout of another decoder": (
        setting("dropout_at=classifier", "backbone=resnet50"),
        ("dropout_at", "model deeplabv3plus", "expected encoder"),
    ),
    "dropout of no kind before the classifier": (
        setting("dropout_at=classifier", "dropout=none"),
        ("dropout_at", "dropout none", "expected encoder"),
    ),
    "nclass of another data set": (setting("nclass=21"), ("nclass", "found 21", "demo has 6")),
    "criterion unknown": (setting("criterion.name=Tversky"), ("criterion.name", "'Tversky'", "CELoss, OHEM, Focal, Dice, Lovasz")),
    "criterion name is a list": (setting("criterion.name=[]"), ("criterion.name", "[]", "CELoss, OHEM")),
    "criterion kwargs are a number": (setting("criterion.kwargs=5"), ("criterion.kwargs", "found 5", "pairs")),
    "criterion key is a number": (setting("criterion={name: CELoss, 1: 2}"), ("criterion", "found 1", "ignore_index")),
    "criterion key unknown": (setting("criterion.kwargs.gamma=2"), ("criterion", "gamma", "ignore_index")),
    "class weights of other classes": (
        setting("criterion.kwargs.class_weights=[1, 2]"),
        ("criterion.kwargs.class_weights", "[1, 2]", "auto, or 6 numbers"),
    ),
    "class weights below 0": (setting("criterion.kwargs.class_weights=[1, 2, 3, 4, 5, -1]"), ("class_weights", "of 0 or more")),
    "class weights by a word": (setting("criterion.kwargs.class_weights=balanced"), ("class_weights", "'balanced'", "expected auto")),
    "focal loss that grows": (setting("criterion={name: Focal, kwargs: {gamma: -1}}"), ("criterion.kwargs.gamma", "found -1")),
    "OHEM without its numbers": (setting("criterion.name=OHEM"), ("criterion.kwargs", "thresh", "min_kept")),
    "OHEM in percent": (
        setting("criterion={name: OHEM, kwargs: {thresh: 70, min_kept: 9}}"),
        ("criterion.kwargs.thresh", "found 70", "0 to 1"),
    ),
    "OHEM with a fraction of a pixel": (
        setting("criterion={name: OHEM, kwargs: {thresh: 0.7, min_kept: 0.5}}"),
        ("criterion.kwargs.min_kept", "found 0.5", "whole number"),
    ),
    "valset of another data set": (setting("valset=coco"), ("valset", "'coco'", "demo")),
    "weights missing": (setting("pretrained=no/such.pth"), ("no/such.pth", "no such weights file", "pretrained=null")),
    "weights of no published model": (setting("pretrained=auto"), ("pretrained/dinov2_tiny.pth", "put the weights of dinov2_tiny there")),
    "weights not downloaded": (setting("pretrained=auto", "backbone=dinov2_small"), ("pretrained/dinov2_small.pth", "model.pretrained")),
    "init missing": (setting("init=no/such.pth"), ("no/such.pth", "no such checkpoint")),
    "GPU asked for where there is none": (setting("device=cuda"), ("device", "found 0 GPU")),
    "option unknown": (lambda t, o: [*t.args(o), "--fast"], ("unrecognized arguments: --fast", "--help")),
    "config key as an option": (lambda t, o: [*t.args(o), "--batch-size", "3"], ("--batch-size", "--set batch_size=3")),
    "config key as an option with =": (lambda t, o: [*t.args(o), "--epochs=3"], ("--epochs", "--set epochs=3")),
    # numbers that are none, too small or too large
    "rate not a number": (setting("lr=.nan"), ("lr", "found nan", "above 0")),
    "rate infinite": (setting("lr=.inf"), ("lr", "found inf")),
    "rate 0": (setting("lr=0"), ("lr", "found 0")),
    "multiple negative": (setting("lr_multi=-1"), ("lr_multi", "found -1")),
    "a part's rate negative": (setting("lr_factors={head: -5}"), ("lr_factors", "'head': -5", "a number from 0 to")),
    "a part's rate not a number": (setting("lr_factors={head: .nan}"), ("lr_factors", "'head': nan", "a number from 0 to")),
    "a part's rate a word": (setting("lr_factors={head: x}"), ("lr_factors", "'head': 'x'", "a number from 0 to")),
    "a part that is a number": (setting("lr_factors={3: 1.0}"), ("lr_factors", "3: 1.0", "the start of parameter names")),
    "seed negative": (setting("seed=-1"), ("seed", "found -1", "0 or more")),
    "workers negative": (setting("num_workers=-2"), ("num_workers", "found -2", "0 or more")),
    "workers without end": (setting("num_workers=99999"), ("num_workers", "found 99999", "at most 256")),
    "workers a word": (setting("num_workers=many"), ("num_workers", "'many'", "a number or auto")),
    "save_every negative": (setting("save_every=-5"), ("save_every", "found -5", "0 or more")),
    "shards 0": (setting("shards=0"), ("shards", "found 0", "above 0")),
    "max_bad_steps 0": (setting("max_bad_steps=0"), ("max_bad_steps", "found 0", "above 0")),
    "weight negative": (setting("lossu_weight=-1"), ("lossu_weight", "found -1", "0 or more")),
    "threshold negative": (setting("conf_thresh=-0.5"), ("conf_thresh", "found -0.5")),
    "threshold in percent": (setting("conf_thresh=95"), ("conf_thresh", "found 95", "at most 1")),
    "rate without its exponent": (setting("lr=5"), ("lr", "found 5", "at most 1")),
    "seed of more than 63 bits": (setting(f"seed={2**64}"), ("seed", f"found {2**64}")),
    "epochs without end": (setting("epochs=" + 400 * "9"), ("epochs", "found 999", "at most 1000000000")),
    "supervised_length 0": (setting("supervised_length=0"), ("supervised_length", "found 0", "above 0")),
    "eval_every 0": (setting("eval_every=0"), ("eval_every", "found 0")),
    "crop 0": (setting("crop_size=0"), ("crop_size", "found 0")),
    "type: null for a count": (setting("epochs=null"), ("epochs", "None", "expected int")),
    "type: list for a path": (setting("data_root=[a]"), ("data_root", "expected str")),
    "type: switch for a count": (setting("batch_size=true"), ("batch_size", "True", "expected int")),
    "type: mapping for a switch": (setting("deterministic={}"), ("deterministic", "expected bool")),
    # choices
    "views by nobody": (setting("views=gpu"), ("views", "'gpu'", "worker, device")),
    "eval_mode unknown": (setting("eval_mode=resize"), ("eval_mode", "'resize'", "sliding_window")),
    "device unknown": (setting("device=tpu"), ("device", "'tpu'", "cpu, cuda")),
    "resume unknown": (setting("resume=yes please"), ("resume", "'yes please'", "auto, force")),
    "bad_images unknown": (setting("bad_images=ignore"), ("bad_images", "'ignore'", "stop, skip")),
    # config files
    "config is a folder": (folder_instead("tiny.yaml"), ("tiny.yaml", "no such config file")),
    "config is empty": (file("tiny.yaml", b""), ("tiny.yaml", "key: value")),
    "config with a tab": (file("tiny.yaml", b"lr:\t1\n\tepochs: 3\n"), ("tiny.yaml", "not valid YAML")),
    "config with a date that is none": (file("tiny.yaml", b"lr: 2001-99-99\n"), ("tiny.yaml", "not valid YAML")),
    "config with a key twice": (file("tiny.yaml", b"lr: 1\n\nepochs: 3\nlr: 2\n"), ("tiny.yaml:4", "'lr' again", "expected it once")),
    "config with a key twice in a mapping": (file("tiny.yaml", b"label_map: {0: 0, 7: 1, 7: 2}\n"), ("tiny.yaml:1", "'7' again")),
    "config with a number as a key": (file("tiny.yaml", b"1: 2\n"), ("1", "no such config key")),
    "config nested without end": (file("tiny.yaml", b"[" * 5000), ("tiny.yaml", "not valid YAML")),
    "config that runs code": (file("tiny.yaml", b"lr: !!python/object/apply:os.getcwd []\n"), ("tiny.yaml", "not valid YAML")),
    "--set with broken YAML": (setting("lr=[1"), ("--set lr=[1", "not valid YAML")),
    "--set of a mapping's key": (setting("lr.x=1"), ("lr", "expected float")),
    # epochs
    "no full mini-batch": (setting("batch_size=13"), ("batch_size", "12 images", "13", "lower batch_size")),
    "no full mini-batch on each shard": (setting("shards=16"), ("12 images", "16 shard(s)")),
    # lists
    "list missing": (file("labeled.txt", None), ("labeled.txt", "no such list")),
    "list empty": (file("unlabeled.txt", b"\n\n"), ("unlabeled.txt", "empty")),
    "validation list missing": (file("val.txt", None), ("val.txt", "no such list", "--val 1/8", "val_id_path")),
    "list line without a mask": (line("labeled", "images/0.jpg"), ("labeled.txt:1", "images/0.jpg", "no mask")),
    "list line with None in a labelled list": (line("labeled", "images/0.jpg None"), ("labeled.txt:1", "no mask")),
    "list line with three fields": (line("labeled", "my images/0.jpg masks/0.png"), ("labeled.txt:1", "TAB")),
    "list line with two spaces": (line("labeled", "images/0.jpg  masks/0.png"), ("labeled.txt:1", "images/0.jpg  masks/0.png")),
    "list leads outside the root": (line("unlabeled", "../secret.jpg None"), ("../secret.jpg", "outside the data root")),
    "absolute path outside the root": (line("unlabeled", "/etc/hostname None"), ("/etc/hostname", "outside the data root")),
    "list is a folder": (folder_instead("labeled.txt"), ("labeled.txt", "Is a directory", "one image per line")),
    "list is a link to itself": (link("unlabeled.txt", "unlabeled.txt"), ("unlabeled.txt", "symbolic links")),
    "list in UTF-16": (
        file("labeled.txt", "images/0.jpg masks/0.png\n".encode("utf-16-le")),
        ("labeled.txt", "UTF-16", "save it as UTF-8"),
    ),
    "list of Windows paths": (line("unlabeled", "images\\9.jpg None"), ("images\\9.jpg", "no such file", "parted by \\, expected /")),
    "unlabelled list too short": (
        file("unlabeled.txt", b"images/9.jpg None\n"),
        ("1 images an epoch of the unlabelled list", "unlabeled.txt", "longer list"),
    ),
    "list is binary": (file("unlabeled.txt", b"\xff\xd8\xff\xe0"), ("unlabeled.txt", "UTF-8")),
    "list with one word of spaces": (line("labeled", "  images/0.jpg"), ("labeled.txt:1", "image mask")),
    "list leads outside through the middle": (line("labeled", "images/../../x.jpg masks/0.png"), ("outside the data root",)),
    "mask leads outside the root": (line("labeled", "images/0.jpg ../0.png"), ("../0.png", "outside the data root")),
    "validation line without a mask": (line("val", "images/18.jpg"), ("val.txt:1", "no mask")),
    "validation line without a file": (line("val", "images/99.jpg masks/99.png"), ("images/99.jpg", "no such file")),
    # images and masks
    "image is a folder": (folder_instead("images/0.jpg"), ("images/0.jpg", "not a file")),
    "image is a link to itself": (link("images/0.jpg", "0.jpg"), ("images/0.jpg", "symbolic links")),
    "image is a link to nowhere": (link("images/8.jpg", "nowhere.jpg"), ("images/8.jpg", "no such file")),
    "image is cut off": (file("images/3.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF"), ("images/3.jpg", "cannot be read as an image")),
    "mask is text": (file("masks/2.png", b"class 1"), ("masks/2.png", "cannot be read as an image")),
    "mask is cut off": (file("masks/2.png", b"\x89PNG\r\n\x1a\n\x00\x00"), ("masks/2.png", "cannot be read as an image")),
    "data root missing": (setting("data_root=/no/such/place"), ("/no/such/place", "no such file", "data_root")),
    "data root of the unlabelled list missing": (setting("data_root_u=/no/such/place"), ("/no/such/place", "no such file", "data_root_u")),
    "all images bad and skipped": (setting("data_root_u=/no/such/place", "bad_images=skip"), ("/no/such/place", "10 files in a row")),
    "image missing": (file("images/0.jpg", None), ("images/0.jpg", "no such file", "data_root")),
    "unlabelled image missing": (file("images/9.jpg", None), ("images/9.jpg", "no such file")),
    "validation image missing": (file("images/21.jpg", None), ("images/21.jpg", "no such file")),
    "validation mask missing": (file("masks/20.png", None), ("masks/20.png", "no such file", "data_root")),
    "validation image is text": (file("images/18.jpg", b"hello"), ("images/18.jpg", "cannot be read as an image")),
    "mask missing": (file("masks/0.png", None), ("masks/0.png", "no such file")),
    "image is text": (file("images/0.jpg", b"hello"), ("images/0.jpg", "cannot be read as an image")),
    "image is empty": (file("images/0.jpg", b""), ("images/0.jpg", "cannot be read as an image")),
    "mask value too large": (mask(np.full((43, 57), 6, np.uint8)), ("/masks/0.png", "label 6", "0..5", "255")),
    "mask of another size": (mask(np.zeros((40, 57), np.uint8)), ("/masks/0.png", "(57, 40)", "(57, 43)")),
    "mask in colour": (mask(np.zeros((43, 57, 3), np.uint8)), ("/masks/0.png", "RGB", "one channel")),
    "mask 16-bit with a large value": (mask(np.full((43, 57), 1000, np.uint16)), ("masks/0.png", "label 1000")),
    # where things are saved
    "save path below a file": (save_path_below_a_file, ("run", "cannot be written", "--save-path")),
    "checkpoint torn": (checkpoint_file(b"PK\x03\x04torn"), ("latest.pth", "not a readable checkpoint")),
    "checkpoint is no dictionary": (checkpoint_file([1, 2]), ("latest.pth", "found a list")),
    "checkpoint is weights only": (checkpoint_file({"x": torch.ones(1)}), ("latest.pth", "has no 'model'", "--set init=")),
    "checkpoint without optimiser": (checkpoint_file({"model": {"x": torch.ones(1)}, "epoch": 0}), ("latest.pth", "has no 'optimizer'")),
    "checkpoint is empty": (checkpoint_file(b""), ("latest.pth", "not a readable checkpoint", "move these away")),
    "checkpoint of another model": (trained(lambda s: s["model"].pop("backbone.cls_token")), ("latest.pth", "backbone.cls_token")),
    "checkpoint with one weight too many": (trained(lambda s: s["model"].update(extra=torch.ones(1))), ("latest.pth", "'extra'")),
    "checkpoint with a weight of another shape": (
        trained(lambda s: s["model"].update({"backbone.cls_token": torch.ones(1)})),
        ("latest.pth", "backbone.cls_token", "(1,)"),
    ),
    "checkpoint with a weight that is none": (trained(lambda s: s["model"].update({"backbone.cls_token": 1})), ("is a int", "tensor")),
    "checkpoint without a teacher": (trained(lambda s: s.pop("model_ema")), ("latest.pth", "model_ema")),
    "checkpoint with another optimiser": (trained(lambda s: s.update(optimizer={"a": 1})), ("latest.pth", "optimiser state")),
    "checkpoint whose epoch is a list": (trained(lambda s: s.update(epoch=[1])), ("latest.pth", "epoch is [1], expected a number")),
    "checkpoint with another config": (trained(lambda s: s.update(config="a: 1")), ("latest.pth", "config is 'a: 1'", "--set init=")),
    "checkpoint with other lists": (trained(lambda s: s.update(lists=None)), ("latest.pth", "lists is None, expected a dictionary")),
    "checkpoint of another rate": (trained(lambda s: s.update(config={"lr": 1.0})), ("latest.pth", "lr: 1.0, now 0.0003", "resume=force")),
    "checkpoint of more epochs": (trained(lambda s: s.update(config={"epochs": 9})), ("latest.pth", "epochs: 9, now 2")),
    "checkpoint of no number of epochs": (trained(lambda s: s.update(config={"epochs": "many"})), ("latest.pth", "epochs: 'many', now 2")),
    "checkpoint of another list": (trained(lambda s: s.update(lists={"x": "0" * 64})), ("latest.pth", "content of list 'x'")),
    "checkpoint whose list has no checksum": (trained(lambda s: s.update(lists={"x": 1})), ("latest.pth", "list 'x': SHA-256 1, now")),
    "checkpoint is a folder": (checkpoint_folder, ("latest.pth", "a folder; give")),
    "save path with a zero byte": (lambda t, o: t.args("a\0b"), ("cannot be written", "--save-path")),
    "an empty save path": (lambda t, o: t.args(""), ("--save-path", "empty name", "expected a folder")),
    "init is no checkpoint": (setting("init=README.md"), ("README.md", "not a readable checkpoint")),
    "weights are no checkpoint": (setting("pretrained=README.md"), ("README.md", "not a readable checkpoint")),
}


@pytest.mark.parametrize("name", ROWS)
def test_one_clear_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, words = ROWS[name]
    args = broken(make_tiny(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(SystemExit) as end:
        run(unimatch_v2.main, args)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def scored(*extra: str) -> Break:
    """A command on a checkpoint that fits; `{root}` in its arguments stands for the data set's folder."""

    def broken(tiny: Tiny, out: Path) -> list[str]:
        torch.save({"model": build_model("dinov2_tiny", 6).state_dict()}, out.with_suffix(".pth"))
        given = [text.format(root=tiny.root) for text in extra]
        return ["--config", str(tiny.config), "--checkpoint", str(out.with_suffix(".pth")), *given]

    return broken


OTHERS: dict[str, tuple[Callable[[list[str]], None], Break, tuple[str, ...]]] = {
    "archive missing": (prepare, lambda t, o: ["ade20k", "--src", "no.zip", "--dst", str(o)], ("--src", "no.zip", "no such file")),
    "archive is none": (
        prepare,
        lambda t, o: ["levir", "--src", str(t.config), "--dst", str(o)],
        ("--src", "tiny.yaml", "cannot be unpacked", "download it again"),
    ),
    "archive of another data set": (
        prepare,
        lambda t, o: ["cityscapes", "--src", str(t.root), "--dst", str(o)],
        ("found no", "gtFine_trainvaltest.zip"),
    ),
    "lists of no data set": (splits, lambda t, o: ["check", "kitti"], ("kitti",)),
    "checkpoint to score missing": (evaluate, lambda t, o: ["--config", str(t.config), "--checkpoint", "no.pth"], ("no.pth", "no such")),
    "checkpoint to predict with missing": (
        predict,
        lambda t, o: ["--config", str(t.config), "--checkpoint", "no.pth", "--out", str(o), str(t.root)],
        ("no.pth", "no such"),
    ),
    "scores into a folder": (evaluate, scored("--json", "/tmp"), ("--json", "/tmp", "cannot be written (Is a directory)")),
    "scores below a file": (evaluate, scored("--json", "{root}/tiny.yaml/x.json"), ("--json", "tiny.yaml/x.json", "cannot be written")),
    "confusion matrix into a folder": (evaluate, scored("--confusion", "/tmp"), ("--confusion", "/tmp", "Is a directory")),
    "worst images into a file": (
        evaluate,
        scored("--worst", "2", "--out", "{root}/tiny.yaml"),
        ("--out", "tiny.yaml", "cannot be written"),
    ),
    "predictions into a file": (predict, scored("--out", "{root}/tiny.yaml", "{root}"), ("--out", "tiny.yaml", "cannot be written")),
    "config key as an option of a command": (evaluate, scored("--device", "cpu"), ("--device", "--set device=cpu")),
    "arguments missing": (predict, lambda t, o: [], ("required: --checkpoint", "--help")),
    "arguments missing of the export": (export, lambda t, o: [], ("required: --checkpoint", "python -m scripts.export --help")),
    "arguments unknown of the report": (report, lambda t, o: ["--fast"], ("unrecognized arguments: --fast", "-m scripts.report --help")),
    "arguments unknown of the demo": (demo, lambda t, o: ["--fast"], ("unrecognized arguments: --fast", "-m dataset.demo --help")),
    "scale not a number": (evaluate, scored("--scales", "1", "nan"), ("--scales", "found 1.0 nan")),
    "worst images below 0": (evaluate, scored("--worst", "-1"), ("--worst", "found -1")),
    "windows of whole images": (evaluate, scored("--mode", "original", "--tile", "42"), ("--tile 42", "--mode original")),
    "windows smaller than a patch": (evaluate, scored("--tile", "1"), ("--tile", "found 1", "14 or more")),
    "windows to predict in smaller than a patch": (predict, scored("--out", "x", "--tile", "1", "y"), ("--tile", "found 1", "14 or more")),
    "copied to a disk that is none": (
        stage,
        lambda t, o: [str(t.config / "disk"), *t.args(o)],
        ("tiny.yaml/disk",),
    ),
    "copied to where no folder can be made": (
        stage,
        lambda t, o: ["/proc/no/disk", *t.args(o)],
        ("/proc/no/disk/images", "cannot be copied from", "stage_data"),
    ),
    "copied without an image": (
        stage,
        lambda t, o: [str(o), *t.args(o, "data_root=/no/such/place")],
        ("/no/such/place/images", "no such file"),
    ),
}


def test_a_validation_file_that_is_missing_is_found_before_the_first_step(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "data")
    (tiny.root / "masks/21.png").unlink()
    with pytest.raises(UserError, match=r"masks/21\.png: no such file"):
        fixmatch.main(tiny.args(tmp_path / "out"))
    assert not (tmp_path / "out/train.log").exists()


@pytest.mark.parametrize("name", OTHERS)
def test_other_commands_say_it_in_one_line_too(name: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, args, words = OTHERS[name]
    with pytest.raises(SystemExit) as end:
        run(main, args(tiny, tmp_path / "out"))
    captured = capsys.readouterr()
    (told,) = captured.err.splitlines()
    assert captured.out == "", "found before the work"
    assert end.value.code == 2
    assert told.startswith("error: ")
    assert all(word in told for word in words), told


LOCKED = {
    "the config": "data/tiny.yaml",
    "a list": "data/unlabeled.txt",
    "an image": "data/images/8.jpg",
    "the checkpoint": "out/latest.pth",
    "the save path": "out",
    "the log": "out/train.log",
}


def _as_nobody(args: list[str], out: Path) -> None:
    if os.getuid() == 0:  # who may read everything
        os.setgid(65534)
        os.setuid(65534)
    sys.stderr = open(out, "a")  # noqa: SIM115 - the process ends
    run(unimatch_v2.main, args)


@pytest.mark.parametrize("what", LOCKED)
def test_a_file_without_permission_is_named(what: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # that others can enter, unlike pytest's
        root, err = Path(name), Path(name) / "err"
        tiny = make_tiny(root / "data")
        (root / "out").mkdir()
        for path, mode in ((root, 0o755), (root / "out", 0o777)):
            path.chmod(mode)
        for path in (err, root / "out/latest.pth", root / "out/train.log", root / "out/.lock"):
            path.touch()
            path.chmod(0o666)
        if what != "the checkpoint":
            (root / "out/latest.pth").unlink()
        (root / LOCKED[what]).chmod(0o555 if what == "the save path" else 0)
        importlib.import_module("torch._dynamo")  # optimisers do, and an interpreter of root's may be closed to others
        process = multiprocessing.get_context("fork").Process(target=_as_nobody, args=(tiny.args(root / "out"), err))
        process.start()
        process.join(60)
        (told,) = err.read_text().splitlines()
        assert process.exitcode == 2
        assert LOCKED[what] in told
        assert "ermission" in told


def test_a_missing_argument_is_named(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module, name in ((unimatch_v2, "--unlabeled-id-path"), (supervised, "--labeled-id-path"), (fixmatch, "--save-path")):
        with pytest.raises(SystemExit) as end:
            run(module.main, without(name)(tiny, tmp_path / "out"))
        assert end.value.code == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert name in told


def test_what_a_worker_meets_is_still_one_line(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "data")
    (tiny.root / "images/7.jpg").write_bytes(b"")
    done = command("fixmatch.py", *tiny.args(tmp_path / "out", "num_workers=2"))
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line] == [
        line for line in done.stderr.splitlines() if line.startswith("error: ") and "images/7.jpg" in line
    ]


def test_two_processes_print_a_user_error_once_and_keep_the_exit_code(tiny: Tiny, tmp_path: Path) -> None:
    launch = ("-m", "engine.launch", "--nproc_per_node=2", "--master_addr=localhost", "--master_port=0")
    done = command(*launch, "unimatch_v2.py", *tiny.args(tmp_path / "out", "crop_size=100"))
    assert done.returncode == 2
    assert done.stderr.count("crop_size: found 100") == 1
    assert "Traceback" not in done.stderr


def test_a_user_error_harms_nothing_that_was_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny, out = make_tiny(tmp_path / "data"), tmp_path / "out"
    fixmatch.main(tiny.args(out, "epochs=1"))
    before = {name: (out / name).read_bytes() for name in ("latest.pth", "best.pth")}
    shutil.rmtree(tiny.root / "images")
    with pytest.raises(SystemExit):
        run(fixmatch.main, tiny.args(out, "epochs=2"))
    assert before == {name: (out / name).read_bytes() for name in before}
    assert "no such file" in capsys.readouterr().err


def test_a_broken_environment_is_one_line_of_a_real_command(tiny: Tiny, tmp_path: Path) -> None:
    """Every way to break it: tests/util/test_dist.py."""
    done = command("unimatch_v2.py", *tiny.args(tmp_path / "out"), RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "2 processes cannot meet" in line
    assert "MASTER_ADDR" in line


def test_a_busy_port_is_named_together_with_a_free_one() -> None:
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        done = command("-m", "engine.launch", "--nproc_per_node=2", "--master_addr=localhost", f"--master_port={port}", "unimatch_v2.py")
    assert done.returncode == 2
    assert re.fullmatch(rf"error: port: {port} cannot be used \(Address already in use\); \d+ is free\n", done.stderr)
