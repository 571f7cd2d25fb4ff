"""Geometry of a training sample and its CutMix boxes (METHOD.md 2.2 and 2.3): parameters are drawn first, then applied."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset import opencv
from dataset.spec import IGNORE

Box = tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Geometry:
    """The parameters of a weak crop: resize to `width` x `height`, pad to the crop size, crop at (x, y), flip.

    in_frame: resize as OpenCV does (dataset/opencv.py), and not as Pillow.
    """

    width: int
    height: int
    x: int
    y: int
    flip: bool
    in_frame: bool = False


def draw_geometry(
    rng: np.random.Generator, width: int, height: int, crop: int, scale: tuple[float, float], frame: tuple[int, int] | None = None
) -> Geometry:
    """Draws the weak crop of a `width` x `height` image (METHOD.md 2.2). frame: what the image is fitted into, times the drawn scale."""
    if frame is not None:
        factor = rng.uniform(*scale)
        w, h = opencv.fitted(width, height, (int(frame[0] * factor), int(frame[1] * factor)))
    else:
        long = max(width, height)
        new = int(rng.integers(int(long * scale[0]), int(long * scale[1]), endpoint=True))
        w, h = (max(1, int(side * new / long + 0.5)) for side in (width, height))
    x = int(rng.integers(0, max(w, crop) - crop, endpoint=True))
    y = int(rng.integers(0, max(h, crop) - crop, endpoint=True))
    return Geometry(w, h, x, y, bool(rng.random() < 0.5), frame is not None)


def _visible(geometry: Geometry, crop: int) -> tuple[int, int]:
    """The columns and rows of the crop that show the image; the rest, right and below, is padding."""
    return min(crop, geometry.width - geometry.x), min(crop, geometry.height - geometry.y)


def crop_image(image: Image.Image, geometry: Geometry, crop: int) -> Image.Image:
    """The weak crop of an RGB image, (crop, crop), made by Pillow, or as OpenCV would."""
    if geometry.in_frame:
        return _crop_as_opencv(image, geometry, crop)
    image = image.resize((geometry.width, geometry.height), Image.Resampling.BILINEAR)
    image = image.crop((geometry.x, geometry.y, geometry.x + crop, geometry.y + crop))  # 0 beyond the image
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if geometry.flip else image


def _crop_as_opencv(image: Image.Image, geometry: Geometry, crop: int) -> Image.Image:
    cols, rows = _visible(geometry, crop)
    columns, lines = (geometry.x, geometry.x + cols), (geometry.y, geometry.y + rows)
    part = opencv.resize_image(np.asarray(image), geometry.width, geometry.height, columns, lines)
    out = np.zeros((crop, crop, 3), dtype=np.uint8)
    out[:rows, _shown(geometry, cols)] = part[:, ::-1] if geometry.flip else part
    return Image.fromarray(out)


def cut_image(images: Sequence[Image.Image], geometry: Geometry, crop: int) -> tuple[Tensor, Tensor]:
    """Prepares the weak crop of an RGB image, or of its dates, for `crop_parts`: the part that it shows, and the taps of the resize.

    Returns the part, uint8 (H, W, C), and the filter taps of the resize, int32 (2, 2, taps, crop): along the lines, then along the columns,
    indices into the part and their weights in 2**-22. The weights of padding are 0.
    """
    found = [_sources(image, geometry, crop) for image in images]
    part = torch.from_numpy(np.concatenate([np.asarray(part) for part, _, _ in found], 2))
    _, *axes = found[0]
    cols, rows = _visible(geometry, crop)
    taps = torch.zeros((2, 2, max(len(indices) for indices, _ in axes), crop), dtype=torch.int32)
    for out, sources, shown in zip(taps, axes, (_shown(geometry, cols), slice(rows)), strict=True):
        for kind, values in zip(out, sources, strict=True):
            kind[: len(values), shown] = values
    return part, taps


def crop_parts(parts: Tensor, taps: Tensor) -> Tensor:
    """`crop_image` for a GPU, in few large operations: uint8 (B, H, W, C) and int32 (B, 2, 2, taps, crop) -> uint8 (B, C, crop, crop).

    Parts and taps are those of `cut_image`, padded to one size with 0. Pillow resizes the lines first and then the columns, each to 8 bits,
    with integer weights. So is it done here, but only where the crop will be: to the bit what Pillow makes of the whole image.
    """
    crop = taps.shape[-1]
    for axis, (indices, weights) in zip((2, 1), taps.permute(1, 2, 3, 0, 4), strict=True):  # along the lines first, as Pillow
        size, along = list(parts.shape), [len(parts), 1, 1, 1]
        size[axis] = along[axis] = crop
        total = parts.new_full(size, 2**21, dtype=torch.int32)
        for index, weight in zip(indices, weights, strict=True):
            total += parts.gather(axis, index.long().view(along).expand(size)).int() * weight.view(along)
        parts = total.bitwise_right_shift_(22).byte()
    return parts.permute(0, 3, 1, 2).contiguous()


def _sources(image: Image.Image, geometry: Geometry, crop: int) -> tuple[Image.Image, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The part of the image that the crop shows, and the taps of its columns and of its lines (see `_bilinear`)."""
    if image.height > geometry.height and image.height - geometry.height >= 2 * (image.width - geometry.width):
        # newer Pillow: columns first
        image = image.resize((geometry.width, geometry.height), Image.Resampling.BILINEAR)
    cols, rows = _visible(geometry, crop)
    xs, x_weights = _bilinear(image.width, geometry.width, geometry.x, cols)
    ys, y_weights = _bilinear(image.height, geometry.height, geometry.y, rows)
    if geometry.flip:
        xs, x_weights = xs.flip(1), x_weights.flip(1)
    left, top = int(xs.min()), int(ys.min())
    part = image.crop((left, top, int(xs.max()) + 1, int(ys.max()) + 1))
    return part, (xs - left, x_weights), (ys - top, y_weights)


