"""What every built-in data set keeps to (dataset/spec.py). A new one is tested here as soon as it is in SPECS."""

from pathlib import Path

import pytest

from dataset.custom import spec_of
from dataset.lists import inside, parse_line
from dataset.spec import IGNORE, SPECS
from tests.conftest import ROOT
from util.config import load_config


@pytest.mark.parametrize("name", SPECS)
def test_a_built_in_data_set(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    assert spec.name == name
    assert all(one == " ".join(one.split()) != "" for one in spec.classes)
    assert len(set(spec.classes)) == len(spec.classes) == spec.nclass > 1
    assert len(set(spec.palette)) == len(spec.palette) == spec.nclass, "two classes of one colour look the same in every picture"
    assert all(len(color) == 3 and all(0 <= value <= 255 for value in color) for color in spec.palette)

    # masks: every class has a value, the ignored value stands for no class, and all others are illegal
    meaning = dict(spec.label_map) or {i: i for i in range(spec.nclass)}
    assert set(meaning.values()) - {IGNORE} == set(range(spec.nclass))
    if not spec.label_map:
        assert spec.ignore_index >= spec.nclass
    if spec.colors:
        assert all(0 <= value <= 0xFFFFFF for value in meaning)
    else:
        meaning.setdefault(spec.ignore_index, IGNORE)
        assert {value: label for value, label in enumerate(spec.label_table.tolist()) if label != -1} == meaning
        assert len(spec.label_table) >= 256, "of any byte in a mask"

    # files: a line of a list leads to an image of each date and to a mask, all below the data root
    line = "some_1.png" if spec.task == "change" else "images/some_1.jpg masks/some_1.png"
    images, mask = spec.files(parse_line(line, "list:1", spec.task))
    assert mask is not None
    assert len({*images, mask}) == spec.dates + 1
    for path in (*images, mask):
        assert inside(str(tmp_path), path) == str(tmp_path / path)

    # its config names it and agrees about the number of classes
    cfg = load_config(str(ROOT / f"configs/{name}.yaml"))
    assert (cfg.dataset, cfg.nclass or spec.nclass) == (name, spec.nclass)
    assert (spec_of(cfg).name, spec_of(cfg).task) == (name, spec.task)
