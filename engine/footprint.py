"""A training step or an evaluation on tensors that have shapes but no storage: its memory, its traffic and its operations, without a GPU.

What runs is the method's own step and the run's own model, so nothing here knows which ones these are.
"""

import gc
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dataset.batch import empty_batch
from dataset.custom import spec_of
from engine.ema import make_teacher
from engine.evaluation import Prediction
from engine.initial_model import blank_model
from engine.method import Method
from model.attention import as_on_gpus
from model.loss import weights_on
from util.config import Config
from util.precision import SIXTEEN_BIT, autocast

GIB = 2**30
NOTHING = ("empty", "new_empty", "detach", "_unsafe_view")  # operations that move no bytes


def _convolution_backward(grad: Any, x: Any, weight: Any, *rest: Any, **named: Any) -> int:
    """Operations of a convolution's gradients. Each of the two is as much work as the forward pass. PyTorch's own formula overlooks groups
    of channels.
    """
    transposed, mask = rest[4], rest[7]
    return 2 * x[0] * math.prod((x if transposed else grad)[2:]) * math.prod(weight) * (mask[0] + mask[1])


# operations that PyTorch's counter does not know (fused attention on CPUs), or counts otherwise
OWN_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **named: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **named: sdpa_backward_flop_count(*shapes[:4]),
    torch.ops.aten.convolution_backward: _convolution_backward,
}
FORMULAS = FlopCounterMode(display=False, custom_mapping=OWN_FORMULAS).flop_registry
Work = Counter[str]  # floating-point operations of "linear layers", "attention" and "convolutions": what decides their rate on a card


# what autocast computes in float32 on an NVIDIA GPU but not on a CPU, of what models call
FLOAT32 = {"softmax", "log_softmax", "cross_entropy", "layer_norm", "group_norm", "interpolate", "normalize", "norm", "exp", "pow"}


class GpuAutocast(TorchFunctionMode):
    """Makes a CPU's autocast keep in float32 what an NVIDIA GPU's does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in FLOAT32:
            args = [x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x for x in args]
        return func(*args, **(kwargs or {}))


def _on_gpu(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, under autocast inside GpuAutocast."""

    def inside(*args: Any, **kwargs: Any) -> Any:
        with GpuAutocast() if torch.is_autocast_enabled("cpu") else nullcontext():
            return call(*args, **kwargs)

    return inside


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among the arguments or the results of an operation, which may stand in lists."""
    if isinstance(values, Tensor):
        return [values]
    return [x for value in values for x in _tensors(value)] if isinstance(values, (tuple, list)) else []


class Meter(TorchDispatchMode):
    """Counts what the operations inside it do.

    live, peak: bytes of the storages that they allocate, now and at the fullest moment. operations: how many there are of any kind.
    moved: bytes that all but products read and write. work: floating-point operations of products, a multiplication and its addition being
    two, as PyTorch's FlopCounterMode counts them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.moved = self.operations = 0
        self.work: Work = Counter()
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # most of what comes here, and only of fake tensors
            return args[0].fake_device
        out = func(*args, **kwargs)
        made = [] if func.is_view else _tensors(out)
        if not made:
            return out
        given, name = _tensors((*args, *kwargs.values())), func.overloadpacket.__name__
        if not name.startswith(NOTHING):
            self.operations += 1
            if formula := FORMULAS.get(func.overloadpacket):
                kind = "attention" if "attention" in name else "convolutions" if "convolution" in name else "linear layers"
                self.work[kind] += formula(*args, **kwargs, out_val=out)
            else:
                self.moved += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in (*given, *made))  # an expanded one is read once
        older = {x.untyped_storage()._cdata for x in given}
        for storage in (x.untyped_storage() for x in made):
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known and key not in older:  # the others are views, changed in place, or older than this mode
                self.known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, key, size)
        return out

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


