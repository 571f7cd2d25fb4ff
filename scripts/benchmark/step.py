"""Training steps of UniMatch V2: the product against the literal loop, and what each part reaches of the machine's matrix rate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dataset.batch import Batch, make_batch
from dataset.custom import spec_of
from engine.ema import Ema
from engine.update import Trainer
from model import build_model
from model.dropout import complementary_factors, factor_width
from scripts.benchmark.data import host_batch, pinned
from scripts.benchmark.literal import LiteralLoop
from scripts.benchmark.measure import AT_LEAST, Row, attempt, ratio, release, seconds
from unimatch_v2 import METHOD
from util.config import Config
from util.dist import World
from util.precision import autocast, matmul_precision

# fused attention on CPUs, which PyTorch's counter does not know
FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **named: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *rest, **named: sdpa_backward_flop_count(
        grad, q, k, v
    ),
}
STEPS_IN_ALL = 1000  # of the learning rate schedule; any number would do
GOAL = (AT_LEAST, 6.0)  # of bf16 with compile on a GPU
CPU_GOAL = (AT_LEAST, 1.0)


# what a step is measured with besides the defaults; the first two, then the parts, are what a table begins with
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16, compile": {"precision": "bf16", "compile": True},
    "bf16": {"precision": "bf16"},
    "tf32": {"precision": "tf32"},
    "fp16": {"precision": "fp16"},
    "fp32, compile": {"compile": True},
}


class Alternatives:
    """The literal loop and trainers with several settings, from the same weights, on the same mini-batch."""

    def __init__(self, cfg: Config, device: torch.device) -> None:
        self.spec, self.device = spec_of(cfg), device
        self.cfg = replace(cfg, teacher=METHOD.teacher_of(cfg, self.spec.task))
        torch.manual_seed(0)
        self.model = build_model(cfg.backbone, self.spec.nclass, self.spec.task)
        self.raw = host_batch(cfg)
        self.drop = complementary_factors(cfg.batch_size, factor_width(self.model.backbone.channels), torch.Generator().manual_seed(0))

    def literal(self) -> Callable[[], Any]:
        """A step from one normalised float tensor a view, in pageable memory, as a plain DataLoader leaves it: its copies block."""
        loop = LiteralLoop(self.cfg, self.model, METHOD.step, STEPS_IN_ALL, self.device)
        batch = make_batch(self.raw, torch.device("cpu"), self.model.backbone, self.drop)
        return lambda: loop.update(batch)

    def trainer(self, **settings: Any) -> Trainer:
        model = copy.deepcopy(self.model)
        return Trainer(replace(self.cfg, **settings), model, METHOD, STEPS_IN_ALL, world=World(device=self.device))

    def ours(self, **settings: Any) -> Callable[[], Any]:
        """A step from what the real loader leaves: for a GPU, images still to be made (`views: auto`), in page-locked memory.

        As in Run.updates, a step finds its mini-batch made, and makes the next one while the device computes its gradient.
        """
        trainer = self.trainer(**settings)
        raw = pinned(host_batch(self.cfg, on_device=self.device.type == "cuda"), self.device)
        made: list[Batch] = []

        def prepare() -> None:
            made.append(make_batch(raw, self.device, self.model.backbone, self.drop))

        def update() -> None:
            if not made:
                prepare()
            with matmul_precision(trainer.cfg.precision, self.device):
                trainer.update([made.pop()], meanwhile=prepare)

        return update

    def compare(self, name: str, figure: str, rounds: int) -> Iterator[Row]:
        """The product's step with SETTINGS[name] beside the literal one: two at a time, all together would not fit into the memory."""
        release(self.device)
        gpu = self.device.type == "cuda"
        goals = {"bf16, compile": GOAL} if gpu else {"fp32": CPU_GOAL}
        calls = {"literal": self.literal(), "ours": self.ours(**SETTINGS[name])}
        times = seconds(calls, rounds, self.device, warm=3 if gpu else 1)
        yield ratio(figure, times["literal"], times["ours"], goals.get(name))


def rows(cfg: Config, device: torch.device, rounds: int, names: Iterable[str], parted: Iterable[str] = ()) -> Iterator[Row]:
    """A step of `cfg` with SETTINGS of these `names` beside the literal one, and the parts of the step in the precisions `parted`."""
    made = Alternatives(cfg, device)
    what = f"step, {cfg.backbone}, {cfg.crop_size}, {cfg.batch_size}+{cfg.batch_size} images"
    for name in names:
        figure = f"{what}: {name}"
        yield from attempt(figure, partial(made.compare, name, figure, rounds))
    for name in parted:
        yield from attempt(f"{what}: parts, {name}", partial(parts, made, name, rounds))


def matrix_rate(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """TFLOP/s of a large matrix product here."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = seconds({"matmul": lambda: a @ b}, rounds, device, warm=2)["matmul"]
    return 2 * size**3 / min(times) / 1e12


def parts(made: Alternatives, name: str, rounds: int) -> list[Row]:
    """TFLOP/s of the parts of one step, as shares of the matrix rate measured here: where the time goes."""
    release(made.device)
    trainer = made.trainer(**SETTINGS[name])
    precision = trainer.cfg.precision
    student, teacher = trainer.student.train(), trainer.teacher
    assert teacher is not None
    batch = make_batch(made.raw, made.device, made.model.backbone, made.drop)
    strong = torch.cat((batch.img_u_s1, batch.img_u_s2))
    rate = matrix_rate(made.device, torch.bfloat16 if precision == "bf16" else torch.float32)
    with torch.no_grad(), autocast(precision, made.device), torch.compiler.set_stance("force_eager"):
        maps = [x.float().requires_grad_() for x in student.encode(strong)]

    def in_precision(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with autocast(precision, made.device):
                return call()

        return run

    def label() -> None:
        with torch.no_grad():
            teacher(batch.img_u_w)

    forward_encoder = in_precision(lambda: student.encode(strong))
    forward_decoder = in_precision(lambda: student.decode(maps))

    def encoder() -> None:
        trainer.optimizer.zero_grad()  # as before a step: nothing to add to
        _sum(forward_encoder()).backward()

    def decoder() -> None:
        for x in maps:
            x.grad = None
        _sum([forward_decoder()]).backward()

    calls: dict[str, Callable[[], Any]] = {
        "teacher": in_precision(label),
        "encoder, strong views, forward and backward": encoder,
        "decoder, strong views, forward and backward": decoder,
        "AdamW": trainer.optimizer.step,
        "EMA": partial(Ema(teacher, student).update, 1),
    }
    work = {name: operations(call) for name, call in calls.items()}
    times = seconds(calls, rounds, made.device)
    what = f"part of {made.cfg.backbone}, {made.cfg.crop_size}, {made.cfg.batch_size}+{made.cfg.batch_size} images, {name}"
    return [_part(f"{what}: {name}", work[name], times[name], rate) for name in calls]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.float().mean() for x in tensors]).sum()


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in a call."""
    # compiled parts do not let themselves be counted
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counter:
        call()
    return counter.get_total_flops()


def _part(name: str, work: int, times: list[float], rate: float) -> Row:
    spent = median(times)
    if not work:
        return Row(name, 1000 * spent, "ms", low=1000 * min(times), high=1000 * max(times))
    reached = [work / t / 1e12 for t in times]
    note = (
        f"{1000 * spent:.4g} ms for {work / 1e12:.3g} TFLOP: {100 * median(reached) / rate:.0f} % of a matrix product's {rate:.3g} TFLOP/s"
    )
    return Row(name, median(reached), "TFLOP/s", low=min(reached), high=max(reached), note=note)
