"""Data sets that a config describes: what works, and the error message of each wrong one."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import evaluate
import fixmatch
import predict
import supervised
import unimatch_v2
from dataset.custom import spec_of, unlabeled_places
from dataset.lists import ImageList
from dataset.loader import training_sources
from dataset.look import Job, by_class, inspect
from dataset.palette import distinct_palette
from dataset.source import Source, open_image, open_mask
from dataset.spec import SPECS
from dataset.splits import __main__ as splits
from tests.conftest import ROOT, write_image
from tests.dataset.by_hand import png
from util.config import load_config
from util.error import UserError, run

NAMES = ["sky", "road", "car"]
BASE: dict[str, Any] = {
    "dataset": "street", "data_root": "street", "classes": NAMES, "backbone": "dinov2_tiny", "pretrained": None, "crop_size": 28,
    "batch_size": 2, "epochs": 1, "lr": 3e-4, "lr_multi": 3.0, "num_workers": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(**values: object) -> Path:
    """Writes c.yaml: the base, changed; `...` takes a key away."""
    own = {key: value for key, value in (BASE | values).items() if value is not ...}
    Path("c.yaml").write_text(yaml.safe_dump(own))
    return Path("c.yaml")


def street(n: int = 8, values: tuple[int, ...] = (0, 1, 2), seed: int = 0) -> None:
    """n photographs and masks in images/ and masks/ below street/, the masks' columns holding `values` in turn."""
    for i in range(n):
        width, height = ((40, 30), (33, 47))[i % 2]
        write_image(Path(f"street/images/p {i}.jpg"), width, height, seed + i)
        Path("street/masks").mkdir(exist_ok=True)
        pixels = np.resize(np.repeat(np.array(values), 5), (height, width))
        Image.fromarray(pixels.astype(np.uint8 if max(values) < 256 else np.uint16)).save(f"street/masks/p {i}.png")


def make(*words: str) -> None:
    folders = ["--images", "street/images", "--masks", "street/masks"]
    splits.main(["make", "--config", "c.yaml", *folders, "--val", "1/4", "--labeled", "1/2", *words])


def train(*settings: str) -> None:
    chosen = [word for setting in settings for word in ("--set", setting)]
    lists = ["--labeled-id-path", "splits/street/1_2/labeled.txt", "--unlabeled-id-path", "splits/street/1_2/unlabeled.txt"]
    unimatch_v2.main(["--config", "c.yaml", *lists, "--save-path", "out", *chosen])


