"""Loads the weights of an encoder from a file, in any known program's names (METHOD.md 1.2)."""

from pathlib import Path
from typing import Any

import torch

from model.archive import is_archive, read_archive
from model.encoder import Encoder
from model.foreign import OtherFormatError, unwrap
from model.formats import recognise
from model.spec import ENCODERS, get_encoder
from util import checkpoint
from util.error import UserError
from util.extra import extra


def default_path(backbone: str) -> Path:
    """The path of an encoder's weights where the config names none."""
    return Path("pretrained") / f"{backbone}.pth"


def load_encoder_(encoder: Encoder, backbone: str, path: str | Path) -> str:
    """Loads the weights of `backbone` into the encoder, all of them or none. Returns whose names the file has (model/formats.py).

    Raises UserError for a missing file, for one that has other tensors than the encoder, and for damaged ones.
    """
    if not Path(path).is_file():
        published = f"get it with `python -m model.pretrained {backbone}`"
        get = published if get_encoder(backbone).file else f"put the weights of {backbone} there"
        raise UserError(f"{path}: no such weights file; {get}, or start from random weights with `--set pretrained=null`")
    content = read(path)
    try:
        known, state = recognise(encoder, content)
    except OtherFormatError as error:
        raise UserError(f"{path}: not the weights of {backbone}; {error}; {_advice(content, backbone)}") from error
    checkpoint.load_strictly(encoder, state, str(path), f"is it the checkpoint of {backbone}?")
    return known.title


def read(path: str | Path) -> dict[str, Any]:
    """The content of a file of weights: a safetensors file, by its ending, a TorchScript archive, or one of torch.save."""
    if is_archive(path):
        return read_archive(path)
    if Path(path).suffix != ".safetensors":
        return checkpoint.load(path, mapped=True)
    package = extra("safetensors.torch")
    try:
        return package.load_file(path)
    except extra("safetensors").SafetensorError as error:
        raise checkpoint.DamagedError(f"{path}: not a readable safetensors file ({error}); copy or download it again") from error


def _advice(content: dict[str, Any], backbone: str) -> str:
    """The advice of an error: what a file holds that does not hold the weights of `backbone`."""
    if getattr(content.get("conv1.weight"), "shape", None) == (64, 3, 7, 7):
        return (
            "it is a ResNet whose stem is one 7x7 convolution (torchvision's layout), expected a deep stem of three 3x3; take the file of "
            "UniMatch V1, or of timm's resnet50s, resnet101s, resnet152s"
        )
    for other in (name for name, spec in ENCODERS.items() if not spec.of_timm):  # trying those takes seconds
        try:
            state = {name: torch.empty_like(value, device="meta") for name, value in unwrap(content).items()}
            return f"it fits `backbone: {other}` ({recognise(ENCODERS[other].facts(), state)[0].title})"
        except OtherFormatError:
            continue
    return f"is it the checkpoint of {backbone}?"
