"""The procedural data sets: same scenes everywhere, complete, class balance, lists that match, labels that are right."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image, ImageFilter

from dataset.demo import sets as demo
from dataset.demo.scene import Thing, coverage, surface, two_dates
from dataset.loader import training_sources, validation_source
from dataset.spec import get_spec
from util.config import load_config
from util.error import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of each part and a few pairs."""
    root = tmp_path_factory.mktemp("demo set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "PARTS", {"train": 6, "val": 3})
        patch.setattr(demo, "CHANGE_PARTS", {"train": 4, "val": 1, "test": 2})
        demo.draw(root / "images")
        demo.draw_change(root / "pairs")
    return root


def test_files_are_real_and_the_same_each_time(small: Path) -> None:
    img, mask = demo.draw_image("train", 3)
    with Image.open(small / "images/images/train/0003.jpg") as file:
        assert file.format == "JPEG"
        assert file.size == img.size == mask.size
        # JPEG keeps the scene; single pixels differ by its noise
        assert np.abs(np.asarray(file).astype(float) - np.asarray(img)).mean() < 10
    with Image.open(small / "images/masks/train/0003.png") as file:
        assert file.mode == "P"
        assert np.array_equal(np.asarray(file), np.asarray(mask))
        palette = file.getpalette()
    assert palette is not None
    assert tuple(palette[3:6]) == get_spec("demo").palette[1]
    assert len(list((small / "images").rglob("*.*"))) == 2 * 9 + 1


def test_the_drawing_is_that_of_its_version() -> None:
    """The figures of docs/evidence.md are of these images: whoever changes the drawing raises VERSION, measures again and corrects this."""
    assert demo.VERSION == "3"
    images, masks = zip(*(demo.draw_image("train", i) for i in range(12)), strict=True)
    colours = np.concatenate([np.asarray(img, dtype=float).reshape(-1, 3) for img in images])
    np.testing.assert_allclose(colours.mean(0), (136.096, 116.169, 108.261), atol=0.01)
    np.testing.assert_allclose(colours.std(0), (41.538, 37.834, 44.975), atol=0.01)
    ids = np.concatenate([np.asarray(mask).ravel() for mask in masks])
    shares = np.bincount(ids, minlength=256)[[0, 1, 2, 3, 4, 5, 255]] / ids.size
    np.testing.assert_allclose(shares, (0.7743, 0.0452, 0.0287, 0.0408, 0.0454, 0.0453, 0.0203), atol=1e-4)
    dates = zip(*(demo.draw_pair("train", i) for i in range(8)), strict=True)
    for parts, mean, deviation in zip(dates, (145.301, 127.769, 59.649), (45.732, 52.472, 107.947), strict=True):
        values = np.concatenate([np.asarray(part, dtype=float).ravel() for part in parts])
        assert (values.mean(), values.std()) == pytest.approx((mean, deviation), abs=0.01)


def test_scenes_differ_between_parts_and_numbers() -> None:
    scenes = [demo.draw_image(part, i)[0].tobytes() for part in ("train", "val") for i in range(3)]
    assert len(set(scenes)) == len(scenes)


def test_a_second_call_draws_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PARTS", {"train": 3, "val": 0})
    drawn: list[int] = []
    original = demo.draw_image

    def count(part: str, index: int) -> tuple[Image.Image, Image.Image]:
        drawn.append(index)
        return original(part, index)

    monkeypatch.setattr(demo, "draw_image", count)
    demo.draw(tmp_path)
    demo.draw(tmp_path)
    assert drawn == [0, 1, 2]
    # as after a kill: the marker says unfinished, one file of a pair is not there
    (tmp_path / "drawn.txt").write_text(f"version {demo.VERSION}, unfinished\n")
    (tmp_path / "masks/train/0001.png").unlink()
    demo.draw(tmp_path)
    assert drawn == [0, 1, 2, 1]
    (tmp_path / "drawn.txt").write_text("version 0, complete\n")
    demo.draw(tmp_path)
    assert drawn == [0, 1, 2, 1, 0, 1, 2]


def test_an_interrupted_call_leaves_nothing_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PARTS", {"train": 3, "val": 0})
    demo.draw(tmp_path)
    (tmp_path / "drawn.txt").write_text("version 0, complete\n")
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"of version 0")
    original, calls = demo.draw_image, iter([True, False])

    def interrupted(part: str, index: int) -> tuple[Image.Image, Image.Image]:
        if not next(calls, True):
            raise KeyboardInterrupt
        return original(part, index)

    monkeypatch.setattr(demo, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.draw(tmp_path)
    demo.draw(tmp_path)
    assert not [path for path in tmp_path.rglob("*.png") if path.read_bytes() == b"of version 0"]


def test_masks_hold_every_class_and_large_objects() -> None:
    counts = np.zeros(256, int)
    for i in range(40):
        img, mask = demo.draw_image("train", i)
        assert all(demo.SIDES[0] <= side <= demo.SIDES[1] for side in img.size)
        counts += np.bincount(np.asarray(mask).ravel(), minlength=256)
    assert counts[6:255].sum() == 0
    assert (counts[1:6] > 0.005 * counts.sum()).all()
    assert 0.5 < counts[0] / counts.sum() < 0.9
    assert 0 < counts[255] / counts.sum() < 0.05


@pytest.mark.parametrize("kind", range(1, 6))
def test_an_outline_is_whole_at_any_angle(kind: int) -> None:
    """Nothing is cut off at the box that is sampled: turning an object keeps its area."""
    areas = [coverage(Thing(kind, 100.2, 99.7, 40, angle, 1.16, 0), 200, 200).sum() for angle in np.linspace(0, np.pi, 7)]
    assert np.ptp(areas) < 0.01 * np.mean(areas)


def test_change_is_where_objects_came_or_went() -> None:
    seen = 0
    for seed in range(6):
        before, after, changed = two_dates(default_rng(seed), 120, 130)
        differs = abs(before - after).max(-1) > 0.5
        assert differs[changed].mean() > 0.99 if changed.any() else not differs.any()
        # beside it only pixels that an outline crosses
        near = np.asarray(Image.fromarray(changed).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
        assert not (differs & ~near).any()
        seen += changed.sum()
    assert 0.05 < seen / (6 * 120 * 130) < 0.5


def test_light_differs_between_the_dates_and_the_label_does_not_say_so(small: Path) -> None:
    for i in range(4):
        a, b, label = (Image.open(small / "pairs" / part / f"train_{i:04}.png") for part in ("A", "B", "label"))
        assert a.size == b.size == label.size
        assert label.mode == "L"
        same = np.asarray(label) == 0
        assert set(np.unique(np.asarray(label))) <= {0, 255}
        assert abs(np.asarray(a).astype(float) - np.asarray(b))[same].mean() > 5


@pytest.mark.parametrize("name", ["demo", "demo_change"])
def test_shipped_lists_match_what_is_drawn(name: str) -> None:
    folder = ROOT / "splits" / name
    if name == "demo":
        files = {part: [f"images/{part}/{i:04}.jpg masks/{part}/{i:04}.png" for i in range(n)] for part, n in demo.PARTS.items()}
    else:
        files = {part: [f"{part}_{i:04}.png" for i in range(n)] for part, n in demo.CHANGE_PARTS.items()}
    for part, lines in files.items():
        assert sorted((folder / f"{part}.txt").read_text().split("\n")[:-1]) == lines
    for split, share in (("1_20", 20), ("1_10", 10)):
        labeled = (folder / split / "labeled.txt").read_text().split("\n")[:-1]
        unlabeled = (folder / split / "unlabeled.txt").read_text().split("\n")[:-1]
        assert len(labeled) == len(files["train"]) // share
        assert sorted(labeled + unlabeled) == files["train"]


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data_root"):
        demo.draw(tmp_path / "file" / "demo")


def test_textures_do_not_tell_the_class() -> None:
    """Two objects that differ in class only have the same colours and texture."""
    first, second = (surface(Thing(kind, 60, 60, 30, 0, 1, 7), 120, 120) for kind in (1, 5))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", ["demo", "demo_change"])
def test_a_command_draws_at_first_use_and_only_where_the_config_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(demo, "DRAW", {name: drawn.append})
    monkeypatch.chdir(tmp_path)
    for file in ("labeled", "val"):
        (tmp_path / f"{file}.txt").write_text("a.png a.png\n" if name == "demo" else "a.png\n")
    cfg = load_config(str(ROOT / f"configs/{name}.yaml"), labeled_id_path="labeled.txt", val_id_path="val.txt")
    training_sources(cfg, get_spec(name), semi=False)
    validation_source(cfg, get_spec(name))
    assert drawn == [Path("data", name)] * 2
    training_sources(replace(cfg, data_root="elsewhere"), get_spec(name), semi=False)
    assert len(drawn) == 2
