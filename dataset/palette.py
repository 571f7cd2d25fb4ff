"""Colours for classes that have none: distinct, also to those who cannot distinguish red from green, and no black, white or grey."""

from functools import cache

import numpy as np

Color = tuple[int, int, int]

# Okabe and Ito's colours but for black (jfly.uni-koeln.de/color, 2008): blue, orange, green, vermilion, sky blue, purple, yellow
FIRST = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233), (204, 121, 167), (240, 228, 66))
TAKEN = ((0, 0, 0), (255, 255, 255), (128, 128, 128))  # nothing, and ignored pixels on masks and pictures
LEVELS = 8  # of each channel, among which further colours are chosen
DARK = 0.35  # OKLab lightness below which a colour looks black
# linear RGB to OKLab (bottosson.github.io/posts/oklab): to cone responses, then to lightness and two opponent axes
TO_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]]
)
TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099], [0.0259040371, 0.7827717662, -0.8086757660]]
)
# linear RGB as a deuteranope sees it (Machado et al. 2009, severity 1)
DEUTERANOPE = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])


def linear(colors: np.ndarray) -> np.ndarray:
    """Converts sRGB (N, 3) in 0..255 to linear RGB in 0..1."""
    part = colors / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Converts linear RGB (N, 3) to OKLab, where distances are perceived differences; the first coordinate is lightness."""
    return np.cbrt(rgb @ TO_CONES.T) @ TO_LAB.T


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The differences (N, M) of colours (N, 3) and (M, 3) in 0..255: the smaller of the OKLab distance and twice a deuteranope's."""
    views = [(oklab(rgb), oklab((rgb @ DEUTERANOPE.T).clip(0, 1))) for rgb in (linear(a), linear(b))]
    own, blind = (np.linalg.norm(x[:, None] - y, axis=2) for x, y in zip(*views, strict=True))
    return np.minimum(own, 2 * blind)


@cache
def distinct_palette(count: int) -> tuple[Color, ...]:
    """A palette of `count` colours, which is the beginning of every longer one.

    First FIRST, then always the colour of a grid of LEVELS^3, without the dark ones, that differs most from all before it and from TAKEN.
    """
    steps = np.round(np.linspace(0, 255, LEVELS))
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[oklab(linear(grid))[:, 0] >= DARK]
    chosen: list[Color] = [*FIRST]
    nearest = differences(grid, np.array([*chosen, *TAKEN])).min(1)
    while len(chosen) < count:
        best = grid[nearest.argmax()]
        chosen.append((int(best[0]), int(best[1]), int(best[2])))
        nearest = np.minimum(nearest, differences(grid, best[None])[:, 0])
    return tuple(chosen[:count])
