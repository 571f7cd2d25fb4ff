"""`python -m model.text`: which texts are embedded, by whom, and what the file says of it."""

import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from dataset.spec import get_spec
from model.text import read_text
from scripts import text
from tests.conftest import ROOT, command
from util.config import load_config
from util.error import UserError

CLASSES = ["sky", "wet road", "car"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    values = {"dataset": "lakes", "data_root": "", "backbone": "clip_tiny", "crop_size": 64, "epochs": 1, "batch_size": 2, "lr": 1e-4}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values | {"classes": CLASSES}))
    return tmp_path / "c.yaml"


def write(path: Path, **values: Any) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


class Encoder(nn.Module):
    """Stands for CLIP: a text's embedding is its length and its number of blanks, times one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def encode_text(self, texts: list[str]) -> Tensor:
        rows = torch.tensor([[float(len(one)), float(one.count(" "))] for one in texts])
        return self.scale * nn.functional.pad(rows, (0, 510))


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """A package that has the functions of open_clip that the command calls; the weights it was asked for."""
    asked: list[str | None] = []

    def create_model(name: str, pretrained: str | None) -> Encoder:
        assert name == "ViT-B-16-quickgelu", "as OpenAI trained it"
        asked.append(pretrained)
        return Encoder()

    package = SimpleNamespace(__version__="9", create_model=create_model, get_tokenizer=lambda name: lambda texts: texts, __spec__=True)
    monkeypatch.setitem(sys.modules, "open_clip", package)
    return asked


def test_its_help_names_files_that_exist() -> None:
    files = re.findall(r"\S+/\S+\.yaml", text.__doc__ or "")
    assert len(files) == 3
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_a_name_is_put_into_the_prompt(
    config: Path, tmp_path: Path, open_clip: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    text.main(["--config", str(config), "--out", str(tmp_path / "t.pth")])
    file = read_text(tmp_path / "t.pth", CLASSES, "")
    assert open_clip == ["openai"]
    assert (file.classes, file.names, file.index) == (CLASSES, CLASSES, [0, 1, 2])
    assert (file.prompt, file.source) == ("a photo of a {}", "open_clip 9: ViT-B-16-quickgelu, openai")
    assert file.embeddings[:, 0].tolist() == [len(f"a photo of a {name}") for name in CLASSES]
    assert "3 texts for the 3 classes of lakes (open_clip 9" in capsys.readouterr().out
    torch.testing.assert_close(file.of_classes().norm(dim=1), torch.ones(3))


def test_concepts_of_a_class(config: Path, tmp_path: Path, open_clip: list[str | None]) -> None:
    """The decoder gets a class's mean before it is normalised; the rows stay for the guidance. Weights come from a file."""
    torch.save({"scale": torch.tensor(2.0), "attn_mask": torch.ones(3)}, tmp_path / "w.pt")
    concepts = write(tmp_path / "concepts.yaml", car=["car", "a very long truck"], sky="blue sky")
    text.main(["--config", str(config), "--concepts", concepts, "--from", str(tmp_path / "w.pt"), "--out", str(tmp_path / "t.pth")])
    file = read_text(tmp_path / "t.pth", CLASSES, "")
    assert open_clip == [None]
    assert (file.names, file.index) == (["blue sky", "wet road", "car", "a very long truck"], [0, 1, 2, 2])
    assert file.embeddings[0, 0] == 2 * len("a photo of a blue sky")
    mean = file.embeddings[2:].mean(dim=0)
    torch.testing.assert_close(file.of_classes()[2], mean / mean.norm())


