"""python -m scripts.benchmark: the table, its JSON and its exit code."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.benchmark import __main__, speed
from scripts.benchmark.measure import AT_LEAST, AT_MOST, Row, ratio, seconds
from tests.conftest import command
from util.error import UserError

SETTINGS = ("backbone=dinov2_tiny", "crop_size=28", "batch_size=1")
STEP = ["step", "--config", "configs/pascal.yaml", "--rounds", "1", "--device", "cpu", *(part for s in SETTINGS for part in ("--set", s))]


def test_a_step_is_printed_and_written_and_a_missed_goal_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(speed, "CPU_GOAL", (AT_LEAST, 1e6))
    with pytest.raises(SystemExit, match="1"):
        __main__.main([*STEP, "--only", "fp32", "--json", str(tmp_path / "out.json")])
    out, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert "1 goals missed: step, dinov2_tiny" in out
    assert {"gpu", "cpu", "cores", "threads", "versions"} <= found["machine"].keys()
    (row,) = found["rows"]
    assert row["value"] > 0
    assert f"| step, dinov2_tiny, 28, 1+1 images: fp32 | {row['value']:.3g} {row['unit']} |" in out


def test_another_method_is_measured_by_its_name_with_what_is_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Without a config too; the goals are UniMatch V2's."""
    monkeypatch.setattr(speed, "CPU_GOAL", (AT_LEAST, 1e6))
    __main__.main([*STEP[:1], *STEP[3:], "--only", "fp32", "--method", "supervised"])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| step"))
    assert row.startswith("| step of supervised, dinov2_tiny, 28, 2 images: fp32 | ")
    assert "1e+06" not in row


def test_the_former_name_of_the_command() -> None:
    done = command("-m", "util.benchmark", "plan", "--method", "mean_teacher")
    assert done.returncode == 2
    assert "argument --method: invalid choice: 'mean_teacher' (choose from " in done.stderr
    assert "`python -m scripts.benchmark plan --help`" in done.stderr


Measured = dict[str, Callable[..., Iterator[Row]]]


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Kinds of figures that take no time: one row each."""

    def one(kind: str, *_: Any) -> Iterator[Row]:
        yield Row(f"figure of {kind}", [1.0], "s")

    monkeypatch.setattr("scripts.benchmark.measure.release", lambda device: None)
    made: Measured = {}
    for kind, (words, _) in __main__.KINDS.items():
        made[kind] = partial(one, kind)
        monkeypatch.setitem(__main__.KINDS, kind, (words, lambda *given, kind=kind: made[kind](*given)))
    return made


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (UserError("compile: no | compiler"), "UserError: compile: no / compiler"),
        (torch._dynamo.exc.BackendCompilerFailed(print, ZeroDivisionError("x"), None), "BackendCompilerFailed: backend="),
        (ZeroDivisionError("a bug"), "a bug: its traceback is on stderr"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_leaves_the_other_figures(
    error: Exception, words: str, kinds: Measured, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def broken(*_: Any) -> Iterator[Row]:
        yield Row("before it", [2.0], "s")
        raise error

    kinds["memory"] = broken
    with pytest.raises(SystemExit) as end:
        __main__.main(["all", "--device", "cpu", "--json", str(tmp_path / "out.json")])
    said = capsys.readouterr()
    lines = [text for text in said.out.splitlines() if text.startswith("| ")][1:]
    assert [text[2:].split(" | ")[0] for text in lines] == ["figure of step", "before it", "memory", "figure of eval", "figure of data"]
    assert lines[2].startswith(f"| memory | **failed** |  |  | {words}")
    assert "1 figures failed: memory" in said.out
    assert ("Traceback" in said.err) == isinstance(error, ZeroDivisionError)
    assert [row["value"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]] == [1.0, 2.0, None, 1.0, 1.0]
    assert end.value.code == 1


def test_a_gpu_that_has_broken_leaves_the_exit_code(
    kinds: Measured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """After an illegal access every call to the GPU fails."""
    calls = iter(range(9))

    def broken(device: torch.device) -> None:
        if next(calls) > 0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("scripts.benchmark.measure.release", broken)
    with pytest.raises(SystemExit, match="1"):
        __main__.main(["all", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "| figure of step | 1 s |" in out
    assert "3 figures failed: memory; eval; data" in out


def test_a_row_is_out_before_the_next_is_measured(kinds: Measured, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def second(*_: Any) -> Iterator[Row]:
        assert "| figure of step | 1 s |" in capsys.readouterr().out
        assert [row["figure"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]] == ["figure of step"]
        yield Row("second", [1.0], "s")

    kinds["memory"] = second
    __main__.main(["all", "--device", "cpu", "--json", str(tmp_path / "out.json")])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["step", "--device", "gpu"], ["--device", "'gpu'", "cuda", "`python -m scripts.benchmark step --help`"]),
        (["step", "--rounds", "0"], ["--rounds", "found '0'", "above 0"]),
        (["step", "--rounds", "x"], ["--rounds", "found 'x'", "above 0"]),
        (["step", "--json", "/dev/null/out.json"], ["/dev/null/out.json: cannot be written", "give another --json"]),
        (["step", "--only", "bf17"], ["--only", "'bf17'", "bf16, compile"]),
        (["all", "--set", "backbone=dinov2_huge"], ["dinov2_huge", "dinov2_large"]),
        (["all", "--config", "absent.yaml"], ["absent.yaml", "no such config file"]),
        (["loop"], ["loop", "found device cpu", "expected an NVIDIA GPU"]),
        (["settings"], ["'settings'", "`python -m scripts.benchmark --help`"]),
        (["foo"], ["'foo'", "`python -m scripts.benchmark --help`"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_user_errors_end_in_one_line_before_anything_is_measured(
    arguments: list[str], words: list[str], kinds: Measured, capsys: pytest.CaptureFixture
) -> None:
    device = [] if "--device" in arguments or arguments[0] in ("foo", "settings") else ["--device", "cpu"]
    with pytest.raises(UserError) as error:
        __main__.main([*arguments, *device])
    for word in words:
        assert word in str(error.value)
    assert "python -m python" not in str(error.value)
    assert "figure" not in capsys.readouterr().out


def test_all_skips_what_cannot_be_measured(kinds: Measured, capsys: pytest.CaptureFixture) -> None:
    __main__.main(["all", "--config", "configs/levir.yaml", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "skipped loop: found device cpu" in out
    assert [kind for kind in __main__.KINDS if f"| figure of {kind} |" in out] == ["step", "memory", "eval", "data"]


def test_alternatives_take_turns_and_warm_rounds_do_not_count() -> None:
    calls: list[str] = []
    times = seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, torch.device("cpu"), warm=1)
    assert calls == ["a", "b"] * 3
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    row = ratio("x", [2.0, 8.0, 3.0], [1.0, 2.0, 1.0], (AT_LEAST, 3.5))
    assert (row.value, row.values, row.met) == (3.0, [2.0, 4.0, 3.0], False)
    assert "| 3 x literal | 2 to 4 | >= 3.5 **missed** |" in str(row)
    assert Row("x", [3.0], "GiB", (AT_MOST, 3.0)).met is True
    assert Row("x", [3.0], "GiB").met is None
