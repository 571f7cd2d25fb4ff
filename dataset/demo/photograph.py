"""Images with the detail of photographs, drawn where time and memory are measured, as a list of any data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.demo.scene import smooth_noise
from dataset.lists import Entry, ImageList
from dataset.source import Source
from dataset.spec import DatasetSpec

FILES = 4  # images of a list, which repeats them
Sizes = Sequence[tuple[int, int]]  # of images: width, height
SIZE = (500, 375)  # of Pascal's


def photograph(width: int, height: int, rng: np.random.Generator, noise: float) -> Image.Image:
    """RGB with the detail of a photograph: noise in octaves, each finer one weaker; edges of shaded boxes; a sensor's noise."""
    out = np.full((height, width, 3), 110.0)
    cells, strength = 4, 60.0
    while cells < width:
        out += strength * smooth_noise(rng, height, width, width / cells)[..., None] * rng.uniform(0.7, 1.3, 3)
        cells, strength = 2 * cells, 0.62 * strength
    for x, y in zip(rng.integers(0, width, 20), rng.integers(0, height, 20), strict=True):
        out[y : y + height // 5, x : x + width // 6] += rng.normal(0, 30, 3)
    out += rng.normal(0, noise, out.shape)
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def drawn_source(
    root: Path, spec: DatasetSpec, sizes: Sizes = (SIZE,), suffix: str = "jpg", noise: float = 6.0, count: int = FILES
) -> Source:
    """A list of `count` lines, which repeats drawn images, or pairs (always PNG); masks have soft shapes.

    sizes: (width, height), which FILES images, or as many as there are sizes, have in turn.
    """
    values = np.array(sorted(spec.label_map or range(spec.nclass))[:19], np.uint8)
    lines = []
    for i in range(min(count, max(FILES, len(sizes)))):
        size = sizes[i % len(sizes)]
        rng = np.random.default_rng((size[0], i))
        entry = Entry(f"{i}.png", None) if spec.bitemporal else Entry(f"{i}.{suffix}", f"{i}_mask.png")
        images, mask = spec.files(entry)
        for path in (*images, str(mask)):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
        for path in images:
            photograph(*size, rng, noise).save(root / path, quality=95)
        shapes = (2 * smooth_noise(rng, size[1], size[0], size[0] / 8) + len(values) / 2).clip(0, len(values) - 1)
        Image.fromarray(values[shapes.astype(int)]).save(root / str(mask))
        lines.append(" ".join(filter(None, entry)) + "\n")
    (root / "list.txt").write_text("".join(lines[i % len(lines)] for i in range(count)))
    return Source(spec, str(root), ImageList(str(root / "list.txt"), spec.task, masks=True))
