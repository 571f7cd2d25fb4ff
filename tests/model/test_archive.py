"""TorchScript archives, as which OpenAI publishes CLIP: their tensors are read, nothing in them is run."""

import io
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.archive import is_archive, read_archive
from model.backbone.clip import CLIP
from model.pretrained import main
from model.spec import ENCODERS
from model.weights import read
from tests.model.test_dinov3 import random_
from tests.model.test_formats import openai_clip
from util.checkpoint import DamagedError
from util.error import UserError


class Branch(nn.Module):
    """Nested modules, a buffer, attributes of other kinds, half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.register_buffer("count", torch.tensor(7))
        self.proj = nn.Parameter(torch.randn(4, 2).T)  # not contiguous
        self.sizes, self.name = [1, 2], "x"

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Holder(nn.Module):
    """Holds tensors under any names."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            module: nn.Module = self
            *parents, leaf = name.split(".")
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, nn.Module())
                module = module.get_submodule(parent)
            module.register_buffer(leaf, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


def script(module: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.script(module), path)


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which OpenAI used


def test_tensors_of_an_archive(tmp_path: Path) -> None:
    module = Branch().half()
    script(module, tmp_path / "m.pt")
    assert is_archive(tmp_path / "m.pt")
    found, expected = read_archive(tmp_path / "m.pt"), module.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items())
    torch.save(expected, tmp_path / "s.pt")
    assert not is_archive(tmp_path / "s.pt")
    assert set(read(tmp_path / "s.pt")) == set(expected)


def rewritten(source: Path, target: Path, change: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change.get(name.partition("/")[2], old.read(name)))
    return target


def test_an_archive_that_would_run_something_is_refused(tmp_path: Path) -> None:
    script(Branch(), tmp_path / "m.pt")
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(ran),)

    out = io.BytesIO()
    pickle.Pickler(out, 2).dump(Harm())
    for content in (out.getvalue(), b"nonsense"):
        path = rewritten(tmp_path / "m.pt", tmp_path / "bad.pt", {"data.pkl": content})
        with pytest.raises(DamagedError, match=r"bad\.pt: not a readable TorchScript archive"):
            read_archive(path)
    assert not ran.exists()


def test_openais_file_becomes_the_encoders_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = replace(ENCODERS["clip_base"], build=lambda: CLIP(64, 2, 2, (0,), 4))
    monkeypatch.setitem(ENCODERS, "clip_base", small)
    weights = random_(small.build()).state_dict()
    script(
        Holder({name: value.half() if value.is_floating_point() else value for name, value in openai_clip(weights).items()}), Path("ViT.pt")
    )
    main(["clip_base", "--from", "ViT.pt"])
    found = torch.load("pretrained/clip_base.pth")
    assert set(found) == set(weights)
    assert all(value.dtype == torch.float32 and torch.equal(value, weights[name].half().float()) for name, value in found.items())
    facts = json.loads(Path("pretrained/clip_base.json").read_text())
    assert (facts["converted_from"], facts["license"], facts["origin"]) == ("OpenAI's CLIP", "MIT", "ViT.pt")


def test_where_clip_is_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"clip_base: OpenAI's repository has its address .*; download ViT-B-16.pt and give it with --from FILE"
    ):
        main(["clip_base"])
    with pytest.raises(UserError, match=r"resnet101_v1c_stage1: open-mmlab has it .*; download resnet101_v1c-e67eebb6.pth"):
        main(["resnet101_v1c_stage1"])
