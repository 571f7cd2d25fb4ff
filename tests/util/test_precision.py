"""precision, compile, activation_checkpointing: what each promises about the numbers, on real updates."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import supervised
import unimatch_v2
from dataset.batch import Batch
from engine.update import Learner
from model import build_model
from model.dropout import complementary_factors
from tests.conftest import Tiny
from util import checkpoint
from util.config import Config
from util.dist import World, check_compiler
from util.error import UserError
from util.precision import PRECISIONS, matmul_precision, slow_precision

STEPS = 4
SIZE = 56
# Losses relative to fp32: five roundings of bf16 (2^-8), four of fp16 (2^-11). These updates do not ask a CPU for TF32.
BOUNDS = {"tf32": 1e-6, "bf16": 2e-2, "fp16": 2e-3}


def batch(it: int, size: int = SIZE) -> Batch:
    g = torch.Generator().manual_seed(it)
    img_x, weak, strong1, strong2 = (torch.randn(2, 3, size, size, generator=g) for _ in range(4))
    mask = torch.randint(0, 5, (2, size, size), generator=g)
    ignore = torch.zeros(2, size, size, dtype=torch.uint8)
    box = torch.zeros(2, size, size, dtype=torch.bool)
    box[:, 10:30, 5:40] = True
    return Batch(img_x, mask, weak, strong1, strong2, ignore, box, box.transpose(1, 2), complementary_factors(2, 192, g))


def trained(steps: int = STEPS, world: World | None = None, **keys: Any) -> tuple[Learner, list[float]]:
    """A Learner after some updates, and their losses."""
    torch.manual_seed(0)
    cfg = Config(dataset="", data_root="", backbone="dinov2_tiny", crop_size=SIZE, epochs=1, batch_size=2, lr=1e-5, conf_thresh=0.2, **keys)
    learner = Learner(cfg, build_model("dinov2_tiny", 5), unimatch_v2.METHOD, 100, world=world)
    return learner, [float(learner.update([batch(it)])["loss_all"]) for it in range(steps)]


@pytest.fixture(scope="module")
def fp32() -> tuple[Learner, list[float]]:
    return trained()


@pytest.mark.parametrize("precision", BOUNDS)
def test_losses_stay_within_the_bound_of_the_precision(precision: str, fp32: tuple[Learner, list[float]]) -> None:
    learner, losses = trained(precision=precision)
    assert losses == pytest.approx(fp32[1], rel=BOUNDS[precision])
    assert (losses != fp32[1]) == (precision != "tf32"), "16 bits must leave a trace"
    assert all(p.dtype == torch.float32 for p in learner.student.parameters())
    assert learner.skipped == 0


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_matrix_products_have_the_precision_and_logits_are_float32(precision: str, dtype: torch.dtype) -> None:
    learner, _ = trained(0, precision=precision)
    seen: list[torch.dtype] = []
    learner.student.backbone.get_submodule("blocks.0.mlp.fc1").register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    learner.student.head.get_submodule("scratch.output_conv.2").register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with learner.autocast():
        logits = learner.student(batch(0).img_x)
    assert seen == [dtype, dtype]
    assert logits.dtype == torch.float32


def test_the_student_as_teacher_still_gets_gradients_in_bf16() -> None:
    # autocast keeps 16-bit copies of weights: those made without gradients must not serve the student's pass
    learner, _ = trained(1, precision="bf16", teacher="student")
    assert all(p.grad is not None for p in learner.student.parameters() if p.requires_grad)


@pytest.mark.parametrize("frozen", [False, True])
def test_scoring_makes_16_bit_weights_once(frozen: bool) -> None:
    learner, _ = trained(1, precision="bf16", lock_backbone=frozen)
    assert learner.teacher is not None
    models = [learner.student.eval(), learner.teacher.eval()]
    wanted = [[p.requires_grad for p in model.parameters()] for model in models]
    made: list[int] = []
    with learner.scoring():
        assert not torch.backends.cuda.cudnn_sdp_enabled(), "cuDNN's attention would build a plan for each image size"
        for _ in range(2):
            for model in models:
                with CountCasts() as casts:
                    assert not model(batch(0).img_x).requires_grad
                made.append(casts.count)
    assert made[0] == made[1]
    assert made[2] == made[3]
    weights = sum(p.ndim > 1 for p in models[0].parameters())
    assert made[0] - made[2] > weights
    assert [[p.requires_grad for p in model.parameters()] for model in models] == wanted
    assert torch.backends.cuda.cudnn_sdp_enabled()


class CountCasts(TorchDispatchMode):
    """Counts copies into another type."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def held(learner: Learner) -> int:
    """Bytes that a student's pass keeps for its gradients."""
    sizes: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = learner.student(batch(0).img_x)
    del logits
    return sum(sizes.values())


