"""Pairs of two dates: geometry and strong views recomputed by oracle.py, and what is wrong with a pair that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.batch import Reads, normalize
from dataset.lists import ImageList
from dataset.photometry import draw_photometry
from dataset.semi import TrainSet
from dataset.source import Source, Sources
from dataset.spec import get_spec
from dataset.transform import crop_mask, draw_box, draw_geometry
from model.encoder import Encoder
from tests.dataset import oracle
from tests.pairs import write_pair
from util.error import UserError

CROP = 56
SEED = 3


def train_set(root: Path, names: list[str], dataset: str = "levir") -> TrainSet:
    (root / "list.txt").write_text("".join(f"{name}\n" for name in names))
    source = Source(get_spec(dataset), str(root), ImageList(str(root / "list.txt"), get_spec(dataset).task, masks=True))
    return TrainSet({"x": Sources([source]), "u": Sources([source])}, CROP, SEED, Reads())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> TrainSet:
    """Three pairs: larger than the crop, of another shape, and smaller (so that every scale pads)."""
    root = tmp_path_factory.mktemp("pairs")
    for i, (width, height) in enumerate(((90, 80), (61, 120), (40, 36))):
        write_pair(root, f"{i}.png", width, height, seed=i)
    return train_set(root, ["0.png", "1.png", "2.png"])


def sample(data: TrainSet, stream: str, index: int, epoch: int = 0) -> dict:
    found = data[((stream, epoch, 7, index),)]
    assert isinstance(found, dict), found
    return found


def rng(stream: int, epoch: int = 0) -> np.random.Generator:
    return np.random.default_rng((SEED, stream, epoch, 7))


def read(data: TrainSet, folder: str, index: int) -> Image.Image:
    return Image.open(Path(data.sources["x"].parts[0].root) / folder / f"{index}.png")


def dates(img: torch.Tensor) -> list[np.ndarray]:
    """(6, S, S) -> date A and date B, (S, S, 3) each."""
    assert img.shape == (6, CROP, CROP)
    assert img.dtype == torch.uint8
    return [np.ascontiguousarray(img[k : k + 3].permute(1, 2, 0).numpy()) for k in (0, 3)]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("epoch", range(4))
def test_one_geometry_for_both_dates_and_the_mask(pairs: TrainSet, index: int, epoch: int) -> None:
    found = sample(pairs, "x", index, epoch)
    a, b, label = (read(pairs, folder, index) for folder in ("A", "B", "label"))
    geometry = draw_geometry(rng(0, epoch), *a.size, CROP, (0.8, 1.2))
    long = max(a.size)
    assert int(0.8 * long) <= max(geometry.width, geometry.height) <= int(1.2 * long)
    for image, crop in zip((a, b), dates(found["img_x"]), strict=True):
        assert np.array_equal(oracle.weak_image(image, geometry, CROP), crop)
    mask = oracle.weak_mask(np.asarray(label) // 255, geometry, CROP, 255)
    assert np.array_equal(found["mask_x"].numpy(), mask)
    assert set(np.unique(mask)) <= {0, 1, 255}


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("epoch", range(8))
def test_strong_views_jitter_and_blur_each_date_by_itself(pairs: TrainSet, index: int, epoch: int) -> None:
    found = sample(pairs, "u", index, epoch)
    draw = rng(1, epoch)
    size = read(pairs, "A", index).size
    geometry = draw_geometry(draw, *size, CROP, (0.8, 1.2))
    assert np.array_equal(found["ignore_u"].numpy(), crop_mask(np.zeros(size[::-1], np.uint8), geometry, CROP, 255))
    weak = dates(found["img_u_w"])
    for view in (1, 2):
        parameters = [draw_photometry(draw, 0.0) for _ in range(2)]
        assert parameters[0] != parameters[1]
        assert tuple(found[f"box{view}"].tolist()) == draw_box(draw, CROP), "one box for both dates"
        for crop, strong, view_parameters in zip(weak, dates(found[f"img_u_s{view}"]), parameters, strict=True):
            assert np.array_equal(strong, oracle.strong(Image.fromarray(crop), view_parameters))


def test_strong_views_are_never_grey_and_differ_between_equal_dates(tmp_path: Path) -> None:
    write_pair(tmp_path, "0.png", 80, 80, seed=0)
    (tmp_path / "B/0.png").write_bytes((tmp_path / "A/0.png").read_bytes())
    data, differ = train_set(tmp_path, ["0.png"]), 0
    for epoch in range(60):
        found = sample(data, "u", 0, epoch)
        weak_a, weak_b = dates(found["img_u_w"])
        assert np.array_equal(weak_a, weak_b)
        for view in (1, 2):
            a, b = dates(found[f"img_u_s{view}"])
            differ += not np.array_equal(a, b)
            for date in (a, b):
                assert (date[..., 0] != date[..., 2]).any(), "greyscale"
    assert differ > 100, "all but the few (0.2 x 0.5) ^ 2 that neither jitter nor blur"


def test_unlabelled_pairs_need_no_label_file(tmp_path: Path) -> None:
    write_pair(tmp_path, "0.png", 80, 80, seed=0, label=False)
    assert not (tmp_path / "label").exists()
    assert sample(train_set(tmp_path, ["0.png"]), "u", 0)["name_u"] == "0.png"


def test_a_name_may_have_spaces(tmp_path: Path) -> None:
    names = ["old town 1.png", "v1.2 harbour.png", "x.y/0 1.png"]
    for i, name in enumerate(names):
        for folder in ("A", "B", "label"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_pair(tmp_path, name, 80, 80, seed=i)
    data = train_set(tmp_path, names)
    assert [sample(data, "x", i)["name_x"] for i in range(3)] == names


def test_both_dates_are_normalised_alike() -> None:
    img = torch.randint(0, 256, (2, 6, 4, 5), dtype=torch.uint8)
    assert torch.equal(normalize(img, Encoder()), torch.cat((normalize(img[:, :3], Encoder()), normalize(img[:, 3:], Encoder())), dim=1))


def constant(value: int, mode: str = "L") -> Image.Image:
    return Image.fromarray(np.full((80, 80), value, np.uint8)).convert(mode)


BROKEN = {
    "B missing": ("B", None, ("B/0.png", "no such file", "data_root")),
    "A missing": ("A", None, ("A/0.png", "no such file")),
    "label missing": ("label", None, ("label/0.png", "no such file")),
    "B of another size": ("B", constant(9).resize((80, 70)), ("B/0.png", "(80, 70)", "(80, 80)", "as A/0.png")),
    "label of another size": ("label", constant(0).resize((70, 80)), ("label/0.png", "(70, 80)", "(80, 80)", "same size")),
    "label of 0 and 1": (
        "label",
        constant(1),
        ("label/0.png", "label 1", "0 (unchanged), 255 (changed)", "multiply the mask by 255"),
    ),
    "label smoothed": ("label", constant(128), ("label/0.png", "found label 128", "0 (unchanged), 255 (changed)", "PNG")),
    "label in colour": ("label", constant(255, "RGB"), ("label/0.png", "RGB", "one channel")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_pair_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    folder, image, words = BROKEN[name]
    write_pair(tmp_path, "0.png", 80, 80, seed=0)
    path = tmp_path / folder / "0.png"
    path.unlink() if image is None else image.save(path)
    found = train_set(tmp_path, ["0.png"])[(("x", 0, 0, 0),)]
    assert isinstance(found, UserError)
    for word in words:
        assert word in str(found)


def test_one_bit_labels_are_read(tmp_path: Path) -> None:
    write_pair(tmp_path, "0.png", 80, 80, seed=0)
    Image.open(tmp_path / "label/0.png").convert("1").save(tmp_path / "label/0.png")
    assert set(sample(train_set(tmp_path, ["0.png"]), "x", 0)["mask_x"].unique().tolist()) >= {0, 1}


def test_lists_of_the_other_task_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for line in ("images/0.jpg masks/0.png", "images/0.JPG None", "old town.jpg\tmasks/old town.png"):
        path.write_text(f"{line}\n")
        with pytest.raises(UserError, match=r"list.txt:1: found .*one file name.*A/, B/ and label/.*image-mask pairs"):
            ImageList(str(path), "change", masks=False)
    path.write_text("train_1_1.png\n")
    with pytest.raises(UserError, match=r"list.txt:1: .*no mask.*change detection"):
        ImageList(str(path), "segmentation", masks=True)