def test_a_config_is_a_data_set() -> None:
    spec = spec_of(load_config(str(config())))
    assert (spec.name, spec.classes, spec.ignore_index, spec.task, spec.eval_mode) == (
        "street",
        tuple(NAMES),
        255,
        "segmentation",
        "original",
    )
    assert spec.palette == distinct_palette(3)
    assert spec.label_table[[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, -1, 255]
    colors = [[0, 0, 255], "#ff8000", [1, 2, 3]]
    Path("names.txt").write_text("sky\nroad\n\n  car  \n")
    spec = spec_of(load_config(str(config(classes="names.txt", palette=colors, ignore_index=9, supervised_length=40, nclass=3))))
    assert (spec.classes, spec.palette, spec.supervised_length) == (tuple(NAMES), ((0, 0, 255), (255, 128, 0), (1, 2, 3)), 40)
    assert spec.label_table[[2, 9, 255]].tolist() == [2, 255, -1]


def test_the_names_file_may_lie_beside_the_config() -> None:
    Path("deep").mkdir()
    Path("deep/names.txt").write_text("a\nb\n")
    config(classes="names.txt").rename("deep/c.yaml")
    assert spec_of(load_config("deep/c.yaml")).classes == ("a", "b")


def test_label_map_takes_ids_names_and_null() -> None:
    spec = spec_of(load_config(str(config(label_map={7: "road", 23: 0, 26: "car", 33: 2, 0: None}))))
    assert spec.label_table[[0, 7, 23, 26, 33, 255, 1]].tolist() == [255, 1, 0, 2, 2, 255, -1]
    assert spec.legal == "0 (ignored), 7 (road), 23 (sky), 26 (car), 33 (car) or 255 (ignored)"
    binary = spec_of(load_config(str(config(classes=["dry", "wet"], label_map=...)), ["label_map.0=dry", "label_map.255=wet"]))
    assert binary.label_table[[0, 255, 1]].tolist() == [0, 1, -1]


def test_pairs_need_no_classes() -> None:
    spec = spec_of(load_config(str(config(classes=..., task="change"))))
    levir = SPECS["levir"]
    assert (spec.classes, spec.label_map, spec.scale, spec.grey, spec.task) == (
        levir.classes, levir.label_map, levir.scale, levir.grey, "change",
    )  # fmt: skip
    Path("splits/street").mkdir(parents=True)
    Path("splits/street/train.txt").write_text("a.png\nb.png\nc.png\nd.png\n")
    splits.main(["make", "--config", "c.yaml", "--count", "1"])  # lines of one name: no masks are missed
    assert len(Path("splits/street/1/labeled.txt").read_text().split()) == 1


def test_pairs_without_a_label_file_are_unlabelled(capsys: pytest.CaptureFixture[str]) -> None:
    config(classes=..., task="change")
    Path("street/label").mkdir(parents=True)
    Path("all.txt").write_text("".join(f"{i}.png\n" for i in range(20)))
    for i in (3, 7, 11, 15):
        Path(f"street/label/{i}.png").touch()
    splits.main(["make", "--config", "c.yaml", "--from", "all.txt", "--labeled", "1/2"])
    assert "splits/street/1_2: 2 labelled, 18 unlabelled, 16 of them without a label file" in capsys.readouterr().out
    assert set(Path("splits/street/1_2/labeled.txt").read_text().split()) < {"3.png", "7.png", "11.png", "15.png"}


def test_from_folders_to_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    """Paths with spaces, binary 0/255 masks, validation held out, both kinds of sizes: make, check, train, evaluate, predict."""
    street(values=(0, 255))
    config(classes=["ground", "water"], label_map={0: "ground", 255: "water"})
    make()
    assert "splits/street/1_2: 3 labelled, 3 unlabelled" in capsys.readouterr().out
    lists = [Path(f"splits/street/{name}.txt").read_text().splitlines() for name in ("val", "1_2/labeled", "1_2/unlabeled")]
    assert [len(lines) for lines in lists] == [2, 3, 3]
    assert len({line for lines in lists for line in lines}) == 8
    assert all(line.count("\t") == 1 for lines in lists for line in lines)
    splits.main(["check", "--config", "c.yaml", "1_2"])
    assert "1 water" in capsys.readouterr().out
    train()
    log = Path("out/train.log").read_text()
    assert "Class [1 water] IoU" in log
    evaluate.main(["--config", "c.yaml", "--checkpoint", "out/latest.pth", "--json", "scores.json"])
    assert '"water"' in Path("scores.json").read_text()
    predict.main(["--config", "c.yaml", "--checkpoint", "out/latest.pth", "--out", "seen", "street/images"])
    found = {int(v) for path in Path("seen").glob("*.png") for v in np.unique(np.asarray(Image.open(path)))}
    assert len(list(Path("seen").glob("*.png"))) == 8
    assert found <= {0, 255}  # as the data set's own masks


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "CMYK", "1", "I;16"])
def test_images_of_any_mode(mode: str) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    image = Image.fromarray(grey.astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save("a.tif")
    read = open_image(".", "a.tif")
    assert (read.mode, read.size) == ("RGB", (8, 8))
    if mode in ("L", "RGBA", "LA", "I;16"):
        assert (np.asarray(read) == grey[..., None]).all()


@pytest.mark.parametrize("root", ["street", "/"])
def test_absolute_paths(root: str) -> None:
    street(2)
    here = Path("street").resolve()
    Path("list.txt").write_text(f"{here}/images/p 0.jpg\t{here}/masks/p 0.png\n")
    source = Source(spec_of(load_config(str(config()))), root, ImageList("list.txt", "segmentation", masks=True))
    entry = source.ids[0]
    image = source.images(entry)[0]
    assert source.mask(entry, image.size).shape == image.size[::-1]


def test_masks_beyond_8_bits() -> None:
    street(1, values=(1000, 2000, 3000))
    config(label_map={1000: 0, 2000: 1, 3000: 2}, ignore_index=40000)
    Path("list.txt").write_text("images/p 0.jpg\tmasks/p 0.png\n")
    source = Source(spec_of(load_config("c.yaml")), "street", ImageList("list.txt", "segmentation", masks=True))
    assert np.unique(source.mask(source.ids[0], (40, 30))).tolist() == [0, 1, 2]


COLORS = {"#000000": None, "#0000ff": "sky", "#00ff00": "car", "#804000": "road", "#FFFFFF": "car"}
OF_CLASS = np.array([1, 3, 2])  # where sky, road and car are in it


def colored(values: np.ndarray) -> np.ndarray:
    """(H, W) indices of COLORS -> (H, W, 3)."""
    return np.array([list(bytes.fromhex(color[1:])) for color in COLORS], np.uint8)[values]


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "tif", "bmp"])
def test_colour_masks(kind: str) -> None:
    """Read exactly; 0xff is blue and not the 255 that is ignored."""
    config(label_map=COLORS)
    values = np.random.default_rng(0).integers(0, 5, (30, 40))
    image = Image.fromarray(colored(values))
    if kind == "RGBA":
        image.putalpha(Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40)))
    elif kind == "P":
        image = Image.fromarray((4 - values).astype(np.uint8))
        image.putpalette(colored(np.arange(4, -1, -1)).tobytes())
    name = f"m.{kind if kind.islower() else 'png'}"
    image.save(name)
    spec = spec_of(load_config("c.yaml"))
    assert np.array_equal(open_mask(spec, ".", name, (40, 30)), np.array([255, 0, 2, 1, 2])[values])
    assert spec.palette == ((0, 0, 255), (128, 64, 0), (0, 255, 0))
    found = inspect(Job(".", (name,), name), spec).values
    counts = np.bincount(values.ravel())
    assert by_class(found, spec) == {-1: counts[0], 0: counts[1], 1: counts[3], 2: counts[2] + counts[4]}


