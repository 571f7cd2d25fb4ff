"""Encoders of the package timm behind this program's contract (METHOD.md 1.7). Their parameters are `net.` and timm's names."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from model.encoder import Encoder, recomputed
from util.error import UserError
from util.extra import extra

MAPS = 4
_MULTIPLES = (1, 2, 4, 8, 14, 16, 28, 32, 64)  # the smallest that a model takes is its own
_ELSEWHERE = {"dinov2": "dinov2_* (at sizes other than 518 timm's positions differ from the published model's)", "dinov3": "dinov3_*"}


@dataclass(frozen=True)
class Facts:
    """The properties of a model of timm, found by trying it on the meta device.

    options: arguments of `timm.create_model`. out_indices: the blocks or stages whose maps are returned; norm: whether the last norm is
    applied to them. pruned: names of the tensors of the whole model that are left out, for no map depends on them. parameters: how
    many it has. The other fields are those of `Encoder`.
    """

    options: dict[str, Any]
    out_indices: tuple[int, ...]
    norm: bool
    pruned: tuple[str, ...]
    parameters: int
    multiple: int
    fixed_size: bool
    channels: tuple[int, ...]
    strides: tuple[int, ...]


class TimmEncoder(Encoder):
    """A model of timm. forward: (B, 3, H, W) -> four maps (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])).

    The maps of a plain vision transformer are those after four evenly spaced blocks and its last norm, of another model those of its last
    four stages as they are. name: timm's name, with or without a tag. options: further arguments of `timm.create_model`.
    Raises UserError for a model that is no such encoder.
    """

    draws = True  # some models have dropout or stochastic depth

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self._name = name
        facts = self._facts = find_facts(name, tuple(options.items()))
        self.multiple, self.fixed_size = facts.multiple, facts.fixed_size
        self.least, self.out_indices = max(facts.strides), facts.out_indices
        self.channels, self.strides, self.pruned = facts.channels, facts.strides, facts.pruned
        self.net = _create(name, facts.options)
        _prune_(self.net, facts.out_indices, facts.norm)
        self.mean, self.std = (tuple(self.net.pretrained_cfg[key]) for key in ("mean", "std"))
        self.blocks: list[Any] = _find_blocks(self.net)  # type: ignore[assignment]
        for block in self.blocks:
            block.__class__ = _recomputable(type(block))  # type: ignore[arg-type]  # its tensors stay, only its call changes

    def forward(self, img: Tensor) -> list[Tensor]:
        self.grid(img)  # raises where a side does not fit
        for block in self.blocks:
            block.checkpointing = self.checkpointing
        return _maps(self.net, img, self._facts.out_indices, self._facts.norm)

    def make_traceable_(self) -> None:
        if isinstance(getattr(self.net, "pos_embed", None), Tensor):
            raise UserError(
                f"onnx: timm/{self._name} resizes its positions with antialiasing, which ONNX cannot do; give --format torch or safetensors"
            )

    def converted(self, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The weights of the model's authors, or for another image size, converted by timm's own function; None where it cannot."""
        entry = load_timm().model_entrypoint(self._name.partition(".")[0])
        convert = getattr(sys.modules[entry.__module__], "checkpoint_filter_fn", None)
        try:
            with torch.device("meta"):
                whole = _create(self._name, self._facts.options, head=True)
            return convert and convert(dict(state), whole)
        except Exception:  # what a function says of a file that it does not know is of every kind
            return None


