"""Samples of the data sets against the slow second writing in oracle.py, with the same drawn parameters (METHOD.md 2.2 and 2.3)."""

import os
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset import semi
from dataset.batch import Batch, RawBatch, Reads, box_map, make_batch, normalize
from dataset.lists import ImageList
from dataset.opencv import resize_image, with_short_side
from dataset.semi import TrainSet, ValSet, collate
from dataset.source import Source, Sources, open_image
from dataset.spec import DatasetSpec, get_spec
from dataset.transform import Geometry, crop_image, crop_parts, cut_image, nearest_index
from model.encoder import Encoder
from tests.dataset import oracle

CROP = 98
# smaller and larger than the crop, both orientations, odd sizes, extreme shapes
SIZES = [(40, 30), (30, 40), (97, 99), (133, 61), (61, 133), (211, 150), (150, 211), (301, 203), (480, 360), (15, 170), (1, 1)]
Drawn = dict[str, list[Any]]


def photographs() -> Iterator[Image.Image]:
    """Images of all SIZES, and CamVid photographs where they are."""
    for size in SIZES:
        yield oracle.photograph(*size)
    shared = os.environ.get("UNIMATCH_SHARED")
    for path in sorted(Path(shared or "/nonexistent").glob("camvid/images/val/*"))[:6]:
        yield Image.open(path).convert("RGB")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of image and mask, and two lists; also laid out as change detection pairs."""
    root = tmp_path_factory.mktemp("data root")
    for folder in ("A", "B", "label"):
        (root / folder).mkdir()
    lines, names = [], []
    for i, image in enumerate(photographs()):
        image.save(root / f"{i}.png")
        mask = np.random.default_rng(i).integers(0, 22, image.size[::-1]).astype(np.uint8)
        Image.fromarray(np.where(mask == 21, 255, mask).astype(np.uint8)).save(root / f"{i}_mask.png")
        lines.append(f"{i}.png {i}_mask.png")
        image.save(root / "A" / f"{i}.png")
        oracle.photograph(*image.size, seed=i + 1).save(root / "B" / f"{i}.png")
        Image.fromarray(((mask > 10) * 255).astype(np.uint8)).save(root / "label" / f"{i}.png")
        names.append(f"{i}.png")
    (root / "list.txt").write_text("\n".join(lines))
    (root / "pairs.txt").write_text("\n".join(names))
    return root


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What the data set draws, in order, while it makes samples."""
    record: Drawn = {"draw_geometry": [], "draw_photometry": [], "draw_box": []}

    def keep(name: str, draw: Callable[..., Any]) -> Callable[..., Any]:
        def drawing(*args: Any) -> Any:
            record[name].append(draw(*args))
            return record[name][-1]

        return drawing

    for name in record:
        monkeypatch.setattr(semi, name, keep(name, getattr(semi, name)))
    return record


def data_set(root: Path, spec: DatasetSpec, on_device: bool = False, reads: Reads = Reads()) -> tuple[TrainSet, int]:
    path = str(root / ("pairs.txt" if spec.task == "change" else "list.txt"))
    sources = {s: Sources([Source(spec, str(root), ImageList(path, spec.task, masks=s == "x"))]) for s in ("x", "u")}
    return TrainSet(sources, CROP, 0, reads, on_device=on_device), len(sources["x"])


def collated(samples: list[Any]) -> RawBatch:
    raw = collate(samples)
    assert isinstance(raw, RawBatch), raw
    return raw


def hwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("epoch", range(4))
def test_labelled_samples(root: Path, drawn: Drawn, epoch: int) -> None:
    data, length = data_set(root, get_spec("pascal"))
    for i in range(length):
        sample: Any = data[(("x", epoch, i, i),)]
        place = drawn["draw_geometry"].pop()
        image, mask = Image.open(root / f"{i}.png"), np.asarray(Image.open(root / f"{i}_mask.png"))
        assert np.array_equal(sample["mask_x"].numpy(), oracle.weak_mask(mask, place, CROP, 255))
        assert np.array_equal(hwc(sample["img_x"]), oracle.weak_image(image, place, CROP))


