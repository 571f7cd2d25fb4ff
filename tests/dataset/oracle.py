"""Geometry, photometry and their draws of METHOD.md 2.2 and 2.3, written a second time: whole images, PIL only, step by step."""

import math
import random
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


def weak(image: Image.Image, place: Any, crop: int, fill: int, resample: Image.Resampling) -> Image.Image:
    """Resize the whole image, pad right and below, crop, flip. `place` has width, height, x, y and flip."""
    image = image.resize((place.width, place.height), resample)
    right, below = max(0, crop - place.width), max(0, crop - place.height)
    image = ImageOps.expand(image, (0, 0, right, below), fill)
    image = image.crop((place.x, place.y, place.x + crop, place.y + crop))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if place.flip else image


def weak_image(image: Image.Image, place: Any, crop: int) -> np.ndarray:
    return np.asarray(weak(image, place, crop, 0, Image.Resampling.BILINEAR))


def weak_mask(mask: np.ndarray, place: Any, crop: int, fill: int) -> np.ndarray:
    return np.asarray(weak(Image.fromarray(mask), place, crop, fill, Image.Resampling.NEAREST))


def ignore(size: tuple[int, int], place: Any, crop: int) -> np.ndarray:
    """Pads an empty mask with 254 to know the padding, which becomes 255."""
    padded = weak_mask(np.zeros(size[::-1], np.uint8), place, crop, 254)
    return np.where(padded == 254, 255, 0)


def strong(image: Image.Image, view: Any) -> np.ndarray:
    """Jitter in the drawn order, greyscale, blur. `view` has jitter, grey and blur. The hue turns on a circle of 256 steps."""
    enhance = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
    for name, factor in view.jitter:
        if name == "hue":
            hsv = np.array(image.convert("HSV"))
            hsv[..., 0] = (hsv[..., 0].astype(int) + int(255 * factor)) % 256
            image = Image.fromarray(hsv, mode="HSV").convert("RGB")
        else:
            image = enhance[name](image).enhance(factor)
    if view.grey:
        image = Image.fromarray(np.dstack([np.asarray(image.convert("L"))] * 3))
    if view.blur is not None:
        image = image.filter(ImageFilter.GaussianBlur(radius=view.blur))
    return np.asarray(image)


def draw_box(r: random.Random, size: int) -> tuple[int, int, int, int]:
    """x, y, width, height; (0, 0, 0, 0) for none."""
    if r.random() > 0.5:
        return 0, 0, 0, 0
    area = r.uniform(0.02, 0.4) * size * size
    while True:
        ratio = r.uniform(0.3, 1 / 0.3)
        w, h = int(math.sqrt(area / ratio)), int(math.sqrt(area * ratio))
        x, y = r.randint(0, size - 1), r.randint(0, size - 1)
        if x + w <= size and y + h <= size:
            return x, y, w, h


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Something like a photograph: soft shading, sharp edges, fine texture and sensor noise."""
    r = np.random.default_rng((seed, width, height))
    coarse = Image.fromarray(r.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    out = np.asarray(coarse).astype(np.float64)
    for _ in range(12):
        x, y = int(r.integers(0, width)), int(r.integers(0, height))
        out[y : y + height // 5, x : x + width // 6] = r.integers(0, 256, 3)
    fine = Image.fromarray(r.integers(0, 256, (height // 2 + 1, width // 2 + 1), dtype=np.uint8)).resize((width, height))
    out += (np.asarray(fine).astype(np.float64)[..., None] - 128) * 0.15 + r.normal(0, 3, out.shape)
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))
