"""Strong views (METHOD.md 2.3): parameters are drawn first, then applied.

`strong_view` makes one with Pillow, in the loader's processes, and is the definition. `strong_views` makes those of a mini-batch from 8-bit
tensors on the training device. Its arithmetic is Pillow's, step by step: the same weights of grey, the same truncation after every
adjustment, hue in the 256 steps of its HSV, its Gaussian blur of six box blurs in fixed point. So the views are the same to the bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from util.dist import to_device

JITTER = ("brightness", "contrast", "saturation", "hue")
ENHANCE = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
Adjust = Callable[[Tensor, Sequence[float]], Tensor]  # uint8 (N, 3, H, W), a number for each image -> the same shape


@dataclass(frozen=True)
class Photometry:
    """One strong view: `jitter` is (adjustment, factor) in the order they are applied, `blur` Pillow's Gaussian radius in pixels."""

    jitter: tuple[tuple[str, float], ...]
    grey: bool
    blur: float | None

    def pack(self) -> list[float]:
        """The view as ten numbers: order as indices into JITTER (-1: no jitter), factors in that order, grey, and radius (0: no blur)."""
        order = [float(JITTER.index(name)) for name, _ in self.jitter] or [-1.0] * 4
        factors = [factor for _, factor in self.jitter] or [1.0] * 4
        return [*order, *factors, float(self.grey), self.blur or 0.0]

    @classmethod
    def unpack(cls, row: Sequence[float]) -> "Photometry":
        """The inverse of `pack`."""
        jitter = tuple((JITTER[int(index)], factor) for index, factor in zip(row[:4], row[4:8], strict=True) if index >= 0)
        return cls(jitter, bool(row[8]), row[9] or None)


def draw_photometry(rng: np.random.Generator, grey: float) -> Photometry:
    """Draws a strong view (METHOD.md 2.3); `grey` is the probability of greyscale."""
    jitter: tuple[tuple[str, float], ...] = ()
    if rng.random() < 0.8:
        factors = [(name, float(rng.uniform(0.5, 1.5))) for name in JITTER[:3]]
        factors.append(("hue", float(rng.uniform(-0.25, 0.25))))
        jitter = tuple(factors[i] for i in rng.permutation(4))
    is_grey = bool(rng.random() < grey)
    blur = float(rng.uniform(0.1, 2.0)) if rng.random() < 0.5 else None
    return Photometry(jitter, is_grey, blur)


def strong_view(image: Image.Image, view: Photometry) -> Image.Image:
    """A strong view of an RGB crop, made by Pillow: jitter in the drawn order, greyscale, blur."""
    for name, factor in view.jitter:
        image = _turn_hue(image, factor) if name == "hue" else ENHANCE[name](image).enhance(factor)
    if view.grey:
        image = image.convert("L").convert("RGB")
    return image if view.blur is None else image.filter(ImageFilter.GaussianBlur(view.blur))


def _turn_hue(image: Image.Image, factor: float) -> Image.Image:
    """Turns the hue through Pillow's 8-bit HSV and back."""
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(step + hue_steps(factor)) % 256 for step in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def hue_steps(factor: float) -> int:
    """The turn of the hue in steps of 1/256 of the circle; a factor of 1 is the whole circle."""
    return int(255 * factor)


def strong_views(weak: Tensor, drawn: Tensor) -> Tensor:
    """The strong views of B weak crops: uint8 (B, C, S, S) -> (B, views, C, S, S) on the same device; C is 3 or 6 (two dates).

    drawn: float64 (B, views, dates, 10) on the CPU, the packed Photometry of each view and date.
    """
    dates = weak.unflatten(1, (-1, 3))[:, None].expand(-1, drawn.shape[1], -1, -1, -1, -1)  # (B, views, dates, 3, S, S)
    views = [Photometry.unpack(row) for row in drawn.flatten(0, 2).tolist()]
    return apply_photometry(dates.flatten(0, 2), views).view(dates.shape).flatten(2, 3)


