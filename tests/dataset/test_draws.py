"""The draws of a training sample as distributions, over 20 000 samples (METHOD.md 2.2 and 2.3).

Each draw has its own generator, seeded as `TrainSet` seeds a sample. Bounds are set so that a right program fails any one of them with
a chance below one in a million; the seeds are fixed, so a test that passes keeps passing.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from dataset.photometry import Photometry, draw_photometry
from dataset.transform import draw_box, draw_geometry
from tests.dataset import oracle

N = 20_000
CHANCE = 1e-6  # of a false alarm, per assertion


def generators(stream: int) -> list[np.random.Generator]:
    return [np.random.default_rng((0, stream, epoch, position)) for epoch in range(4) for position in range(N // 4)]


def ks(values: Sequence[float], cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov-Smirnov distance of the values from a distribution."""
    x = np.sort(np.asarray(values, dtype=np.float64))
    f = cdf(x)
    n = len(x)
    return float(max((np.arange(1, n + 1) / n - f).max(), (f - np.arange(n) / n).max()))


def assert_uniform(values: Sequence[float], low: float, high: float) -> None:
    """Kolmogorov-Smirnov; the bound is the Dvoretzky-Kiefer-Wolfowitz inequality, which holds for any n."""
    assert min(values) >= low
    assert max(values) <= high
    assert ks(values, lambda x: (x - low) / (high - low)) < math.sqrt(math.log(2 / CHANCE) / (2 * len(values)))


def assert_share(hits: int, n: int, p: float) -> None:
    """Hoeffding's inequality."""
    assert abs(hits / n - p) < math.sqrt(math.log(2 / CHANCE) / (2 * n))


def assert_all_integers(values: Sequence[int], low: int, high: int) -> None:
    """Uniform over low..high, both inclusive: every value's count within its bound, and both ends met."""
    counts = Counter(values)
    cells = high - low + 1
    assert (min(counts), max(counts)) == (low, high)
    expected = len(values) / cells
    assert all(abs(counts[v] - expected) < 7 * math.sqrt(expected) + 7 for v in range(low, high + 1))


@pytest.mark.parametrize(("size", "scale"), [((61, 40), (0.5, 2.0)), ((40, 61), (0.5, 2.0)), ((51, 51), (0.8, 1.2))])
def test_long_side_is_a_uniform_integer_and_the_short_side_follows(size: tuple[int, int], scale: tuple[float, float]) -> None:
    places = [draw_geometry(r, *size, 70, scale) for r in generators(0)]
    longs = [max(p.width, p.height) for p in places]
    assert_all_integers(longs, int(max(size) * scale[0]), int(max(size) * scale[1]))
    for place, new in zip(places, longs, strict=True):
        exact = min(size) * new / max(size)
        short = place.height if size[0] >= size[1] else place.width
        assert short == math.floor(exact + 0.5)  # half up


def test_crop_position_is_uniform_over_what_fits() -> None:
    places = [draw_geometry(r, 150, 110, 70, (0.5, 2.0)) for r in generators(1)]
    spread = np.random.default_rng(0)
    for axis in ("x", "y"):
        side = [(getattr(p, axis), max(0, (p.width if axis == "x" else p.height) - 70)) for p in places]
        assert all(0 <= at <= room for at, room in side)
        wide = [(at, room) for at, room in side if room > 20]
        # an integer of 0..room, spread over its cell, is uniform on 0..1
        assert_uniform([(at + spread.random()) / (room + 1) for at, room in wide], 0, 1)
        assert {at for at, room in side if room == 8} == set(range(9))
    assert any(p.x + 70 == p.width for p in places)
    assert_share(sum(p.flip for p in places), N, 0.5)
    both = [(p.x + 0.5) / (p.width - 69) for p in places if p.flip and p.width > 90]
    assert abs(np.mean(both) - 0.5) < 0.03  # position does not depend on the flip


@pytest.fixture(scope="module")
def views() -> list[Photometry]:
    return [draw_photometry(r, 0.2) for r in generators(1)]


def test_jitter(views: list[Photometry]) -> None:
    jittered = [dict(v.jitter) for v in views if v.jitter]
    assert_share(len(jittered), N, 0.8)
    assert all(len(j) == 4 for j in jittered)
    for name in ("brightness", "contrast", "saturation"):
        assert_uniform([j[name] for j in jittered], 0.5, 1.5)
    assert_uniform([j["hue"] for j in jittered], -0.25, 0.25)


def test_jitter_order_is_any_of_24(views: list[Photometry]) -> None:
    orders = Counter(tuple(name for name, _ in v.jitter) for v in views if v.jitter)
    assert len(orders) == 24
    total = sum(orders.values())
    for count in orders.values():
        assert abs(count - total / 24) < 5.5 * math.sqrt(total / 24)


def test_factors_are_independent(views: list[Photometry]) -> None:
    factors = np.array([[dict(v.jitter)[n] for n in ("brightness", "contrast", "saturation", "hue")] for v in views if v.jitter])
    correlation = np.corrcoef(factors.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / math.sqrt(len(factors))


def test_greyscale_and_blur(views: list[Photometry]) -> None:
    assert_share(sum(v.grey for v in views), N, 0.2)
    radii = [v.blur for v in views if v.blur is not None]
    assert_share(len(radii), N, 0.5)
    assert_uniform(radii, 0.1, 2.0)
    assert_share(sum(bool(v.jitter) and v.grey and v.blur is not None for v in views), N, 0.8 * 0.2 * 0.5)


def test_change_detection_has_no_greyscale() -> None:
    assert not any(draw_photometry(r, 0.0).grey for r in generators(1)[:2000])


def test_boxes() -> None:
    """At a size where rounding to pixels does not show. A box that does not fit is drawn again with the same area."""
    size = 1_000_000
    boxes = [draw_box(r, size) for r in generators(1)]
    real = [b for b in boxes if b != (0, 0, 0, 0)]
    assert_share(len(real), N, 0.5)
    assert all(x + w <= size and y + h <= size for x, y, w, h in real)
    shares = [w * h / size**2 for _, _, w, h in real]
    assert min(shares) > 0.0199  # whole pixels only take away
    assert_uniform([max(0.02, share) for share in shares], 0.02, 0.4)
    # where it fits, the corner is uniform
    assert_uniform([x / (size - w) for x, _, w, _ in real if w < size], 0, 1)
    assert_uniform([y / (size - h) for _, y, _, h in real if h < size], 0, 1)
    ratios = [h / w for _, _, w, h in real]
    assert min(ratios) > 0.2999
    assert max(ratios) < 3.334


def test_boxes_are_drawn_as_the_second_writing_draws_them() -> None:
    """Two-sample Kolmogorov-Smirnov on everything a box has, at a size where whole pixels matter."""
    size = 98
    r = random.Random(0)
    found = [b for b in (draw_box(g, size) for g in generators(1)) if b[2]]
    expected = [b for b in (oracle.draw_box(r, size) for _ in range(N)) if b[2]]
    bound = math.sqrt(math.log(2 / CHANCE) / 2 * (1 / len(found) + 1 / len(expected)))
    for measure in (lambda b: b[0], lambda b: b[1], lambda b: b[2], lambda b: b[3], lambda b: b[2] * b[3], lambda b: b[3] / b[2]):
        a, b = (np.sort([measure(box) for box in boxes]) for boxes in (found, expected))
        every = np.concatenate((a, b))
        distance = np.abs(np.searchsorted(a, every, "right") / len(a) - np.searchsorted(b, every, "right") / len(b)).max()
        assert distance < bound