def test_ready_embeddings(config: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    text.main(["--config", str(config), "--from", str(tmp_path / "rows.npy"), "--out", str(tmp_path / "t.pth")])
    file = read_text(tmp_path / "t.pth", CLASSES, "")
    assert torch.equal(file.embeddings, torch.from_numpy(rows).float())
    assert file.source == str(tmp_path / "rows.npy")


def test_vectors_without_a_meaning_are_the_same_each_time(config: Path, tmp_path: Path) -> None:
    """`text` of the config says where the file goes."""
    for _ in range(2):
        text.main(["--config", str(config), "--random", "--set", f"text={tmp_path / 'own.pth'}"])
        file = read_text(tmp_path / "own.pth", CLASSES, "")
        assert file.source == "random"
        assert torch.equal(file.embeddings, text.random_rows(CLASSES))
    assert len(set(file.embeddings[:, 0].tolist())) == 3


REFUSED: list[tuple[dict[str, Any], list[str], str]] = [
    ({"bus": "bus"}, ["--random"], "found the class 'bus', expected one of sky, wet road, car"),
    ({"car": [1]}, ["--random"], r"found \[1\] for 'car', expected a name or a list of names"),
    ({"car": []}, ["--random"], r"found \[\] for 'car'"),
    ({}, ["--from", "rows.npy"], r"rows.npy: found \(2, 512\) of float32, expected \(3, 512\)"),
    ({}, ["--from", "text.npy"], "--from: text.npy cannot be read"),
    ({}, ["--from", "nothing.pt"], "--from: open_clip cannot load nothing.pt"),
    ({}, ["--concepts", "nothing.yaml"], "--concepts: no such file: nothing.yaml"),
]


@pytest.mark.parametrize(("concepts", "args", "words"), REFUSED, ids=[words[:25] for _, _, words in REFUSED])
def test_user_errors(
    concepts: dict[str, Any], args: list[str], words: str, config: Path, tmp_path: Path, open_clip: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.zeros((2, 512), np.float32))
    Path("text.npy").write_text("nonsense")
    given = ["--concepts", write(tmp_path / "concepts.yaml", **concepts)] if concepts else []
    with pytest.raises(UserError, match=words) as error:
        text.main(["--config", str(config), *given, *args, "--out", "t.pth"])
    assert len(str(error.value).splitlines()) == 1
    assert not Path("t.pth").exists()


def test_without_a_package_the_command_says_what_to_install(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install open_clip_torch, or give ready embeddings with --from FILE\.npy"):
        text.main(["--config", str(config)])


def test_a_file_for_other_classes_is_refused(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.pth"
    text.main(["--config", str(config), "--random", "--out", str(out)])
    for classes, words in (
        (["sky", "road", "car"], "its class 1 is 'wet road', expected 'road' as in the data set; make it again|make it with"),
        ([*CLASSES, "bus"], "has 3 classes, expected the 4 of the data set"),
    ):
        with pytest.raises(UserError, match=words):
            read_text(out, classes, "c.yaml")
    with pytest.raises(
        UserError, match=r"none.pth: no such file of text embeddings, .*; make it with python -m model.text --config c.yaml"
    ):
        read_text(tmp_path / "none.pth", CLASSES, "c.yaml")
    with pytest.raises(UserError, match=r"--config c.yaml --out .*none.pth --random$"):  # a run from random weights needs no download
        read_text(tmp_path / "none.pth", CLASSES, "c.yaml", random=True)
    torch.save({"model": {}}, out)
    with pytest.raises(UserError, match="not a file of text embeddings, found model"):
        read_text(out, CLASSES, "c.yaml")


def test_a_download_that_fails_is_one_line(config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def create_model(name: str, pretrained: str | None) -> Encoder:
        logging.getLogger("hub").warning("Retrying in 1s")
        raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "open_clip", SimpleNamespace(create_model=create_model, __spec__=True))
    with pytest.raises(UserError, match=r"open_clip cannot load the weights, which it downloads \(no network\); give a file"):
        text.main(["--config", str(config)])
    logging.getLogger("hub").warning("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]


@pytest.mark.parametrize("dataset", ["pascal", "cityscapes"])
def test_shipped_concepts_are_of_the_data_sets_classes(dataset: str) -> None:
    spec = get_spec(dataset)
    concepts = text.concepts_of(spec, str(ROOT / f"dataset/concepts/{dataset}.yaml"))
    assert len(concepts) == spec.nclass
    names = [name for own in concepts for name in own]
    assert len(names) == len(set(names)), "a concept of two classes"
    assert max(map(len, concepts)) > 1


def test_names_that_were_published_otherwise() -> None:
    names = [own for (own,) in text.concepts_of(get_spec("pascal"), None)]
    assert {"diningtable", "pottedplant", "tvmonitor", "cat"} <= set(names)


def test_the_command_as_people_type_it(config: Path, tmp_path: Path) -> None:
    done = command("-m", "model.text", "--config", config, "--random", "--out", tmp_path / "t.pth")
    assert (done.returncode, done.stderr) == (0, "")
    assert read_text(tmp_path / "t.pth", CLASSES, str(load_config(str(config)).config)).source == "random"
