"""95 % intervals of the mean difference between two methods with the same seeds: over seeds, over images, over both (METHOD.md 4).

Percentile bootstrap: DRAWS resamples with replacement from a generator of a fixed seed, so the same runs give the same interval.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from engine import metric

DRAWS = 5_000
SEED = 0
LEVEL = 95  # per cent
TAIL = (100 - LEVEL) / 2  # on either side of the interval
AT_ONCE = 500  # resamples of images that are in memory together

Interval = tuple[float, float]


def over_seeds(differences: np.ndarray) -> Interval:
    """Of the mean of a difference for each seed, (S,): seeds are resampled."""
    return _interval(differences[_seeds(len(differences))].mean(1))


def t_interval(differences: np.ndarray) -> Interval:
    """Student's interval of the same mean, for differences that are normally distributed; needs two or more."""
    count = len(differences)
    half = t_quantile(count - 1) * differences.std(ddof=1) / math.sqrt(count)
    return float(differences.mean() - half), float(differences.mean() + half)


def t_quantile(freedom: int) -> float:
    """What Student's t exceeds in absolute value with probability 5 %. With t = sqrt(n) tan(x), x has a density of cos(x)^(n - 1)."""
    x = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(x) ** (freedom - 1)
    area = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return math.sqrt(freedom) * math.tan(np.interp((1 - 2 * TAIL / 100) * area[-1], area, x))


def over_images(first: np.ndarray, second: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> tuple[Interval, Interval]:
    """Of the mean over the seeds: images alone are resampled, the same ones for all runs; images and seeds are.

    first, second: counts of the images of each seed's run, (S, N, 3, K), `metric.sums`. score: of summed counts (..., 3, K) in percent.
    """
    seeds, images = first.shape[:2]
    rng = np.random.default_rng(SEED)
    # (N, 2 S 3 K): a resample's sums are a product of matrices, exact in float64
    table = np.concatenate((first, second)).astype(np.float64).transpose(1, 0, 2, 3).reshape(images, -1)
    parts = []
    for _ in range(0, DRAWS, AT_ONCE):
        weights = rng.multinomial(images, np.full(images, 1 / images), AT_ONCE).astype(np.float64)
        scores = score((weights @ table).reshape(AT_ONCE, 2, seeds, *first.shape[2:]))
        parts.append(scores[:, 0] - scores[:, 1])
    differences = np.concatenate(parts)  # (DRAWS, S)
    both = np.take_along_axis(differences, _seeds(seeds), 1).mean(1)
    return _interval(differences.mean(1)), _interval(both)


def _seeds(count: int) -> np.ndarray:
    """Which seeds each resample has, (DRAWS, count)."""
    return np.random.default_rng(SEED + 1).integers(0, count, (DRAWS, count))


def _interval(means: np.ndarray) -> Interval:
    low, high = np.percentile(means, (TAIL, 100 - TAIL))
    return float(low), float(high)


def mean_iou(sums: np.ndarray) -> np.ndarray:
    """In percent, of right, true and predicted pixels (..., 3, K)."""
    return _class_iou(sums).mean(-1)


def changed_iou(sums: np.ndarray) -> np.ndarray:
    """IoU of the changed class in percent."""
    return _class_iou(sums)[..., 1]


def _class_iou(sums: np.ndarray) -> np.ndarray:
    return metric.class_iou(torch.from_numpy(sums)).numpy()


SCORES = {"segmentation": mean_iou, "change": changed_iou}  # the score that is compared, by task
