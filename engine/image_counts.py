"""Pixel counts of each validation image, kept beside the log: what `scripts.report compare` computes an interval over images from."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from util.files import write_atomic

# Files of the model that the published rule looks at: of its best epoch, of its last one, and of best.pth on the test list.
FILES = {"best": "images_best.npz", "last": "images_last.npz", "test": "images_test.npz"}


class ImageCounts(NamedTuple):
    """counts: (N, 3, K) int64, `metric.sums` of each image, in the order of the list with the SHA-256 `sha256`; epoch: of the model."""

    counts: np.ndarray
    epoch: int
    sha256: str


def save(path: Path, counts: Tensor, epoch: int, sha256: str) -> None:
    """Writes the counts (N, 3, K) of an evaluation, compressed. Raises OSError."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, counts=counts.numpy().astype(np.int32), epoch=epoch, sha256=sha256)
    write_atomic(path, lambda file: file.write(buffer.getvalue()))


def load(path: Path) -> ImageCounts | None:
    """What `save` wrote; None where there is no such file, or one that cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            counts = file["counts"].astype(np.int64)
            found = ImageCounts(counts, int(file["epoch"]), str(file["sha256"]))
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return found if counts.ndim == 3 and counts.shape[1] == 3 else None
