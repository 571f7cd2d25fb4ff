"""The optimiser of a run, made of its config (METHOD.md 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from util.config import Config
from util.error import UserError

WEIGHT_DECAY = {"adamw": 0.01, "sgd": 1e-4}


def make_optimizer(model: nn.Module, cfg: Config) -> Optimizer:
    """AdamW or SGD over all parameters; each group has its `factor`, the multiple of the encoder's rate that it learns with.

    Groups are the encoder's parameters, then all others (lr_multi), then those that `lr_factors` names. Parameters that never get a
    gradient are among them: the authors' optimiser states count parameters by position. Raises UserError for a name in `lr_factors`
    that no parameter begins with.

    cfg: settled, which names the optimiser (`Method.settled`).
    """
    assert cfg.optimizer is not None
    own: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in cfg.lr_factors}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        prefix = max((prefix for prefix in own if name.startswith(prefix)), key=len, default=None)
        (groups["backbone" in name] if prefix is None else own[prefix]).append(parameter)
    for prefix, parameters in own.items():
        if not parameters:
            raise UserError(f"lr_factors: no parameter of the model begins with {prefix!r}; correct the name")
    factors = {True: 1.0, False: cfg.lr_multi} | cfg.lr_factors
    made = [{"params": group, "lr": cfg.lr * factors[key], "factor": factors[key]} for key, group in (groups | own).items()]
    decay = WEIGHT_DECAY[cfg.optimizer] if cfg.weight_decay is None else cfg.weight_decay
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(made, momentum=cfg.momentum, weight_decay=decay)
    # fused: one kernel computes the same formula
    return torch.optim.AdamW(made, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay, fused=True)


def set_rate_(optimizer: Optimizer, rate: float) -> None:
    """Gives the encoder the learning rate `rate`, and every group its multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def load_optimizer_(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimiser state, ours or the authors'. Raises LookupError, ValueError, TypeError or AttributeError where it does not fit."""
    own = optimizer.param_groups
    saved = state["param_groups"]
    if not saved[0]["params"]:  # a frozen encoder's parameters, which the authors leave out: they have no moments
        saved = [saved[0] | {"params": [-1 - i for i in range(len(own[0]["params"]))]}, *saved[1:]]
    if ("momentum" in saved[0]) != ("momentum" in own[0]):
        raise ValueError("it is another optimiser's")
    # the state may be of another implementation than ours, which stays
    how = [{name: group[name] for name in ("fused", "foreach", "factor")} for group in own]
    optimizer.load_state_dict(state | {"param_groups": [group | mine for group, mine in zip(saved, how, strict=True)]})
    # The fused kernel walks through memory: moments have to lie as their parameter does, which the authors' do not.
    # The count of steps, too, leaves the checkpoint's memory, which may be a file's.
    for p, moments in optimizer.state.items():
        for name, value in moments.items():
            if value is not None:
                moments[name] = value.clone() if name == "step" else torch.empty_like(p).copy_(value)
