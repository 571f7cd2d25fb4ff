"""A checkpoint is only used with the classes that it was trained with, in their order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from model import build_model
from util.config import Config, make_config
from util.error import UserError
from util.trained import load_trained


def config(**values: Any) -> Config:
    own = {"dataset": "street", "data_root": "", "backbone": "dinov2_tiny", "crop_size": 28, "epochs": 1, "batch_size": 1, "lr": 1e-3}
    return make_config(own | values, "c.yaml")


def saved(path: Path, classes: Sequence[str]) -> str:
    made = {"dataset": "street", "backbone": "dinov2_tiny", "crop_size": 28, "classes": classes, "config": str(path.parent / "c.yaml")}
    torch.save({"model": build_model("dinov2_tiny", 3).state_dict(), "config": made}, path)
    return str(path)


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("sky\nroad\ncar\n")
    for number, classes in enumerate((["sky", "road", "car"], "names.txt")):
        path = saved(tmp_path / f"{number}.pth", classes)
        assert load_trained(config(classes=["sky", "road", "car"]), path).spec.nclass == 3
        with pytest.raises(UserError, match=r"its class 1 is 'road', but that of c\.yaml is 'car'; give the config of its run"):
            load_trained(config(classes=["sky", "car", "road"]), path)
    (tmp_path / "names.txt").unlink()
    assert load_trained(config(classes=["sky", "road", "car"]), path).spec.nclass == 3
