"""A device made of Python, for machines without a GPU. Its tensors keep their numbers in the CPU's memory, but are as strict as a GPU's:

tensors of two devices do not mix, a host that wants numbers has to ask for them, and, as on Apple's, there is no float64 and a copy to the
device is waited for.

    python -m tests.far READS.json < COMMANDS.json

runs commands, [["unimatch_v2", ["--config", ...]], ...], on this device, one after the other, and writes for each of them which functions
read from the device: [{"engine/update.py _agree": 6, ...}, ...].
"""

import importlib
import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from util import dist

ROOT = Path(__file__).resolve().parent.parent
# operations for which the host waits: a number, or an output whose size depends on numbers
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "is_nonzero", "equal")
reads: Counter[str] = Counter()


class Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("far", backend_module=Module())
FAR = torch.device("far", 0)


_Tensor: Any = Tensor  # its type hints differ from one PyTorch to the next


class FarTensor(_Tensor):
    """raw: the same tensor on the CPU; of views the same view, so that writing through one is seen through the other."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> "FarTensor":
        if raw.dtype == torch.float64:
            raise TypeError("this device has no float64")
        made = cls._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=FAR
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(func, args, kwargs or {})

    def tolist(self) -> Any:
        note_read()
        return self.raw.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("numpy cannot read this device")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.raw.__reduce_ex__(protocol)


class Dispatch(TorchDispatchMode):
    """Sees the operations that make tensors on the device from none that are there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(func, args, kwargs or {})


def note_read() -> None:
    """Counts a read for the function of the project that is the innermost one."""
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_stack() if frame.filename != __file__]
    path, name = [(path, name) for path, name in frames if path.is_relative_to(ROOT) and "site-packages" not in path.parts][-1]
    reads[f"{path.relative_to(ROOT)} {name}"] += 1


def compute(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, computed by the CPU, on the device where it belongs."""
    name, target = func.overloadpacket.__name__, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, FarTensor)]
    to_far = target is not None and torch.device(target).type == "far"
    if not far and not to_far:
        return func(*args, **kwargs)
    copies = name in ("copy_", "_to_copy")
    if not copies and any(tensor.dim() and not isinstance(tensor, FarTensor) for tensor in tensors):
        raise RuntimeError(f"{func}: tensors of two devices, {[(str(tensor.device), tuple(tensor.shape)) for tensor in tensors]}")
    if copies and kwargs.get("non_blocking"):
        raise RuntimeError("a copy that is not waited for: its memory may be in other use by then")
    from_far = copies and far and (not isinstance(args[0], FarTensor) if name == "copy_" else target is not None and not to_far)
    masks = args[1] if name in ("index", "index_put_") else ()
    if from_far or name.startswith(WAITING) or any(mask is not None and mask.dtype == torch.bool for mask in masks):
        note_read()
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    outer = {id(tensor.raw): tensor for tensor in far}
    raw_args, raw_kwargs = tree_map(lambda leaf: leaf.raw if isinstance(leaf, FarTensor) else leaf, (args, kwargs))
    result = func(*raw_args, **raw_kwargs)
    if name == "copy_":
        return args[0]
    if name == "_to_copy" and result is raw_args[0]:
        result = result.clone()

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or (target is not None and not to_far):
            return leaf
        return outer[id(leaf)] if id(leaf) in outer else FarTensor(leaf)

    return tree_map(place, result)


_tensor, _sum = torch.tensor, dist.World.sum_


def sum_(world: dist.World, value: Tensor) -> Tensor:
    """World.sum_, which of several processes adds up nothing but tensors on their devices, as NCCL does."""
    if value.device != world.device:
        raise RuntimeError(f"processes on {world.device} cannot add up a tensor on {value.device}")
    return _sum(world, value)


def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """torch.tensor, whose own copy to a device no dispatcher sees."""
    made = _tensor(data, **options)
    return made if device is None else made.to(device)


def main() -> None:
    found = []
    with (
        Dispatch(),
        mock.patch.object(dist, "_pick_device", return_value=FAR),
        mock.patch.object(dist.World, "sum_", sum_),
        mock.patch.object(torch, "tensor", tensor),
        mock.patch.object(torch, "inference_mode", torch.no_grad),  # its tensors cannot be made in Python
    ):
        for module, argv in json.load(sys.stdin):
            reads.clear()
            importlib.import_module(module).main(argv)
            found.append(dict(reads))
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
