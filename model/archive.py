"""Reads the tensors of a TorchScript archive, the format of OpenAI's CLIP, without running any code in it."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from util import checkpoint
from util.error import reason

STORAGES = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype


class _Node:
    """Stands for an object of the archive, whose attributes it keeps."""

    def __init__(self, *_: Any) -> None:
        self.values: dict[str, Any] = {}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.values = values


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


class _Reader(pickle.Unpickler):
    """Makes tensors, lists and _Nodes, and refuses everything else."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Node
        if module == "torch.jit._pickle":  # typed lists
            return lambda values, *_: values
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in STORAGES:
            return _Storage(STORAGES[name])
        raise pickle.UnpicklingError(f"found {module}.{name} in it")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, storage, key, _, count = pid
        if kind != "storage" or not count >= 0 or "/" in key:
            raise pickle.UnpicklingError(f"found {kind!r} in it")
        content = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        return torch.frombuffer(content, dtype=storage.dtype, count=count) if count else torch.empty(0, dtype=storage.dtype)


def _root(archive: zipfile.ZipFile) -> str | None:
    """The folder in the archive that holds all of it; None for another kind of file."""
    names = set(archive.namelist())
    return next((name.removesuffix("/constants.pkl") for name in names if name.endswith("/constants.pkl")), None)


def is_archive(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, and not one of torch.save."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return _root(archive) is not None


def read_archive(path: str | Path) -> dict[str, Tensor]:
    """The tensors of the archived module by the names of its state dict. Raises DamagedError for a file that cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)
            assert root is not None
            found = _Reader(archive, root).load()
        out: dict[str, Tensor] = {}
        _collect(found, "", out)
    except Exception as error:  # whatever broken bytes lead the unpickler to
        raise checkpoint.DamagedError(f"{path}: not a readable TorchScript archive ({reason(error)}); download it again") from error
    return out


def _collect(node: _Node, prefix: str, out: dict[str, Tensor]) -> None:
    for name, value in node.values.items():
        if isinstance(value, Tensor):
            out[prefix + name] = value
        elif isinstance(value, _Node):
            _collect(value, f"{prefix}{name}.", out)
