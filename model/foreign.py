"""Extracts encoder weights from the file of another program and converts them, all or none.

A `Format` says under which names a program keeps each of our tensors; model/formats.py lists them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

_WRAPPERS = ("state_dict", "teacher", "model_ema", "model", "student", "module")  # of several, the first
_PREFIXES = ("module.", "teacher.", "student.", "model.", "_model.", "backbone.", "dinov2.", "dinov2_with_registers.", "segformer.")
# what may stand beside a prefix: heads of another task, and the student of a teacher
_OTHER_PARTS = re.compile(r"(dino_head|ibot_head|head|decode_head|reduce|fuse|classifier|student)\.")


class OtherFormatError(Exception):
    """Raised where weights are not of this format and encoder; the message is the first difference, in their own names."""


def unwrap(state: dict[str, Any]) -> State:
    """The tensors of a checkpoint without wrappers such as `state_dict`, prefixes such as `module.`, and heads beside a prefix.

    A teacher is preferred to its student. Names of blocks in chunks (`blocks.1.6.`) become plain (`blocks.6.`).
    """
    while not all(isinstance(value, Tensor) for value in state.values()):
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), None)
        if inner is None:
            raise OtherFormatError(f"it has no weights, only {', '.join(map(str, state))}")
        state = inner
    state = {str(name).replace("_orig_mod.", ""): value for name, value in state.items()}
    while prefix := next((prefix for prefix in _PREFIXES if _is_prefix(prefix, state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    plain = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in state.items()}
    return plain if len(plain) == len(state) else state  # else they are no chunks: each begins to count anew


def _is_prefix(prefix: str, state: State) -> bool:
    others = [name for name in state if not name.startswith(prefix)]
    return len(others) < len(state) and all(_OTHER_PARTS.match(name) for name in others)


@dataclass(frozen=True)
class Format:
    """The names under which another program keeps our tensors.

    title: whose names these are. rules: (pattern of our name, their name), of which the first that matches counts; `A + B` is A and B
    concatenated, `A^T` a transposed matrix, `0` zeros; a name without a rule is the same in both. beside: further tensors that a file may
    hold and that are not loaded: by name, the value that they must have (None for any). needs: a tensor of ours without which the format
    is another one.
    """

    title: str
    rules: tuple[tuple[str, str], ...] = ()
    beside: Callable[[Any, State], dict[str, Tensor | None]] = lambda encoder, state: {}
    needs: str = ""

    def parts(self, name: str) -> list[str]:
        """The names, in the other program, of the tensors that make up our tensor `name`."""
        for pattern, theirs in self.rules:
            if found := re.fullmatch(pattern, name):
                return found.expand(theirs).split(" + ")
        return [name]

    def likeness(self, encoder: nn.Module, state: State) -> int:
        """The number of this format's names that the file has, less the number of those that it lacks."""
        names = {part.removesuffix("^T") for name in encoder.state_dict() for part in self.parts(name)} - {"0"}
        return len(names & set(state)) - len(names - set(state))

    def convert(self, encoder: nn.Module, state: State) -> State:
        """The file's tensors under our names. Raises OtherFormatError unless every tensor of either side has its counterpart."""
        converted: State = {}
        used: set[str] = set()
        for name, own in encoder.state_dict().items():
            parts = self.parts(name)
            used.update(part.removesuffix("^T") for part in parts)
            converted[name] = _join(name, own, parts, state)
        beside = self.beside(encoder, state)
        for name in (name for name in state if name not in used):
            if name not in beside:
                raise OtherFormatError(f"{name!r} in it is unknown")
            if not _agrees(state[name], beside[name]):
                raise OtherFormatError(f"its {name!r} has not the values that it has in every such file")
        return converted


def _agrees(found: Tensor, constant: Tensor | None) -> bool:
    """Whether a tensor that is not loaded has the value that it must have; for a tensor without data, whether it has the shape."""
    if constant is None or found.is_meta:
        return constant is None or found.shape == constant.shape
    return found.shape == constant.shape and torch.allclose(found.float(), constant.float(), rtol=1e-5)


def _join(name: str, own: Tensor, parts: list[str], state: State) -> Tensor:
    """Our tensor `name`, shaped as `own`, from its parts: equal shares, or the class token's position and those of the patches."""
    if parts == ["0"]:
        return own.new_zeros(own.shape)
    axis = 1 if name == "pos_embed" else 0
    count = own.shape[axis] if own.dim() else 1
    sizes = [1, count - 1] if axis == 1 and len(parts) == 2 else [count // len(parts)] * len(parts)
    tensors = []
    for given, size in zip(parts, sizes, strict=True):
        shape, part = [*own.shape[:axis], size, *own.shape[axis + 1 :]], given.removesuffix("^T")
        if part != "0" and part not in state:
            raise OtherFormatError(f"it has no {part!r}")
        tensor = own.new_zeros(shape) if part == "0" else state[part]
        tensor = tensor.T if given != part and tensor.dim() == 2 else tensor
        if tensor.is_floating_point() != own.is_floating_point():
            kind = "floating-point" if own.is_floating_point() else "whole"
            raise OtherFormatError(f"its {part!r} is {tensor.dtype}, expected {kind} numbers")
        if [n for n in tensor.shape if n > 1] != [n for n in shape if n > 1]:  # (1, 1, C) for (1, C) is the same
            raise OtherFormatError(f"its {part!r} is {tuple(tensor.shape)}, expected {tuple(shape)}")
        tensors.append(tensor.reshape(shape))
    return tensors[0].reshape(own.shape) if len(tensors) == 1 else torch.cat(tensors, dim=axis)
