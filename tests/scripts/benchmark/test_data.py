"""The benchmark of samples compares two ways to the same mini-batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dataset.batch import Batch, Reads, make_batch
from dataset.custom import spec_of
from dataset.demo.photograph import drawn_source
from dataset.semi import TrainSet, collate
from dataset.source import Sources
from dataset.spec import get_spec
from model.encoder import Encoder
from scripts.benchmark import data
from tests.scripts.benchmark.recipes import recipe

CROP = 56
CPU = torch.device("cpu")


@pytest.mark.parametrize(("stream", "suffix"), [("x", "jpg"), ("x", "png"), ("u", "jpg")])
def test_both_ways_make_the_same_samples(stream: str, suffix: str, tmp_path: Path) -> None:
    source = drawn_source(tmp_path, get_spec("pascal"), [(100, 75)], suffix)
    literal = data.literal_samples(source, stream, CROP, range(8))
    ours: Any = TrainSet({stream: Sources([source])}, CROP, 0, Reads(), on_device=True)
    raw: Any = collate([ours[((stream, 0, i, i % 4),)] for i in range(8)])
    made = make_batch(raw, CPU, Encoder())
    for name in ("img_u_w", "img_u_s1", "img_u_s2", "ignore_u") if stream == "u" else ("img_x", "mask_x"):
        torch.testing.assert_close(getattr(made, name), literal[name], rtol=0, atol=2e-6, check_dtype=False)


@pytest.mark.parametrize("name", ["pascal", "levir"])
def test_a_mini_batch_is_that_of_a_run(name: str) -> None:
    cfg = recipe(name, crop_size=28, batch_size=5)
    ready, unmade = (make_batch(data.host_batch(cfg, Reads(), on_device), CPU, Encoder()) for on_device in (False, True))
    channels = 3 * spec_of(cfg).dates
    for field in ("img_x", "img_u_w", "img_u_s1", "img_u_s2"):
        assert getattr(ready, field).shape == (5, channels, 28, 28)
        assert torch.equal(getattr(ready, field), getattr(unmade, field))
    assert isinstance(ready, Batch)
    assert not torch.equal(ready.img_u_s1, ready.img_u_s2)


@pytest.mark.parametrize(("stream", "goal"), [("u", (">=", 10.0)), ("x", None)])
def test_a_row(stream: str, goal: tuple[str, float] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DRAWS", 4)
    source = drawn_source(tmp_path, get_spec("pascal"), [(40, 30)])
    row = data.sample_row(source, stream, 518, 1, "samples")
    assert row.goal == goal
    assert (row.value or 0) > 0
