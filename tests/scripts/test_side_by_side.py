"""Runs side by side: the table and the pictures, from logs, counts and checkpoints as runs leave them."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.lists import ImageList
from dataset.spec import get_spec
from engine import image_counts
from engine.metrics_file import Epoch, append
from model import build_model
from scripts import side_by_side
from tests.conftest import Tiny
from util.config import load_config
from util.error import UserError


def make_run(folder: Path, tiny: Tiny, semi: bool) -> Path:
    """Two epochs, of which the later one is worse, and the weights of the best one."""
    folder.mkdir(parents=True)
    for epoch, (student, ema) in enumerate(((40.0, 41.0), (30.25, 31.5))):
        scores = {"student": {"miou": student}} | ({"EMA": {"miou": ema}} if semi else {})
        append(folder / "metrics.jsonl", "epoch", vars(Epoch(epoch, 6 * epoch + 6, 15.0, None, None, {}, {}, scores)))
    state = build_model("dinov2_tiny", 6).state_dict()
    config = asdict(load_config(str(tiny.config)))
    torch.save({"model": state, "config": config} | ({"model_ema": state} if semi else {}), folder / "best.pth")
    return folder


def keep_counts(folder: Path, tiny: Tiny, right: list[int]) -> None:
    """Counts of the validation images, of 100 pixels of one class each, so many of which are right and the others another class."""
    counts = torch.zeros(len(right), 3, 6, dtype=torch.int64)
    for i, pixels in enumerate(right):
        counts[i, 0, 0], counts[i, 1, 0], counts[i, 2, 0], counts[i, 2, 1] = pixels, 100, pixels, 100 - pixels
    sha256 = ImageList(str(tiny.root / "val.txt"), "segmentation", masks=True).sha256
    image_counts.save(folder / image_counts.FILES["best"], counts, 1, sha256)


@pytest.fixture
def runs(tmp_path: Path, tiny: Tiny) -> dict[str, Path]:
    return {name: make_run(tmp_path / f"a b/{name}", tiny, semi=name == "fixmatch") for name in ("supervised", "fixmatch")}


def test_result_is_the_last_evaluation(runs: dict[str, Path]) -> None:
    result = side_by_side.read_result("fixmatch", runs["fixmatch"], "miou")
    assert (result.student, result.ema, result.seconds) == (30.25, 31.5, 30.0)


def test_table() -> None:
    results = [side_by_side.Result("supervised", 9.5, None, 61.4), side_by_side.Result("fixmatch", 30.25, 31.5, 102)]
    assert side_by_side.table(results, "mIoU").splitlines() == [
        "| method     | student mIoU | EMA mIoU | seconds |",
        "| ---------- | ------------:| --------:| -------:|",
        "| supervised |         9.50 |          |      61 |",
        "| fixmatch   |        30.25 |    31.50 |     102 |",
    ]


def test_pictures_of_the_first_images(tmp_path: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pictures/demo.png"
    side_by_side.main(["--out", str(out), *(f"{name}={folder}" for name, folder in runs.items())])
    printed = capsys.readouterr().out
    assert "| supervised |        30.25 |          |      30 |" in printed
    assert str(out) in printed
    with Image.open(out) as img:
        pixels = np.asarray(img)
    assert pixels.shape[1] == 5 * 186 - 6  # straight columns: image, truth, two predictions, confidence
    assert pixels.shape[0] > 4 * 150
    colours = {tuple(c) for c in pixels[:-40].reshape(-1, 3)}  # above the legend
    assert len(colours & set(get_spec("demo").palette)) >= 4  # the truth


def test_images_chosen_by_the_difference(tmp_path: Path, tiny: Tiny, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The IoU of the class that is there is 50 %, and of the one that is predicted for it 0."""
    keep_counts(runs["supervised"], tiny, [80, 50, 100, 50])
    keep_counts(runs["fixmatch"], tiny, [80, 100, 40, 60])
    ids = ImageList(str(tiny.root / "val.txt"), "segmentation", masks=True)
    names = [ids[i].image for i in range(len(ids))]
    out = tmp_path / "difference.png"
    side_by_side.main(["--out", str(tmp_path / "first.png"), *(f"{name}={folder}" for name, folder in runs.items())])
    side_by_side.main(["--rule", "difference", "--out", str(out), *(f"{name}={folder}" for name, folder in runs.items())])
    lines = capsys.readouterr().out.splitlines()
    assert f"pictures of {tiny.root}/val.txt (4 images), by best.pth" in lines
    assert f"{names[1]}: best of 4: mean IoU 25.0 (supervised), 100.0 (fixmatch), +75.0" in lines
    assert f"{names[0]}: median of 4: mean IoU 40.0 (supervised), 40.0 (fixmatch), +0.0" in lines
    assert f"{names[2]}: worst of 4: mean IoU 100.0 (supervised), 20.0 (fixmatch), -80.0" in lines
    with Image.open(out) as img, Image.open(tmp_path / "first.png") as first:
        assert first.height * 3 / 4 - 30 < img.height < first.height * 3 / 4 + 3 * 22 + 30, "three rows of four, each with a line below"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{supervised}"], "found '.*/supervised', expected METHOD=FOLDER"),
        (["a={supervised}", "a={fixmatch}"], "found the name 'a' twice"),
        (["--rule", "difference", "a={supervised}"], "--rule difference: found one run, expected two or more"),
        (["--out", "x.gif", "a={supervised}"], r"--out: found x\.gif, expected a name that ends in \.png or \.jpg"),
        (["a={supervised}", "b={other}"], r"found runs of different data sets \(a: demo with 6 classes, b: own with 6 classes\)"),
    ],
)
def test_runs_that_cannot_be_shown(arguments: list[str], words: str, tmp_path: Path, tiny: Tiny, runs: dict[str, Path]) -> None:
    other = make_run(tmp_path / "other", tiny, semi=False)
    state = torch.load(other / "best.pth", weights_only=True)
    state["config"] |= {"dataset": "own", "classes": list("abcdef")}
    torch.save(state, other / "best.pth")
    folders = {**runs, "other": other}
    with pytest.raises(UserError, match=words):
        side_by_side.main(["--out", str(tmp_path / "x.png"), *(text.format(**folders) for text in arguments)])


