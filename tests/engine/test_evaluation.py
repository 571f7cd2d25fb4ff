"""Evaluation against brute force: sizes, windows, counts, and any number of processes (METHOD.md 4)."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dataset.lists import ImageList
from dataset.source import Source
from dataset.spec import get_spec
from engine import metric
from engine.evaluation import Prediction, evaluate, nearest_multiple, predict_sliding, predict_whole, validation_loader, window_starts
from model.encoder import Encoder
from model.segmenter import Segmenter
from tests.conftest import ROOT, command
from tests.model.oracle import resize
from util.config import Config
from util.dist import World, processes


def test_sides_round_to_the_nearest_multiple_half_up() -> None:
    for multiple in range(14, 841, 14):
        for side in range(max(1, multiple - 60), multiple + 61):
            assert nearest_multiple(side, 14) == max(14, math.floor(side / 14 + 0.5) * 14), side
    assert [nearest_multiple(side, 14) for side in (1, 7, 20, 21, 256, 518, 524, 525)] == [14, 14, 14, 28, 252, 518, 518, 532]


class Patches(Segmenter):
    """Stands in for a network: takes only multiples of 14, and its answer depends on the place inside what it sees."""

    def __init__(self, nclass: int) -> None:
        super().__init__(Encoder(), nn.Identity(), "head")
        self.backbone.multiple = 14
        self.nclass = nclass
        self.seen: list[tuple[int, int]] = []

    def forward(self, img: Tensor, *_: Any, **__: Any) -> Tensor:
        height, width = img.shape[-2:]
        assert height % 14 == width % 14 == 0
        self.seen.append((height, width))
        place = torch.linspace(-1, 1, width, dtype=img.dtype) * torch.linspace(0, 1, height, dtype=img.dtype)[:, None]
        return torch.stack([(k + 1) * img[:, k % img.shape[1]] * 0.7 + place * k - k * 0.3 for k in range(self.nclass)], dim=1)


def noise(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height * 1000 + width))


def literal_whole(model: nn.Module, img: Tensor) -> Tensor:
    height, width = img.shape[-2:]
    fit = [max(14, math.floor(side / 14 + 0.5) * 14) for side in (height, width)]
    return resize(model(resize(img[0], *fit)[None])[0], height, width)[None]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (13, 15), (20, 21), (256, 256), (98, 70), (97, 181)])
@pytest.mark.parametrize("nclass", [2, 5])
def test_whole_image(height: int, width: int, nclass: int) -> None:
    img, model = noise(height, width, 6 if nclass == 2 else 3), Patches(nclass)
    found = predict_whole(model, img)
    assert found.shape == (1, nclass, height, width)
    assert torch.allclose(found, literal_whole(model, img), atol=1e-10)


def literal_starts(side: int, window: int) -> list[int]:
    """Walk by floor(2/3 of a window), and end flush with the border."""
    starts = [0]
    while starts[-1] + window < side:
        starts.append(min(starts[-1] + int(window * 2 / 3), side - window))
    return starts


def test_windows_cover_every_pixel_and_end_at_the_border() -> None:
    for window in (14, 42, 70, 98, 518, 798):
        for side in [*range(1, 3 * window if window < 99 else 30), window - 1, window, window + 1, 1024, 2048]:
            assert window_starts(side, window) == literal_starts(side, window)
    assert window_starts(1024, 798) == [0, 226]
    assert window_starts(2048, 798) == [0, 532, 1064, 1250]


@pytest.mark.parametrize(
    ("height", "width"), [(42, 42), (100, 90), (42, 90), (90, 42), (20, 90), (90, 20), (20, 30), (43, 41), (70, 71), (28, 42)]
)
@pytest.mark.parametrize("nclass", [1, 3, 150])
def test_sliding_windows(height: int, width: int, nclass: int) -> None:
    """Sides shorter than, equal to and longer than the window, any number of classes."""
    img, model = noise(height, width), Patches(nclass)
    expected = torch.zeros(1, nclass, height, width, dtype=torch.float64)
    for y in literal_starts(height, 42):
        for x in literal_starts(width, 42):
            e = literal_whole(model, img[..., y : y + 42, x : x + 42]).exp()
            expected[..., y : y + 42, x : x + 42] += e / e.sum(1, keepdim=True)
    found = predict_sliding(model, img, 42)
    assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize(("height", "width"), [(42, 42), (100, 90), (30, 29), (20, 90), (57, 85)])
def test_windows_that_are_cut_off_at_the_border(height: int, width: int) -> None:
    """As UniMatch V1 evaluates: windows start every two thirds of a window, as long as the start lies inside the image."""

    class Cut(Patches):
        def forward(self, img: Tensor, *_: Any, **__: Any) -> Tensor:
            self.seen.append((img.shape[-2], img.shape[-1]))
            place = torch.linspace(0, 1, img.shape[-1], dtype=img.dtype)
            return torch.stack([img[:, k] * (k + 1) + place * k for k in range(3)], dim=1)

    img, model, expected = noise(height, width), Cut(3), torch.zeros(1, 3, height, width, dtype=torch.float64)
    model.backbone.multiple = 1
    y = 0
    while y < height:
        x = 0
        while x < width:
            expected[..., y : y + 42, x : x + 42] += model(img[..., y : y + 42, x : x + 42]).softmax(dim=1)
            x += 28
        y += 28
    sizes = model.seen.copy()
    model.seen.clear()
    assert torch.allclose(predict_sliding(model, img, 42, "cut"), expected, atol=1e-10)
    assert model.seen == sizes


def test_windows_of_cityscapes_as_unimatch_v1_has_them() -> None:
    assert window_starts(1024, 801, cut=True) == [0, 534]
    assert window_starts(2048, 801, cut=True) == [0, 534, 1068, 1602]
    assert window_starts(50, 65, cut=True) == [0, 43]


@pytest.mark.parametrize(("height", "width"), [(42, 42), (77, 78), (100, 130), (30, 90), (20, 30)])
def test_windows_whose_logits_are_averaged(height: int, width: int) -> None:
    """As mmsegmentation: a step of five sixths, the last window moved back; every pixel's mean over the windows that see it."""
    img, model = noise(height, width), Patches(3)
    total, seen = torch.zeros(1, 3, height, width, dtype=torch.float64), torch.zeros(height, width)
    corners = []
    for side in (height, width):
        count = max(side - 42 + 34, 0) // 35 + 1
        ends = [min(i * 35 + 42, side) for i in range(count)]
        corners.append([max(end - 42, 0) for end in ends])
    for y in corners[0]:
        for x in corners[1]:
            total[..., y : y + 42, x : x + 42] += literal_whole(model, img[..., y : y + 42, x : x + 42])
            seen[y : y + 42, x : x + 42] += 1
    way = Prediction("slide", 42)
    assert torch.allclose(way.class_scores(model, img), total / seen, atol=1e-10)
    resized = F.interpolate(total / seen, (50, 41), mode="bilinear", align_corners=True)
    assert torch.allclose(way.class_scores(model, img, (50, 41)), resized, atol=1e-10)


