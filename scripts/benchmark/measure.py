"""Times of alternatives, taken turn by turn in one run so that a busy machine slows all of them alike, and the rows of the table."""

import gc
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from util.error import UserError, reason
from util.precision import SIXTEEN_BIT, matmul_precision

AT_LEAST, AT_MOST = ">=", "<="
Goal = tuple[str, float]  # AT_LEAST or AT_MOST, and the bound


@dataclass(frozen=True)
class Row:
    """One figure of the table. goal: None for a figure that is only reported.

    values: of each round, or the one that there is; none where it could not be measured, then `note` says why.
    """

    figure: str
    values: list[float]
    unit: str = ""  # "x literal", "GiB", "ms", "%"
    goal: Goal | None = None
    note: str = ""

    @property
    def value(self) -> float | None:
        """The median of the rounds."""
        return median(self.values) if self.values else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one, or without a value."""
        if self.goal is None or self.value is None:
            return None
        sign, bound = self.goal
        return self.value >= bound if sign == AT_LEAST else self.value <= bound

    def __str__(self) -> str:
        """A line of a Markdown table."""
        spread = f"{min(self.values):.3g} to {max(self.values):.3g}" if len(self.values) > 1 else ""
        goal = "" if self.goal is None else f"{self.goal[0]} {self.goal[1]:g} {'met' if self.met else '**missed**'}"
        value = "**failed**" if self.value is None else f"{self.value:.3g} {self.unit}"
        return f"| {self.figure} | {value} | {spread} | {goal} | {self.note.replace('|', '/')} |"


def ratio(figure: str, literal: list[float], ours: list[float], goal: Goal | None = None, note: str = "") -> Row:
    """How many times as fast as the literal way: literal / ours of each round."""
    times = f"{1000 * median(literal):.4g} -> {1000 * median(ours):.4g} ms"
    parts = [a / b for a, b in zip(literal, ours, strict=True)]
    return Row(figure, parts, "x literal", goal, f"{times}, {note}" if note else times)


def attempt(figure: str, device: torch.device, measure: Callable[..., Iterable[Row]], *given: Any) -> Iterator[Row]:
    """The rows of measure(*given), and one that says why where it fails, so that the others can still be measured.

    What a machine may lack is in that row alone; a bug has its traceback on stderr besides.
    """
    try:
        release(device)
        yield from measure(*given)
        return
    except (UserError, torch.OutOfMemoryError, torch._dynamo.exc.TorchDynamoException) as error:
        why = f"{type(error).__name__}: {reason(error)}"[:300]  # a compiler's message can be a whole program
    except Exception:
        traceback.print_exc()
        why = "a bug: its traceback is on stderr"
    yield Row(figure, [], note=why)


def release(device: torch.device) -> None:
    """Gives back memory that nothing uses, and forgets what was compiled: PyTorch keeps only so many forms of a function."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def wait_for(device: torch.device) -> None:
    """Returns when the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each alternative in each round, which runs all, one after the other; the first `warm` ones do not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warm + rounds):
        for name, call in calls.items():
            wait_for(device)
            begin = time.perf_counter()
            call()
            wait_for(device)
            if i >= warm:
                times[name].append(time.perf_counter() - begin)
    return times


def matrix_rate(device: torch.device, precision: str) -> float:
    """TFLOP/s of a large matrix product here, in a run's `precision`."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=SIXTEEN_BIT.get(precision, torch.float32)) for _ in range(2))
    with matmul_precision(precision, device):
        return 2 * size**3 / 1e12 / min(seconds({"product": lambda: a @ b}, 5, device, warm=2)["product"])
