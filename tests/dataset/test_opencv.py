"""Resizing as OpenCV does it: against its arithmetic written out pixel by pixel, and against OpenCV itself where it is installed."""

import math
import sys

import numpy as np
import pytest
from PIL import Image

from dataset.opencv import fitted, nearest_index, resize_image, with_short_side
from dataset.transform import crop_image, crop_mask, draw_geometry

SIZES = [
    ((5, 7), (9, 3)),
    ((37, 53), (64, 92)),
    ((12, 9), (12, 9)),
    ((1, 4), (3, 2)),
    ((40, 30), (13, 29)),
    ((16, 24), (8, 12)),
    ((16, 24), (8, 24)),
]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def taps(source: int, target: int, i: int, clamp: bool) -> tuple[int, int, int, int]:
    """Two source positions and their weights in 2**-11."""
    position = np.float32((i + 0.5) * (1 / (target / source)) - 0.5)
    first = math.floor(position)
    fraction = np.float32(position - np.float32(first))
    if clamp and (first < 0 or first >= source - 1):
        fraction = np.float32(0)
    weights = [int(np.rint(np.float32(w) * 2048)) for w in (1 - fraction, fraction)]
    return min(max(first, 0), source - 1), min(max(first + 1, 0), source - 1), *weights  # type: ignore[return-value]


def literal(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    out = np.zeros((height, width, 3), np.uint8)
    for y in range(height):
        top, bottom, v0, v1 = taps(pixels.shape[0], height, y, clamp=False)
        for x in range(width):
            left, right, h0, h1 = taps(pixels.shape[1], width, x, clamp=True)
            for c in range(3):
                if (2 * height, 2 * width) == pixels.shape[:2]:
                    out[y, x, c] = (int(pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2, c].astype(int).sum()) + 2) // 4
                    continue
                upper, lower = (int(pixels[row, left, c]) * h0 + int(pixels[row, right, c]) * h1 for row in (top, bottom))
                out[y, x, c] = ((v0 * (upper // 16) // 65536) + (v1 * (lower // 16) // 65536) + 2) // 4
    return out


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_pixels_are_those_of_the_second_writing(size: tuple[int, int], target: tuple[int, int]) -> None:
    pixels, (height, width) = noise(*size), target
    expected = literal(pixels, width, height)
    assert np.array_equal(resize_image(pixels, width, height), expected)
    columns, rows = (width // 3, width // 3 + (width + 1) // 2), (height // 2, height)
    assert np.array_equal(resize_image(pixels, width, height, columns, rows), expected[rows[0] : rows[1], columns[0] : columns[1]])


@pytest.mark.parametrize(("size", "target"), [*SIZES, ((375, 500), (512, 683)), ((500, 333), (384, 256))])
def test_pixels_are_opencvs(size: tuple[int, int], target: tuple[int, int]) -> None:
    cv2 = sys.modules.get("cv2") or pytest.importorskip("cv2", reason="OpenCV is not needed: pip install opencv-python-headless to compare")
    pixels, shape = noise(*size), target[::-1]
    assert np.array_equal(resize_image(pixels, *shape), cv2.resize(pixels, shape, interpolation=cv2.INTER_LINEAR))
    near = pixels[nearest_index(size[0], target[0])][:, nearest_index(size[1], target[1])]
    assert np.array_equal(near, cv2.resize(pixels, shape, interpolation=cv2.INTER_NEAREST))


def test_sizes_in_a_frame() -> None:
    """Landscape, portrait, and one so long that the long side decides."""
    assert fitted(500, 375, (2048, 512)) == (683, 512)
    assert fitted(333, 500, (1024, 256)) == (256, 384)
    assert fitted(1000, 100, (2048, 512)) == (2048, 205)
    assert with_short_side(1000, 100, 512) == (5120, 512)
    assert with_short_side(333, 500, 512) == (512, 769)


def test_a_crop_in_a_frame_is_cut_from_the_resized_image() -> None:
    """Image and mask alike, padded and mirrored; every drawn factor between the ends of the range."""
    image, mask = Image.fromarray(noise(30, 44)), np.random.default_rng(0).integers(0, 9, (30, 44)).astype(np.uint8)
    factors = []
    for seed in range(200):
        geometry = draw_geometry(np.random.default_rng(seed), 44, 30, 40, (0.5, 2.0), (100, 30))
        factors.append(geometry.height / 30)
        if seed >= 20:
            continue
        whole = literal(np.asarray(image), geometry.width, geometry.height)
        canvas, labels = np.zeros((120, 180, 3), np.uint8), np.full((120, 180), 255, np.uint8)
        canvas[: geometry.height, : geometry.width] = whole
        labels[: geometry.height, : geometry.width] = mask[nearest_index(30, geometry.height)][:, nearest_index(44, geometry.width)]
        part = slice(geometry.y, geometry.y + 40), slice(geometry.x, geometry.x + 40)
        flip = slice(None, None, -1) if geometry.flip else slice(None)
        assert np.array_equal(np.asarray(crop_image(image, geometry, 40)), canvas[part][:, flip])
        assert np.array_equal(crop_mask(mask, geometry, 40, 255), labels[part][:, flip])
    assert min(factors) < 0.6
    assert max(factors) > 1.9
    assert 1.1 < float(np.mean(factors)) < 1.4
