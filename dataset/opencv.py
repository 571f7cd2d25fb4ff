"""Resizing of 8-bit images as OpenCV and mmsegmentation do it, to the bit (METHOD.md 2.2): no antialiasing, weights in 2**-11."""

import numpy as np

Span = tuple[int, int]  # start and end


def fitted(width: int, height: int, frame: tuple[int, int]) -> tuple[int, int]:
    """The width and height of an image that is made as large as the long and the short side of a frame allow, in proportion."""
    factor = min(max(frame) / max(width, height), min(frame) / min(width, height))
    return int(width * factor + 0.5), int(height * factor + 0.5)


def with_short_side(width: int, height: int, short: int) -> tuple[int, int]:
    """The width and height of an image whose short side becomes `short`."""
    factor = short / min(width, height)
    return int(width * factor + 0.5), int(height * factor + 0.5)


def resize_image(pixels: np.ndarray, width: int, height: int, columns: Span | None = None, rows: Span | None = None) -> np.ndarray:
    """Columns and rows (all by default) of uint8 (H, W, C) pixels resized to `width` x `height`, bilinearly."""
    columns, rows = columns or (0, width), rows or (0, height)
    if (2 * height, 2 * width) == pixels.shape[:2]:  # OpenCV takes the mean of the four pixels
        part = pixels[2 * rows[0] : 2 * rows[1], 2 * columns[0] : 2 * columns[1]].astype(np.int32)
        return ((part[0::2, 0::2] + part[0::2, 1::2] + part[1::2, 0::2] + part[1::2, 1::2] + 2) >> 2).astype(np.uint8)
    left, right, across = _bilinear(pixels.shape[1], width, columns)
    # beyond the first and the last column the fraction counts as 0, beyond the first and the last row it does not
    across[:, (left == right) | (left < 0)] = [[2048], [0]]
    upper, lower, down = _bilinear(pixels.shape[0], height, rows)
    first, last = max(0, upper[0]), lower[-1] + 1
    part = pixels[first:last].astype(np.int32)
    lines = part[:, left.clip(0)] * across[0, :, None] + part[:, right] * across[1, :, None]
    above, below = (lines[at.clip(0) - first] >> 4 for at in (upper, lower))
    return (((down[0, :, None, None] * above >> 16) + (down[1, :, None, None] * below >> 16) + 2) >> 2).astype(np.uint8)


def _bilinear(source: int, target: int, span: Span) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source pixels, the first of which may be -1, and their weights (2, n), of the pixels `span` of a line of `target` pixels."""
    scale = 1 / (target / source)
    position = ((np.arange(*span) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    fraction = position - first.astype(np.float32)
    weights = np.rint(np.stack((1 - fraction, fraction)) * np.float32(2048)).astype(np.int32)
    return first.clip(-1, source - 1), (first + 1).clip(0, source - 1), weights


def nearest_index(source: int, target: int) -> np.ndarray:
    """The index of the source pixel of each of `target` pixels."""
    return np.minimum(np.floor(np.arange(target) * (1 / (target / source))).astype(np.int64), source - 1)
