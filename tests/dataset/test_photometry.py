"""Strong views made of tensors against those that Pillow makes (METHOD.md 2.3): no pixel may differ."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dataset.loader import views_on_device
from dataset.photometry import JITTER, Photometry, adjust_hue, apply_photometry, draw_photometry, strong_view, strong_views
from dataset.semi import image_tensor, tensor_images
from tests.conftest import Tiny
from tests.dataset import oracle
from util.config import load_config
from util.dist import World


def crop(seed: int, side: int = 98) -> Tensor:
    """A padded crop like a photograph, uint8 (3, side, side)."""
    out = np.zeros((side, side, 3), np.uint8)
    shown = np.asarray(oracle.photograph(side - seed % 3 * 20, side - seed % 2 * 30, seed))
    out[: shown.shape[0], : shown.shape[1]] = shown
    return torch.from_numpy(out).permute(2, 0, 1)


def by_pillow(image: Tensor, view: Photometry) -> Tensor:
    [weak] = tensor_images(image)
    return image_tensor([strong_view(weak, view)])


def draws(count: int, grey: float = 0.2) -> list[Photometry]:
    return [draw_photometry(np.random.default_rng((7, i)), grey) for i in range(count)]


def test_random_chains_as_one_mini_batch() -> None:
    """120 chains of drawn adjustments, each with its own order, factors, greyscale and blur. Differing pixels: none."""
    views = draws(120)
    crops = torch.stack([crop(i) for i in range(120)])
    made = apply_photometry(crops, views)
    difference = (made.int() - torch.stack([by_pillow(c, v) for c, v in zip(crops, views, strict=True)]).int()).abs()
    assert difference.max() == 0
    assert len({view.jitter for view in views}) > 80
    assert any(view.grey and view.blur for view in views)


class DividesAsCuda(TorchDispatchMode):
    """Division by a Python number as CUDA's kernel has it: times the number's inverse, rounded to float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.div.Tensor, torch.ops.aten.div_.Tensor) and isinstance(args[1], int | float):
            multiply = torch.ops.aten.mul.Tensor if func is torch.ops.aten.div.Tensor else torch.ops.aten.mul_.Tensor
            return multiply(args[0], float(np.float32(1) / np.float32(args[1])))
        return func(*args, **(kwargs or {}))


def test_hue_of_every_colour() -> None:
    """All 2**24 colours, as CUDA divides too; shifts of the whole drawn range, one for each value of red."""
    line = torch.arange(256, dtype=torch.uint8)
    green, blue = torch.meshgrid(line, line, indexing="ij")
    for red, factor in enumerate(np.linspace(-0.25, 0.25, 256).tolist()):
        colours = torch.stack((torch.full_like(green, red), green, blue))
        with DividesAsCuda():
            made = adjust_hue(colours[None], [factor])[0]
        assert torch.equal(made, by_pillow(colours, Photometry((("hue", factor),), False, None)))


@pytest.mark.parametrize("name", JITTER[:3])
def test_factors(name: str) -> None:
    """At the ends of what is drawn, at 1, and at factors that fall between two 8-bit values for many pixels."""
    factors = [0.5, 0.75, 1.0, 1.25, 1.5, *np.linspace(0.5, 1.5, 20).tolist()]
    views = [Photometry(((name, f), *[(other, 1.0) for other in JITTER[:3] if other != name], ("hue", 0.0)), False, None) for f in factors]
    crops = torch.stack([crop(i) for i in range(len(factors))])
    for made, image, view in zip(apply_photometry(crops, views), crops, views, strict=True):
        assert torch.equal(made, by_pillow(image, view))


@pytest.mark.parametrize("side", [(98, 98), (1, 1), (2, 3), (5, 1), (40, 7)])
def test_blur(side: tuple[int, int]) -> None:
    """Radii from the smallest to the largest drawn, on crops that are smaller than the blur's reach too; black and white is the extreme."""
    rng = np.random.default_rng(0)
    radii = np.linspace(0.1, 2.0, 96).tolist()
    noise = torch.from_numpy(rng.integers(0, 2, (len(radii), 3, *side), dtype=np.uint8)) * 255
    views = [Photometry((), False, radius) for radius in radii]
    for made, image, view in zip(apply_photometry(noise, views), noise, views, strict=True):
        assert torch.equal(made, by_pillow(image, view))


def test_a_view_does_not_depend_on_its_mini_batch() -> None:
    views = draws(12)
    crops = torch.stack([crop(i, 42) for i in range(12)])
    together = apply_photometry(crops, views)
    for i, view in enumerate(views):
        assert torch.equal(together[i], apply_photometry(crops[i : i + 1], [view])[0])


def test_parameters_pass_through_a_tensor_unchanged() -> None:
    for view in draws(300):
        assert Photometry.unpack(torch.tensor(view.pack(), dtype=torch.float64).tolist()) == view


def test_dates_and_views_keep_their_places() -> None:
    views = draws(8, grey=0.0)
    weak = torch.stack([torch.cat((crop(i, 42), crop(i + 5, 42))) for i in range(2)])
    drawn = torch.tensor([view.pack() for view in views], dtype=torch.float64).view(2, 2, 2, 10)
    made = strong_views(weak, drawn)
    assert made.shape == (2, 2, 6, 42, 42)
    for place, view in enumerate(views):
        sample, number, date = place // 4, place // 2 % 2, place % 2
        part = slice(3 * date, 3 * date + 3)
        assert torch.equal(made[sample, number, part], by_pillow(weak[sample, part], view))


@pytest.mark.parametrize(
    ("views", "device", "expected"),
    [("auto", "cuda", True), ("auto", "cpu", False), ("auto", "mps", False), ("worker", "cuda", False), ("device", "cpu", True)],
)
def test_who_makes_the_views(views: str, device: str, expected: bool, tiny: Tiny, tmp_path: Path) -> None:
    cfg = load_config(str(tiny.config), [f"views={views}"])
    assert views_on_device(cfg, World(device=torch.device(device))) is expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_random_chains_as_a_cpu_does() -> None:
    views = draws(60)
    crops = torch.stack([crop(i) for i in range(60)])
    made, expected = apply_photometry(crops.cuda(), views).cpu(), apply_photometry(crops, views)
    differing = [i for i in range(60) if not torch.equal(made[i], expected[i])]
    assert not differing, f"{len(differing)} of 60 chains, the first is {views[differing[0]]}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_turns_the_hue_of_every_colour_as_a_cpu_does() -> None:
    line = torch.arange(256, dtype=torch.uint8)
    green, blue = torch.meshgrid(line, line, indexing="ij")
    factors = np.linspace(-0.25, 0.25, 256).tolist()
    for reds in line.split(16):
        colours = torch.stack([torch.stack((torch.full_like(green, int(red)), green, blue)) for red in reds])
        chosen = [factors[int(red)] for red in reds]
        made, expected = adjust_hue(colours.cuda(), chosen).cpu(), adjust_hue(colours, chosen)
        assert int((made != expected).any(1).sum()) == 0, f"colours that differ among the reds {reds.tolist()}"