def test_from_colour_masks_to_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    street()
    config(label_map=COLORS)
    for path in Path("street/masks").iterdir():
        Image.fromarray(colored(OF_CLASS[np.array(Image.open(path))])).save(path)
    make("--stratify")
    splits.main(["check", "--config", "c.yaml"])
    assert "2 car   33.20%" in capsys.readouterr().out
    train()
    predict.main(["--config", "c.yaml", "--checkpoint", "out/latest.pth", "--out", "seen", "street/images"])
    for path in Path("seen").glob("*.png"):
        mask = Image.open(path)
        assert np.asarray(mask).max() < 3
        assert set(map(tuple, np.asarray(mask.convert("RGB")).reshape(-1, 3).tolist())) <= {(0, 0, 255), (128, 64, 0), (0, 255, 0)}


def test_an_unknown_colour_is_told_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    street()
    config(label_map=COLORS)
    for path in Path("street/masks").iterdir():
        pixels = colored(OF_CLASS[np.array(Image.open(path))])
        pixels[7, 11] = 1, 2, 3
        Image.fromarray(pixels).save(path)
    make()
    told = "found the colour #010203 at x = 11, y = 7, expected #000000 (ignored), #0000ff (sky), #00ff00 (car)"
    with pytest.raises(UserError, match="11 in all"):
        splits.main(["check", "--config", "c.yaml"])
    assert f"problem: street/masks/p 0.png: {told[:60]}" in capsys.readouterr().out
    with pytest.raises(UserError) as error:
        train()
    assert re.search(r"^\S+/street/masks/p \d.png: ", str(error.value))
    assert told[:50] in str(error.value)
    assert "#804000 (road)" in str(error.value)


@pytest.mark.parametrize("content", ["16 bits", "jpg"])
def test_colours_that_are_not_kept_exactly(content: str) -> None:
    config(label_map=COLORS)
    spec = spec_of(load_config("c.yaml"))
    pixels = colored(np.zeros((3, 4), int))
    if content == "jpg":
        Image.fromarray(pixels).save("m.png", "JPEG", quality=100)
    else:
        Path("m.png").write_bytes(png(pixels.reshape(3, 12).astype(int) * 257, 16, 2, channels=3))
    with pytest.raises(UserError, match=r"m\.png: found (JPEG, which does not keep|mode RGB of 16 bits, expected a colour mask of 8 bits)"):
        open_mask(spec, ".", "m.png", (4, 3))