def apply_photometry(images: Tensor, views: Sequence[Photometry]) -> Tensor:
    """The strong views of N crops: uint8 (N, 3, H, W) -> the same shape, one of `views` for each crop.

    Each adjustment is made once for all crops that have it at the same position in their order, so a GPU gets few and large pieces of work.
    """
    crops = list(images.split(1))
    for position in range(len(JITTER)):
        for name in JITTER:
            _apply(
                ADJUST[name], crops, {i: v.jitter[position][1] for i, v in enumerate(views) if v.jitter and v.jitter[position][0] == name}
            )
    _apply(ADJUST["grey"], crops, {i: 1.0 for i, view in enumerate(views) if view.grey})
    _apply(ADJUST["blur"], crops, {i: view.blur for i, view in enumerate(views) if view.blur is not None})
    return torch.cat(crops)


def _apply(adjust: Adjust, crops: list[Tensor], factors: dict[int, float]) -> None:
    """Adjusts some of the crops, {index in the list: factor}, as one mini-batch."""
    if factors:
        done = adjust(torch.cat([crops[i] for i in factors]), list(factors.values()))
        for i, crop in zip(factors, done.split(1), strict=True):
            crops[i] = crop


def _each(values: Sequence[float], images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of one number per image, (N, 1, 1, 1), on the images' device."""
    return to_device(torch.tensor(values, dtype=dtype), images.device)[:, None, None, None]


def _to_8_bits(images: Tensor) -> Tensor:
    """Truncates to uint8, by way of int16, which takes a third of the time on a CPU."""
    return images.short().byte()


def _blend(start: Tensor | float, images: Tensor, factors: Sequence[float]) -> Tensor:
    """Pillow's Image.blend: from `start` towards the images and beyond them, in float32."""
    change = (images.float() - start).mul_(_each(factors, images))
    return _to_8_bits(change.add_(start).clamp_(0, 255))


def _grey(images: Tensor) -> Tensor:
    """Pillow's L of RGB, as whole float32 numbers (N, 1, H, W): its weights are 16-bit integers, so every sum here is exact."""
    red, green, blue = images.float().split(1, 1)
    return (red * 19595).add_(green * 38470).add_(blue * 7471).add_(0x8000).div_(0x10000).floor_()


def adjust_brightness(images: Tensor, factors: Sequence[float]) -> Tensor:
    """Scales the brightness. uint8 (N, 3, H, W), a factor for each image -> the same shape, as for the adjustments below."""
    return _blend(0, images, factors)


def adjust_contrast(images: Tensor, factors: Sequence[float]) -> Tensor:
    """Blends with the image's mean grey, rounded to a whole number."""
    lines = _grey(images).sum(-1).long()  # whole numbers below 2**24: exact in float32
    count = images.shape[-1] * images.shape[-2]
    mean = (2 * lines.sum(-1) + count) // (2 * count)
    return _blend(mean[..., None, None].float(), images, factors)


def adjust_saturation(images: Tensor, factors: Sequence[float]) -> Tensor:
    """Blends with the greyscale image."""
    return _blend(_grey(images), images, factors)


def adjust_hue(images: Tensor, factors: Sequence[float]) -> Tensor:
    """Turns the hue through Pillow's 8-bit HSV and back, in float32, in an order that rounds as Pillow for each of the 2**24 colours."""
    steps = _each([hue_steps(factor) for factor in factors], images)
    red, green, blue = images.split(1, 1)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    middle = torch.maximum(torch.minimum(red, green), torch.minimum(torch.maximum(red, green), blue))
    spread = (value - least).float()

    # Hue in sixths of the circle: red is 0, green 2, blue 4. `side` says on which side of the largest channel's it is, 1 or -1.
    red_first, green_first, blue_first = (pair.char() for pair in (red >= green, green >= blue, blue >= red))
    side = 2 * (red_first + green_first + blue_first) - 3
    largest = 2 * (green_first > red_first).char() + 4 * (blue_first > green_first).char()
    inwards = (value - middle).float().div_(spread.clamp(min=1))  # grey has no hue: any will do
    hue = (largest + side).float().sub_(inwards.mul_(side))
    hue.div_(hue.new_full((), 6))  # by a tensor: by a number, CUDA multiplies with its rounded inverse
    hue.sub_(hue.floor()).mul_(255).floor_()
    turned = hue.add_(steps)
    turned.sub_((turned / 256).floor_().mul_(256)).mul_(6)  # 256 steps are the circle; six times 255, too, is the circle below

    top = value.float()
    saturation = spread.mul_(255).div_(top.clamp(min=1)).floor_()
    # how far below `top` red, green and blue are: 0..255 times the saturation
    below = torch.cat((510 - (turned - 765).abs_(), (turned - 510).abs_().sub_(255), (turned - 1020).abs_().sub_(255)), 1).clamp_(0, 255)
    below.mul_(saturation.mul_(top)).mul_(1 / 255**2).add_(0.5)
    return value - _to_8_bits(below)


def to_grey(images: Tensor, _: Sequence[float]) -> Tensor:
    """The greyscale image in all three channels."""
    return _to_8_bits(_grey(images)).expand(-1, 3, -1, -1)


def gaussian_blur(images: Tensor, radii: Sequence[float]) -> Tensor:
    """Blurs by three box filters along the lines, then three along the columns. Pixels at the ends of a box count in part."""
    boxes = [box_weights(radius) for radius in radii]
    reach = max(sum(weight > 0 for weight in box) for box in boxes)
    weights = [_each(column, images, torch.int32) for column in list(zip(*boxes, strict=True))[:reach]]
    # Pixels minus 128, so that sums of 8 + 24 bits fit into int32: Pillow has them unsigned. Then the weights' sum, just below 2**24,
    # falls short by as many times 128.
    half = _each([2**23 - 128 * (2**24 - box[0] - 2 * sum(box[1:])) for box in boxes], images, torch.int32)
    out = images.int().sub_(128)
    for axis in (3, 2):
        out = _blur_along(out, weights, half, axis)
    return out.add_(128).byte()


def _blur_along(images: Tensor, weights: list[Tensor], half: Tensor, axis: int) -> Tensor:
    """Filters three times along an axis: the sum of weights[d] times both pixels at distance d. Pixels at the border are repeated."""
    size, reach = images.shape[axis], len(weights) - 1
    padded = torch.cat([images.narrow(axis, 0, 1)] * reach + [images] + [images.narrow(axis, size - 1, 1)] * reach, axis)
    inner = padded.narrow(axis, reach, size)
    total = torch.empty_like(images)
    for left in (2, 1, 0):
        torch.mul(inner, weights[0], out=total).add_(half)
        for distance, weight in enumerate(weights[1:], 1):
            total.addcmul_(padded.narrow(axis, reach - distance, size), weight)
            total.addcmul_(padded.narrow(axis, reach + distance, size), weight)
        torch.bitwise_right_shift(total, 24, out=inner)
        if left:
            padded.narrow(axis, 0, reach).copy_(inner.narrow(axis, 0, 1))
            padded.narrow(axis, reach + size, reach).copy_(inner.narrow(axis, size - 1, 1))
    return inner


def box_weights(radius: float) -> list[int]:
    """Weights of the pixels at distance 0, 1 and 2, in 2**-24: one box of the three that Pillow blurs with, for radii up to 2.

    The box's radius is rounded to float32 wherever Pillow's C does.
    """
    single = np.float32
    variance = float(single(radius) * single(radius) / single(3))
    length = float(single(math.sqrt(12 * variance + 1)))
    whole = math.floor((length - 1) / 2)
    part = float(single((2 * whole + 1) * (whole * (whole + 1) - 3 * variance)))
    part = float(single(part / (6 * float(single(variance) - single((whole + 1) ** 2)))))
    inside = int(single(2**24) / (single(whole + part) * single(2) + single(1)))
    ends = (2**24 - (2 * whole + 1) * inside) // 2
    return ([inside] * (whole + 1) + [ends, 0])[:3]


ADJUST: dict[str, Adjust] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
    "grey": to_grey,
    "blur": gaussian_blur,
}
