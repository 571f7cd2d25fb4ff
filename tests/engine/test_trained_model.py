"""A checkpoint is only used with the classes that it was trained with, in their order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import supervised
from engine.trained_model import config_of, load_trained
from model import build_model
from tests.conftest import make_tiny
from util import checkpoint
from util.config import Config, load_config, make_config
from util.error import UserError


def config(**values: Any) -> Config:
    own = {"dataset": "street", "data_root": "", "backbone": "dinov2_tiny", "crop_size": 28, "epochs": 1, "batch_size": 1, "lr": 1e-3}
    return make_config(own | values, "c.yaml")


def saved(path: Path, classes: Sequence[str]) -> str:
    made = {"dataset": "street", "backbone": "dinov2_tiny", "crop_size": 28, "classes": classes, "config": str(path.parent / "c.yaml")}
    torch.save({"model": build_model("dinov2_tiny", 3).state_dict(), "config": made}, path)
    return str(path)


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "best.pth", ["sky", "road", "car"])
    assert load_trained(config(classes=["sky", "road", "car"]), path).spec.nclass == 3
    with pytest.raises(UserError, match=r"its class 1 is 'road', but that of c\.yaml is 'car'; give the config of its run"):
        load_trained(config(classes=["sky", "car", "road"]), path)


def test_a_checkpoint_has_the_names_that_a_file_of_classes_had(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "data")
    names = tmp_path / "data/names.txt"
    names.write_text("a\nb\nc\nd\ne\nf\n")
    args = tiny.args(tmp_path / "run", "dataset=own", "classes=names.txt", "epochs=1", "supervised_length=4", unlabeled=False)
    supervised.main(args)
    names.write_text("b\na\nc\nd\ne\nf\n")
    with pytest.raises(UserError, match=r"its class 0 is 'a', but that of .*tiny\.yaml is 'b'"):
        load_trained(load_config(str(tiny.config), ["dataset=own", "classes=names.txt"]), str(tmp_path / "run/best.pth"))
    with pytest.raises(UserError, match=r"classes: .*'a', 'b'.*, now .*'b', 'a'"):
        supervised.main([*args, "--set", "epochs=2"])
    names.unlink()
    state = checkpoint.load(str(tmp_path / "run/best.pth"))
    assert load_trained(config_of(state, "best.pth"), str(tmp_path / "run/best.pth")).spec.classes == tuple("abcdef")
