"""predict.py: what it writes for images, folders, globs, lists and pairs; the Python API; names that would clash."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
from dataset.find import output_names
from dataset.spec import get_spec
from model import build_model
from tests.conftest import ROOT, Tiny, write_image
from util.config import load_config
from util.error import UserError
from util.error import run as end_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights for six classes: any prediction will do."""
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    torch.manual_seed(0)
    models = [build_model("dinov2_tiny", 6) for _ in range(2)]
    torch.save({"model": models[0].state_dict(), "model_ema": models[1].state_dict(), "epoch": 4}, path)
    return str(path)


@pytest.fixture(scope="module")
def own_checkpoint(checkpoint: str, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in a checkpoint that says what it was trained with."""
    path = tmp_path_factory.mktemp("own") / "best.pth"
    torch.save(torch.load(checkpoint) | {"config": asdict(load_config(str(tiny.config)))}, path)
    return path


def run(tiny: Tiny, checkpoint: str, out: Path, *extra: str) -> None:
    predict.main(["--config", str(tiny.config), "--checkpoint", checkpoint, "--out", str(out), "--device", "cpu", *extra])


def test_folder_gives_masks_overlays_confidence_and_probabilities(tiny: Tiny, checkpoint: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    sizes = {"a.jpg": (57, 43), "b.png": (57, 43), "c.png": (43, 61)}
    for i, (name, size) in enumerate(sizes.items()):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(source / name)
    (source / "notes.md").write_text("no image")
    out = tmp_path / "out"
    run(tiny, checkpoint, out, str(source), "--confidence", "--probabilities")
    kinds = (".png", "_overlay.jpg", "_confidence.png", ".npz")
    assert sorted(p.name for p in out.iterdir()) == sorted(stem + kind for stem in "abc" for kind in kinds)
    predictor = predict.load(str(tiny.config), checkpoint, device="cpu")
    for name, size in sizes.items():
        stem = name[0]
        mask = Image.open(out / f"{stem}.png")
        assert (mask.mode, mask.size) == ("P", size)
        assert np.array_equal(np.array(mask.getpalette()).reshape(-1, 3)[:6], get_spec("demo").palette)
        probs = np.load(out / f"{stem}.npz")["probabilities"]
        assert probs.shape == (6, size[1], size[0])
        assert np.abs(probs.astype(np.float32).sum(0) - 1).max() < 0.01
        ids, confidence = predictor.predict(source / name)
        assert (ids == np.array(mask)).mean() > 0.999  # one image alone or two together: rounding may move single pixels
        assert np.abs(np.array(Image.open(out / f"{stem}_confidence.png")) - 255 * confidence).max() < 1
        assert np.abs(probs.max(0) - confidence).max() < 0.01
        overlay = Image.open(out / f"{stem}_overlay.jpg")
        assert overlay.width >= size[0]
        assert overlay.height > size[1]  # the legend below


@pytest.mark.parametrize("bf16", [False, True])
def test_one_at_a_time_is_what_the_python_api_does(bf16: bool, tiny: Tiny, checkpoint: str, tmp_path: Path) -> None:
    run(tiny, checkpoint, tmp_path, str(tiny.root / "val.txt"), "--batch-size", "1", "--probabilities", *["--bf16"] * bf16)
    predictor = predict.load(str(tiny.config), checkpoint, device="cpu", bf16=bf16)
    for i in range(18, 22):
        ids, confidence = predictor.predict(tiny.root / f"images/{i}.jpg")
        assert np.array_equal(np.array(Image.open(tmp_path / f"{i}.png")), ids)
        assert np.array_equal(np.load(tmp_path / f"{i}.npz")["probabilities"].max(0), confidence.astype(np.float16))


def test_overlay_shows_each_class_in_its_colour(tiny: Tiny, checkpoint: str, tmp_path: Path) -> None:
    Image.new("RGB", (70, 56), (100, 100, 100)).save(tmp_path / "grey.png")
    run(tiny, checkpoint, tmp_path / "out", str(tmp_path / "grey.png"))
    ids = np.array(Image.open(tmp_path / "out/grey.png"))
    overlay = np.array(Image.open(tmp_path / "out/grey_overlay.jpg"))[:56, :70].astype(int)
    palette = np.array(get_spec("demo").palette)
    for k in np.flatnonzero(np.bincount(ids.flatten()) > 0.1 * ids.size):  # JPEG mixes the colours of small patches
        expected = [100] * 3 if k == 0 else 0.45 * 100 + 0.55 * palette[k]
        assert np.abs(np.median(overlay[ids == k], axis=0) - expected).max() < 12


def test_python_api_takes_paths_arrays_and_images(tiny: Tiny, checkpoint: str) -> None:
    predictor = predict.load(str(tiny.config), checkpoint, device="cpu")
    path = tiny.root / "images/0.jpg"
    mask, confidence = predictor.predict(path)
    assert (mask.shape, mask.dtype, confidence.dtype) == ((43, 57), np.uint8, np.float32)
    assert 1 / 6 < confidence.min() <= confidence.max() <= 1
    for same in (str(path), Image.open(path), np.array(Image.open(path))):
        assert np.array_equal(predictor.predict(same)[0], mask)
    in_bf16, cudnn = predict.load(str(tiny.config), checkpoint, device="cpu", bf16=True), set()
    in_bf16.trained.model.register_forward_pre_hook(lambda *_: cudnn.add(torch.backends.cuda.cudnn_sdp_enabled()))
    rough = in_bf16.predict(path)[1]
    assert cudnn == {False}, "cuDNN's attention would build a plan for each image size"
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - confidence).max() < 0.02
    student = predict.load(str(tiny.config), checkpoint, which="student", device="cpu")
    assert (student.trained.which, predictor.trained.which) == ("student", "ema")
    assert not np.array_equal(student.predict(path)[1], confidence)
    with pytest.raises(UserError, match="found 2 image"):
        predictor.predict((path, path))
    with pytest.raises(UserError, match="expected RGB"):
        predictor.predict(np.zeros((4, 4)))
    with pytest.raises(UserError, match=r"found an array \(0, 5, 3\)"):
        predictor.predict(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(UserError, match="found NoneType, expected a path"):
        predictor.predict(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"nothing\.jpg: no such file; .*--data-root"):
        predictor.predict("nothing.jpg")


def test_lists_globs_and_results_that_must_not_replace_each_other(tiny: Tiny, checkpoint: str, tmp_path: Path) -> None:
    run(tiny, checkpoint, tmp_path / "list", str(tiny.root / "val.txt"))
    photos = tmp_path / "photos"
    for name in ("18.jpg", "19.jpg", "2.jpg", "20.jpg"):
        write_image(photos / name, 57, 43, 0)
    (photos / "19.txt").write_text("no image")
    (photos / "2.jpg.d").mkdir()
    run(tiny, checkpoint, tmp_path / "glob", str(photos / "1[89].*"), str(photos / "2*"))
    listed = {p.name for p in (tmp_path / "list").iterdir()}
    assert listed == {f"{i}{kind}" for i in range(18, 22) for kind in (".png", "_overlay.jpg")}
    assert {p.name for p in (tmp_path / "glob").glob("*.png")} == {"18.png", "19.png", "2.png", "20.png"}
    with pytest.raises(UserError, match="found no image, expected files ending in"):
        run(tiny, checkpoint, tmp_path / "none", str(photos / "*.txt*"))
    for folder in ("x/cam", "y/cam"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (30, 30)).save(tmp_path / folder / "0.png")
    Image.new("RGB", (30, 30)).save(tmp_path / "x/1.png")
    run(tiny, checkpoint, tmp_path / "same", str(tmp_path / "x"), str(tmp_path / "y"))
    assert pngs(tmp_path / "same") == {"x/cam/0.png", "y/cam/0.png", "1.png"}
    with pytest.raises(UserError, match="a result would replace it"):
        run(tiny, checkpoint, tmp_path / "x", str(tmp_path / "x/1.png"))
    assert output_names([Path("/a/0.png"), Path("/a/0.jpg"), Path("/a/1.jpg")], tmp_path) == ["0_png", "0_jpg", "1"]
    with pytest.raises(UserError, match="would have the same name"):
        output_names([Path("/a/0.png"), Path("/a/0.jpg"), Path("/a/0_jpg.png")], tmp_path)
    both = [Path("/a/0.png"), Path("/a/0_confidence.png")]
    assert output_names(both, tmp_path) == ["0", "0_confidence"]
    with pytest.raises(UserError, match="would have the same name"):
        output_names(both, tmp_path, confidence=True)


def pngs(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_a_folder_tree_is_kept_and_what_is_left_out_named(
    tiny: Tiny, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "drive"
    for name in ("0.jpg", "front/0.jpg", "front/deep/0.jpg", "back/0.jpg", "back/0.png", "results/old.jpg"):
        write_image(source / name, 28, 28, 0)
    for name in ("a.heic", "front/b.jp2", "front/notes.txt", "._0.jpg"):
        (source / name).write_bytes(b"")
    (source / "back/cut.jpg").write_bytes((source / "0.jpg").read_bytes()[:300])
    with pytest.raises(UserError, match=r"back/cut\.jpg: cannot be read as an image"):
        run(tiny, checkpoint, source / "results", str(source))
    assert pngs(source / "results") == {"0.png", "front/0.png", "front/deep/0.png", "back/0_jpg.png", "back/0_png.png"}
    assert (source / "results/front/deep/0_overlay.jpg").exists()
    out = capsys.readouterr().out
    assert f"{source}: left out by their ending: 1 .heic, 1 .jp2, 1 .txt" in out
    files = "NAME.png (classes) and NAME_overlay.jpg of each"
    assert f"Predicted 5 images: {files} are in {source}/results. 1 image could not be read." in out
    run(tiny, checkpoint, tmp_path / "glob", str(source / "*"))
    assert f"{source}/*: left out by their ending: 3 (folder), 1 .heic" in capsys.readouterr().out
    assert pngs(tmp_path / "glob") == {"0.png"}


def test_links_keep_their_own_names_and_are_not_replaced(tmp_path: Path) -> None:
    store, photos = tmp_path / "store", tmp_path / "photos"
    write_image(store / "4711.png", 30, 20, 0)
    photos.mkdir()
    for name in ("front.png", "back.png"):
        (photos / name).symlink_to(store / "4711.png")
    links = [photos / "front.png", photos / "back.png"]
    assert output_names(links, tmp_path / "out") == ["front", "back"]
    for folder, result in ((photos, "front.png"), (store, "4711.png")):
        with pytest.raises(UserError, match=f"{result}: is an input, and a result would replace it"):
            output_names([photos / "front.png", store / "4711.png"], folder)


def test_files_that_cannot_be_read_do_not_stop_the_others(
    tiny: Tiny, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(4):
        Image.new("RGB", (30, 30), (50 * i, 0, 0)).save(source / f"{i}.png")
    (source / "0.png").write_bytes(b"no picture")
    cut = (source / "2.png").read_bytes()
    (source / "2.png").write_bytes(cut[: len(cut) // 2])  # its head, and so its size, can be read
    with pytest.raises(SystemExit) as end:
        end_of(predict.main, ["--config", str(tiny.config), "--checkpoint", checkpoint, "--out", str(out), "--device", "cpu", str(source)])
    assert end.value.code == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [re.sub(r".*/in/", "", line.split(" (")[0]) for line in told] == [f"{i}.png: cannot be read as an image" for i in (0, 2)]
    assert all(line.endswith("replace the file or leave it out") for line in told)
    assert {p.name for p in out.glob("*.png")} == {"1.png", "3.png"}


def test_user_errors_end_in_one_line(tiny: Tiny, checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    rows = {
        str(tmp_path / "empty"): "found no image in this folder",
        str(tmp_path / "lost.jpg"): "no such image or folder",
        str(tmp_path / "bad.jpg"): "cannot be read as an image",
    }
    for text, words in rows.items():
        with pytest.raises(UserError, match=words):
            run(tiny, checkpoint, tmp_path / "out", text)
    for option, found, words in (
        ("--batch-size", "0", "found '0', expected a whole number above 0"),
        ("--tile", "13", "found 13, expected 14 or more"),
    ):
        with pytest.raises(UserError, match=f"{option}: {words}"):
            run(tiny, checkpoint, tmp_path / "out", str(tiny.root / "val.txt"), option, found)
    with pytest.raises(UserError, match="the config is for single images"):
        run(tiny, checkpoint, tmp_path / "out", "--pair", "a", "b")
    with pytest.raises(UserError, match="give one of the two"):
        run(tiny, checkpoint, tmp_path / "out")


def test_large_scenes_of_two_dates_go_tile_by_tile(tmp_path: Path) -> None:
    model = build_model("dinov2_tiny", 2, "change")
    torch.save({"model": model.state_dict()}, tmp_path / "k.pth")
    (tmp_path / "c.yaml").write_text(
        "{dataset: levir, data_root: '.', backbone: dinov2_tiny, pretrained: null, crop_size: 28, batch_size: 2, epochs: 1, lr: 1e-4}"
    )
    rng = np.random.default_rng(0)
    for folder in ("A", "B"):
        (tmp_path / folder).mkdir()
        for name, size in (("tile", 28), ("scene", 100)):
            Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(tmp_path / folder / f"{name}.png")
    base = ["--config", str(tmp_path / "c.yaml"), "--checkpoint", str(tmp_path / "k.pth"), "--device", "cpu"]
    predict.main([*base, "--out", str(tmp_path / "out"), "--pair", str(tmp_path / "A"), str(tmp_path / "B"), "--probabilities"])
    mask = Image.open(tmp_path / "out/scene.png")
    assert mask.size == (100, 100)
    assert set(np.unique(np.array(mask))) <= {0, 255}  # as the data set's labels
    tiled = predict.load(str(tmp_path / "c.yaml"), str(tmp_path / "k.pth"), device="cpu", tile=28)
    whole = predict.load(str(tmp_path / "c.yaml"), str(tmp_path / "k.pth"), device="cpu", tile=0)
    pairs = {name: (tmp_path / f"A/{name}.png", tmp_path / f"B/{name}.png") for name in ("tile", "scene")}
    assert np.array_equal(tiled.predict(pairs["scene"])[0], np.array(mask) // 255)  # a side above twice the crop: tiles by default
    for got, direct in zip(tiled.predict(pairs["tile"]), whole.predict(pairs["tile"]), strict=True):
        assert np.allclose(got, direct, atol=1e-6)  # one tile alone
    assert not np.allclose(tiled.predict(pairs["scene"])[1], whole.predict(pairs["scene"])[1])
    # evaluate.py scores what predict.py writes
    shutil.copytree(tmp_path / "out", tmp_path / "label", ignore=shutil.ignore_patterns("*_*", "*.npz"))
    given = ["--pair", str(tmp_path / "A"), str(tmp_path / "B"), "--label", str(tmp_path / "label"), "--json", str(tmp_path / "s.json")]
    evaluate.main([*base[:4], *given, "--set", "device=cpu"])
    (_, wrong), (missed, _) = json.loads((tmp_path / "s.json").read_text())["confusion"]
    assert (wrong, missed) == (0, 0)
    with pytest.raises(UserError, match="files and folders mixed, expected all of one kind"):
        predict.main([*base, "--out", str(tmp_path / "out"), "--pair", str(tmp_path / "A"), str(tmp_path / "B/tile.png")])
    with pytest.raises(UserError, match=r"found dates of \(28, 28\) and \(100, 100\) .* expected equal sizes"):
        tiled.predict((pairs["tile"][0], pairs["scene"][1]))
    with pytest.raises(UserError, match="found 1 image"):
        tiled.predict(pairs["tile"][0])


def test_our_checkpoints_need_no_config(
    tiny: Tiny, checkpoint: str, own_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny, checkpoint, tmp_path / "with", f"{tiny.root}/val.txt")
    monkeypatch.chdir(tmp_path)
    predict.main(["--checkpoint", str(own_checkpoint), "--out", "without", "--device", "cpu", f"{tiny.root}/val.txt"])
    for path in (tmp_path / "with").iterdir():
        assert path.read_bytes() == (tmp_path / "without" / path.name).read_bytes(), path.name
    with pytest.raises(UserError, match=r"best\.pth: does not say what it was trained with; give --config"):
        predict.main(["--checkpoint", checkpoint, "--out", "nothing", f"{tiny.root}/val.txt"])


@pytest.mark.parametrize("page", ["README.md", "docs/reports.md"])
def test_the_python_of_the_documents(page: str, own_checkpoint: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    path = tmp_path / re.findall(r'load\("(exp/[^"]*)"\)', block)[0]  # the README's run and that of docs/own-data.md
    path.parent.mkdir(parents=True)
    path.symlink_to(own_checkpoint)
    (tmp_path / "photo.jpg").symlink_to(tiny.root / "images/0.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)  # our own document
    assert names["predictor"].classes == get_spec("demo").classes
    assert names["mask"].shape == names["confidence"].shape == (43, 57)
    assert names["name"] in get_spec("demo").classes