def test_a_torn_test_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text('{"list": ')
    with pytest.raises(UserError, match=r"test\.json: found no list in it"):
        side_by_side.scored([tmp_path], "val.txt")


def test_counts_of_other_images_are_refused(tmp_path: Path, tiny: Tiny, runs: dict[str, Path]) -> None:
    keep_counts(runs["supervised"], tiny, [80, 50, 100, 50])
    arguments = ["--rule", "difference", "--out", str(tmp_path / "x.png"), *(f"{name}={folder}" for name, folder in runs.items())]
    with pytest.raises(UserError, match=r"fixmatch/images_best\.npz: found no counts of"):
        side_by_side.main(arguments)


def test_pictures_are_of_the_test_list_where_all_have_scored_it(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, path in zip(folders, ("one.txt", "other.txt"), strict=True):
        folder.mkdir()
        assert side_by_side.scored(folders, "val.txt") == ("val.txt", "best")
        (folder / "test.json").write_text(json.dumps({"list": path}))
    with pytest.raises(UserError, match=r"test lists one\.txt, other\.txt, expected one"):
        side_by_side.scored(folders, "val.txt")
    assert side_by_side.scored(folders[:1], "val.txt") == ("one.txt", "test")


def test_a_run_without_metrics_or_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read \(No such file or directory\); give the folder of a run"):
        side_by_side.read_result("x", tmp_path, "miou")
    append(tmp_path / "metrics.jsonl", "epoch", vars(Epoch(0, 6, 15.0, None, None, {}, {}, {})))
    with pytest.raises(UserError, match="found no evaluation"):
        side_by_side.read_result("x", tmp_path, "miou")