def test_images_without_masks_are_unlabelled() -> None:
    street(8)
    for i in range(4):
        Path(f"street/masks/p {i}.png").unlink()
    config()
    splits.main(["make", "--config", "c.yaml", "--images", "street/images", "--masks", "street/masks", "--val", "1/4", "--count", "2"])
    train_list = Path("splits/street/train.txt").read_text()
    assert train_list.count("\tNone") == 4
    assert "None" not in Path("splits/street/2/labeled.txt").read_text() + Path("splits/street/val.txt").read_text()


def test_held_out_images_do_not_depend_on_the_labelled_share() -> None:
    street(12)
    config()
    make()
    half = set(Path("splits/street/1_2/labeled.txt").read_text().splitlines())
    splits.main(["make", "--config", "c.yaml", "--labeled", "1/3"])
    third = set(Path("splits/street/1_3/labeled.txt").read_text().splitlines())
    assert third < half
    assert not half & set(Path("splits/street/val.txt").read_text().splitlines())


def test_several_unlabelled_lists_each_with_its_root() -> None:
    street(4)
    os.rename("street", "a")
    street(7)
    os.rename("street", "b")
    Path("l.txt").write_text("images/p 0.jpg\tmasks/p 0.png\n")
    Path("ua.txt").write_text("images/p 1.jpg\tNone\nimages/p 2.jpg\tNone\n")
    Path("ub.txt").write_text("images/p 5.jpg\tNone\nimages/p 6.jpg\tNone\nimages/p 4.jpg\tNone\n")
    cfg = load_config(str(config(data_root="a", data_root_u=["a", "b"], unlabeled_id_path=["ua.txt", "ub.txt"], labeled_id_path="l.txt")))
    sources = training_sources(cfg, spec_of(cfg), semi=True)
    assert {name: len(source) for name, source in sources.items()} == {"x": 1, "u": 5}
    assert [(source.root, entry.image) for source, entry in (sources["u"][i] for i in range(5))] == [
        ("a", "images/p 1.jpg"), ("a", "images/p 2.jpg"), ("b", "images/p 5.jpg"), ("b", "images/p 6.jpg"), ("b", "images/p 4.jpg"),
    ]  # fmt: skip
    alone = ImageList("ua.txt", "segmentation", masks=False).sha256
    assert sources["u"].sha256 != alone
    assert sources["x"].sha256 == ImageList("l.txt", "segmentation", masks=True).sha256
    one_root = load_config(str(config(data_root="a", data_root_u="b", unlabeled_id_path=["ua.txt", "ub.txt"])))
    assert unlabeled_places(one_root) == [("ua.txt", "b"), ("ub.txt", "b")]
    assert unlabeled_places(load_config(str(config(unlabeled_id_path="ua.txt")))) == [("ua.txt", "street")]


def test_a_run_over_two_roots(capsys: pytest.CaptureFixture[str]) -> None:
    """Lists in the config or on the command line, where several follow the one option."""
    street(6, seed=100)  # other photographs: copies of validation images would be a problem
    os.rename("street", "b")
    street(8)
    config(data_root_u=["street", "b"])
    make()
    Path("ub.txt").write_text("".join(f"images/p {i}.jpg\tNone\n" for i in range(6)))
    lists = ["splits/street/1_2/unlabeled.txt", "ub.txt"]
    unimatch_v2.main(
        ["--config", "c.yaml", "--labeled-id-path", "splits/street/1_2/labeled.txt", "--unlabeled-id-path", *lists, "--save-path", "out"]
    )
    assert "Iters: 3," in Path("out/train.log").read_text()  # (3 + 6) // 2 steps
    config(data_root_u=["street", "b"], labeled_id_path="splits/street/1_2/labeled.txt", unlabeled_id_path=lists)
    capsys.readouterr()
    splits.main(["check", "--config", "c.yaml"])
    assert "ub.txt" in capsys.readouterr().out


