"""Scenes of textured objects in clutter: what the procedural data sets of dataset/demo/sets.py are made of.

Objects are of warm colours and clutter is near grey, so that it is quickly learned where an object is. Which one it is takes longer:
the class is the outline only; colours, texture, size, rotation and stretch come from the same distributions for all classes.
Images are float32 arrays (height, width, 3) in [0, 255]; class ids are those of `demo` in dataset/spec.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dataset.spec import IGNORE

Array = NDArray[np.float32]

DIAMETERS = (45.0, 85.0)  # px
SUPERSAMPLE = 3  # an outline is sampled at SUPERSAMPLE^2 points per pixel


@dataclass(frozen=True)
class Thing:
    """One object: kind is its class id, x, y, radius in px, angle in rad, stretch its aspect; seed fixes its texture."""

    kind: int
    x: float
    y: float
    radius: float
    angle: float
    stretch: float
    seed: int


def _inside(kind: int, u: Array, v: Array) -> NDArray[np.bool_]:
    """Whether points (u, v) of the unit disc belong to the shape of a class."""
    radius = np.hypot(u, v)
    if kind == 1:  # disc
        return radius <= 0.95
    if kind == 2:  # square
        return np.maximum(abs(u), abs(v)) <= 0.75
    if kind == 3:  # triangle: three half-planes at distance 0.5 from the centre
        return (v <= 0.5) & (0.866 * u - 0.5 * v <= 0.5) & (-0.866 * u - 0.5 * v <= 0.5)
    if kind == 4:  # ring
        return (radius <= 1) & (radius >= 0.5)
    return np.minimum(abs(u), abs(v)) <= np.where(np.maximum(abs(u), abs(v)) <= 0.95, 0.3, -1)  # cross


def coverage(thing: Thing, height: int, width: int) -> Array:
    """The share of each pixel that the object covers, (height, width) in [0, 1]."""
    out = np.zeros((height, width), np.float32)
    reach = 1.1 * thing.radius * max(thing.stretch, 1 / thing.stretch) + 1  # a square's corners stick out of the unit disc
    x0, x1 = max(0, int(thing.x - reach)), min(width, int(thing.x + reach) + 1)
    y0, y1 = max(0, int(thing.y - reach)), min(height, int(thing.y + reach) + 1)
    offset = (np.arange(SUPERSAMPLE, dtype=np.float32) + 0.5) / SUPERSAMPLE
    xs = (np.arange(x0, x1, dtype=np.float32)[:, None] + offset).ravel() - thing.x
    ys = (np.arange(y0, y1, dtype=np.float32)[:, None] + offset).ravel() - thing.y
    x, y = np.meshgrid(xs / thing.radius, ys / thing.radius)
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    u, v = (cos * x + sin * y) / thing.stretch, (cos * y - sin * x) * thing.stretch
    inside = _inside(thing.kind, u, v).reshape(y1 - y0, SUPERSAMPLE, x1 - x0, SUPERSAMPLE)
    out[y0:y1, x0:x1] = inside.mean((1, 3))
    return out


def smooth_noise(rng: Generator, height: int, width: int, cell: float) -> Array:
    """Noise (height, width) of standard deviation about 1 whose bumps are `cell` px wide."""
    grid = rng.normal(size=(int(height / cell) + 2, int(width / cell) + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def texture(rng: Generator, height: int, width: int) -> Array:
    """A pattern (height, width) in [0, 1] that mixes the two colours of an object: stripes, checks, dots, marble or a soft ramp."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 14)
    u = (np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period)
    v = (np.cos(angle) * y - np.sin(angle) * x) * (2 * np.pi / period)
    patterns: Sequence[Callable[[], Array]] = (
        lambda: 0.5 + 0.5 * np.sin(u),
        lambda: 0.5 + 0.5 * np.sign(np.sin(u) * np.sin(v)),
        lambda: (np.sin(u) + np.sin(v) > 0.8).astype(np.float32),
        lambda: np.clip(0.5 + 0.5 * smooth_noise(rng, height, width, period), 0, 1),
        lambda: 0.5 + 0.5 * np.sin(u / 12),
    )
    return patterns[int(rng.integers(len(patterns)))]()


def muted(rng: Generator) -> Array:
    """An RGB colour near grey: what the clutter is painted with."""
    return (rng.uniform(60, 190) + rng.uniform(-15, 15, 3)).astype(np.float32)


def warm(rng: Generator) -> Array:
    """An RGB colour of objects: narrowly spread, so that a colour cannot stand for one of the few labelled objects."""
    return (np.array((205, 110, 60)) + rng.uniform(-35, 35, 3)).astype(np.float32)


