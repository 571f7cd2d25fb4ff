"""Drawn photographs as a list of any data set."""

from pathlib import Path
from typing import Any

from dataset.custom import spec_of
from dataset.demo.photograph import drawn_source
from tests.scripts.benchmark.recipes import recipe


def test_masks_hold_values_of_the_data_set(tmp_path: Path) -> None:
    own: dict[str, Any] = {"dataset": "own", "classes": ["land", "water"], "nclass": None, "label_map": {10: 0, 200: 1}}
    for i, (cfg, most) in enumerate(((recipe("ade20k"), 19), (recipe("demo", **own), 2), (recipe("levir"), 2))):
        source = drawn_source(tmp_path / str(i), spec_of(cfg), [(40, 30)], count=6)
        assert len(source.ids) == 6
        masks = [source.mask(source.ids[j], (40, 30)) for j in range(4)]  # raises UserError for a value that is illegal
        assert {int(value) for mask in masks for value in mask.flat} <= set(range(most))
        assert len({int(value) for mask in masks for value in mask.flat}) > 1