@pytest.mark.parametrize("epoch", range(3))
def test_unlabelled_samples(root: Path, drawn: Drawn, epoch: int) -> None:
    """The weak crop against the whole-image oracle; the strong views, from that same crop, to the last bit."""
    data, length = data_set(root, get_spec("pascal"))
    for i in range(length):
        sample: Any = data[(("u", epoch, i, i),)]
        place, (view1, view2), boxes = drawn["draw_geometry"].pop(), drawn["draw_photometry"][-2:], drawn["draw_box"][-2:]
        image = Image.open(root / f"{i}.png")
        assert np.array_equal(sample["ignore_u"].numpy(), oracle.ignore(image.size, place, CROP))
        assert np.array_equal(hwc(sample["img_u_w"]), oracle.weak_image(image, place, CROP))
        crop = Image.fromarray(hwc(sample["img_u_w"]))
        assert np.array_equal(hwc(sample["img_u_s1"]), oracle.strong(crop, view1))
        assert np.array_equal(hwc(sample["img_u_s2"]), oracle.strong(crop, view2))
        assert [tuple(sample[f"box{v}"].tolist()) for v in (1, 2)] == boxes
        assert view1 != view2


def test_scale_ranges_of_the_data_sets() -> None:
    assert {name: get_spec(name).scale for name in ("pascal", "cityscapes", "ade20k", "coco")} == dict.fromkeys(
        ("pascal", "cityscapes", "ade20k", "coco"), (0.5, 2.0)
    )
    for name in ("levir", "whu"):
        assert (get_spec(name).scale, get_spec(name).grey) == ((0.8, 1.2), 0.0)


@settings(max_examples=300, deadline=None)
@given(source=st.integers(1, 2048), target=st.integers(1, 4096))
def test_nearest_neighbour_takes_the_pixels_that_pil_takes(source: int, target: int) -> None:
    line = Image.fromarray(np.arange(source, dtype=np.int32)[None], mode="I")
    assert np.array_equal(np.asarray(line.resize((target, 1), Image.Resampling.NEAREST))[0], nearest_index(source, target))


def make_modes(r: np.random.Generator) -> dict[str, tuple[Image.Image, np.ndarray]]:
    """{file name: (image as saved, the RGB it stands for)}."""
    rgb = r.integers(0, 256, (31, 45, 3), dtype=np.uint8)
    grey = rgb[..., 0]
    palette = Image.fromarray(grey, mode="P")
    colours = r.integers(0, 256, (256, 3), dtype=np.uint8)
    palette.putpalette(colours.tobytes())
    wide = r.integers(0, 65536, (31, 45)).astype(np.uint16)
    cmyk = r.integers(0, 256, (31, 45, 4), dtype=np.uint8)
    ink = (255 - cmyk[..., :3].astype(float)) * (255 - cmyk[..., 3:].astype(float)) / 255
    alpha = np.dstack((rgb, grey))
    return {
        "rgb.png": (Image.fromarray(rgb), rgb),
        "grey.png": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "palette.png": (palette, colours[grey]),
        "rgba.png": (Image.fromarray(alpha, mode="RGBA"), rgb),
        "wide.png": (Image.fromarray(wide), np.dstack([wide >> 8] * 3)),
        "cmyk.tif": (Image.fromarray(cmyk, mode="CMYK"), ink),
        "bits.png": (Image.fromarray(grey > 127), np.dstack([(grey > 127) * 255] * 3)),
        "grey_alpha.png": (Image.fromarray(alpha[..., 2:], mode="LA"), np.dstack([rgb[..., 2]] * 3)),
    }


