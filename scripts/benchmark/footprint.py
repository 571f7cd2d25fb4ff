"""A training step or an evaluation on tensors that have shapes but no storage: its memory, its traffic and its operations, without a GPU.

What runs is the method's own step and the run's own model, so nothing here knows which ones these are.
"""

import math
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dataset.batch import Batch
from dataset.custom import spec_of
from engine.evaluation import Prediction
from engine.method import Method
from model import configured_model
from model.backbone import dinov2
from model.segmenter import Segmenter
from model.text import reserve_text_
from util.config import Config
from util.precision import SIXTEEN_BIT, autocast

GIB = 2**30
KINDS = ("linear layers", "attention", "convolutions")  # of products: what decides their rate on a card
NOTHING = ("empty", "new_empty", "detach", "_unsafe_view")  # operations that move no bytes


def _convolution_backward(grad: Any, x: Any, weight: Any, *rest: Any, **named: Any) -> int:
    """Operations of a convolution's gradients, by the shapes: each is as much work as the forward pass, also where channels come in groups,
    which PyTorch's own formula takes for one."""
    transposed, mask = rest[4], rest[7]
    return 2 * x[0] * math.prod((x if transposed else grad)[2:]) * math.prod(weight) * (mask[0] + mask[1])


# what PyTorch's counter does not know, fused attention on CPUs, or counts otherwise
OWN_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **named: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **named: sdpa_backward_flop_count(*shapes[:4]),
    torch.ops.aten.convolution_backward: _convolution_backward,
}
FORMULAS = FlopCounterMode(display=False, custom_mapping=OWN_FORMULAS).flop_registry
Work = Counter[str]  # floating-point operations of each kind, see `Meter`


class Meter(TorchDispatchMode):
    """Counts what the operations inside it do.

    live, peak: bytes of the storages that they allocate, now and at the fullest moment. operations: how many there are of any kind.
    moved: bytes that all but products read and write. work: floating-point operations of products, by KINDS, a multiplication and its
    addition being two, as PyTorch's FlopCounterMode counts them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.moved = self.operations = 0
        self.work: Work = Counter()
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # where a tensor is; most of what comes here
            return func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        older = {x.untyped_storage()._cdata for x in given}
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        name = func.overloadpacket.__name__
        if made and not func.is_view and not name.startswith(NOTHING):
            self.operations += 1
            if formula := FORMULAS.get(func.overloadpacket):
                self.work[_kind(name)] += formula(*args, **kwargs, out_val=out)
            else:
                self.moved += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in (*given, *made))  # an expanded one is read once
        for tensor in made:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self.known or key in older:  # a view, an operation in place, or from before this mode
                continue
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)
        return out

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def _kind(name: str) -> str:
    """The kind of a product, by its operation's name."""
    return KINDS[1] if "attention" in name else KINDS[2] if "convolution" in name else KINDS[0]


def hollow_model(cfg: Config, mode: FakeTensorMode) -> Segmenter:
    """The run's model as CPU tensors of `mode`, frozen where the config says so."""
    spec = spec_of(cfg)
    with torch.device("meta"):
        model = configured_model(cfg, spec.nclass, spec.task)
        reserve_text_(model)
    state = model.state_dict()
    with mode:
        model.load_state_dict({name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}, assign=True)
        for module in model.modules():  # buffers that no state dict has, such as indices of relative positions
            for name, buffer in [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]:
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    if cfg.lock_backbone:
        model.backbone.requires_grad_(False)
    return model