def _shown(geometry: Geometry, cols: int) -> slice:
    """The columns of a crop that show the image: at the start of its lines, flipped at their end."""
    return slice(-cols, None) if geometry.flip else slice(cols)


def _bilinear(source: int, target: int, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Pillow's bilinear weights, in 2**-22, of the source pixels that make the pixels start..start + count of a line of `target` pixels.

    Returns the source pixels' indices, int64, and their weights, int32, both (taps, count).
    """
    scale = source / target
    reach = max(1.0, scale)
    center = (np.arange(start, start + count) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), source)
    index = first + np.arange(2 * math.ceil(reach) + 1)[:, None]
    weight = np.where(index < last, np.maximum(1 - np.abs(index - center + 0.5) * (1 / reach), 0), 0)
    fixed = (weight / weight.sum(0) * 2**22 + 0.5).astype(np.int32)
    used = fixed.any(1)
    return torch.from_numpy(np.minimum(index, source - 1)[used]), torch.from_numpy(fixed[used])


def nearest_index(source: int, target: int) -> np.ndarray:
    """The source index of each of `target` pixels, as PIL's NEAREST takes them: pixel centres, positions summed up one by one."""
    step = source / target
    position = np.add.accumulate(np.concatenate(([0.5 * step], np.full(target - 1, step))))
    return np.minimum(position.astype(np.int64), source - 1)


def crop_mask(mask: np.ndarray, geometry: Geometry, crop: int, fill: int) -> np.ndarray:
    """The weak crop of a mask (H, W), nearest neighbour, padded with `fill`."""
    cols, rows = _visible(geometry, crop)
    index = opencv.nearest_index if geometry.in_frame else nearest_index
    ys = index(mask.shape[0], geometry.height)[geometry.y : geometry.y + rows]
    xs = index(mask.shape[1], geometry.width)[geometry.x : geometry.x + cols]
    out = np.full((crop, crop), fill, dtype=mask.dtype)
    out[:rows, _shown(geometry, cols)] = mask[ys].take(xs[::-1] if geometry.flip else xs, axis=1)
    return out


def ignore_map(geometry: Geometry, crop: int) -> np.ndarray:
    """The ignore map of a weak crop, uint8 (crop, crop): 255 on padding, 0 elsewhere."""
    cols, rows = _visible(geometry, crop)
    out = np.full((crop, crop), IGNORE, dtype=np.uint8)
    out[:rows, _shown(geometry, cols)] = 0
    return out


def draw_box(rng: np.random.Generator, crop: int) -> Box:
    """Draws a CutMix box (METHOD.md 2.3); (0, 0, 0, 0) for none."""
    if rng.random() < 0.5:
        return 0, 0, 0, 0
    area = rng.uniform(0.02, 0.4) * crop * crop
    while True:
        ratio = rng.uniform(0.3, 1 / 0.3)
        w, h = int(math.sqrt(area / ratio)), int(math.sqrt(area * ratio))
        x, y = (int(v) for v in rng.integers(0, crop, 2))
        if x + w <= crop and y + h <= crop:
            return x, y, w, h
