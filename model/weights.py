"""Encoder weights from the public DINOv2 checkpoints (METHOD.md 1.1)."""

from pathlib import Path

from torch import nn

from model.spec import get_encoder
from util import checkpoint
from util.error import UserError


def default_path(backbone: str) -> Path:
    """Where an encoder's weights are looked for when the config says nothing."""
    return Path("pretrained") / f"{backbone}.pth"


def load_encoder(encoder: nn.Module, backbone: str, path: str | Path) -> None:
    """Loads the public checkpoint of `backbone` into the encoder, strictly. Raises UserError for a missing or another file."""
    if not Path(path).is_file():
        published = f"get it with `python -m model.pretrained {backbone}`"
        get = published if get_encoder(backbone).file else f"{backbone} is not a published model: put its weights there"
        raise UserError(f"{path}: no such weights file; {get}, or start from random weights with `--set pretrained=null`")
    state = checkpoint.load(path, mapped=True)
    if "register_tokens" in state:
        raise UserError(f"{path}: a DINOv2 variant with register tokens; use the one without (`python -m model.pretrained {backbone}`)")
    checkpoint.load_strictly(encoder, state, str(path), f"is it the checkpoint of {backbone}?")