def empty_batch(cfg: Config, method: Method, channels: tuple[int, ...]) -> Batch:
    """A mini-batch of the last epoch, of the shapes that a run has with an encoder whose maps have these channels.

    Its numbers mean nothing.
    """
    size, count, reads = cfg.crop_size, cfg.batch_size, method.reads

    def images(number: int) -> Tensor:
        return torch.zeros(number, 3 * spec_of(cfg).dates, size, size)

    def unlabeled() -> dict[str, Any]:
        views = {f"img_u_s{i + 1}": images(count) for i in range(reads.strong_views)}
        boxes = {f"box{i + 1}": torch.zeros(count, size, size, dtype=torch.bool) for i in range(reads.strong_views)}
        return {"img_u_w": images(count), "ignore_u": torch.zeros(count, size, size, dtype=torch.uint8)} | views | boxes

    labeled = reads.labeled * count
    batch = Batch(images(labeled), torch.zeros(labeled, size, size, dtype=torch.long), **(unlabeled() if method.semi else {}))
    second = Batch(images(0), images(0), **unlabeled()) if reads.second_draw else None
    drop = method.draw(count, channels, torch.Generator(), cfg) if method.draw else batch.drop
    return replace(batch, second=second, drop=drop, epoch=cfg.epochs - 1)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Attention by the fused kernel, in whose place a CPU computes bfloat16 head by head (model/backbone/dinov2.py)."""
    before, dinov2.LONG = dinov2.LONG, sys.maxsize
    try:
        yield
    finally:
        dinov2.LONG = before


def dry_step(cfg: Config, method: Method, student: Segmenter, teacher: nn.Module | None, batch: Batch) -> tuple[int, Meter]:
    """(held, meter) of one shard: bytes alive when the forward pass is done, and the whole step's figures, besides weights, gradients
    and mini-batch. The student's parameters have gradients already, as from the second shard on. teacher: what the step gets as such."""
    student.backbone.checkpointing = cfg.activation_checkpointing
    for p in student.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    with as_on_a_gpu(), Meter() as meter:
        with autocast("bf16" if cfg.precision in SIXTEEN_BIT else "fp32", torch.device("cpu")):
            loss, _ = method.step(student.train(), teacher, batch, cfg)
        held = meter.live
        loss.backward()
    return held, meter


def footprint(cfg: Config, method: Method, shards: int = 1) -> tuple[dict[str, int], Meter]:
    """(memory, meter) of a process that runs `shards` shards one after the other: bytes by purpose, and the figures of one shard's step.

    Of the bytes, activations are what autograd holds between forward and backward pass, one shard at a time, and temporary is what the
    fullest moment of the backward pass needs besides; AdamW's fused update needs nothing. Attention counts as the fused kernels do it: q,
    k, v, output and one number a row; never the N x N matrix. Nothing is compiled.
    """
    cfg = method.settled(cfg, spec_of(cfg).task)
    mode = FakeTensorMode()
    student = hollow_model(cfg, mode)
    average = hollow_model(cfg, mode).eval().requires_grad_(False) if method.teacher == "ema" else None
    labels_by = student if cfg.teacher == "student" else average
    with mode:
        batch = empty_batch(cfg, method, student.channels)
        teacher = method.guided(labels_by, cfg, True) if method.guided and labels_by else labels_by
        held, meter = dry_step(cfg, method, student, teacher, batch)
    size = sum(x.nbytes for one in (batch, batch.second) if one for x in vars(one).values() if isinstance(x, Tensor))
    own = set(student.parameters())
    beside = {p for model in (average, teacher) if model is not None for p in model.parameters()} - own
    remembered = sum(buffer.nbytes for buffer in student.memory().values())
    weights = 4 * sum(p.numel() for p in own) + 2 * remembered  # and a copy for a step that does not count
    trained = 4 * sum(p.numel() for p in student.parameters() if p.requires_grad)
    memory = {
        "weights": weights,
        "teacher": 4 * sum(p.numel() for p in beside),  # and a frozen model
        "gradients": trained,
        "adam": 2 * trained if cfg.optimizer == "adamw" else trained,
        "batches": 2 * shards * size,  # of this step and of the next one
        "activations": held,
        "temporary": meter.peak - held,
    }
    return memory, meter


def evaluation_work(cfg: Config, height: int, width: int) -> Work:
    """Floating-point operations of evaluating one model on one image (change detection: one pair) of so many pixels."""
    spec, mode = spec_of(cfg), FakeTensorMode()
    model = hollow_model(cfg, mode).eval()
    with mode, torch.no_grad(), Meter() as meter:
        Prediction.of(cfg, spec, model).scores(model, torch.empty(1, 3 * spec.dates, height, width))
    return meter.work
