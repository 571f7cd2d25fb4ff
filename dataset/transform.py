"""Geometry of a training sample and its CutMix boxes (spec.md 2.2 and 2.3): parameters are drawn first, then applied."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Geometry:
    """What happens to an image: resize to `width` x `height`, pad to the crop size, crop at (x, y), flip."""

    width: int
    height: int
    x: int
    y: int
    flip: bool


def draw_geometry(rng: np.random.Generator, width: int, height: int, crop: int, scale: tuple[float, float]) -> Geometry:
    """Draws the weak crop of a `width` x `height` image (spec.md 2.2)."""
    long = max(width, height)
    new = int(rng.integers(int(long * scale[0]), int(long * scale[1]), endpoint=True))
    w, h = (max(1, int(side * new / long + 0.5)) for side in (width, height))
    x = int(rng.integers(0, max(w, crop) - crop, endpoint=True))
    y = int(rng.integers(0, max(h, crop) - crop, endpoint=True))
    return Geometry(w, h, x, y, bool(rng.random() < 0.5))


def _visible(geometry: Geometry, crop: int) -> tuple[int, int]:
    """Columns and rows of the crop that show the image; the rest, right and below, is padding."""
    return min(crop, geometry.width - geometry.x), min(crop, geometry.height - geometry.y)


def _flip(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    return np.ascontiguousarray(array[:, ::-1]) if geometry.flip else array


def crop_image(image: Image.Image, geometry: Geometry, crop: int) -> Image.Image:
    """The weak crop of an RGB image, `crop` x `crop`, padded with 0: to the bit what resizing the whole image first would give."""
    cols, rows = _visible(geometry, crop)
    shown = _resize_part(image, geometry, cols, rows)
    if (cols, rows) != (crop, crop):
        padded = Image.new("RGB", (crop, crop))
        padded.paste(shown, (0, 0))
        shown = padded
    return shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if geometry.flip else shown


def _resize_part(image: Image.Image, geometry: Geometry, cols: int, rows: int) -> Image.Image:
    """`cols` x `rows` pixels at the crop's place of the resized image, without resizing most of the rest.

    PIL's own `box` argument rounds to float32, which turns the last bit wherever a value lies half-way between two. So PIL's two
    passes, horizontal and then vertical, are made one by one over whole lines, on the rows and columns that count.
    """
    width, height, y = geometry.width, geometry.height, geometry.y
    place = geometry.x, y, geometry.x + cols, y + rows
    if image.height > height and image.height - height >= 2 * (image.width - width):
        return image.resize((width, height), Image.Resampling.BILINEAR).crop(place)  # newer PIL: vertical pass first
    step = image.height / height
    reach = max(1.0, step) + 1  # of the vertical pass, in source rows
    first = max(0, math.floor((y + 0.5) * step - reach))
    last = min(image.height, math.ceil((y + rows - 0.5) * step + reach))
    band = image.crop((0, first, image.width, last)).resize((width, last - first), Image.Resampling.BILINEAR)
    column = Image.new("RGB", (cols, image.height))
    column.paste(band.crop((geometry.x, 0, geometry.x + cols, last - first)), (0, first))
    return column.resize((cols, height), Image.Resampling.BILINEAR).crop((0, y, cols, y + rows))


def nearest_index(source: int, target: int) -> np.ndarray:
    """Source index of each of `target` pixels, as PIL's NEAREST takes them: pixel centres, positions summed up one by one."""
    step = source / target
    position = np.add.accumulate(np.concatenate(([0.5 * step], np.full(target - 1, step))))
    return np.minimum(position.astype(np.int64), source - 1)


def crop_mask(mask: np.ndarray, geometry: Geometry, crop: int, fill: int) -> np.ndarray:
    """The weak crop of a mask (H, W), nearest neighbour, padded with `fill`."""
    cols, rows = _visible(geometry, crop)
    out = np.full((crop, crop), fill, dtype=mask.dtype)
    ys = nearest_index(mask.shape[0], geometry.height)[geometry.y : geometry.y + rows]
    xs = nearest_index(mask.shape[1], geometry.width)[geometry.x : geometry.x + cols]
    out[:rows, :cols] = mask[np.ix_(ys, xs)]
    return _flip(out, geometry)


def ignore_map(geometry: Geometry, crop: int) -> np.ndarray:
    """(crop, crop) uint8: 255 on padding, 0 elsewhere."""
    cols, rows = _visible(geometry, crop)
    out = np.full((crop, crop), 255, dtype=np.uint8)
    out[:rows, :cols] = 0
    return _flip(out, geometry)


def draw_box(rng: np.random.Generator, crop: int) -> Box:
    """Draws a CutMix box (spec.md 2.3); (0, 0, 0, 0) for none."""
    if rng.random() < 0.5:
        return 0, 0, 0, 0
    area = rng.uniform(0.02, 0.4) * crop * crop
    while True:
        ratio = rng.uniform(0.3, 1 / 0.3)
        w, h = int(math.sqrt(area / ratio)), int(math.sqrt(area * ratio))
        x, y = (int(v) for v in rng.integers(0, crop, 2))
        if x + w <= crop and y + h <= crop:
            return x, y, w, h
