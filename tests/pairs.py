"""A small data set of pairs of two dates, for the tests of change detection."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.conftest import Tiny

SIZES = ((57, 43), (43, 61), (66, 66))
LISTS = {"labeled": range(6), "unlabeled": range(6, 18), "val": range(18, 21), "test": range(21, 26)}


def write_pair(root: Path, name: str, width: int, height: int, seed: int, label: bool = True) -> None:
    """A, B and, where `label` says so, a label of 0 and 255: blobs on noise, some of them only in B."""
    rng = np.random.default_rng(seed)
    before = rng.normal(110, 12, (height, width, 3))
    after = before * rng.uniform(0.8, 1.2) + rng.normal(0, 4, before.shape)
    changed = np.zeros((height, width), np.uint8)
    for kind in (0, 1, 1):
        x, y = (int(rng.integers(0, side - 15)) for side in (width, height))
        spot = np.s_[y : y + 15, x : x + 15]
        after[spot] = (230, 60, 40)
        changed[spot] = 255 * kind
        if not kind:
            before[spot] = (230, 60, 40)
    for folder, pixels in (("A", before), ("B", after), ("label", changed)):
        if folder != "label" or label:
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / folder / name)


def make_pairs(root: Path) -> Tiny:
    """Writes 6 labelled, 12 unlabelled (without label files), 3 validation and 5 test pairs, lists and a config below `root`."""
    for part, numbers in LISTS.items():
        for i in numbers:
            write_pair(root, f"{i}.png", *SIZES[i % 3], seed=i, label=part != "unlabeled")
        (root / f"{part}.txt").write_text("".join(f"{i}.png\n" for i in numbers))
    values = {
        "dataset": "demo_change",
        "data_root": str(root),
        "val_id_path": str(root / "test.txt"),
        "test_id_path": str(root / "test.txt"),
        "backbone": "dinov2_tiny",
        "pretrained": None,
        "crop_size": 28,
        "batch_size": 2,
        "epochs": 2,
        "lr": 3e-4,
        "lr_multi": 3.0,
        "conf_thresh": 0.7,
        "num_workers": 0,
        "teacher": "student",
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(values))
    return Tiny(root)