def load_torchvision() -> None:
    """Imports torchvision, where it is installed, before other packages do."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass
    except RuntimeError:
        # its wheel was built for another PyTorch build (for a GPU, beside a CPU-only torch): the registration of its compiled
        # operators fails. No model needs them, so leave the registration out.
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")


def load_timm() -> Any:
    """Imports the package timm. Raises UserError where it is not installed."""
    load_torchvision()
    return extra("timm", "this backbone needs it")


def check_name(name: str) -> None:
    """Raises UserError for a name that is no model of timm, or one of a model that this program has itself."""
    timm = load_timm()
    for family, instead in _ELSEWHERE.items():
        if family in name:
            raise UserError(f"backbone: found timm/{name}, expected {instead}, which this program has itself; its weights are converted")
    architecture, dot, _ = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3, 0)
        raise UserError(f"backbone: found timm/{name}, which timm {timm.__version__} does not know; the nearest are {', '.join(near)}")
    if dot and name not in (tags := timm.list_pretrained(f"{architecture}.*")):
        raise UserError(f"backbone: found timm/{name}, expected timm/{architecture} or one of {', '.join(tags) or 'no tags'}")


@cache
def find_facts(name: str, options: tuple[tuple[str, Any], ...] = ()) -> Facts:
    """Tries a model on the meta device. Raises UserError for one that does not give four maps."""
    check_name(name)
    try:
        with torch.device("meta"), torch.no_grad():
            return _try(name, dict(options))
    except UserError:
        raise
    except Exception as error:  # models refuse what is asked of them with errors of every kind
        what = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"backbone: found timm/{name}, expected a model that gives {MAPS} maps of an image ({what}); choose another"
        ) from error


def _try(name: str, options: dict[str, Any]) -> Facts:
    try:
        net = _create(name, options | {"dynamic_img_size": True})
        options["dynamic_img_size"] = True
    except TypeError:  # it has no such option
        net = _create(name, options)
    infos = list(net.feature_info)
    if len(infos) < MAPS:
        raise UserError(f"backbone: timm/{name} has maps of {len(infos)} stages, expected {MAPS} or more; choose another model")
    plain = len({info["reduction"] for info in infos}) == 1
    norm = plain and all(info.get("num_chs_norm", info["num_chs"]) == info["num_chs"] for info in infos)  # SAM's changes the width
    out_indices = even_indices(len(infos)) if plain else tuple(range(len(infos) - MAPS, len(infos)))
    _prune_(net, out_indices, norm)
    kept = net.state_dict()
    pruned = tuple(key for key in _create(name, options, head=True).state_dict() if key not in kept)
    native = options.get("img_size") or net.pretrained_cfg["input_size"][-1]
    maps = _maps(net.eval(), torch.zeros(1, 3, native, native), out_indices, norm)
    strides = tuple(infos[i]["reduction"] for i in out_indices)
    if not _covers(maps, (native, native), strides):
        raise UserError(f"backbone: timm/{name} leaves out the border of an image; choose another model")
    multiple = next((multiple for multiple in _MULTIPLES if _takes(net, native, multiple, out_indices, norm, strides)), None)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    channels = tuple(x.shape[1] for x in maps)
    return Facts(options, out_indices, norm, pruned, parameters, multiple or native, multiple is None, channels, strides)


def even_indices(depth: int) -> tuple[int, ...]:
    """The blocks, counted from 0, whose maps a plain vision transformer returns; of 24 those that DPT reads."""
    return (4, 11, 17, 23) if depth == 24 else tuple(depth * i // MAPS - 1 for i in range(1, MAPS + 1))


def _takes(net: Any, native: int, multiple: int, out_indices: tuple[int, ...], norm: bool, strides: tuple[int, ...]) -> bool:
    """Whether a model takes all pixels of images whose sides are odd multiples of `multiple`."""
    height = (native // multiple | 1) * multiple
    size = (height, height + 2 * multiple)
    try:
        return _covers(_maps(net, torch.zeros(1, 3, *size), out_indices, norm), size, strides)
    except Exception:  # models refuse a size with errors of every kind
        return False


def _covers(maps: list[Tensor], size: tuple[int, int], strides: tuple[int, ...]) -> bool:
    """Whether maps reach to the border of images of that size."""
    return all(x.shape[-2:] == (-(-size[0] // stride), -(-size[1] // stride)) for x, stride in zip(maps, strides, strict=True))


def _create(name: str, options: dict[str, Any], head: bool = False) -> Any:
    return load_timm().create_model(name, pretrained=False, num_classes=None if head else 0, **options)


def _prune_(net: Any, out_indices: tuple[int, ...], norm: bool) -> None:
    """Removes the layers that no map depends on: the head, those after the last map, the last norm where it is not applied."""
    net.prune_intermediate_layers(list(out_indices), prune_norm=not norm, prune_head=True)


def _maps(net: Any, img: Tensor, out_indices: tuple[int, ...], norm: bool) -> list[Tensor]:
    return net.forward_intermediates(img, indices=list(out_indices), norm=norm, output_fmt="NCHW", intermediates_only=True)


def _find_blocks(net: Any) -> list[Any]:
    """The repeated parts of a model: what timm's own grouping names as such, else the entries of its lists of layers."""
    groups = net.group_matcher() if hasattr(net, "group_matcher") else {}
    rules = groups.get("blocks", ()) if isinstance(groups, dict) else ()
    rules = [rules] if isinstance(rules, str) else [pattern for pattern, order in rules if order is None]
    blocks: dict[str, Any] = {}
    for name, module in net.named_modules():
        inside = any(name.startswith(f"{block}.") for block in blocks)
        if not inside and any(re.fullmatch(pattern, name) for pattern in rules):
            blocks[name] = module
    lists = (child for child in net.children() if isinstance(child, nn.Sequential | nn.ModuleList))
    return list(blocks.values()) or [entry for child in lists for entry in child]


class _Recomputable(nn.Module):
    """Mixed into a block's class: with `checkpointing`, a pass that gets gradients keeps its inputs alone and computes it again."""

    checkpointing = False

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        call = super().__call__
        if self.checkpointing and torch.is_grad_enabled():
            return recomputed(self, call, *inputs, **named)
        return call(*inputs, **named)


@cache
def _recomputable(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_Recomputable, kind), {})
