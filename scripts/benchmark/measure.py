"""Times of alternatives, taken turn by turn in one run so that a busy machine slows all of them alike, and the rows of the table."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from util.error import UserError, reason
from util.files import output, write_atomic

AT_LEAST, AT_MOST = ">=", "<="


@dataclass(frozen=True)
class Row:
    """One figure of the table. `goal`: (">=" or "<=", bound), None for a figure that is only reported. low, high: over the rounds.

    value: None where it could not be measured; then `note` says why.
    """

    figure: str
    value: float | None
    unit: str  # "x literal", "GB", "ms", "%"
    goal: tuple[str, float] | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one, or without a value."""
        if self.goal is None or self.value is None:
            return None
        sign, bound = self.goal
        return self.value >= bound if sign == AT_LEAST else self.value <= bound


def attempt(figure: str, measure: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows that `measure` makes, and one that says why where it fails, so that the others can go on.

    What a machine may lack is told in that row; a bug has its traceback on stderr besides.
    """
    try:
        yield from measure()
        return
    except (UserError, torch.OutOfMemoryError, torch._dynamo.exc.TorchDynamoException) as error:
        why = f"{type(error).__name__}: {reason(error)}"[:300]  # a compiler's message can be a whole program
    except Exception:
        traceback.print_exc()
        why = "a bug: its traceback is on stderr"
    yield Row(figure, None, "", note=why)


def release(device: torch.device) -> None:
    """Gives back memory that nothing uses, and forgets what was compiled: PyTorch keeps only so many forms of a function."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def write_figures(path: str, figures: Any) -> None:
    """Writes the file of --json. Raises UserError where it cannot be written."""
    text = json.dumps(figures, indent=1) + "\n"
    with output("--json", Path(path)):
        write_atomic(Path(path), lambda file: file.write(text.encode()))


def wait_for(device: torch.device) -> None:
    """Returns when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(
    alternatives: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device | None = None, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of each alternative in each round, which runs all, one after the other; the first `warm` ones do not count."""
    device = device or torch.device("cpu")
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for i in range(warm + rounds):
        for name, call in alternatives.items():
            wait_for(device)
            begin = time.perf_counter()
            call()
            wait_for(device)
            if i >= warm:
                times[name].append(time.perf_counter() - begin)
    return times


def ratio(figure: str, literal: list[float], ours: list[float], goal: tuple[str, float] | None = None, note: str = "") -> Row:
    """How many times as fast as the literal way: the median over the rounds of literal / ours, with the smallest and the largest."""
    parts = [a / b for a, b in zip(literal, ours, strict=True)]
    times = f"{1000 * median(literal):.4g} -> {1000 * median(ours):.4g} ms"
    return Row(figure, median(parts), "x literal", goal, min(parts), max(parts), f"{times}{', ' + note if note else ''}")
