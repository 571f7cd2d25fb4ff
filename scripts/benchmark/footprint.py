"""Memory of a training step on one GPU, without a GPU: the method's own step runs on tensors that have shapes but no storage."""

from __future__ import annotations

import importlib
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dataset.batch import Batch
from dataset.spec import DatasetSpec
from engine.ema import make_teacher
from model.dropout import factor_width
from model.segmenter import Segmenter
from scripts.benchmark.work import IMAGES, meta_model
from util.config import Config
from util.precision import SIXTEEN_BIT, autocast

GIB = 2**30


# Operations that a card's peak rate limits rather than its memory (what scripts/benchmark/work.py counts), and those that move nothing.
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_scaled_dot_product")
NOTHING = ("empty", "new_empty", "detach", "_unsafe_view")


@dataclass(frozen=True)
class Footprint:
    """Bytes of one training process. activations: what autograd holds between forward and backward pass, one shard at a time.
    temporary: what the fullest moment of the backward pass needs besides; AdamW's fused update needs nothing.
    No part of the total: moved, what the operations between the products of one shard's step read and write, not compiled; and
    operations, how many of any kind it starts on the GPU."""

    weights: int
    teacher: int
    gradients: int
    adam: int
    batches: int
    activations: int
    temporary: int
    moved: int
    operations: int

    @property
    def total(self) -> int:
        """Bytes at the fullest moment."""
        return self.weights + self.teacher + self.gradients + self.adam + self.batches + self.activations + self.temporary


class Meter(TorchDispatchMode):
    """Follows the storages that operations allocate inside it: bytes `live` now and at the fullest moment (`peak`), bytes
    `moved`, number of `operations`."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.moved = self.operations = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        older = {x.untyped_storage()._cdata for x in given}
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        name = func.overloadpacket.__name__
        if made and not func.is_view and not name.startswith(NOTHING):
            self.operations += 1
            if not name.startswith(PRODUCTS):
                self.moved += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in (*given, *made))  # an expanded one is read once
        for tensor in made:
            self._add(tensor.untyped_storage(), older)
        return out

    def _add(self, storage: torch.UntypedStorage, older: set[int]) -> None:
        key = storage._cdata
        if key in self.known or key in older:  # a view, an operation in place, or from before this mode
            return
        self.known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def empty_batch(cfg: Config, spec: DatasetSpec, method: str, width: int) -> Batch:
    """A mini-batch of the shapes that a run has with an encoder of this width; its numbers mean nothing."""
    size = cfg.crop_size
    count = cfg.batch_size if IMAGES[method][0] else 2 * cfg.batch_size
    img, mask = torch.zeros(count, 3 * spec.dates, size, size), torch.zeros(count, size, size, dtype=torch.long)
    if not IMAGES[method][0]:
        return Batch(img, mask)
    ignore, box = torch.zeros(count, size, size, dtype=torch.uint8), torch.zeros(count, size, size, dtype=torch.bool)
    return Batch(img, mask, img.clone(), img.clone(), img.clone(), ignore, box, box.clone(), torch.ones(2 * count, width))


def measure_step(cfg: Config, spec: DatasetSpec, method: str, student: Segmenter, teacher: nn.Module | None) -> tuple[int, Meter]:
    """(held, meter) of one shard: bytes alive when the forward pass is done, and the whole step's figures, besides weights, gradients
    and mini-batch. The student's parameters have gradients already, as from the second shard on."""
    step = importlib.import_module(method).step
    student.backbone.checkpointing = cfg.activation_checkpointing
    for p in student.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    batch = empty_batch(cfg, spec, method, factor_width(student.backbone.channels))
    labels_by = student if importlib.import_module(method).METHOD.teacher_of(cfg, spec.task) == "student" else teacher
    with Meter() as meter:
        with autocast("bf16" if cfg.precision in SIXTEEN_BIT else "fp32", torch.device("cpu")):
            loss, _ = step(student.train(), labels_by, batch, cfg)
        held = meter.live
        loss.backward()
    return held, meter


def hollow_models(cfg: Config, spec: DatasetSpec, method: str, mode: FakeTensorMode) -> tuple[Segmenter, nn.Module | None]:
    """The run's student and teacher (None for supervised) as CPU tensors of `mode`, which have no storage."""
    student = meta_model(cfg, spec)
    teacher = make_teacher(student) if IMAGES[method][0] else None
    shapes = {name: tensor.shape for name, tensor in student.state_dict().items()}
    with mode:
        for model in filter(None, (student, teacher)):
            model.load_state_dict({name: torch.empty(shape) for name, shape in shapes.items()}, assign=True)
    return student, teacher


def footprint(cfg: Config, spec: DatasetSpec, method: str, shards: int = 1) -> Footprint:
    """The memory of a process that runs `shards` shards one after the other.

    Attention counts as the fused kernels do it: q, k, v, output and one number a row; never the N x N matrix.
    """
    mode = FakeTensorMode()
    student, teacher = hollow_models(cfg, spec, method, mode)
    weights = 4 * sum(p.numel() for p in student.parameters())
    trained = 4 * sum(p.numel() for p in student.parameters() if p.requires_grad)
    with mode:
        held, meter = measure_step(cfg, spec, method, student, teacher)
        batch = empty_batch(cfg, spec, method, factor_width(student.backbone.channels))
        size = sum(x.nbytes for x in vars(batch).values() if isinstance(x, Tensor))
    return Footprint(
        weights=weights,
        teacher=weights if teacher is not None else 0,
        gradients=trained,
        adam=2 * trained,
        batches=2 * shards * size,  # of this step and of the next one
        activations=held,
        temporary=meter.peak - held,
        moved=meter.moved,
        operations=meter.operations,
    )