def test_activation_checkpointing_holds_less_and_computes_the_same_bits(fp32: tuple[Learner, list[float]]) -> None:
    learner, losses = trained(activation_checkpointing=True)
    assert losses == fp32[1]
    for found, expected in zip(learner.student.parameters(), fp32[0].student.parameters(), strict=True):
        assert torch.equal(found, expected)
    weights = sum(p.nbytes for p in learner.student.parameters())
    assert held(learner) - weights < 0.7 * (held(fp32[0]) - weights)


@pytest.fixture
def wrapped(tmp_path: Path) -> Iterator[World]:
    """A World whose student is wrapped as on several processes, though there is one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield World(size=2)
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [1, 2])
def test_compiled_updates_agree_and_names_stay(processes: int, wrapped: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # traced as for the real compiler, which takes minutes for C++; `python -m scripts.benchmark step` runs that one
    compile_with, graphs = torch.nn.Module.compile, Counter[int]()

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs[len(inputs)] += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile_with, backend=count))
    monkeypatch.setattr("engine.update.check_compiler", lambda device: None)
    torch.compiler.reset()
    (compiled, losses), (eager, expected) = trained(1, wrapped if processes > 1 else None, compile=True), trained(1)
    assert losses == pytest.approx(expected, rel=1e-6)  # one float32 pass, sums in another order; gradients cancel more
    assert float(compiled.grad_norm) == pytest.approx(float(eager.grad_norm), rel=1e-5)
    assert list(compiled.student.state_dict()) == list(eager.student.state_dict())
    # one whole graph for the teacher's pass and one for each of the student's two, for all blocks together and for the decoder
    assert sorted(graphs.values()) == [3, 3]
    with compiled.scoring(), torch.no_grad():
        compiled.student(batch(0, size=70).img_x)
    assert sorted(graphs.values()) == [3, 3], "evaluation runs as it is: its images have many sizes"


def test_gradients_of_several_shards_are_held_once_where_processes_exchange_them(wrapped: World) -> None:
    learner, _ = trained(0, wrapped)
    places: list[dict[str, int]] = []

    def step(*args: Any) -> Any:
        places.append({name: p.grad.data_ptr() for name, p in learner.student.named_parameters() if p.grad is not None})
        return unimatch_v2.step(*args)

    learner.method = replace(learner.method, step=step)
    for _ in range(3):  # DDP makes its buckets anew after the first
        learner.update([batch(0), batch(1)])
    assert places[4], "those of the second update, zeroed"
    assert places[5] == places[4], "the first shard's are in the buckets already"


def test_a_missing_compiler_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("no g++ found")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"compile: .*no g\+\+ found.*set compile=false"):
        check_compiler(torch.device("cpu"))


def test_fp16_skips_a_step_that_overflows_with_half_the_scale_next_time() -> None:
    learner, _ = trained(0, precision="fp16")
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**40})
    before = {name: value.clone() for name, value in learner.student.state_dict().items()}
    learner.update([batch(0)])
    assert (learner.skipped, learner.it, learner.scaler.get_scale()) == (1, 1, 2.0**39)
    assert all(torch.equal(value, before[name]) for name, value in learner.student.state_dict().items())


def test_the_gradient_norm_does_not_depend_on_the_loss_scale(fp32: tuple[Learner, list[float]]) -> None:
    assert float(trained(1, precision="fp16")[0].grad_norm) == pytest.approx(float(trained(1)[0].grad_norm), rel=BOUNDS["fp16"])


def test_a_run_goes_on_in_another_precision_and_fp16_keeps_its_scale(tiny: Tiny, tmp_path: Path) -> None:
    for epochs, precision in ((1, "fp32"), (2, "fp16"), (3, "bf16")):
        changes = (f"epochs={epochs}", f"precision={precision}", "resume=force")
        supervised.main(tiny.args(tmp_path, "supervised_length=4", *changes, unlabeled=False))
        assert (checkpoint.load(tmp_path / "latest.pth")["scaler"].get("scale", 0) > 0) == (precision == "fp16")


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False, "avx512_fp16": False, "amx_fp16": False}, {"bf16", "fp16"}),
        ({"avx512_bf16": True, "amx_bf16": False, "avx512_fp16": False, "amx_fp16": False}, {"fp16"}),
        ({"avx512_bf16": False, "amx_bf16": True, "avx512_fp16": True, "amx_fp16": False}, set()),
        ({"neon": True, "bf16": False, "fp16_arith": True}, {"bf16"}),
        ({"neon": True, "bf16": True, "fp16_arith": True}, set()),
        ({"architecture": "another"}, set()),
    ],
    ids=["AVX-512 alone", "with bf16", "AMX", "ARM", "ARM with bf16", "unknown"],
)
def test_precisions_that_a_cpu_is_slow_at(capabilities: dict[str, Any], slow: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert {precision for precision in PRECISIONS if slow_precision(precision, torch.device("cpu"))} == slow
    assert not any(slow_precision(precision, torch.device("cuda")) for precision in PRECISIONS)


def test_a_run_in_bf16_says_that_the_cpu_is_slow_at_it(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False}, raising=False)
    supervised.main(tiny.args(tmp_path, "epochs=1", "precision=bf16", "supervised_length=4", unlabeled=False))
    log = (tmp_path / "train.log").read_text()
    assert "WARNING] precision: this CPU has no instructions for bf16" in log.partition("Iters")[0], "before the first step"


def test_precision_may_change_without_force_and_typos_are_named(tiny: Tiny, tmp_path: Path) -> None:
    short = ("epochs=1", "supervised_length=4")
    supervised.main(tiny.args(tmp_path, *short, unlabeled=False))
    supervised.main(tiny.args(tmp_path, *short, "precision=bf16", "activation_checkpointing=true", unlabeled=False))
    with pytest.raises(UserError, match="precision: found 'fp8', expected one of fp32, tf32, bf16, fp16"):
        supervised.main(tiny.args(tmp_path, "precision=fp8", unlabeled=False))


def test_a_precision_set_through_the_newer_interface_is_one_clear_line() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        found = r"precision: found torch\.backends\.\*\.fp32_precision set by other code.*; remove that setting"
        with pytest.raises(UserError, match=found), matmul_precision("fp32", torch.device("cpu")):
            pass
    finally:
        torch.set_float32_matmul_precision("highest")
    with matmul_precision("tf32", torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


# A GPU beside the CPU's fp32. Losses of four steps and the first gradient's norm, relative: its fp32 has convolutions in TF32 (a
# mantissa of 10 bits, as fp16's), tf32 matrix products too; bf16 has 7 bits. A pseudo label at a tie may become another.
GPU_BOUNDS = {"fp32": 5e-3, "tf32": 5e-3, "bf16": 3e-2, "fp16": 5e-3}


def trained_on_gpu(steps: int, **keys: Any) -> tuple[Learner, list[float]]:
    """As `trained`, on a GPU, from the same weights and mini-batches."""
    cpu, _ = trained(0, **{key: value for key, value in keys.items() if key != "compile"})
    device = torch.device("cuda")
    learner = Learner(replace(cpu.cfg, **keys), cpu.student, unimatch_v2.METHOD, 100, world=World(device=device))
    losses = []
    with matmul_precision(learner.cfg.precision, device):
        for it in range(steps):
            tensors: dict[str, Any] = {name: value.to(device) for name, value in vars(batch(it)).items() if isinstance(value, Tensor)}
            losses.append(float(learner.update([Batch(**tensors)])["loss_all"]))
    return learner, losses


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", GPU_BOUNDS)
def test_a_gpu_trains_as_a_cpu_does(precision: str, fp32: tuple[Learner, list[float]]) -> None:
    learner, losses = trained_on_gpu(STEPS, precision=precision)
    assert losses == pytest.approx(fp32[1], rel=GPU_BOUNDS[precision])
    assert learner.skipped == 0
    assert all(p.dtype == torch.float32 for p in learner.student.parameters())
    norms = [float(one[0].grad_norm) for one in (trained_on_gpu(1, precision=precision), trained(1))]
    assert norms[0] == pytest.approx(norms[1], rel=2 * GPU_BOUNDS[precision])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_without_tf32_computes_the_gradients_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found, expected = trained_on_gpu(1), trained(1)
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    for (name, p), q in zip(found[0].student.named_parameters(), expected[0].student.parameters(), strict=True):
        if q.grad is not None:
            assert p.grad is not None
            assert float((p.grad.cpu() - q.grad).norm()) <= 1e-3 * float(q.grad.norm()) + 1e-7, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_updates_agree_on_a_gpu(precision: str) -> None:
    eager, expected = trained_on_gpu(STEPS, precision=precision)
    torch.compiler.reset()
    try:
        compiled, losses = trained_on_gpu(STEPS, precision=precision, compile=True)
    finally:
        torch.compiler.reset()
    assert losses == pytest.approx(expected, rel=GPU_BOUNDS[precision])
    assert float(compiled.grad_norm) == pytest.approx(float(eager.grad_norm), rel=10 * GPU_BOUNDS[precision])
