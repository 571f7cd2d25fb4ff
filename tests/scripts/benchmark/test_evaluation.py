"""python -m scripts.benchmark eval: the rows, and the bound beside them."""

import pytest
import torch

from dataset.custom import spec_of
from scripts.benchmark import evaluation
from scripts.benchmark.work import meta_model, model_work
from tests.scripts.benchmark.recipes import recipe


def test_the_bound_is_the_time_of_all_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LENGTH", {"cpu": 1})
    monkeypatch.setattr(evaluation, "matrix_rate", lambda device, dtype: 0.5 if dtype == torch.float32 else 2.0)
    cfg = recipe("pascal", backbone="dinov2_tiny")
    fp32, fp32_bound, bf16, bf16_bound = evaluation.rows(cfg, torch.device("cpu"), rounds=1)
    assert fp32_bound.figure == f"{fp32.figure}, if nothing but matrix products took time"
    assert (fp32.goal, bf16.goal) == (None, evaluation.GOAL)
    spec = spec_of(cfg)
    image = sum(amount for (_, phase), amount in model_work(meta_model(cfg, spec), spec, 378, 504).items() if phase == "forward")
    seconds = 2 * image / 0.5e12  # of student and teacher
    assert fp32_bound.note.endswith(f"-> {1000 * seconds:.4g} ms")
    assert bf16_bound.value == pytest.approx(4 * (fp32_bound.value or 0))
