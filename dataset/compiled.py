"""Strong views on a CPU, compiled: the arithmetic of dataset/photometry.py in one pass over the pixels, to the same bits.

Needs numba (requirements-extra.txt). It compiles when this module is imported first, for about 6 s, and keeps the result in __pycache__.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from dataset.photometry import Adjust, box_weights, hue_steps

# float32 and 32-bit integers are named at every number: numba would go on in 64 bits, at a quarter of the speed
f4, i4, u1, u4 = np.float32, np.int32, np.uint8, np.uint32
Line = np.ndarray
BLACK, MEAN, GREY = range(3)  # what an adjustment blends with


@njit
def _grey(image: np.ndarray, y: int, line: np.ndarray) -> None:
    """Line y of an image's grey."""
    for x in range(line.size):
        red, green, blue = f4(image[0, y, x]), f4(image[1, y, x]), f4(image[2, y, x])
        line[x] = np.floor((red * f4(19595) + green * f4(38470) + blue * f4(7471) + f4(0x8000)) * f4(1 / 0x10000))


@njit("void(u1[:,:,:,::1], f4[::1], i8, u1[:,:,:,::1])", cache=True)
def _blend(images: np.ndarray, factors: np.ndarray, towards: int, out: np.ndarray) -> None:
    count, channels, height, width = images.shape
    start = np.empty(width, f4)
    for i in range(count):
        start[:] = f4(0)
        if towards == MEAN:
            total = 0
            for y in range(height):
                _grey(images[i], y, start)
                total += int(start.sum())  # exact: whole numbers below 2**24
            start[:] = f4((2 * total + height * width) // (2 * height * width))
        for y in range(height):
            if towards == GREY:
                _grey(images[i], y, start)
            for c in range(channels):
                for x in range(width):
                    blended = (f4(images[i, c, y, x]) - start[x]) * factors[i] + start[x]
                    out[i, c, y, x] = u1(i4(min(max(blended, f4(0)), f4(255))))


@njit("void(u1[:,:,:,::1], f4[::1], u1[:,:,:,::1])", cache=True, error_model="numpy")
def _hue(images: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
    """See dataset.photometry._turn_hue."""
    count, _, height, width = images.shape
    for i in range(count):
        for y in range(height):
            for x in range(width):
                red, green, blue = f4(images[i, 0, y, x]), f4(images[i, 1, y, x]), f4(images[i, 2, y, x])
                value = max(max(red, green), blue)
                least = min(min(red, green), blue)
                middle = max(min(red, green), min(max(red, green), blue))
                spread = value - least

                red_first, green_first, blue_first = f4(red >= green), f4(green >= blue), f4(blue >= red)
                side = f4(2) * (red_first + green_first + blue_first) - f4(3)
                largest = f4(2) * f4(green_first > red_first) + f4(4) * f4(blue_first > green_first)
                inwards = (value - middle) / max(spread, f4(1))
                hue = (largest + side - inwards * side) / f4(6)
                hue = np.floor((hue - np.floor(hue)) * f4(255)) + steps[i]
                turned = (hue - np.floor(hue * f4(1 / 256)) * f4(256)) * f4(6)

                scale = np.floor(spread * f4(255) / max(value, f4(1))) * value * f4(1 / 255**2)
                ramps = (f4(510) - abs(turned - f4(765)), abs(turned - f4(510)) - f4(255), abs(turned - f4(1020)) - f4(255))
                for c in range(3):
                    below = min(max(ramps[c], f4(0)), f4(255)) * scale + f4(0.5)
                    out[i, c, y, x] = u1(i4(value) - i4(below))


@njit
def _box(before2: Line, before: Line, here: Line, after: Line, after2: Line, weights: tuple, out: Line) -> None:
    inside, next_to, far = weights
    for x in range(out.size):
        total = u4(here[x]) * inside + (u4(before[x]) + u4(after[x])) * next_to + (u4(before2[x]) + u4(after2[x])) * far
        out[x] = u1((total + u4(2**23)) >> u4(24))


@njit("void(u1[:,:,:,::1], u4[:,::1], u1[:,:,:,::1])", cache=True)
def _blur(images: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    count, channels, height, width = images.shape
    line, planes = np.empty((2, width + 4), u1), np.empty((2, height, width), u1)
    for i in range(count):
        taps = (weights[i, 0], weights[i, 1], weights[i, 2])
        for c in range(channels):
            for y in range(height):
                for x in range(width):  # numba's copy of a slice takes longer than a blur
                    line[0, x + 2] = images[i, c, y, x]
                for turn in range(3):
                    a = line[turn % 2]
                    a[0] = a[1] = a[2]
                    a[-1] = a[-2] = a[-3]
                    made = planes[0, y] if turn == 2 else line[1 - turn % 2, 2:-2]
                    _box(a[:-4], a[1:-3], a[2:-2], a[3:-1], a[4:], taps, made)
            for turn in range(3):
                a = planes[turn % 2]
                for y in range(height):
                    up, down = max(y - 1, 0), min(y + 1, height - 1)
                    made = out[i, c, y] if turn == 2 else planes[1 - turn % 2, y]
                    _box(a[max(y - 2, 0)], a[up], a[y], a[down], a[min(y + 2, height - 1)], taps, made)


def _made(kernel: Callable[..., None], images: Tensor, *parameters: Any) -> Tensor:
    out = torch.empty(images.shape, dtype=torch.uint8)
    kernel(images.contiguous().numpy(), *parameters, out.numpy())
    return out


COMPILED: dict[str, Adjust] = {
    "brightness": lambda images, factors: _made(_blend, images, np.array(factors, f4), BLACK),
    "contrast": lambda images, factors: _made(_blend, images, np.array(factors, f4), MEAN),
    "saturation": lambda images, factors: _made(_blend, images, np.array(factors, f4), GREY),
    "hue": lambda images, factors: _made(_hue, images, np.array([hue_steps(factor) for factor in factors], f4)),
    "blur": lambda images, radii: _made(_blur, images, np.array([box_weights(radius) for radius in radii], u4)),
}
