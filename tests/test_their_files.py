"""The authors' YAML files, lists and command lines run as they are (METHOD.md 2.1 and 5).

The files below have their keys, their values' types and their comments' places; crop, mini-batch and epochs are small, and the encoder of
that name is replaced by a small one, so that a run takes seconds.
"""

import ast
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import fixmatch
import supervised
import unimatch_v2
from model import build_model
from model.spec import ENCODERS
from tests.conftest import ROOT
from tests.dataset.oracle import photograph
from util import checkpoint
from util.config import load_config

HEAD = """# arguments for dataset
dataset: {dataset} # one of the data sets
nclass: {nclass}
crop_size: 28
data_root: {root}
"""
TAIL = """
# arguments for training
epochs: 1
batch_size: 2
lr: 0.000005
lr_multi: 40.0

conf_thresh: 0.95

# arguments for model
model: dpt
backbone: dinov2_small
lock_backbone: False
"""
CE = """criterion:
  name: CELoss
  kwargs:
    ignore_index: 255
"""
OHEM = """criterion:
  name: OHEM
  kwargs:
    ignore_index: 255
    thresh: 0.7
    min_kept: 200000
"""
TWO = """dataset_l: ade20k
dataset_u: coco
valset: ade20k
nclass: 150
crop_size: 28
data_root_l: {root}
data_root_u: {root_u}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as the authors' programs expect it: pretrained/, configs/, splits/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENCODERS, "dinov2_small", replace(ENCODERS["dinov2_tiny"], name="dinov2_small"))
    for folder in ("pretrained", "configs"):
        (tmp_path / folder).mkdir()
    torch.save(build_model("dinov2_small", 2).backbone.state_dict(), tmp_path / "pretrained" / "dinov2_small.pth")
    return tmp_path


def write_list(path: Path, lines: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_segmentation(root: Path, classes: int, numbers: range) -> list[str]:
    lines = []
    for i in numbers:
        image, mask = f"JPEGImages/{i:04}.jpg", f"SegmentationClass/{i:04}.png"
        for name in (image, mask):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(60 - i, 40 + i, i).save(root / image)
        labels = np.random.default_rng(i).integers(0, classes, (40 + i, 60 - i)).astype(np.uint8)
        labels[:3] = 255
        Image.fromarray(labels).save(root / mask)
        lines.append(f"{image} {mask}")
    return lines


def command(project: Path, method: str, dataset: str, lists: tuple[str, str], save: str) -> list[str]:
    """As scripts/train.sh of the reference and its launcher put it."""
    line = ["--local_rank=0", f"--config=configs/{dataset}.yaml", "--labeled-id-path", lists[0]]
    return [*line, "--unlabeled-id-path", lists[1], "--save-path", save, "--port", "29500"]


SEGMENTATION = [("pascal", 21, unimatch_v2, CE), ("cityscapes", 19, fixmatch, OHEM), ("coco", 81, supervised, CE)]


@pytest.mark.parametrize(("dataset", "nclass", "method", "criterion"), SEGMENTATION, ids=[case[0] for case in SEGMENTATION])
def test_segmentation(
    project: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, nclass: int, method: ModuleType, criterion: str
) -> None:
    if method is supervised:
        from dataset import spec

        monkeypatch.setitem(spec.SPECS, dataset, replace(spec.SPECS[dataset], supervised_length=8))  # not 30000
    root = project / "data" / dataset
    head = HEAD.format(dataset=dataset, nclass=nclass, root=root)
    (project / "configs" / f"{dataset}.yaml").write_text(head + TAIL.replace("\nconf_thresh", f"{criterion}\nconf_thresh"))
    lines = write_segmentation(root, nclass, range(10))
    labeled = write_list(project / f"splits/{dataset}/92/labeled.txt", lines[:3])
    unlabeled = write_list(project / f"splits/{dataset}/92/unlabeled.txt", [*lines[3:6], lines[6].split(" ")[0] + " None", lines[7]])
    write_list(project / f"splits/{dataset}/val.txt", lines[8:])
    method.main(command(project, method.__name__, dataset, (labeled, unlabeled), "exp"))
    state = checkpoint.load("exp/latest.pth")
    assert state["epoch"] == 0
    assert len(state["model"]["head.scratch.output_conv.2.bias"]) == nclass
    mode = "sliding_window" if dataset == "cityscapes" else "original"
    log = (project / "exp" / "train.log").read_text()
    assert f"***** Evaluation {mode} *****" in log
    assert f"'batch_size': {4 if method is supervised else 2}," in log, "supervised training doubles it, and says so"


@pytest.mark.parametrize("method", [unimatch_v2, supervised])
def test_change_detection(project: Path, monkeypatch: pytest.MonkeyPatch, method: ModuleType) -> None:
    """Their file has no criterion: cross-entropy; the student labels, as in their runs."""
    if method is supervised:
        from dataset import spec

        monkeypatch.setitem(spec.SPECS, "levir", replace(spec.SPECS["levir"], supervised_length=8))
    root = project / "LEVIR-CD"
    names = [f"{i}.png" for i in range(8)]
    for i, name in enumerate(names):
        for folder in ("A", "B", "label"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        photograph(32, 32, i).save(root / "A" / name)
        photograph(32, 32, i + 50).save(root / "B" / name)
        changed = np.random.default_rng(i).integers(0, 2, (32, 32)).astype(np.uint8) * 255
        Image.fromarray(changed).save(root / "label" / name)
    (project / "configs" / "levir.yaml").write_text(HEAD.format(dataset="levir", nclass=2, root=root) + TAIL)
    labeled = write_list(project / "splits/levir/5%/labeled.txt", names[:2])
    unlabeled = write_list(project / "splits/levir/5%/unlabeled.txt", names[2:6])
    write_list(project / "splits/levir/test.txt", names[6:])
    method.main(command(project, method.__name__, "levir", (labeled, unlabeled), "exp"))
    log = (project / "exp" / "train.log").read_text()
    assert "***** Evaluation ***** >>>> Changed IoU: " in log
    assert f"'teacher': {None if method is supervised else 'student'!r}" in log
    assert {"previous_best_iou", "previous_best_acc"} <= checkpoint.load("exp/latest.pth").keys()


def test_two_data_sets(project: Path) -> None:
    """Table 13: ADE20K labelled, COCO unlabelled, from two roots."""
    ade, coco = project / "ADE20K", project / "COCO"
    (project / "configs" / "ade20k_coco.yaml").write_text(TWO.format(root=ade, root_u=coco) + CE + TAIL)
    lines, others = write_segmentation(ade, 150, range(4)), write_segmentation(coco, 81, range(20, 25))
    labeled = write_list(project / "splits/ade20k/train.txt", lines[:2])
    unlabeled = write_list(project / "splits/coco/train.txt", others)
    write_list(project / "splits/ade20k/val.txt", lines[2:])
    unimatch_v2.main(command(project, "unimatch_v2", "ade20k_coco", (labeled, unlabeled), "exp"))
    assert len(checkpoint.load("exp/latest.pth")["model"]["head.scratch.output_conv.2.bias"]) == 150


def test_the_configs_of_published_runs(shared: Path, tmp_path: Path) -> None:
    """The config that heads each public log is one that we read, with the same values."""
    command_line = {"config", "labeled_id_path", "unlabeled_id_path", "save_path", "port", "local_rank", "ngpus", "pretrained_path"}
    read = 0
    for log in shared.glob("logs/*.log"):
        header = re.search(r"INFO\] (\{.*?\})\n\n", log.read_text(), re.S)
        if "cifar" in log.name or header is None:
            continue
        values = {key: value for key, value in ast.literal_eval(header[1]).items() if key not in command_line}
        (tmp_path / "their.yaml").write_text(yaml.safe_dump(values))
        cfg = load_config(str(tmp_path / "their.yaml"))
        for key in values.keys() - {"dataset_l", "dataset_u", "data_root_l", "valset"}:
            assert getattr(cfg, key) == values[key], (log.name, key)
        read += 1
    assert read >= 10


def test_shipped_configs_train_the_encoder() -> None:
    """Also ADE20K's, where the authors' file says otherwise than their runs."""
    for name in ("pascal", "cityscapes", "ade20k", "coco"):
        assert not load_config(str(ROOT / "configs" / f"{name}.yaml")).lock_backbone