def test_methods_of_a_sweep_see_as_many_images(capsys: pytest.CaptureFixture[str]) -> None:
    """A supervised epoch is as long as the unlabelled lists that it is given, unless the config says how long."""
    street(12)
    config()
    splits.main(["make", "--config", "c.yaml", "--images", "street/images", "--masks", "street/masks", "--val", "1/6", "--count", "2"])
    lists = ["--labeled-id-path", "splits/street/2/labeled.txt", "--unlabeled-id-path", "splits/street/2/unlabeled.txt"]
    steps = {}
    for name, settings in {"u": (), "ten": ("--set", "supervised_length=10", "--set", "batch_size=1")}.items():
        supervised.main(["--config", "c.yaml", *lists, "--save-path", name, *settings])
        steps[name] = Path(f"{name}/train.log").read_text().count("Iters:")
    assert steps == {"u": 2, "ten": 5}  # 8 and 10 images, in mini-batches of 4 and 2
    assert "'supervised_length': 8," in Path("u/train.log").read_text()
    supervised.main(["--config", "c.yaml", *lists[:2], "--save-path", "alone", "--set", "batch_size=1"])
    log = Path("alone/train.log").read_text()
    assert log.count("Iters:") == 1
    assert "supervised_length: found none, nor an unlabelled list, so that an epoch is one pass over the labelled list (1 step)" in log


def test_class_weights_from_the_labelled_masks() -> None:
    """`auto` is numbers in the log, by the pixels of the labelled list alone; every method takes every criterion."""
    street(12)
    config()
    make()
    entries = ImageList("splits/street/1_2/labeled.txt", "segmentation", masks=True)
    masks = [np.asarray(Image.open(f"street/{entries[i].mask}")) for i in range(len(entries))]
    pixels = sum(np.bincount(mask.ravel(), minlength=3) for mask in masks)
    weights = [round(1 / math.log(1.02 + n / pixels.sum()), 4) for n in pixels.tolist()]  # type: ignore[union-attr]
    lists = ["--labeled-id-path", "splits/street/1_2/labeled.txt", "--unlabeled-id-path", "splits/street/1_2/unlabeled.txt"]
    runs: dict[str, tuple[ModuleType, str]] = {
        "Focal": (unimatch_v2, "{gamma: 1, class_weights: auto}"),
        "Dice": (fixmatch, "{ce: 1, class_weights: auto}"),
        "Lovasz": (supervised, "{class_weights: auto}"),
    }
    for name, (method, kwargs) in runs.items():
        method.main(["--config", "c.yaml", *lists, "--save-path", name, "--set", f"criterion={{name: {name}, kwargs: {kwargs}}}"])
        log = Path(f"{name}/train.log").read_text()
        assert str(weights) in " ".join(log.split()), name
        assert math.isfinite(float(re.findall(r"Total loss: ([\d.]+)", log)[-1]))


def test_check_ends_quietly_when_nobody_reads_on() -> None:
    street(8)
    config()
    make()
    line = f"set -o pipefail; {sys.executable} -m dataset.splits check --config c.yaml | true"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")


def write(path: str, content: str | bytes) -> Callable[[], Any]:
    return lambda: Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def recolor(mode: str) -> Callable[[], Any]:
    def change() -> None:
        for path in Path("street/masks").iterdir():
            Image.open(path).convert(mode).save(path)

    return change


