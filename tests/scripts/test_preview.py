"""python -m dataset.preview: the pictures of a run before it."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.preview import main
from tests.conftest import Tiny
from tests.dataset.test_preview import GAP, HEAD, LEGEND, pictures
from util.error import UserError, run


def test_the_command_shows_the_first_samples_of_a_run(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = ["--labeled-id-path", f"{tiny.root}/labeled.txt", "--unlabeled-id-path", f"{tiny.root}/unlabeled.txt"]
    main(["--config", str(tiny.config), *lists, "--out", str(tmp_path / "deep/out"), "--count", "3", "--set", "crop_size=42"])
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "deep/out").iterdir()}
    assert sizes["unlabeled.jpg"] == (5 * 294 + 4 * GAP, 3 * (294 + HEAD) + LEGEND)
    assert set(sizes) == {"labeled.jpg", "unlabeled.jpg"}
    assert "unlabeled.jpg: 1494 x 1034" in capsys.readouterr().out
    main(["--config", str(tiny.config), *lists[:2], "--out", str(tmp_path / "supervised")])
    assert [path.name for path in (tmp_path / "supervised").iterdir()] == ["labeled.jpg"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("supervised", ["batch_size=1"]),  # twice as many labelled images
        ("unimatch_v2", ["strong_views=1"]),  # a key of its own
        ("allspark", ["backbone=mit_b0", "model=allspark", "crop_size=48", "memory_epoch=0"]),  # labelled images as strong views
    ],
)
def test_the_command_shows_what_the_method_reads(name: str, settings: list[str], tiny: Tiny, tmp_path: Path) -> None:
    """The same pictures as the run's own, but for the compression of a JPEG file."""
    importlib.import_module(name).main(tiny.args(tmp_path / "run", "epochs=1", *settings))
    lists = ["--labeled-id-path", f"{tiny.root}/labeled.txt", "--unlabeled-id-path", f"{tiny.root}/unlabeled.txt"]
    chosen = [word for setting in settings for word in ("--set", setting)]
    main(["--config", str(tiny.config), *lists, *chosen, "--method", name, "--out", str(tmp_path / "out"), "--count", "2"])
    shown = {tag.removeprefix("data/"): image for tag, image in pictures(tmp_path / "run").items()}
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(shown)
    for part, image in shown.items():
        found = np.asarray(Image.open(tmp_path / f"out/{part}.jpg"))
        assert found.shape == image.shape
        assert np.abs(found.astype(int) - image).mean() < 3


def test_a_method_that_reads_unlabelled_images_needs_their_list(tiny: Tiny, tmp_path: Path) -> None:
    words = ["--config", str(tiny.config), "--labeled-id-path", f"{tiny.root}/labeled.txt", "--out", str(tmp_path), "--method", "fixmatch"]
    with pytest.raises(UserError, match="--method fixmatch: found no unlabelled list, expected one"):
        main(words)


def test_the_command_shows_the_next_image_for_one_that_cannot_be_read(tiny: Tiny, tmp_path: Path) -> None:
    words = ["--config", str(tiny.config), "--labeled-id-path", f"{tiny.root}/labeled.txt", "--out", str(tmp_path), "--count", "1"]
    main([*words, "--set", "bad_images=skip"])
    assert (tmp_path / "labeled.jpg").exists()


def test_the_command_needs_no_validation_list(tiny: Tiny, tmp_path: Path) -> None:
    words = ["--config", str(tiny.config), "--labeled-id-path", f"{tiny.root}/labeled.txt", "--out", str(tmp_path), "--count", "1"]
    main([*words, "--set", "val_id_path=no/such.txt"])
    assert (tmp_path / "labeled.jpg").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--split", "1_8", "--labeled-id-path", "l.txt"], ("--split", "one way")),
        ([], ("preview: found no lists", "--split")),
        (["--split", "1_9"], ("splits/demo/1_9/labeled.txt", "no such list")),
        (["--split", "1_10", "--count", "0"], ("--count", "found '0'")),
        (["--labeled-id-path", "{root}/labeled.txt", "--out", "{root}/tiny.yaml/x"], ("tiny.yaml/x", "cannot be written", "--out")),
        (["--labeled-id-path", "{root}/labeled.txt", "--set", "crop_size=27"], ("crop_size", "27")),
    ],
)
def test_user_errors(words: list[str], expected: tuple[str, ...], tiny: Tiny, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        run(main, ["--config", str(tiny.config), "--out", str(tmp_path), *(word.format(root=tiny.root) for word in words)])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count("\n") == 1
    for word in expected:
        assert word in error
