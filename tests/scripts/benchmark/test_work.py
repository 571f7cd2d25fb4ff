"""The counted operations are those that PyTorch's own counter finds in the method's own step."""

from dataclasses import replace

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dataset.custom import spec_of
from scripts.benchmark.footprint import hollow_models, measure_step
from scripts.benchmark.step import FUSED_ATTENTION
from scripts.benchmark.work import Part, step_work
from tests.scripts.benchmark.recipes import recipe
from util.config import Config
from util.error import UserError


def counted(cfg: Config, method: str) -> int:
    spec, mode = spec_of(cfg), FakeTensorMode()
    student, teacher = hollow_models(cfg, spec, method, mode)
    with mode, FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counter:
        measure_step(cfg, spec, method, student, teacher)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("cfg", "method"),
    [
        (recipe("pascal"), "unimatch_v2"),
        (recipe("pascal", lock_backbone=True), "fixmatch"),
        (recipe("cityscapes", backbone="dinov2_large"), "supervised"),
        (recipe("ade20k", backbone="dinov2_small", crop_size=406), "unimatch_v2"),
        (recipe("levir"), "unimatch_v2"),
        (recipe("whu", backbone="dinov2_small"), "supervised"),
        (recipe("pascal", backbone="dinov2_giant", crop_size=112, batch_size=1), "fixmatch"),
    ],
    ids=lambda value: f"{value.dataset}-{value.backbone}-{value.crop_size}" if isinstance(value, Config) else value,
)
def test_work_is_what_pytorch_counts(cfg: Config, method: str) -> None:
    assert sum(step_work(cfg, spec_of(cfg), method).values()) == counted(cfg, method)


def test_checkpointing_adds_a_forward_pass_of_the_blocks() -> None:
    cfg = recipe("pascal", backbone="dinov2_small")
    plain = step_work(cfg, spec_of(cfg), "unimatch_v2")
    checkpointed = replace(cfg, activation_checkpointing=True)
    work = step_work(checkpointed, spec_of(cfg), "unimatch_v2")
    again = sum(amount for part, amount in work.items() if part.phase == "again")
    blocks = sum(plain[Part("student", layer, "forward")] for layer in ("linear layers", "attention"))
    assert again == blocks == sum(work.values()) - sum(plain.values())
    assert sum(work.values()) == counted(checkpointed, "unimatch_v2")


def test_a_frozen_encoder_has_no_backward_pass() -> None:
    cfg = recipe("pascal", lock_backbone=True, activation_checkpointing=True)
    work = step_work(cfg, spec_of(cfg), "unimatch_v2")
    assert {part.layer for part in work if part.phase != "forward"} == {"decoder"}


def test_published_recipe_takes_about_15_tflop() -> None:
    cfg = recipe("pascal")
    assert sum(step_work(cfg, spec_of(cfg), "unimatch_v2").values()) == pytest.approx(15e12, rel=0.06)


def test_method_without_known_passes() -> None:
    cfg = recipe("pascal")
    with pytest.raises(UserError, match=r"--method: found 'mean_teacher', expected one of unimatch_v2, unimatch_v1, fixmatch, supervised"):
        step_work(cfg, spec_of(cfg), "mean_teacher")
