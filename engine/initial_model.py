"""The weights that a run starts from."""

from __future__ import annotations

from dataset.loader import Data
from dataset.spec import DatasetSpec
from engine.method import EMA, STUDENT, WEIGHTS
from model import configured_model
from model.segmenter import Segmenter
from model.text import give_text_, reserve_text_
from model.weights import default_path
from util import checkpoint
from util.config import Config


def blank_model(cfg: Config, spec: DatasetSpec) -> Segmenter:
    """A run's model with random weights, and with room for all that a checkpoint brings."""
    model = configured_model(cfg, spec.nclass, spec.task)
    reserve_text_(model)
    return model


def start_model(cfg: Config, data: Data, notes: list[str], resumed: bool = False) -> Segmenter:
    """The model a run starts from: `init`, else the encoder weights of `pretrained`, else (or resumed) random weights.

    What the log should say about it is added to `notes`.
    """
    if resumed:
        return blank_model(cfg, data.spec)
    pretrained = None if cfg.init else str(default_path(cfg.backbone)) if cfg.pretrained == "auto" else cfg.pretrained
    model = configured_model(cfg, data.spec.nclass, data.spec.task, pretrained)
    if cfg.init:
        state = checkpoint.load(cfg.init, mapped=True)
        weights = checkpoint.weights(state, WEIGHTS[EMA if WEIGHTS[EMA] in state else STUDENT], cfg.init)
        last = {name: value for name, value in model.state_dict().items() if name.startswith(model.last_layer)}
        if any(name in weights and len(weights[name]) != len(value) for name, value in last.items()):
            weights |= last
            notes.append(f"init: {cfg.init} has another number of classes; the last layer ({model.last_layer}) starts from random weights")
        weights |= model.memory()  # starts anew
        weights = model.accept_(weights)
        checkpoint.load_strictly(model, weights, cfg.init, "`init` needs a run with the same backbone and task")
    give_text_(model, cfg, data.spec.classes)  # after `init`, whose classes may have other names
    return model
