"""The benchmark of samples compares two ways to the same mini-batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset.batch import Reads, normalize
from dataset.lists import ImageList
from dataset.semi import STREAMS, Source, Sources, TrainSet
from dataset.spec import get_spec
from model.encoder import Encoder
from scripts.benchmark import data

CROP = 56


@pytest.fixture(scope="module", params=["jpg", "png"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    data.write_images(root, 100, 75, request.param, 3.0)
    return root


@pytest.mark.parametrize("stream", ["x", "u"])
def test_both_ways_make_the_same_samples(root: Path, stream: str) -> None:
    lines = (root / "list.txt").read_text().splitlines()
    sources = {stream: Sources([Source(get_spec("pascal"), str(root), ImageList(str(root / "list.txt"), "segmentation", stream == "x"))])}
    ours = TrainSet(sources, CROP, 0, Reads())
    for i in range(8):
        literal = data.literal_sample(root, lines[i % 4], CROP, np.random.default_rng((0, STREAMS[stream], 0, i)), stream)
        sample: Any = ours[((stream, 0, i, i % 4),)]
        if stream == "x":
            found = {"img": normalize(sample["img_x"], Encoder()), "mask": sample["mask_x"]}
        else:
            names = {"img": "img_u_w", "strong1": "img_u_s1", "strong2": "img_u_s2"}
            found = {name: normalize(sample[field], Encoder()) for name, field in names.items()}
            found |= {"ignore": sample["ignore_u"]} | {name: sample[name] for name in ("box1", "box2")}
        assert set(found) == set(literal)
        for name, value in literal.items():
            torch.testing.assert_close(found[name], value, atol=2e-6, rtol=0, check_dtype=False)


def test_rows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DRAWS", 4)
    found = list(data._sample_rows(root, "500 x 375 JPG, crop 56", CROP, rounds=2))
    assert [row.goal for row in found] == [(">=", 10.0), None, None, None, None, None]
    assert all(row.low and row.value and row.high and 0 < row.low <= row.value <= row.high for row in found)
