"""Checkpoint files: written so that a crash never costs the last good one, read without running code from them."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from util.error import UserError, reason
from util.files import write_atomic

# The authors' checkpoints hold best values as numpy scalars; these are all that numpy needs to rebuild one.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [np.dtype, _SCALAR, *(type(np.dtype(t)) for t in ("float64", "float32", "int64", "int32", "bool"))]
_NUMPY_SCALARS.append((_SCALAR, "numpy.core.multiarray.scalar"))  # its name before numpy 2


class DamagedError(UserError):
    """A checkpoint file that is torn, corrupt or none at all."""


def save(state: dict[str, Any], path: Path, keep: Path | None = None, also: Path | None = None) -> None:
    """Writes a checkpoint atomically, under the name `also` too; the one it replaces stays as `keep`.

    Raises UserError where the disk does not take it: then all names stay as they were.
    """
    try:
        write_atomic(path, lambda file: torch.save(state, file), keep=keep, also=also)
    except (OSError, RuntimeError) as error:
        # a write that fails inside torch's zip writer comes out as a RuntimeError whose context is the OSError
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise UserError(f"{path}: cannot be saved ({reason(cause)})") from error


def load(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """Reads a checkpoint to the CPU. Raises UserError for a missing or unsafe file, DamagedError for a torn or corrupt one.

    mapped: tensors are the file's own pages, which the processes of a machine share, instead of a copy in each. They must be copied from
    before the file may change or go.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'no such checkpoint'}; give the path of a .pth file")
    try:
        if zipped := zipfile.is_zipfile(path):  # torch.load does not compare the check sums
            with zipfile.ZipFile(path) as archive:
                if (name := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"wrong check sum of {name}")
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            state = _read(path, mapped and zipped)
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); correct its permissions") from error
    except Exception as error:  # torch.load raises whatever broken bytes lead it to
        if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in str(error) and zipped:
            raise UserError(
                f"{path}: not a readable checkpoint: found Python objects in it, which may run code, expected tensors, numbers and text; "
                "save the model's state_dict() where it comes from"
            ) from error
        why = reason(error).split(". ")[0]
        raise DamagedError(f"{path}: not a readable checkpoint ({why}); copy or download it again") from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: found a {type(state).__name__}, expected a dictionary of tensors or a training checkpoint")
    return state


def _read(path: Path, mapped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except RuntimeError:
        if not mapped:
            raise
        return _read(path, mapped=False)  # a file system that cannot map; or what is wrong with the file comes up again


def weights(state: dict[str, Any], which: str, source: str) -> dict[str, Tensor]:
    """The state dict `which` ("model" or "model_ema") of a training checkpoint, or a bare state dict, without `module.` prefixes."""
    if which not in state and not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{source}: no weights under {which!r}, found {', '.join(map(str, state))}; give a checkpoint of a run")
    found = state.get(which, state)
    if not isinstance(found, dict):
        raise UserError(f"{source}: found a {type(found).__name__} under {which!r}, expected a dictionary of tensors")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str, hint: str) -> None:
    """Loads a state dict that must fit exactly. Raises UserError naming the first mismatch."""
    own = module.state_dict()
    for name, value in own.items():
        if name not in state:
            raise UserError(f"{source}: has no {name!r}, which the model needs; {hint}")
        if not isinstance(state[name], Tensor):
            raise UserError(f"{source}: {name} is a {type(state[name]).__name__}, expected a tensor; {hint}")
        if state[name].shape != value.shape:
            raise UserError(f"{source}: {name} is {tuple(state[name].shape)}, the model needs {tuple(value.shape)}; {hint}")
    for name in state:
        if name not in own:
            raise UserError(f"{source}: {name!r} is unknown to the model; {hint}")
        if state[name].is_floating_point() and not state[name].isfinite().all():
            raise UserError(f"{source}: {name} holds values that are not finite (nan or inf): its training has failed; take an earlier one")
    module.load_state_dict(state)