@pytest.mark.parametrize("name", sorted(make_modes(np.random.default_rng(0))))
def test_images_of_every_mode(tmp_path: Path, name: str) -> None:
    image, expected = make_modes(np.random.default_rng(0))[name]
    image.save(tmp_path / name)
    found = np.asarray(open_image(str(tmp_path), name)).astype(float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (1 if name.startswith("cmyk") else 0)


@pytest.mark.parametrize(("channels", "dtype"), [(3, torch.uint8), (6, torch.uint8)])
def test_normalisation(channels: int, dtype: torch.dtype) -> None:
    img = torch.randint(0, 256, (2, channels, 5, 7), dtype=dtype)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for c in range(channels):
        expected = (img[:, c].double() / 255 - mean[c % 3]) / std[c % 3]
        assert (normalize(img, Encoder())[:, c] - expected).abs().max() < 1e-6


def test_a_mini_batch_has_what_the_step_reads(root: Path) -> None:
    data, _ = data_set(root, get_spec("pascal"))
    samples: list[Any] = [data[(("x", 0, i, i), ("u", 0, i + 1, i + 1))] for i in range(3)]
    drop = torch.ones(6, 8)
    batch = make_batch(collated([dict(s) for s in samples]), torch.device("cpu"), Encoder(), drop)
    assert batch.mask_x.dtype == torch.long
    assert batch.drop is drop
    assert batch.name_u == ["1.png", "2.png", "3.png"]
    for i, sample in enumerate(samples):
        for name in ("img_x", "img_u_w", "img_u_s1", "img_u_s2"):
            assert torch.equal(getattr(batch, name)[i], normalize(sample[name], Encoder()))
        assert torch.equal(batch.mask_x[i], sample["mask_x"].long())
        assert torch.equal(batch.ignore_u[i], sample["ignore_u"])
        for name in ("box1", "box2"):
            x, y, w, h = sample[name].tolist()
            expected = torch.zeros(CROP, CROP, dtype=torch.bool)
            expected[y : y + h, x : x + w] = True
            assert torch.equal(getattr(batch, name)[i], expected)


V1, ALLSPARK = Reads(second_draw=True), Reads(strong_labeled=True, strong_views=0)  # what UniMatch V1 and AllSpark read


def equal(a: Batch, b: Batch) -> None:
    for field in fields(Batch):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, Batch):
            equal(left, right)
        else:
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, field.name


@pytest.mark.parametrize(
    ("name", "reads"),
    [("pascal", Reads()), ("levir", Reads()), ("pascal", Reads(strong_views=1)), ("pascal", V1), ("levir", V1), ("levir", ALLSPARK)],
)
def test_views_of_the_device_are_those_of_the_worker(root: Path, name: str, reads: Reads) -> None:
    """The same draws, the same mini-batch, of images of all sizes; on the way, only what the images are made from."""
    length = data_set(root, get_spec(name))[1]
    streams = ("x", "u", "second") if reads.second_draw else ("x", "u")
    keys = [tuple((stream, 1, i, i) for stream in streams) for i in range(length)]
    sets = [data_set(root, get_spec(name), on_device, reads)[0] for on_device in (False, True)]
    raws = [collated([data[key] for key in keys]) for data in sets]
    made, unmade = ({name for name, value in vars(raw).items() if isinstance(value, torch.Tensor) and len(value)} for raw in raws)
    assert made - unmade == {"img_x", "img_u_w", *(f"img_u_s{view}" for view in range(1, reads.strong_views + 1))}
    photometry = ({"photometry"} if reads.strong_views else set()) | ({"photometry_x"} if reads.strong_labeled else set())
    assert unmade - made == {"part_x", "taps_x", "part_u", "taps_u"} | photometry
    equal(*(make_batch(raw, torch.device("cpu"), Encoder()) for raw in raws))


def test_in_a_frame_the_worker_makes_the_crop_and_the_device_the_views(root: Path) -> None:
    spec = replace(get_spec("pascal"), frame=(2 * CROP, CROP))
    sets = [data_set(root, spec, on_device, ALLSPARK)[0] for on_device in (False, True)]
    keys = [tuple((stream, 1, i, i) for stream in ("x", "u")) for i in range(len(sets[0].sources["x"]))]
    raws = [collated([data[key] for key in keys]) for data in sets]
    assert all(len(raw.img_u_w) and not len(raw.part_u) for raw in raws)
    assert len(raws[1].photometry_x) > 0
    equal(*(make_batch(raw, torch.device("cpu"), Encoder()) for raw in raws))


def test_images_to_be_predicted_get_the_frames_short_side(root: Path) -> None:
    """Their masks keep the size that they are scored at."""
    spec = replace(get_spec("pascal"), frame=(128, 40))
    ids = ImageList(str(root / "list.txt"), "segmentation", masks=True)
    plain, framed = ValSet(Source(get_spec("pascal"), str(root), ids)), ValSet(Source(spec, str(root), ids))
    for i in range(6):
        before: Any = plain[i]
        after: Any = framed[i]
        assert min(after["img_x"].shape[1:]) == 40
        assert torch.equal(after["mask_x"], before["mask_x"])
        height, width = before["img_x"].shape[1:]
        expected = resize_image(hwc(before["img_x"]), *with_short_side(width, height, 40))
        assert np.array_equal(hwc(after["img_x"]), expected)