WAYS = {
    "whole": Prediction("original", 42),
    "windows": Prediction("sliding_window", 42),
    "cut windows": Prediction("sliding_window", 42, "cut"),
    "large as windows": Prediction("original", 42, whole=89),
    "large whole": Prediction("original", 42, whole=90),
    "scales": Prediction("original", 42, scales=(0.75, 1.0)),
    "mirrored windows": Prediction("sliding_window", 42, "cut", flip=True),
    "slide": Prediction("slide", 42),
    "mirrored slide": Prediction("slide", 42, flip=True),
}


@pytest.mark.parametrize("name", WAYS)
def test_one_prediction_gives_scores_and_probabilities(name: str) -> None:
    way, img, model = WAYS[name], noise(60, 90), Patches(3)
    scores = way.class_scores(model, img)
    expected = {
        "whole": lambda: predict_whole(model, img),
        "large whole": lambda: predict_whole(model, img),
        "windows": lambda: predict_sliding(model, img, 42),
        "large as windows": lambda: predict_sliding(model, img, 42),
        "cut windows": lambda: predict_sliding(model, img, 42, "cut"),
    }.get(name)
    assert expected is None or torch.equal(scores, expected())
    probabilities = way.probabilities(scores)
    assert torch.allclose(probabilities.sum(1), torch.ones(1, 60, 90, dtype=torch.float64))
    assert torch.equal(probabilities.argmax(1), scores.argmax(1))
    assert probabilities.min() > 0


def test_probabilities_of_augmented_views_are_their_mean() -> None:
    img, model = noise(60, 90), Patches(3)
    for way in (WAYS["whole"], WAYS["cut windows"], WAYS["slide"]):
        plain, turned = way.probabilities(way.class_scores(model, img)), way.probabilities(way.class_scores(model, img.flip(-1))).flip(-1)
        both = replace(way, flip=True)
        assert torch.allclose(both.probabilities(both.class_scores(model, img)), (plain + turned) / 2, atol=1e-10)


def test_a_runs_prediction_follows_its_config_data_set_and_model() -> None:
    cfg, model = Config(dataset="", data_root="", backbone="dinov2_tiny", crop_size=42, epochs=1, batch_size=1, lr=1e-4), Patches(19)
    city, camvid = get_spec("cityscapes"), get_spec("camvid")
    assert Prediction.of(cfg, camvid, model) == Prediction("original", 42)
    assert Prediction.of(cfg, city, model) == Prediction("sliding_window", 42)
    assert Prediction.of(replace(cfg, eval_mode="original"), city, model) == Prediction("original", 42)
    assert Prediction.of(cfg, city, model, mode="original", flip=True) == Prediction("original", 42, flip=True)
    assert Prediction.of(cfg, camvid, model, window=28) == Prediction("sliding_window", 28)
    model.cut_windows = True
    assert Prediction.of(cfg, city, model) == Prediction("sliding_window", 42, "cut")


