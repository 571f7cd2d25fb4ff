"""The memory that is calculated without storage is the memory that a real step takes."""

import importlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dataset.custom import spec_of
from engine.ema import make_teacher
from model import build_model
from scripts.benchmark.cards import get_card
from scripts.benchmark.footprint import GIB, Footprint, Meter, empty_batch, footprint
from scripts.benchmark.plan import fits
from scripts.benchmark.scaling import Cluster
from tests.scripts.benchmark.recipes import recipe
from util.config import Config


def really_saved(cfg: Config, method: str, bf16: bool) -> int:
    """Bytes of the storages that autograd saves in a step on a CPU, besides weights and mini-batch."""
    spec = spec_of(cfg)
    student = build_model(cfg.backbone, spec.nclass, spec.task).train()
    batch = empty_batch(cfg, spec, method, student.backbone.channels[0])
    given = [*student.parameters(), *(x for x in vars(batch).values() if isinstance(x, Tensor))]
    older = {x.untyped_storage()._cdata for x in given}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in older:
            saved[storage._cdata] = storage
        return tensor

    teacher = student if spec.task == "change" else make_teacher(student)
    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = importlib.import_module(method).step(student, teacher, batch, cfg)
    del loss
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize(
    ("cfg", "method", "precision"),
    [
        (recipe("camvid"), "unimatch_v2", "fp32"),
        (recipe("camvid"), "unimatch_v2", "bf16"),
        (recipe("camvid", batch_size=2), "fixmatch", "fp32"),
        (recipe("levir", backbone="dinov2_tiny", crop_size=126, batch_size=2), "unimatch_v2", "fp32"),
        (recipe("cityscapes", backbone="dinov2_small", crop_size=112, batch_size=1), "supervised", "fp32"),
    ],
    ids=["camvid", "camvid-bf16", "fixmatch", "change", "supervised"],
)
def test_activations_are_what_autograd_saves(cfg: Config, method: str, precision: str) -> None:
    found = footprint(replace(cfg, precision=precision), spec_of(cfg), method)
    assert found.activations == pytest.approx(really_saved(cfg, method, precision == "bf16"), rel=0.001)


def test_attention_saves_no_matrix_of_all_pairs() -> None:
    sizes = (252, 518)  # pixels; all else grows with the area
    less, more = (recipe("pascal", backbone="dinov2_small", crop_size=size, batch_size=1) for size in sizes)
    small, large = (footprint(cfg, spec_of(cfg), "supervised").activations for cfg in (less, more))
    assert large / small == pytest.approx((sizes[1] / sizes[0]) ** 2, rel=0.02)


def test_checkpointing_keeps_one_tensor_a_block() -> None:
    cfgs = (recipe("pascal", precision="bf16", activation_checkpointing=checkpointing) for checkpointing in (False, True))
    plain, less = (footprint(cfg, spec_of(cfg), "unimatch_v2") for cfg in cfgs)
    assert less.activations < 0.4 * plain.activations
    assert less.total < plain.total
    assert less.moved > plain.moved


def test_weights_and_what_follows_them() -> None:
    cfg = recipe("pascal", lock_backbone=True)
    model = build_model(cfg.backbone, 21)
    decoder = sum(p.numel() for p in model.head.parameters() if p.requires_grad)
    found = footprint(cfg, spec_of(cfg), "unimatch_v2")
    every = 4 * sum(p.numel() for p in model.parameters())
    assert (found.weights, found.teacher, found.gradients, found.adam) == (every, every, 4 * decoder, 8 * decoder)
    assert footprint(cfg, spec_of(cfg), "supervised").teacher == 0


@pytest.mark.parametrize("name", ["pascal", "ade20k"])
def test_giant_fits_80_gb_with_bf16_and_checkpointing(name: str) -> None:
    cfg = recipe(name, backbone="dinov2_giant", precision="bf16", activation_checkpointing=True)
    found = footprint(cfg, spec_of(cfg), "unimatch_v2", shards=4)
    standing = found.weights + found.teacher + found.gradients + found.adam
    assert standing == pytest.approx(25e9, rel=0.02)
    assert fits(found, Cluster(get_card("a100-80")))
    assert not fits(found, Cluster(get_card("rtx4090")))


def test_meter_follows_allocations() -> None:
    x = torch.zeros(100)  # 400 bytes, older
    with Meter() as meter:
        y = x + 1  # 400 live; 800 moved
        z = (y * 2).view(10, 10)  # 800 live; 800 moved; a view is free
        del y
        z.relu_()  # in place: 800 moved, or 400 more where it is read as written
        assert (meter.live, meter.peak) == (400, 800)
        assert meter.moved == 2400
        z @ z.T
    assert (meter.moved, meter.operations) == (2400, 4)  # a product


def test_total_is_the_sum() -> None:
    assert Footprint(1, 2, 4, 8, 16, 32, 64, moved=1000, operations=1000).total == 127
    assert fits(Footprint(int(70 * GIB), 0, 0, 0, 0, 0, 0, 0, 0), Cluster(get_card("H100")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_takes_what_was_calculated(precision: str) -> None:
    cfg = recipe("pascal", batch_size=2, precision=precision)
    spec = spec_of(cfg)
    with torch.device("cuda"):
        student = build_model(cfg.backbone, spec.nclass).train()
        teacher = make_teacher(student)
        batch = empty_batch(cfg, spec, "unimatch_v2", student.backbone.channels[0])
        for p in student.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
    step = importlib.import_module("unimatch_v2").step
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        loss, _ = step(student, teacher, batch, cfg)
    held = torch.cuda.memory_allocated() - before
    loss.backward()
    peak = torch.cuda.max_memory_allocated() - before
    found = footprint(cfg, spec, "unimatch_v2")
    assert held == pytest.approx(found.activations, rel=0.1)
    assert peak == pytest.approx(found.activations + found.temporary, rel=0.15)
