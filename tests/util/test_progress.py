"""How far a command is: lines where there is no terminal, a bar where there is one."""

import sys

import pytest

from util import progress
from util.progress import Progress, count


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, for the test to move."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(clock: list[float], capsys: pytest.CaptureFixture[str], seconds: float, steps: Progress, count: int) -> list[str]:
    with steps:
        for _ in range(count):
            clock[0] += seconds
            steps.update()
    return capsys.readouterr().err.splitlines()


def test_what_takes_no_time_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(clock, capsys, 0.01, Progress(100, "image"), 100) == []


def test_a_long_one_has_as_many_lines_as_asked(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(clock, capsys, 1.0, Progress(1000, "image"), 1000)
    assert found[:2] == ["image 100 of 1000, 15 min left", "image 200 of 1000, 13 min left"]
    assert len(found) == 10


def test_lines_are_apart(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(clock, capsys, 4.0, Progress(10, "image"), 10)
    assert found == [f"image {i} of 10, {4 * (10 - i)} s left" for i in (2, 4, 6, 8, 10)]


def test_a_resumed_run_counts_on_and_measures_its_own_speed(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    steps = Progress(60, "step", done=40, title="# ", where=lambda: "epoch 2 of 2", apart=20)
    found = lines(clock, capsys, 10.0, steps, 4)
    assert found == ["# step 42 of 60, epoch 2 of 2, 3 min left", "# step 44 of 60, epoch 2 of 2, 3 min left"]


def test_other_processes_are_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(clock, capsys, 10.0, Progress(10, "image", shown=False), 10) == []


def test_a_terminal_has_a_bar_instead(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(5, "image") as bar:
        bar.update(5)
    assert "5/5" in capsys.readouterr().err


def test_one_is_no_plural() -> None:
    assert [count(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
