"""Readers of what people and programs write: any bytes give a result or a UserError, never another exception.

The suite tries a few; more by hand:  FUZZ_SECONDS=600 python -m pytest tests/test_fuzz.py
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset.lists import ImageList
from dataset.source import Source
from dataset.spec import SPECS
from scripts.report.lines import read_lines
from scripts.report.sessions import read_sessions
from util.config import KEYS, load_config
from util.error import UserError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))

GOOD = {"dataset": "demo", "data_root": "x", "backbone": "dinov2_tiny", "crop_size": 14, "epochs": 1, "batch_size": 1, "lr": 0.1}

words = st.sampled_from(["images/0.jpg", "masks/0.png", " ", "\t", "\n", "\r\n", "None", "..", "/", "\0", "\ufeff", "é", "a" * 300])
lists = st.one_of(st.binary(max_size=200), st.lists(words, max_size=20).map(lambda w: "".join(w).encode()))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates(), st.binary(max_size=5))
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(scalars, inner, max_size=3)), max_leaves=5
)
configs = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet="abc:-[]{}&*!?|>%@`'\" \n\t0123456789.#,~<\\", max_size=80).map(str.encode),
    st.dictionaries(st.sampled_from(sorted(KEYS)), values, max_size=6).map(lambda v: yaml.dump(GOOD | v).encode()),
)
settings_text = st.one_of(st.text(max_size=40), st.tuples(st.sampled_from(sorted(KEYS)), st.text(max_size=20)).map("=".join))
pieces = st.sampled_from(
    [
        "[2024-08-21 12:59:30,756][    INFO] ", "[2024-08-21 12:59:30,756][ WARNING] ",
        "{'backbone': 'dinov2_base',\n", " 'lr': 1}\n", "\n",
        "===========> Epoch: ", "Previous best: 82.93 @epoch-0, EMA: 82.40 @epoch-0\n", "Iters: 79, LR: 0.0000050, Total loss: 0.335, ",
        "Loss x: nan, Loss s: 0.008, Mask ratio: 0.339\n", "***** Evaluation ***** >>>> ", "Class [0 background] IoU: 96.13, EMA: 95.89\n",
        "***** Evaluation original ***** >>>> MeanIoU: 82.93, EMA: 82.40\n", "************ Load from checkpoint at epoch ", "12", "-1",
        "9" * 30,
        "Step 3 skipped: loss or gradient is not finite (1 in a row, 1 in all)\n", "Changed IoU: 72.46: EMA: 70.61\n", ", ", "\0", "é",
    ]
)  # fmt: skip
logs = st.one_of(st.text(max_size=200), st.lists(pieces, max_size=30).map("".join))


def read_list(content: bytes, folder: Path) -> None:
    path = folder / "list.txt"
    path.write_bytes(content)
    for task, masks in (("segmentation", True), ("segmentation", False), ("change", True)):
        try:
            ids = ImageList(str(path), task, masks)
            source = Source(SPECS["demo"], str(folder), ids)
            for i in range(len(ids)):
                entry = ids[i]
                source.images(entry)
        except UserError:
            continue


def read_config(content: bytes, folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    try:
        load_config(str(path))
    except UserError:
        return


def read_setting(text: str, folder: Path) -> None:
    path = folder / "good.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    try:
        load_config(str(path), [text])
    except UserError:
        return


def read_log(text: str, folder: Path) -> None:
    sessions, unread = read_sessions(read_lines(text))
    assert sessions
    assert isinstance(unread, list)


@pytest.mark.parametrize(
    ("reader", "inputs"),
    [(read_list, lists), (read_config, configs), (read_setting, settings_text), (read_log, logs)],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_any_bytes_give_a_result_or_a_user_error(reader: Callable[[Any, Path], None], inputs: st.SearchStrategy, tmp_path: Path) -> None:
    @settings(max_examples=100 if SECONDS == 0 else 1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def one(content: Any) -> None:
        reader(content, tmp_path)

    end = time.monotonic() + SECONDS / 4
    one()
    while time.monotonic() < end:
        one()