class DryRun:
    """A process of a run that computes `shards` shards one after the other: its models and a mini-batch, all without storage."""

    def __init__(self, cfg: Config, method: Method, shards: int = 1) -> None:
        self.spec, self.method = spec_of(cfg), method
        self.cfg = method.settled(cfg, self.spec.task)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.device("meta"):
            self.student = blank_model(cfg, self.spec)
        if cfg.lock_backbone:
            self.student.backbone.requires_grad_(False)
        self.student.frozen_statistics = cfg.batch_norm == "frozen"
        average = make_teacher(self.student) if method.teacher == "ema" else None
        with self.mode:
            for model in filter(None, (self.student, average)):
                model.to_empty(device="cpu")
            _, self.teacher = method.teachers(self.cfg, self.student, average, hollow=True)
            batch = empty_batch(method.reads, cfg.batch_size, self.spec.dates, cfg.crop_size)
            drop = method.factors(self.cfg, self.student.channels, torch.Generator())
            self.batch = replace(batch, drop=batch.drop if drop is None else drop, epoch=cfg.epochs - 1)  # of the last epoch
            for p in self.student.parameters():  # which have gradients already, as from the second shard on
                p.grad = torch.zeros_like(p) if p.requires_grad else None
        for block in self.student.backbone.blocks:  # computed again in the backward pass, where the step's own mode does not reach
            block.forward = _on_gpu(block.forward)
        self.prediction = Prediction.of(self.cfg, self.spec, self.student)
        own = set(self.student.parameters())
        beside = {p for model in (average, self.teacher) if model for p in model.parameters()} - own
        remembered = sum(buffer.nbytes for buffer in self.student.memory().values())
        trained = 4 * sum(p.numel() for p in own if p.requires_grad)
        given = [x for one in (self.batch, batch.second) if one for x in vars(one).values() if isinstance(x, Tensor)]
        self.held = {  # bytes all the time
            "weights": 4 * sum(p.numel() for p in own) + 2 * remembered,  # and a copy for a step that does not count
            "teacher": 4 * sum(p.numel() for p in beside),  # and a frozen model
            "gradients": trained,
            "optimizer": 2 * trained if self.cfg.optimizer == "adamw" else trained,
            "batches": 2 * shards * sum(x.nbytes for x in given),  # of this step and of the next one
        }

    @contextmanager
    def _counted(self) -> Iterator[Meter]:
        """Inside, tensors have no storage and operations are counted, attention as GPUs compute it. Python does not search for objects
        in circles, which takes a tenth of the time.
        """
        gc.disable()
        try:
            with self.mode, as_on_gpus(), Meter() as meter:
                yield meter
        finally:
            gc.enable()
            weights_on.cache_clear()  # class weights made here have no storage either

    def step(self, **changed: Any) -> tuple[dict[str, int], Meter]:
        """(memory, meter) with some keys of the config changed: bytes of the process by purpose, and the figures of one shard's step.

        Of the bytes, activations are what autograd holds between forward and backward pass, one shard at a time, and temporary is what
        the fullest moment of the backward pass needs besides; AdamW's fused update needs nothing. Attention counts as the fused kernels
        do it: q, k, v, output and one number a row; never the N x N matrix. Nothing is compiled.
        """
        cfg = replace(self.cfg, **changed)
        self.student.backbone.checkpointing = cfg.activation_checkpointing
        with self._counted() as meter:
            short = cfg.precision in SIXTEEN_BIT
            with autocast("bf16" if short else "fp32", torch.device("cpu")), GpuAutocast() if short else nullcontext():
                loss, _ = self.method.step(self.student.train(), self.teacher, self.batch, cfg)
            activations = meter.live
            loss.backward()
        return self.held | {"activations": activations, "temporary": meter.peak - activations}, meter

    def evaluation(self, height: int, width: int) -> Work:
        """Floating-point operations of evaluating one model on one image (change detection: one pair) of so many pixels."""
        with self._counted() as meter, torch.no_grad():
            self.prediction.class_scores(self.student.eval(), torch.empty(1, 3 * self.spec.dates, height, width))
        return meter.work


def with_less(cfg: Config, method: Method, shards: int) -> str:
    """What a training step needs on a GPU, and what with settings that need less, calculated: for a run that has found too little.

    cfg: settled, as `Trainer.cfg`. shards: of each process.
    """
    run, changed = DryRun(cfg, method, shards), dict[str, Any]()

    def size() -> str:
        return f"{sum(run.step(**changed)[0].values()) / GIB:.1f} GiB"

    found = [f"{size()} as it is"]
    if not cfg.activation_checkpointing:
        changed["activation_checkpointing"] = True
        found.append(f"{size()} with --set activation_checkpointing=true")
    if cfg.precision not in SIXTEEN_BIT:
        changed["precision"] = "bf16"
        found.append(f"{size()} with --set precision=bf16{' besides' * (len(found) > 1)}")
    again = "start again with a smaller batch_size and as many more shards"
    return f"calculated, and 1 to 2 GiB of CUDA besides: {', '.join(found)}; {'resume so, or ' * (len(found) > 1)}{again}"