# what is wrong: (config values, what else is done after the lists were made, words of the line)
ROWS: dict[str, tuple[dict[str, Any], Callable[[], Any] | None, tuple[str, ...]]] = {
    "class twice": ({"classes": ["sky", "car", "sky"]}, None, ("classes", "'sky' twice", "rename")),
    "class twice but for spaces": ({"classes": ["big  car", "big car"]}, None, ("'big car' twice",)),
    "class twice in a file": ({"classes": "n.txt"}, write("n.txt", "a\nb\na\n"), ("n.txt", "'a' twice")),
    "class is a YAML word": ({"classes": [False, True]}, None, ("classes", "False (bool)", "quotes")),
    "class is a number": ({"classes": [1, 2]}, None, ("classes", "1 (int)")),
    "class without a name": ({"classes": ["a", " "]}, None, ("classes", "' '")),
    "one class": ({"classes": ["car"]}, None, ("classes", "found 1 names", "2 to 255")),
    "too many classes": ({"classes": [f"c{i}" for i in range(300)]}, None, ("classes", "found 300")),
    "classes as a mapping": ({"classes": {"sky": 0}}, None, ("classes", "dict", "expected list or str")),
    "no classes": ({"classes": ...}, None, ("dataset", "'street'", "pascal", "classes")),
    "empty classes": ({"classes": []}, None, ("classes", "found none")),
    "palette without classes": ({"classes": ..., "palette": [[0, 0, 0]]}, None, ("classes", "'street'", "add them")),
    "classes file missing": ({"classes": "no.txt"}, None, ("classes", "no such file: no.txt")),
    "classes file is empty": ({"classes": "n.txt"}, write("n.txt", "\n"), ("n.txt", "found 0 names")),
    "classes file is binary": ({"classes": "n.txt"}, write("n.txt", b"\xff\xfe\x00"), ("n.txt", "UTF-8")),
    "classes file is a folder": ({"classes": "street"}, None, ("classes", "no such file")),
    "palette too short": ({"palette": [[0, 0, 0]]}, None, ("palette", "found 1 colours", "expected 3")),
    "palette too long": ({"palette": [[0, 0, 0]] * 4}, None, ("palette", "found 4 colours", "expected 3")),
    "palette with a colour of two": ({"palette": [[0, 0, 0], [1, 1, 1], [9, 9]]}, None, ("palette", "[9, 9]", "class 2")),
    "palette beyond 255": ({"palette": [[0, 0, 0], [1, 1, 1], [0, 0, 256]]}, None, ("palette", "256", "0 to 255")),
    "palette with a name": ({"palette": ["red", "#00ff00", "#0000ff"]}, None, ("palette", "'red'", "#rrggbb")),
    "label_map to an unknown class": ({"label_map": {0: "sky", 1: "raod"}}, None, ("label_map", "'raod'", "value 1", "road")),
    "label_map to an id too large": ({"label_map": {0: 0, 1: 3}}, None, ("label_map", "found 3", "value 1")),
    "label_map to a switch": ({"label_map": {0: True}}, None, ("label_map", "True")),
    "label_map of numbers and colours": ({"label_map": {0: 0, "#00ff00": 1}}, None, ("label_map", "number 0", "'#00ff00'", "one kind")),
    "label_map with a colour twice": ({"label_map": {"#00FF00": 0, "#00ff00": 1}}, None, ("label_map", "'#00ff00' a second time")),
    "ignore_index beside colours": (
        {"label_map": {"#000000": 0, "#00ff00": 1, "#0000ff": 2}, "ignore_index": 0}, None, ("ignore_index", "found 0", "null"),
    ),
    "masks of ids for colours": ({"label_map": COLORS}, None, ("masks/p ", "#010101", "at x = ", "label_map")),
    "label_map misses a class": ({"label_map": {0: "sky", 1: "road"}}, None, ("label_map", "'car'", "add one")),
    "label_map of a word": ({"label_map": {"white": 0}}, None, ("label_map", "'white'", "number from 0")),
    "label_map of a negative value": ({"label_map": {-1: 0}}, None, ("label_map", "-1")),
    "label_map as a list": ({"label_map": [0, 1]}, None, ("label_map", "expected dict")),
    "ignore_index is a class": ({"ignore_index": 1}, None, ("ignore_index", "found 1", "'road'")),
    "ignore_index is mapped": (
        {"label_map": {0: 0, 1: 1, 9: 2}, "ignore_index": 9}, None, ("ignore_index", "found 9", "'car'"),
    ),
    "ignore_index negative": ({"ignore_index": -1}, None, ("ignore_index", "found -1", "0 or more")),
    "ignore_index of the loss": (
        {"criterion": {"name": "CELoss", "kwargs": {"ignore_index": 0}}}, None, ("criterion.kwargs.ignore_index", "found 0", "255"),
    ),
    "nclass of others": ({"nclass": 4}, None, ("nclass", "found 4", "street has 3")),
    "built-in with classes": ({"dataset": "pascal"}, None, ("classes", "pascal", "built in")),
    "built-in with a label_map": ({"dataset": "pascal", "classes": ..., "label_map": {0: 0}}, None, ("label_map", "built in")),
    "name with a slash": ({"dataset": "my/street"}, None, ("dataset", "'my/street'", "folder")),
    "name of the folder above": ({"dataset": ".."}, None, ("dataset", "'..'")),
    "task unknown": ({"task": "depth"}, None, ("task", "'depth'", "segmentation, change")),
    "three classes of change": ({"task": "change"}, None, ("classes", "found 3", "expected two")),
    "eval_mode unknown": ({"eval_mode": "tiles"}, None, ("eval_mode", "'tiles'")),
    "validation list missing": ({"val_id_path": "v.txt"}, None, ("v.txt", "no such list")),
    "data root missing": ({"data_root": "elsewhere"}, None, ("elsewhere", "no such file", "data_root")),
    "data root is a number": ({"data_root": 7}, None, ("data_root", "7 (int)")),
    "two roots for one list": ({"data_root_u": ["a", "b"]}, None, ("data_root_u", "found 2 folders for 1")),
    "root that is no path": ({"data_root_u": [1]}, None, ("data_root_u", "found 1 (int)")),
    "no root in the list": ({"data_root_u": []}, None, ("data_root_u", "empty list")),
    "supervised_length is a word": ({"supervised_length": "long"}, None, ("supervised_length", "'long'")),
    "masks of 0 and 128": ({}, lambda: street(8, (0, 128)), ("masks/p ", "found label", "label_map")),
    "black and white masks": (
        {"classes": ["dry", "wet"]}, lambda: street(8, (0, 255)),
        ("1_2/labeled.txt", "found no class but dry in 3 masks", "expected two", "label_map: {0: dry, 255: wet}"),
    ),
    "black and white masks, 255 not ignored": (
        {"classes": ["dry", "wet"], "ignore_index": 9}, lambda: street(8, (0, 255)), ("found label 255", "label_map: {0: dry, 255: wet}"),
    ),
    "mask value beyond the classes": ({"classes": ["a", "b"]}, None, ("masks/p ", "found label 2", "0..1 or 255 (ignored)", "label_map")),
    "mask value not in label_map": (
        {"label_map": {0: 0, 1: 1, 7: 2}}, None, ("masks/p ", "found label 2", "0 (sky), 1 (road), 7 (car) or 255 (ignored)"),
    ),
    "mask in colour": ({}, recolor("RGB"), ("masks/p ", "mode RGB", "one channel")),
    "mask in grey and alpha": ({}, recolor("LA"), ("masks/p ", "mode LA")),
    "data root too deep": ({"data_root": "street/masks"}, None, ("street/masks/images/p ", "no such file", "data_root")),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_one_clear_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    values, then, words = ROWS[name]
    street()
    config()
    make()
    config(**values)
    if then is not None:
        then()
    with pytest.raises(SystemExit) as end:
        run(lambda _: train(), [])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


def test_a_problem_that_check_explains(capsys: pytest.CaptureFixture[str]) -> None:
    street(values=(0, 255))
    config(classes=["ground", "water"], ignore_index=9)
    make()
    with pytest.raises(UserError, match="check: found problems in 3 of 4 lists of street, 11 in all"):
        splits.main(["check", "--config", "c.yaml"])
    out = capsys.readouterr().out
    assert "found the values 255, expected 0..1 or 9 (ignored)" in out
    assert "label_map: {0: ground, 255: water}" in out


@pytest.mark.parametrize(
    ("classes", "values", "problem", "hint"),
    [
        (["ground", "water"], (0, 255), "found no class but ground in 3 masks", "label_map: {0: ground, 255: water}"),
        (["ground", "water"], (1, 255), "found no class but water in 3 masks", "label_map: {1: ground, 255: water}"),
        (["ground", "water"], (0,), "found no class but ground in 3 masks (0.0% of the pixels are ignored)", ""),
        (["ground", "water", "rail", "snow"], (0, 2), "", "1_2/labeled.txt: no mask has water, snow, which will not be learned"),
    ],
)
def test_check_sees_classes_that_are_not_labelled(
    classes: list[str], values: tuple[int, ...], problem: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Black and white masks are legal, because 255 is: only counting the classes shows that nothing can be learned from them."""
    street(values=values)
    config(classes=classes)
    make()
    if problem:
        with pytest.raises(UserError, match=r"check: found problems in 2 of .*, 2 in all"):  # train.txt and 1_2/labeled.txt
            splits.main(["check", "--config", "c.yaml"])
    else:
        splits.main(["check", "--config", "c.yaml"])
    out = capsys.readouterr().out
    assert problem in out
    assert hint in out
    assert ("hint:" in out) == bool(hint)


def test_make_names_every_list_of_earlier_images() -> None:
    """At once, and writes none of the new ones."""
    street()
    config()
    make()
    lists = [str(path) for path in sorted(Path("splits").rglob("*.txt"))]
    before = [Path(path).read_text() for path in lists]
    street(16)
    with pytest.raises(UserError, match=r"with other content, expected .*; delete these lists, and the runs .* --name") as found:
        make()
    assert [path in str(found.value) for path in lists] == [True] * 4
    assert [Path(path).read_text() for path in lists] == before


def test_make_and_check_say_that_there_is_no_validation_list(capsys: pytest.CaptureFixture[str]) -> None:
    street()
    config()
    words = ["make", "--config", "c.yaml", "--images", "street/images", "--masks", "street/masks", "--labeled", "1/2"]
    splits.main(words)
    told = f"splits/street/val.txt: no such list in {Path.cwd()}, expected one to validate on; hold images out with"
    assert f"still to do: {told}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"check: found problems in 1 of .*, 1 in all"):
        splits.main(["check", "--config", "c.yaml"])
    assert f"problem: {told}" in capsys.readouterr().out
    config(val_id_path="splits/street/1_2/labeled.txt")
    splits.main(words)
    assert "to do" not in capsys.readouterr().out


def test_check_knows_the_data_root_as_training_does(capsys: pytest.CaptureFixture[str]) -> None:
    street()
    config()
    make()
    for path in Path("splits/street").rglob("*labeled.txt"):
        path.write_text(path.read_text().replace("images/", "../street/../images/"))
    with pytest.raises(UserError, match="problems"):
        splits.main(["check", "--config", "c.yaml"])
    assert "leads outside the data root" in capsys.readouterr().out


# commands of `python -m dataset.splits` that cannot be: (words of the command, words of the line)
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "no data set": ("check", ("check", "no data set", "--config")),
    "no data set to make": ("make --count 1", ("make", "no data set")),
    "another data set": ("make other --config c.yaml --count 1", ("'other'", "'street'")),
    "config missing": ("check --config no.yaml", ("no.yaml", "no such config file")),
    "pair missing": ("check --config c.yaml 1_9", ("splits/street/1_9", "no such pair")),
    "share to hold out": ("make --config c.yaml --images street/images --masks street/masks --val half", ("--val", "'half'", "1/8")),
    "all held out": ("make --config c.yaml --images street/images --masks street/masks --val 1/1", ("--val", "found 8 of 8")),
    "none held out": ("make --config c.yaml --images street/images --masks street/masks --val 1/99", ("--val", "found 0 of 8")),
    "held out without masks": ("make --config c.yaml --images street/images --val 1/4", ("--val", "--masks")),
    "images elsewhere": (
        "make --config c.yaml --images street/images --masks street/masks --data-root other",
        ("--data-root", "not below"),
    ),
    "classes of an unknown data set": ("check street", ("'street'", "--config FILE")),
    "pairs from folders": ("make --config p.yaml --images street/images", ("--images", "pairs", "ls street/A")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_cannot_be(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = COMMANDS[name]
    street()
    config(classes=..., task="change").rename("p.yaml")
    config()
    with pytest.raises(SystemExit) as end:
        run(splits.main, words.split())
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count("\n") == 1
    for word in expected:
        assert word in error
    assert not Path("splits").exists()