def background(rng: Generator, height: int, width: int) -> Array:
    """Clutter (height, width, 3) in [0, 255]: a colour gradient, blotches, lines and blobs too small to be an object."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ramp = 0.5 + (np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5))
    start, end = muted(rng), muted(rng)
    img = start + ramp[..., None] * (end - start)
    img = img + np.stack([smooth_noise(rng, height, width, rng.uniform(10, 40)) for _ in range(3)], -1) * rng.uniform(3, 10)
    canvas = Image.fromarray(np.clip(img, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(3, 9)):
        ends = rng.uniform((0, 0, 0, 0), (width, height, width, height))
        pen.line(tuple(ends), fill=tuple(map(int, muted(rng))), width=int(rng.integers(1, 4)))
    for _ in range(rng.integers(6, 15)):
        cx, cy, rx, ry = rng.uniform((0, 0, 3, 3), (width, height, 8, 8))
        blob = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        blob((cx - rx, cy - ry, cx + rx, cy + ry), fill=tuple(map(int, muted(rng))))
    return np.asarray(canvas).astype(np.float32)


def place(rng: Generator, height: int, width: int, count: int) -> list[Thing]:
    """Draws up to `count` objects; the centre is inside the image, and at most about a fifth of an object is behind a later one."""
    things: list[Thing] = []
    for _ in range(30):
        if len(things) == count:
            break
        radius = rng.uniform(*DIAMETERS) / 2
        x, y = rng.uniform((0.6 * radius, 0.6 * radius), (width - 0.6 * radius, height - 0.6 * radius))
        stretch, angle, seed = np.exp(rng.uniform(-0.15, 0.15)), rng.uniform(0, 2 * np.pi), int(rng.integers(2**31))
        if all(np.hypot(x - t.x, y - t.y) > 0.8 * (radius + t.radius) for t in things):
            things.append(Thing(int(rng.integers(1, 6)), x, y, radius, angle, stretch, seed))
    return things


def surface(thing: Thing, height: int, width: int) -> Array:
    """The surface of an object, (height, width, 3): a light and a dark colour, mixed by a texture."""
    rng = default_rng(thing.seed)
    light, dark = warm(rng), 0.7 * warm(rng)
    return light + texture(rng, height, width)[..., None] * (dark - light)


def render(scene: Array, things: list[Thing]) -> tuple[Array, NDArray[np.uint8]]:
    """Draws the objects over a scene, in order. Returns the (H, W, 3) image and (H, W) class ids, 255 where an outline crosses a pixel."""
    height, width = scene.shape[:2]
    img = scene
    mask = np.zeros((height, width), np.uint8)
    for thing in things:
        cover = coverage(thing, height, width)
        img = img + cover[..., None] * (surface(thing, height, width) - img)
        mask[cover > 0] = IGNORE
        mask[cover == 1] = thing.kind
    return img, mask


def develop(img: Array, rng: Generator) -> Image.Image:
    """The 8-bit photograph of a scene, with sensor noise."""
    return Image.fromarray(np.clip(img + rng.normal(0, rng.uniform(3, 10), img.shape), 0, 255).astype(np.uint8))


def two_dates(rng: Generator, height: int, width: int) -> tuple[Array, Array, NDArray[np.bool_]]:
    """One scene at two dates in the same light, and a mask (height, width) of the objects that came or went."""
    scene = background(rng, height, width)
    things = place(rng, height, width, 5)
    # an object stays, goes or comes
    fates = rng.choice(["stay", "go", "come"], len(things), p=(0.5, 0.25, 0.25))
    before = [thing for thing, fate in zip(things, fates, strict=True) if fate != "come"]
    after = [thing for thing, fate in zip(things, fates, strict=True) if fate != "go"]
    changed = np.zeros((height, width), bool)
    for thing, fate in zip(things, fates, strict=True):  # in drawing order: what is in front decides
        changed[coverage(thing, height, width) >= 0.5] = fate != "stay"
    return render(scene, before)[0], render(scene, after)[0], changed


def relight(img: Array, rng: Generator) -> Array:
    """The scene in another light: exposure, tint, contrast and a slow shade. No change in the sense of the labels."""
    height, width = img.shape[:2]
    shade = 1 + 0.12 * smooth_noise(rng, height, width, 70)[..., None]
    lit = 255 * np.clip(img / 255, 0, 1) ** np.exp(rng.uniform(-0.3, 0.3))
    return lit * shade * rng.uniform(0.8, 1.2) * rng.uniform(0.9, 1.1, 3)