def test_a_second_draw_has_the_same_photographs_and_draws_of_its_own(root: Path) -> None:
    data, length = data_set(root, get_spec("pascal"), reads=V1)
    batch = make_batch(
        collated([data[tuple((s, 0, i, i) for s in ("x", "u", "second"))] for i in range(length)]), torch.device("cpu"), Encoder()
    )
    assert batch.second is not None
    assert batch.second.name_u == batch.name_u
    assert not len(batch.second.img_x)
    assert batch.second.img_u_s2.shape == batch.img_u_s2.shape
    assert not torch.equal(batch.second.img_u_w, batch.img_u_w)
    without, _ = data_set(root, get_spec("pascal"))
    first: Any = [one[(("u", 0, 3, 3),)] for one in (without, data)]
    assert torch.equal(first[0]["img_u_s2"], first[1]["img_u_s2"]), "the first draw is as without"


def test_a_labelled_image_as_a_strong_view(root: Path, drawn: Drawn) -> None:
    strong, weak = (data_set(root, get_spec("pascal"), reads=reads)[0] for reads in (ALLSPARK, Reads()))
    for i in range(6):
        found: Any = strong[(("x", 0, i, i),)]
        plain: Any = weak[(("x", 0, i, i),)]
        assert torch.equal(found["mask_x"], plain["mask_x"])
        expected = oracle.strong(Image.fromarray(hwc(plain["img_x"])), drawn["draw_photometry"].pop())
        assert np.array_equal(hwc(found["img_x"]), expected)


def test_every_tensor_of_a_mini_batch_is_pinned(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the DataLoader's pin_memory comes to: it calls the method of this name."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    data, _ = data_set(root, get_spec("pascal"), on_device=True)
    raw = collated([data[("x", 0, i, i), ("u", 0, i, i)] for i in range(2)])
    for name, value in vars(raw.pin_memory()).items():
        if isinstance(value, torch.Tensor):
            assert any(value is one for one in pinned), name
            assert torch.equal(value, getattr(raw, name)), name
        else:
            assert value == getattr(raw, name)


def test_no_box_is_an_empty_map() -> None:
    assert not box_map(torch.tensor([[0, 0, 0, 0]]), 8).any()


@pytest.mark.parametrize("source", [(301, 203), (97, 99), (150, 211), (60, 200)])
def test_crops_at_every_border(source: tuple[int, int]) -> None:
    """Crops flush with a border, at simple ratios, where many values lie half-way between two 8-bit ones; upright images too."""
    image = oracle.photograph(*source)
    for width, height in ((source[0] * n // d, source[1] * n // d) for n, d in ((1, 1), (10, 9), (9, 10), (1, 2), (2, 1), (3, 2), (2, 3))):
        for x, y in ((0, 0), (max(0, width - CROP), max(0, height - CROP)), (max(0, width - CROP) // 2, 0)):
            place = Geometry(width, height, x, y, flip=y > 0)
            expected = oracle.weak_image(image, place, CROP)
            assert np.array_equal(np.asarray(crop_image(image, place, CROP)), expected)
            part, taps = cut_image([image], place, CROP)
            assert np.array_equal(hwc(crop_parts(part[None], taps[None])[0]), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["pascal", "levir"])
def test_a_gpu_makes_the_mini_batches_of_a_cpu(root: Path, name: str) -> None:
    """The weak crops to the bit; normalised, where a GPU multiplies with 1 / 255, to a small part of an 8-bit level, which is 0.017."""
    data, length = data_set(root, get_spec(name), on_device=True)
    raw = collated([data[("x", 2, i, i), ("u", 2, i, i)] for i in range(length)])
    for stream in ("x", "u"):
        part, taps = getattr(raw, f"part_{stream}"), getattr(raw, f"taps_{stream}")
        assert torch.equal(crop_parts(part.cuda(), taps.cuda()).cpu(), crop_parts(part, taps))
    made, expected = make_batch(raw.pin_memory(), torch.device("cuda"), Encoder()), make_batch(raw, torch.device("cpu"), Encoder())
    for field in fields(Batch):
        a, b = getattr(made, field.name), getattr(expected, field.name)
        if field.name.startswith("name"):
            assert a == b
        else:
            torch.testing.assert_close(a.cpu(), b, atol=1e-5, rtol=0)