def brute_counts(pred: np.ndarray, mask: np.ndarray, nclass: int) -> np.ndarray:
    out = np.zeros((nclass, nclass), int)
    for p, m in zip(pred.flat, mask.flat, strict=True):
        if m != 255:
            out[m, p] += 1
    return out


@pytest.mark.parametrize("nclass", [2, 5, 150])
def test_counts_and_iou(nclass: int) -> None:
    r = np.random.default_rng(nclass)
    pred, mask = r.integers(0, nclass - 1, (2, 9, 11)), r.integers(0, nclass - 1, (2, 9, 11))  # the last class is absent
    mask[0, :3] = 255
    counts = metric.confusion(torch.from_numpy(pred), torch.from_numpy(mask), nclass)
    expected = brute_counts(pred, mask, nclass)
    assert np.array_equal(counts.numpy(), expected)
    for k, value in enumerate(metric.iou(counts).tolist()):
        inter = ((pred == k) & (mask == k)).sum()
        union = (((pred == k) & (mask != 255)) | (mask == k)).sum()
        assert value == pytest.approx(100 * inter / (union + 1e-10))
    assert metric.iou(counts)[-1] == 0
    scored = mask != 255
    assert metric.pixel_accuracy(counts) == pytest.approx(100 * (pred == mask)[scored].mean())


def test_nothing_to_score() -> None:
    counts = metric.confusion(torch.zeros(1, 4, 4, dtype=torch.long), torch.full((1, 4, 4), 255), 3)
    assert not counts.any()
    assert metric.pixel_accuracy(counts) == 0
    assert metric.iou(counts).tolist() == [0, 0, 0]


def camvid_like(root: Path, images: int) -> Source:
    r = np.random.default_rng(0)
    lines = []
    for i in range(images):
        height, width = 30 + 3 * i, 50 - 2 * i
        Image.fromarray(r.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{i}.png")
        mask = r.integers(0, 12, (height, width)).astype(np.uint8)
        Image.fromarray(np.where(mask == 11, 255, mask).astype(np.uint8)).save(root / f"{i}_mask.png")
        lines.append(f"{i}.png {i}_mask.png")
    (root / "val.txt").write_text("\n".join(lines))
    return Source(get_spec("camvid"), str(root), ImageList(str(root / "val.txt"), "segmentation", masks=True))


def count_here(root: Path) -> list[Any]:
    """Both modes, on the processes of this run."""
    source = Source(get_spec("camvid"), str(root), ImageList(str(root / "val.txt"), "segmentation", masks=True))
    with processes("cpu") as world:
        out = []
        for mode in ("original", "sliding_window"):
            found = evaluate([Patches(11), Patches(11)], validation_loader(source, world, 0), Prediction(mode, 28), 11, world)
            assert torch.equal(*found.matrices)
            assert torch.equal(*found.images)
            out.append([found.matrices[0].tolist(), found.images[0].tolist()])
    return out


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_counts_every_image_once(tmp_path: Path, size: int) -> None:
    """Seven images do not divide over 2 or 3 processes; the counts are exact all the same."""
    source = camvid_like(tmp_path, 7)
    expected = np.zeros((11, 11), int)
    for i in range(7):
        img = torch.from_numpy(np.array(Image.open(tmp_path / f"{i}.png"))).permute(2, 0, 1)[None].float() / 255
        img = (img - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        pred = literal_whole(Patches(11), img.double()).argmax(1)[0].numpy()
        expected += brute_counts(pred, np.asarray(Image.open(tmp_path / f"{i}_mask.png")), 11)
    ways = [Prediction(mode, 28) for mode in ("original", "sliding_window")]
    found = [evaluate([Patches(11)], validation_loader(source, World(), 0), way, 11, World()) for way in ways]
    alone = [one.matrices[0] for one in found]
    for one in found:
        right, true, predicted = one.images[0].sum(0)
        assert one.images.shape == (1, 7, 3, 11)
        assert torch.equal(right, one.matrices[0].diagonal())
        assert torch.equal(true, one.matrices[0].sum(1))
        assert torch.equal(predicted, one.matrices[0].sum(0))
    sizes = [int((np.asarray(Image.open(tmp_path / f"{i}_mask.png")) != 255).sum()) for i in range(7)]
    assert found[0].images[0, :, 1].sum(1).tolist() == sizes, "in the order of the list"
    assert np.abs(alone[0].numpy() - expected).sum() <= 4  # float32 against float64: two of the 12 000 pixels may be at a tie
    assert int(alone[0].sum()) == expected.sum()
    done = command("-m", "tests.engine.test_evaluation", tmp_path, processes=size, PYTHONPATH=str(ROOT))
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[[")]
    assert len(lines) == size, done.stderr
    assert all(json.loads(line) == [[one.matrices[0].tolist(), one.images[0].tolist()] for one in found] for line in lines)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(count_here(Path(sys.argv[1]))) + "\n")  # one write: the processes share the terminal
