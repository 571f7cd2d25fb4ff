"""What is counted without storage is what a real step takes: its memory, its operations and who does them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import allspark
import fixmatch
import semivl
import supervised
import unimatch_v1
import unimatch_v2
from dataset.batch import Batch, empty_batch
from dataset.custom import spec_of
from engine import footprint
from engine.ema import make_teacher
from engine.footprint import OWN_FORMULAS, DryRun, GpuAutocast, Meter, with_less
from engine.method import Method
from engine.update import Learner
from model import build_model, configured_model
from tests.conftest import TIMM, Tiny
from tests.scripts.benchmark.recipes import recipe
from util.config import Config
from util.error import UserError, run

V2 = unimatch_v2.METHOD


def mini_batch(cfg: Config, method: Method, channels: tuple[int, ...]) -> Batch:
    """A mini-batch of the last epoch of a run."""
    batch = empty_batch(method.reads, cfg.batch_size, spec_of(cfg).dates, cfg.crop_size)
    drop = method.draw(cfg.batch_size, channels, torch.Generator(), cfg) if method.draw else batch.drop
    return replace(batch, drop=drop, epoch=cfg.epochs - 1)


def real_step(cfg: Config, method: Method) -> tuple[int, int]:
    """Bytes of the storages that autograd saves in a step on a CPU, besides weights and mini-batch, and operations that PyTorch counts."""
    spec = spec_of(cfg)
    student = configured_model(cfg, spec.nclass, spec.task).train()
    student.backbone.requires_grad_(not cfg.lock_backbone)
    student.backbone.checkpointing = cfg.activation_checkpointing
    batch = mini_batch(cfg, method, student.channels)
    given = [*student.parameters(), *student.buffers(), *(x for x in vars(batch).values() if isinstance(x, Tensor))]
    older = {x.untyped_storage()._cdata for x in given}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in older:
            saved[storage._cdata] = storage
        return tensor

    teacher = student if method.teacher_of(spec.task, cfg.teacher) == "student" else make_teacher(student)
    with FlopCounterMode(display=False, custom_mapping=OWN_FORMULAS) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision == "bf16"):
            loss, _ = method.step(student, teacher, batch, cfg)
        held = sum(storage.nbytes() for storage in saved.values())
        loss.backward()
    return held, counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "method", "changed"),
    [
        ("camvid", unimatch_v2, {"backbone": "dinov2_small", "batch_size": 1}),
        ("camvid", unimatch_v2, {"precision": "bf16"}),
        ("pascal", unimatch_v1, {"activation_checkpointing": True, "batch_size": 1}),
        ("pascal", fixmatch, {"lock_backbone": True}),
        ("levir", unimatch_v2, {}),
        ("cityscapes", supervised, {"backbone": "dinov3_small", "batch_size": 1}),
        ("pascal", fixmatch, {"backbone": "resnet50", "model": "deeplabv3plus"}),
        ("camvid", unimatch_v2, {"backbone": "mit_b0", "batch_size": 1}),
        ("camvid", allspark, {"backbone": "mit_b0", "model": "allspark", "crop_size": 81}),
        pytest.param("camvid", unimatch_v2, {"backbone": "efficientnet_lite0"}, marks=TIMM),
        pytest.param("levir", supervised, {"backbone": "timm/test_efficientnet", "activation_checkpointing": True}, marks=TIMM),
        pytest.param("camvid", fixmatch, {"backbone": "timm/test_vit_relpos", "crop_size": 160, "eval_mode": "sliding_window"}, marks=TIMM),
    ],
    ids=[
        "small",
        "bf16",
        "v1-checkpointing",
        "fixmatch-frozen",
        "change",
        "supervised-dinov3",
        "deeplabv3plus",
        "mit",
        "allspark",
        "lite0",
        "change-timm-checkpointing",
        "timm-buffers",
    ],
)
def test_activations_and_operations_are_those_of_a_real_step(name: str, method: Any, changed: dict[str, Any]) -> None:
    cfg = recipe(name, method.METHOD.config, **{"backbone": "dinov2_tiny", "crop_size": 112, "batch_size": 2, **changed})
    memory, meter = DryRun(cfg, method.METHOD).step()
    held, operations = real_step(cfg, method.METHOD)
    assert memory["activations"] == pytest.approx(held, rel=0.001)
    assert meter.work.total() == operations


def test_operations_of_each_kind() -> None:
    cfg = recipe("pascal", backbone="dinov2_small", crop_size=112)
    work = DryRun(cfg, V2).step()[1].work
    tokens, width, images = 8 * 8 + 1, 384, cfg.batch_size
    linear = 12 * images * tokens * 2 * 12 * width**2  # of each block: qkv 3, projection 1, feed-forward 8
    assert work["linear layers"] == (1 + 3 + 6) * linear  # the teacher's pass, the student's, and its backward pass
    attention = 12 * images * 2 * 2 * tokens**2 * width
    assert work["attention"] == (1 + 3) * attention + 3 * attention * 5 // 2  # backward, a fused kernel forms the weights again


def test_checkpointing_repeats_the_blocks_and_keeps_one_tensor_of_each() -> None:
    cfg = recipe("pascal", backbone="dinov2_small", crop_size=112)
    (memory, plain), (less, again) = (DryRun(cfg, V2).step(activation_checkpointing=on) for on in (False, True))
    assert again.work["linear layers"] == plain.work["linear layers"] * 13 // 10  # the student's pass once more
    assert again.work["convolutions"] == plain.work["convolutions"]
    assert less["activations"] < 0.4 * memory["activations"]
    assert sum(less.values()) < sum(memory.values())
    assert again.moved > plain.moved


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        (allspark, {"backbone": "mit_b0", "model": "allspark", "crop_size": 81}),
        (semivl, {"backbone": "clip_tiny", "model": "vlm", "crop_size": 64}),
    ],
    ids=["allspark", "semivl"],
)
def test_what_grows_with_the_number_of_classes(method: Any, changed: dict[str, Any]) -> None:
    """AllSpark's attention to the memory of each class, which is read in the end; SemiVL's maps of each class."""
    found = []
    for count in (4, 8, 12):
        values = {"dataset": "mine", "classes": [f"c{i}" for i in range(count)], "nclass": None, "batch_size": 2}
        found.append(DryRun(recipe("camvid", method.METHOD.config, **values, **changed), method.METHOD).step()[0]["activations"])
    assert found[1] > 1.2 * found[0]
    assert found[2] - found[1] == pytest.approx(found[1] - found[0], rel=0.1)
    if method is allspark:  # products, weights, dropped weights and their mask, for each pair of 512 channels and 512 of a class
        assert found[2] - found[1] == pytest.approx(4 * 2 * 512 * 512 * 4 * 4, rel=0.1)


def test_channels_in_groups_do_not_meet_in_the_backward_pass_either() -> None:
    conv, x = torch.nn.Conv2d(6, 6, 3, padding=1, groups=3), torch.zeros(2, 6, 8, 8, requires_grad=True)
    with Meter() as meter:
        conv(x).sum().backward()
    assert meter.work["convolutions"] == 3 * (2 * 2 * 8 * 8 * 6 * 2 * 9)  # forward, and as much for image and weights


def test_attention_saves_no_matrix_of_all_pairs() -> None:
    sizes = (252, 518)  # pixels; all else grows with the area
    cfgs = (recipe("pascal", backbone="dinov2_tiny", crop_size=size) for size in sizes)
    small, large = (DryRun(cfg, supervised.METHOD).step()[0]["activations"] for cfg in cfgs)
    assert large / small == pytest.approx((sizes[1] / sizes[0]) ** 2, rel=0.02)


def test_weights_and_what_follows_them() -> None:
    cfg = recipe("pascal", backbone="dinov2_tiny", crop_size=28, lock_backbone=True)
    model = build_model(cfg.backbone, 21)
    decoder = sum(p.numel() for p in model.head.parameters() if p.requires_grad)
    every = 4 * sum(p.numel() for p in model.parameters())
    memory, meter = DryRun(cfg, V2).step()
    assert [memory[name] for name in ("weights", "teacher", "gradients", "optimizer")] == [every, every, 4 * decoder, 8 * decoder]
    forward = cfg.batch_size * DryRun(replace(cfg, eval_mode="original"), V2).evaluation(28, 28)["linear layers"]
    assert meter.work["linear layers"] == 4 * forward  # the teacher's pass and the student's; a frozen encoder has no backward pass
    assert DryRun(cfg, supervised.METHOD).step()[0]["teacher"] == 0


def test_published_recipe_takes_about_15_tflop() -> None:
    assert DryRun(recipe("pascal"), V2).step()[1].work.total() == pytest.approx(15e12, rel=0.06)


def test_evaluation_counts_windows() -> None:
    cfg = recipe("cityscapes", backbone="dinov2_tiny")
    windows, whole = DryRun(cfg, V2).evaluation(1024, 2048), DryRun(replace(cfg, eval_mode="original"), V2).evaluation(798, 798)
    assert windows.total() == 8 * whole.total()  # 2 x 4 windows


def test_a_real_step_may_follow() -> None:
    """In the same process: what is kept for later steps, such as class weights on the device, is not without storage."""
    criterion = {"name": "Dice", "kwargs": {"class_weights": [1.0 + k / 100 for k in range(11)]}}
    cfg = replace(recipe("camvid"), backbone="dinov2_tiny", crop_size=28, batch_size=1, criterion=criterion)
    DryRun(cfg, supervised.METHOD).step()
    batch = mini_batch(cfg, supervised.METHOD, ())
    loss, _ = supervised.step(configured_model(cfg, 11, "segmentation"), None, batch, supervised.METHOD.settled(cfg, "segmentation"))
    assert loss.item() > 0


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
    assert meter.work == {"linear layers": 2000}
    with Meter() as meter:
        x.neg_()  # an older one in place allocates nothing
    assert (meter.live, meter.peak, meter.moved) == (0, 0, 800)


def test_what_a_process_holds_and_its_fullest_moment() -> None:
    cfg = recipe("pascal", backbone="dinov2_tiny", crop_size=28)
    (memory, meter), more = DryRun(cfg, V2).step(), DryRun(cfg, V2, shards=4).step()[0]
    pixels = cfg.batch_size * 28 * 28
    views, labels, maps = 4 * 3 * 4 * pixels, 8 * pixels, (1 + 2) * pixels  # x, weak, two strong; long; ignore map and two boxes
    factors = DryRun(cfg, V2).batch.drop.nbytes
    assert memory["batches"] == 2 * (views + labels + maps + factors)
    assert more == memory | {"batches": 4 * memory["batches"]}
    assert memory["activations"] + memory["temporary"] == meter.peak


def test_attention_in_16_bits_is_that_of_a_gpu() -> None:
    """A CPU computes bfloat16 head by head where there are many tokens, without the fused kernel."""
    run = DryRun(recipe("pascal", backbone="dinov2_tiny", crop_size=252), V2)
    assert run.step(precision="bf16")[1].work == run.step(precision="fp32")[1].work


def test_what_a_gpu_keeps_in_float32_is_counted_so() -> None:
    """A CPU's autocast leaves softmax in 16 bits, a GPU's does not: 0.79 of what float32 needs, and not 0.59."""
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    with GpuAutocast():
        assert (x.softmax(-1).dtype, F.layer_norm(x, (4,)).dtype, (x @ x.T).dtype) == (torch.float32, torch.float32, torch.bfloat16)
    cfg = recipe("allspark/pascal", allspark.METHOD.config, backbone="mit_b0", crop_size=97, batch_size=1, pretrained=None)
    sizes = {name: DryRun(cfg, allspark.METHOD).step(precision=name)[0]["activations"] for name in ("fp32", "bf16")}
    assert 0.7 * sizes["fp32"] < sizes["bf16"] < sizes["fp32"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [unimatch_v2, allspark])
def test_a_gpu_takes_what_was_calculated(method: Any, precision: str) -> None:
    """AllSpark's softmax and norms of 16-bit inputs are float32 there."""
    name = "allspark/pascal" if method is allspark else "pascal"
    cfg, own = recipe(name, method.METHOD.config, batch_size=2, precision=precision, pretrained=None), method.METHOD
    spec = spec_of(cfg)
    with torch.device("cuda"):
        student = configured_model(cfg, spec.nclass, spec.task).train()
        teacher = make_teacher(student) if own.teacher == "ema" else student
        for p in student.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
    made = mini_batch(cfg, own, student.channels)
    tensors: dict[str, Any] = {key: value.cuda() for key, value in vars(made).items() if isinstance(value, Tensor)}
    batch = replace(made, **tensors)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        loss, _ = own.step(student, teacher, batch, cfg)
    held = torch.cuda.memory_allocated() - before
    loss.backward()
    peak = torch.cuda.max_memory_allocated() - before
    memory, _ = DryRun(cfg, own).step()
    assert held == pytest.approx(memory["activations"], rel=0.1)
    assert peak == pytest.approx(memory["activations"] + memory["temporary"], rel=0.15)


