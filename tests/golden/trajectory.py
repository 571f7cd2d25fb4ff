"""A short training from given tensors, without files or a launcher: what CONTRIBUTING.md shows in a few lines."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import fixmatch
import supervised
import unimatch_v1
import unimatch_v2
from dataset.batch import Batch
from engine.update import Learner
from model import build_model
from model.dropout import combine_factors

METHODS = {method.name: method for method in (unimatch_v2.METHOD, unimatch_v1.METHOD, fixmatch.METHOD, supervised.METHOD)}


def given_batch(inputs: ModuleType, method: str, it: int, width: int, per_level: bool = False) -> Batch:
    """Mini-batch of step `it`, made of the golden inputs."""
    x, mask, weak, strong1, strong2, ignore, box1, box2 = inputs.semi_batch(it)
    if method == "supervised":
        return Batch(x, mask)
    drop = torch.empty(0)
    if method == "unimatch_v2":
        drop = combine_factors(*inputs.dropout_draw(it, len(x), width))
    elif method == "unimatch_v1":
        calls = [4 * it + level for level in range(4)] if per_level else [it]
        drop = torch.cat([2 * inputs.feature_draw(call, len(x), width) for call in calls], dim=1)
    return Batch(x, mask, weak, strong1, strong2, ignore, box1, box2, drop)


def train(
    inputs: ModuleType,
    method: str,
    steps: int,
    backbone: str = "dinov2_small",
    nclass: int = 5,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> tuple[Learner, dict[str, Tensor], list[dict[str, Tensor]]]:
    """Runs `steps` updates. Returns the learner, the weights it started from and the stats of each step.

    changes: config keys that differ from those of the golden README.
    """
    model = build_model(backbone, nclass)
    initial = inputs.fill(model.state_dict())
    model.load_state_dict(initial)
    model.to(dtype)
    keys: dict[str, Any] = {"crop_size": 70, "epochs": 1, "batch_size": 2, "lr": 5e-6, "lr_multi": 40.0, "conf_thresh": 0.5}
    cfg = METHODS[method].config(dataset="", data_root="", backbone=backbone, **(keys | changes))
    learner = Learner(cfg, model, METHODS[method], steps)
    per_level = changes.get("feature_dropout") == "per_level"
    batches = (given_batch(inputs, method, it, model.backbone.channels[0], per_level) for it in range(steps))
    return learner, initial, [learner.update([as_dtype(batch, dtype)]) for batch in batches]


def as_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """The mini-batch with its floating-point tensors in a type."""
    fields: dict[str, Any] = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in vars(batch).items()}
    return Batch(**fields)
