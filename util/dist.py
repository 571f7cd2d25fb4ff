"""Processes and their devices: which process this is, what it may use, and how processes add up and share values."""

import contextlib
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before a group exists: imported later, its functions would keep the group alive
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from util.error import StoppedError, UserError, reason

CPU_QUOTA = "/sys/fs/cgroup/cpu.max"  # of a container
WAIT = timedelta(hours=1)  # for the other processes: the first one may write large checkpoints to a slow disk, or draw, while they wait


@dataclass(frozen=True)
class World:
    """The processes of a run and where this one stands: `rank` of `size`, `local_rank` of `local_size` on this machine, and its device."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds a tensor up over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def copy_from_first_(self, tensor: Tensor) -> None:
        """Gives all processes the first one's tensor, in place."""
        if self.size > 1:
            dist.broadcast(tensor, 0)

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process."""
        return bool(self.sum_(torch.tensor(float(value), device=self.device)) > 0)

    def gather(self, values: list[Any]) -> list[Any]:
        """The lists of all processes, one after the other."""
        if self.size == 1:
            return values
        lists: list[Any] = [None] * self.size
        dist.all_gather_object(lists, values)
        return [value for part in lists for value in part]

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def own_shards(self, shards: int) -> range:
        """The shards that this process runs, one after the other."""
        share = shards // self.size
        return range(self.rank * share, (self.rank + 1) * share)


def _from_environment() -> tuple[int, int, int, int]:
    """rank, size, local rank, local size as torchrun says; without torchrun one process, inside a Slurm allocation too."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    given = {name: os.environ.get(name) for name in names}
    if given["RANK"] is None and given["WORLD_SIZE"] is None:
        return 0, 1, 0, 1
    for name, value in given.items():
        if value is None or not value.isdigit():
            raise UserError(f"environment {name}: found {value!r}, expected a number as torchrun sets it; start with scripts/train.sh")
    rank, size, local_rank, local_size = (int(given[name] or 0) for name in names)
    if not (rank < size and local_rank < local_size <= size):
        raise UserError(f"environment: RANK={rank} of WORLD_SIZE={size}, LOCAL_RANK={local_rank} of {local_size} do not fit together")
    return rank, size, local_rank, local_size


def _pick_device(wanted: str, local_rank: int, local_size: int) -> torch.device:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() and local_size == 1 else "cpu"
    if wanted == "cuda":
        _check_gpus(torch.cuda.device_count(), local_size)
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: no Apple GPU found; set device=auto or device=cpu")
    return torch.device(wanted)


def _check_gpus(found: int, wanted: int) -> None:
    """Raises UserError where there are fewer GPUs than processes, with what may have hidden some."""
    if found >= wanted:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    limit = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
    if found == 0:
        why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "nvidia-smi shows what the driver sees"
        raise UserError(f"device: found 0 GPUs{limit}, expected {wanted}; {why}; set device=cpu to train without")
    raise UserError(
        f"device: found {found} GPU(s){limit}, expected {wanted}, one per process; start {found} or fewer: the recipe stays the same"
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. The host continues while an NVIDIA GPU copies; others may copy memory that is in other use by then."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def average_gradients(model: nn.Module, world: World, compression: str = "none") -> nn.Module:
    """The model so that a backward pass averages its gradients over the processes, in buckets, while it runs; itself for one process.

    compression: none | bf16, what the gradients are rounded to on their way (half the bytes).
    """
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    # buffers are equal on all processes by the rule for batch statistics (engine/batch_norm.py)
    wrapped = DistributedDataParallel(model, devices, gradient_as_bucket_view=True, broadcast_buffers=False)
    if compression == "bf16":
        # by a function of our own: PyTorch refuses its name where there is no NCCL, though gloo adds bfloat16 as well
        wrapped.register_comm_hook(None, _as_bf16)
    return wrapped


def _as_bf16(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    return bf16_compress_hook(group, bucket)


def cpu_count() -> int:
    """CPUs this process may use: its affinity, a container's quota, and Slurm's share where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # as of docker run --cpus: microseconds of a period, or "max"
        quota, period = Path(CPU_QUOTA).read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(count, int(slurm)) if slurm.isdigit() and int(slurm) > 0 else count


def check_compiler(device: torch.device) -> None:
    """Raises UserError where torch.compile cannot work: it needs a C++ compiler, and Triton for a GPU."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever the first missing part leads to
        raise UserError(
            f"compile: PyTorch cannot compile for {device} here ({reason(error)}); "
            f"install a C++ compiler (Debian, Ubuntu: g++) and, for a GPU, Triton, or set compile=false"
        ) from error


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, a GPU gives the same bits for the same numbers each time, where `wanted`. Raises UserError for an operation that cannot."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)  # warn_only would leave attention's fast kernels as they are
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UserError(f"deterministic: found an operation without a fixed order ({reason(error)}); set deterministic=false") from error
    finally:
        torch.use_deterministic_algorithms(False)


def _meet(device: torch.device, size: int) -> None:
    gpu = device if device.type == "cuda" else None
    try:
        dist.init_process_group("nccl" if gpu else "gloo", timeout=WAIT, device_id=gpu)
    except (ValueError, dist.DistError) as error:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's addresses are right
            raise
        raise UserError(f"environment: the {size} processes cannot meet ({reason(error)}); start them with scripts/train.sh") from error


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[World]:
    """Joins the processes that torchrun started (NCCL on GPUs, gloo elsewhere); one process needs no group."""
    rank, size, local_rank, local_size = _from_environment()
    world = World(rank, size, local_rank, local_size, _pick_device(device, local_rank, local_size))
    if world.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cpu_count() // local_size))
    if size > 1:
        _meet(world.device, size)
    try:
        yield world
    except (StoppedError, UserError) as error:
        # an error may be this process's own: NCCL would wait for the others, and they for it
        if isinstance(error, StoppedError) or world.device.type != "cuda":
            traceback.clear_frames(error.__traceback__)  # the model that they hold keeps the group alive
            _part()
        raise
    _part()


def _part() -> None:
    """Ends the group and its threads: one of gloo's that drops its last tensor while Python ends aborts the process."""
    if dist.is_initialized():
        dist.destroy_process_group()