def test_a_run_that_lacks_memory_says_what_it_needs_and_what_with_less(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lack(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 8.00 GiB. It is full. More.")

    monkeypatch.setattr(Learner, "update", lack)
    monkeypatch.setattr(footprint, "GIB", 2**20)  # a tiny run takes some MiB
    args = tiny.args(tmp_path, "crop_size=56", "criterion={name: CELoss, kwargs: {class_weights: auto}}")
    with pytest.raises(SystemExit, match="2"):
        run(unimatch_v2.main, args)
    line = capsys.readouterr().err.splitlines()[-1]
    found = re.fullmatch(
        r"error: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 8.00 GiB; calculated, and 1 to 2 GiB of CUDA besides: "
        r"([\d.]+) GiB as it is, ([\d.]+) GiB with --set activation_checkpointing=true, ([\d.]+) GiB with --set precision=bf16 besides; "
        r"resume so, or start again with a smaller batch_size and as many more shards",
        line,
    )
    assert found, line
    whole, again, both = map(float, found.groups())
    assert whole > again > both > 0


def test_settings_that_a_run_has_are_not_advised() -> None:
    cfg = recipe("pascal", backbone="dinov2_tiny", crop_size=56, activation_checkpointing=True)
    assert re.fullmatch(
        r"calculated, .*: \S+ GiB as it is, \S+ GiB with --set precision=bf16; resume so, or start again .*", with_less(cfg, V2, 1)
    )
    smallest = replace(cfg, precision="fp16")
    assert re.fullmatch(r"calculated, .*: \S+ GiB as it is; start again with a smaller batch_size .*", with_less(smallest, V2, 1))
    normalised = recipe("pascal", backbone="resnet50", model="deeplabv3plus", crop_size=33, batch_size=1, batch_norm="frozen")
    assert "GiB as it is" in with_less(normalised, supervised.METHOD, 1), "one image is enough for frozen statistics"


def test_a_step_that_cannot_be_calculated_hides_no_lack_of_memory(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def needs_numbers(*args: Any) -> Any:
        raise RuntimeError("a number of a tensor without storage was asked for")

    monkeypatch.setattr(Learner, "update", lack)
    monkeypatch.setattr(DryRun, "step", needs_numbers)
    with pytest.raises(UserError, match=r"CUDA out of memory; resume with --set activation_checkpointing=true or precision=bf16"):
        unimatch_v2.main(tiny.args(tmp_path))
