"""The reader takes anything: it returns runs or raises UserError, soon, and loses no line without a word."""

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.report import Run, read_log
from scripts.report.render import latex, markdown
from scripts.report.tables import build_tables
from tests.scripts.report.report_logs import LogWriter, whole_log
from util.error import UserError

RESUMED = LogWriter().header("supervised").supervised_epoch(0, "70.00").header("supervised")
LOGS = [
    whole_log(2),
    LogWriter().header(dataset="levir", split="5%").change_epoch(0, "83.25", "99.08").text,
    RESUMED.record("************ Load from checkpoint at epoch 0").text,
    LogWriter().record("Namespace(seed=0, epochs=2, dataset='cifar10')").record("Epoch 0, Iter: 0/9, Loss x: 2.3 (2.3)").text,
]
PIECES = [
    *("\0", "\r", "\n", "\u2028", "\udcff", "{", "}", "'a': ", "'label_per_class': '" + "9" * 5000 + "'", "nan", "-", "9" * 30, "=" * 50),
    *("[2024-", "[2024-13-41 25:61:61,000][    INFO] ", "Epoch: ", "EMA: 99.99", "Iters: 5, a: 1", "Load from checkpoint at epoch 999999"),
]
fuzz = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_anything(folder: Path, content: bytes, name: str = "fuzz.log") -> list[Run]:
    path = folder / name
    path.write_bytes(content)
    try:
        runs = read_log(path)
    except UserError:
        return []
    for run in runs:
        figures = [value for value in (run.best, run.last, run.accuracy) if value is not None]
        assert all(math.isfinite(value) and 0 <= value < 1000 for value in figures)
        assert run.epochs_done >= (run.best is not None)
        assert (run.best is None) == (run.best_epoch is None)
    tables = build_tables(runs)
    markdown(tables, runs, []).encode()
    latex(tables, runs, []).encode()
    json.dumps([run.to_json() for run in runs], allow_nan=False)
    return runs


@fuzz
@given(st.binary(max_size=2000))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    read_anything(tmp_path, content)


@fuzz
@given(st.sampled_from(LOGS), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 40), st.sampled_from(PIECES)), max_size=12))
def test_damaged_logs(tmp_path: Path, text: str, edits: list[tuple[int, int, str]]) -> None:
    for start, length, piece in edits:
        text = text[:start] + piece + text[start + length :]
    read_anything(tmp_path, text.encode("utf-8", "surrogateescape"))


START = '{"kind": "start", "time": "2025-03-01 12:00:00.000", "step": 0, "method": "fixmatch", '
START += '"settings": {"epochs": 2, "criterion": {"name": "CELoss"}}}\n'
ROW = '{"kind": "epoch", "time": "2025-03-01 12:00:10.000", "epoch": 1, "step": 6, "seconds": 1.5, "memory": null, '
ROW += '"images_per_second": 2, "means": {}, '
ROW += '"pseudo_labels": {}, "scores": {"student": {"miou": 80.25}, "EMA": {"miou": 81.5}}, "labeled_images": 4}\n'
METRICS = [*PIECES, "1e999", "-5", "true", "[]", '{"kind": "start", "step": 0}\n', '"EMA"', "\n", "[" * 5000]


@fuzz
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 40), st.sampled_from(METRICS)), max_size=8), st.binary(max_size=20))
def test_damaged_metrics_beside_a_log(tmp_path: Path, edits: list[tuple[int, int, str]], more: bytes) -> None:
    text = START + ROW * 2
    for start, length, piece in edits:
        text = text[:start] + piece + text[start + length :]
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("utf-8", "surrogateescape") + more)
    runs = read_anything(tmp_path, LOGS[0].encode(), "train.log")
    assert runs, "where they cannot be read, the log is"


@fuzz
@given(st.lists(st.integers(0, 59), max_size=60))
def test_lines_in_any_order(tmp_path: Path, order: list[int]) -> None:
    lines = "".join(LOGS).split("\n")
    read_anything(tmp_path, "\n".join(lines[i % len(lines)] for i in order).encode())


@given(st.integers(0, len(LOGS[0])))
@fuzz
def test_a_log_cut_anywhere_never_invents_a_figure(tmp_path: Path, end: int) -> None:
    for run in read_anything(tmp_path, LOGS[0][:end].encode()):
        assert run.best in (None, 80.0, 81.0, 82.0)  # 80: the student's, where the line is cut before the EMA


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 1_000_000,
        b"=" * 1_000_000,
        b"\0" * 1_000_000,
        b"\r" * 1_000_000,
        b"'a': " * 200_000,
        b"[2024-01-01 00:00:00,000][    INFO] {'a': 'b'}\n" * 20_000,
        (LogWriter().header().epoch(0).text * 400).encode(),
        (LogWriter().header().record("Iters: 0" + ", a: 1" * 1000).record("***** Evaluation " + " " * 9000).text * 20).encode(),
    ],
    ids=["brackets", "equals", "nul", "returns", "pairs", "headers", "starts", "long lines"],
)
def test_time_is_bounded(tmp_path: Path, content: bytes) -> None:
    start = time.monotonic()
    read_anything(tmp_path, content)
    assert time.monotonic() - start < 8
