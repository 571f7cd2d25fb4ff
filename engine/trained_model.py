"""A trained model from its files: what evaluate.py, predict.py and the export begin with."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dataset.custom import OWN_KEYS, spec_of
from dataset.spec import DatasetSpec
from engine.method import WEIGHTS, judged
from model import OPTIONS, configured_model
from model.segmenter import Segmenter
from model.spec import check_facts
from model.text import give_text_
from util import checkpoint
from util.config import Config, load_config, make_config
from util.error import UserError
from util.files import located

DATA_KEYS = ("dataset", "data_root", "val_id_path", "crop_size", "eval_mode", "img_scale")
# what `configured_model` reads
MODEL_KEYS = ("backbone", "model", *chain.from_iterable(OPTIONS.values()))
WHICH = {name.lower(): name for name in WEIGHTS}  # what --which calls the models of a run


@dataclass(frozen=True)
class Trained:
    """A model in eval mode with what is known about it. which: "ema" or "student"; epoch: 0-based, None where the file does not say.

    labeled: the labelled list it was trained with and its data root, where the file says it.
    """

    model: Segmenter
    spec: DatasetSpec
    which: str
    epoch: int | None
    labeled: tuple[str, str] | None = None

    def __str__(self) -> str:
        name = "EMA" if self.which == "ema" else "student"
        if self.epoch is None or self.epoch < 0:  # of a checkpoint inside the first epoch
            return name
        return f"{name} after epoch {self.epoch + 1} ({self.epoch} in the log)"


def add_which(parser: argparse.ArgumentParser) -> None:
    """The option of a command that takes one model of a checkpoint, for `load_trained`."""
    parser.add_argument("--which", choices=WHICH, help="default: the EMA where there is one; change detection: the student")


def config_of(state: dict[str, Any], path: str, settings: list[str] | None = None, **given: Any) -> Config:
    """The data set and model that a checkpoint of ours was trained with, changed by `settings` ("key=value") and `given`.

    Raises UserError for a checkpoint that does not say it.
    """
    made = state.get("config")
    if not isinstance(made, dict):
        raise UserError(f"{path}: does not say what it was trained with; give --config")
    values = {key: made[key] for key in (*DATA_KEYS, *MODEL_KEYS, *OWN_KEYS) if key in made}
    values |= {"epochs": 1, "batch_size": 1, "lr": 1.0}  # Config wants them; nothing is trained
    return make_config({"data_root": ""} | values, str(made.get("config") or path), settings, **given)


def run_config(config: str | None, path: str, settings: list[str] | None = None, **given: Any) -> Config:
    """The config of a run whose checkpoint is `path`: a file, or (None) what the checkpoint says; changed by `settings` and `given`.

    Data root and validation list are found from the current folder or else from the repository's. Raises UserError.
    """
    if config is None:
        cfg = config_of(checkpoint.load(path, mapped=True), path, settings, **given)
    else:
        cfg = load_config(located(config), settings, **given)
    return replace(cfg, data_root=located(cfg.data_root), val_id_path=located(cfg.val_id_path or spec_of(cfg).val_list))


def load_trained(cfg: Config, path: str, which: str | None = None, device: torch.device | str = "cpu") -> Trained:
    """The model of `cfg` with the weights of a checkpoint, ours or the authors'.

    which: "ema", "student", or None for the one whose score chose best.pth and is published: the EMA where the checkpoint has one, but
    the student in change detection (METHOD.md 4). Raises UserError for a file that does not fit.
    """
    state = checkpoint.load(path)
    spec = spec_of(cfg)
    _check_origin(state, cfg, spec, path)
    if which is None:
        models = tuple(name for name, key in WEIGHTS.items() if key in state) or ("student",)
        which = models[judged(models, spec.task)].lower()
    key = WEIGHTS[WHICH[which]]
    if which == "ema" and key not in state:
        raise UserError(f"{path}: has no EMA weights ({key}), as of a method without an average; use --which student")
    weights = checkpoint.weights(state, key, path)
    model = configured_model(cfg, spec.nclass, spec.task)
    check_facts(state, cfg.backbone, model.backbone, path)
    _check_classes(weights.get(f"{model.last_layer}.weight", weights.get(model.last_layer)), spec, path)
    if "text" not in weights:  # a checkpoint of the authors, whose language-guided model keeps them elsewhere
        give_text_(model, cfg, spec.classes)
    weights = model.accept_(weights)
    made_with = f" and model {cfg.model}" if cfg.model else ""
    checkpoint.load_strictly(model, weights, path, f"was it trained with backbone {cfg.backbone}{made_with} ({cfg.config})?")
    epoch = state.get("epoch")
    made = state.get("config")
    labeled = None
    if isinstance(made, dict) and made.get("labeled_id_path"):
        labeled = located(str(made["labeled_id_path"])), located(str(made["data_root"]))
    return Trained(model.to(device).eval(), spec, which, epoch if isinstance(epoch, int) else None, labeled)


def _check_origin(state: dict[str, Any], cfg: Config, spec: DatasetSpec, path: str) -> None:
    """The two tasks have the same parameter names, so only the rest of the checkpoint distinguishes them."""
    made = state.get("config")
    if isinstance(made, dict) and made.get("dataset", cfg.dataset) != cfg.dataset:
        raise UserError(f"{path}: was trained on {made['dataset']}, but {cfg.config} is for {cfg.dataset}; give the config of its run")
    _check_names(_classes_of(state, path), spec, cfg, path)
    changes = any(name.startswith("previous_best") and name.endswith("_iou") for name in state)
    trained = any(name.startswith("previous_best") for name in state)
    if trained and changes != spec.bitemporal:
        task = "change detection" if changes else "segmentation"
        raise UserError(f"{path}: a checkpoint of {task}, but {spec.name} is a data set of another task; give the config of its run")


def _classes_of(state: dict[str, Any], path: str) -> tuple[str, ...]:
    """The classes that a checkpoint was trained with; none where it does not say."""
    try:
        return spec_of(config_of(state, path)).classes
    except UserError:
        return ()


def _check_names(trained: tuple[str, ...], spec: DatasetSpec, cfg: Config, path: str) -> None:
    """Classes in another order have as many outputs, and would be scored and painted under each other's names."""
    for i, (old, new) in enumerate(zip(trained, spec.classes, strict=False)):
        if old != new:
            raise UserError(f"{path}: its class {i} is {old!r}, but that of {cfg.config} is {new!r}; give the config of its run")


def _check_classes(last: Tensor | None, spec: DatasetSpec, path: str) -> None:
    if last is not None and len(last) != spec.nclass:
        raise UserError(f"{path}: a model of {len(last)} classes, but {spec.name} has {spec.nclass}; give the config of its run")
