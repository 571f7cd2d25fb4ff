"""Checkpoint files: written so that a crash never costs the last good one, read without running code from them."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from util.error import UserError
from util.files import write_atomic

# The authors' checkpoints hold best values as numpy scalars; these are all that numpy needs to rebuild one.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [np.dtype, _SCALAR, *(type(np.dtype(t)) for t in ("float64", "float32", "int64", "int32", "bool"))]
_NUMPY_SCALARS.append((_SCALAR, "numpy.core.multiarray.scalar"))  # its name before numpy 2


def save(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint atomically."""
    write_atomic(path, lambda file: torch.save(state, file))


def load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU. Raises UserError for a missing, truncated or unsafe file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give the path of a .pth file")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason}); copy or download it again") from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: found a {type(state).__name__}, expected a dictionary of tensors or a training checkpoint")
    return state


def weights(state: dict[str, Any], which: str) -> dict[str, Tensor]:
    """The state dict `which` ("model" or "model_ema") of a training checkpoint, or a bare state dict, without `module.` prefixes."""
    if which not in state and not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"checkpoint: no weights under {which!r}, found {', '.join(map(str, state))}")
    found = state.get(which, state)
    return {name.removeprefix("module."): value for name, value in found.items()}


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str, hint: str) -> None:
    """Loads a state dict that must fit exactly. Raises UserError naming the first mismatch."""
    own = module.state_dict()
    for name, value in own.items():
        if name not in state:
            raise UserError(f"{source}: has no {name!r}, which the model needs; {hint}")
        if state[name].shape != value.shape:
            raise UserError(f"{source}: {name} is {tuple(state[name].shape)}, the model needs {tuple(value.shape)}; {hint}")
    for name in state:
        if name not in own:
            raise UserError(f"{source}: {name!r} is unknown to the model; {hint}")
    module.load_state_dict(state)
