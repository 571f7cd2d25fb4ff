"""The literal way computes what the product computes, otherwise the ratio of their times would mean nothing; and the rows."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.evaluation import evaluate
from engine.method import get_method
from scripts.benchmark import speed
from scripts.benchmark.speed import Alternatives, LiteralLoop
from tests.scripts.benchmark.recipes import recipe
from unimatch_v2 import METHOD
from util.config import Config
from util.error import UserError

CPU = torch.device("cpu")
STEPS = 3


def tiny(name: str, **changed: Any) -> Config:
    return recipe(name, **{"backbone": "dinov2_tiny", "crop_size": 28, "batch_size": 2, **changed})


@pytest.mark.parametrize("name", ["pascal", "levir"])
def test_updates_agree(name: str) -> None:
    """An AdamW step is at most the learning rate, and as long where the gradient is nothing but rounding, as that of the keys' bias is.

    So all weights agree within a step there and one back for each update; those whose gradient was always above a hundredth of its
    tensor's largest, which rounding changes by 1e-4 or so, within 2 % of a step, and the rounding of the weights themselves.
    """
    made = Alternatives(tiny(name, crop_size=56, conf_thresh=0.04, lr=1e-5), METHOD, CPU)
    learner, loop = made.learner(), LiteralLoop(made.cfg, METHOD, made.model, CPU)
    clear = [torch.ones_like(p, dtype=torch.bool) for p in loop.student.parameters()]
    for _ in range(STEPS):
        found, expected = learner.update([made.batch]), loop.update(made.batch)
        assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
        for above, p in zip(clear, loop.student.parameters(), strict=True):
            if p.grad is not None:
                above &= p.grad.abs() > 0.01 * p.grad.abs().max()
    assert expected["mask_ratio"] > 0, "no pseudo label counts: the comparison is empty"
    assert sum(int(above.sum()) for above in clear) > 0.5 * sum(above.numel() for above in clear)
    assert learner.teacher is not None
    assert loop.average is not None
    for ours, theirs in ((learner.student, loop.student), (learner.teacher, loop.average)):
        for above, (key, p), q in zip(clear, ours.named_parameters(), theirs.parameters(), strict=True):
            walk = STEPS * made.cfg.lr * (1 if key.startswith("backbone") else made.cfg.lr_multi)
            rounding = STEPS * torch.finfo(torch.float32).eps * float(q.detach().abs().max())
            apart = (p - q).detach().abs()
            assert float(apart.max()) <= 2.01 * walk + rounding, key
            assert float((apart * above).max()) <= 0.02 * walk + rounding, key


@pytest.mark.parametrize("name", ["supervised", "fixmatch", "unimatch_v1"])
def test_updates_of_other_methods_agree(name: str) -> None:
    """With SGD and without momentum a change is as exact as its gradient; the published 2023 program reads its images a second time."""
    method = get_method(name)
    cfg = tiny("pascal", kind=method.config, conf_thresh=0.04, optimizer="sgd", momentum=0.0, program="unimatch_v1")
    made = Alternatives(cfg, method.of(cfg), CPU)
    learner, loop = made.learner(), LiteralLoop(made.cfg, made.method, made.model, CPU)
    found, expected = learner.update([made.batch]), loop.update(made.batch)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for (key, p), q, before in zip(learner.student.named_parameters(), loop.student.parameters(), made.model.parameters(), strict=True):
        assert float((p - q).detach().norm()) <= 1e-3 * float((q - before).detach().norm()) + 1e-7 * float(q.detach().norm()), key


def test_rows_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that fails leaves the others; beside a ratio is the share of the matrix rate."""

    def rate(device: torch.device, precision: str) -> float:
        if precision == "fp32":
            raise UserError("precision: no fp32 here")
        return 4.0

    monkeypatch.setattr(speed, "matrix_rate", rate)
    fp32, bf16 = speed.step_rows(tiny("levir"), METHOD, CPU, Namespace(config="x", set=None, only=None, rounds=1))
    assert (fp32.value, fp32.note) == (None, "UserError: precision: no fp32 here")
    assert bf16.figure == "step, dinov2_tiny, 28, 2+2 images: bf16"
    assert (bf16.value or 0) > 0
    assert bf16.note.endswith("% of a matrix product's 4 TFLOP/s")


@pytest.mark.parametrize("name", speed.SETTINGS)
def test_a_setting_is_what_its_name_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[dict[str, Any]] = []

    def ours(made: Alternatives, **given: Any) -> Any:
        settings.append(given)
        return lambda: None

    monkeypatch.setattr(Alternatives, "ours", ours)
    monkeypatch.setattr(speed, "matrix_rate", lambda device, precision: 4.0)
    list(speed.step_row(tiny("pascal"), METHOD, CPU, name, 1, "step"))
    assert settings == [{"precision": name[:4], "compile": "compile" in name}]


def test_no_compiler_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(device: torch.device) -> None:
        raise UserError("compile: PyTorch cannot compile")

    monkeypatch.setattr("engine.update.check_compiler", no_compiler)
    (row,) = speed.step_rows(tiny("pascal"), METHOD, CPU, Namespace(config="x", set=None, only="fp32, compile", rounds=1))
    assert (row.value, row.note) == (None, "UserError: compile: PyTorch cannot compile")


def test_memory_of_a_step_and_what_checkpointing_costs() -> None:
    cfg = tiny("pascal")
    (plain,), (less,) = (speed.peak(replace(cfg, activation_checkpointing=on), METHOD, CPU, "peak") for on in (False, True))
    assert 0 < (less.value or 0) < (plain.value or 0)
    assert (plain.goal, less.goal) == (None, speed.PEAK_GOAL)
    (row,) = speed.checkpointing(cfg, METHOD, CPU, 1, "seconds")
    assert (row.value or 0) > 0
    assert row.goal == speed.TIME_GOAL


def test_evaluation_of_images_of_one_size_and_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way scores each image with each model: the literal one in two passes."""
    monkeypatch.setattr(speed, "SIZE", (50, 38))
    monkeypatch.setattr(speed, "VARIED", [(42 + 14 * i, 38) for i in range(4)])
    seen: list[tuple[int, list[int]]] = []

    def spy(models: Any, loader: Any, *others: Any) -> Any:
        seen.append((len(models), [batch.img_x.shape[-1] for batch in loader]))
        return evaluate(models, loader, *others)

    monkeypatch.setattr(speed, "evaluate", spy)
    rows = list(speed.evaluation_rows(tiny("pascal"), METHOD, CPU, Namespace(config="x", set=None, rounds=1)))
    assert [row.figure.split(", ")[2] for row in rows] == ["4 images of 50 x 38: fp32", "4 images of 50 x 38: bf16"] + [
        f"4 images of 4 sizes: {precision}" for precision in ("fp32", "bf16")
    ]
    assert [row.goal for row in rows] == [None, speed.EVALUATION_GOAL] * 2
    assert all((row.value or 0) > 0 for row in rows)
    for sizes in ([50] * 4, [42, 56, 70, 84]):  # a warm round and a measured one
        assert [one for one in seen if one[1] == sizes] == [(1, sizes), (1, sizes), (2, sizes), (2, sizes)] * 2
