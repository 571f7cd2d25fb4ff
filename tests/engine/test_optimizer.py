"""The optimiser that a config describes, against its formula written out."""

from typing import Any

import pytest
import torch
from torch import nn

from engine.optimizer import load_optimizer_, make_optimizer, set_rate_
from util.config import Config
from util.error import UserError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"stem": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
        self.head = nn.Linear(2, 1)


def config(**keys: Any) -> Config:
    given = {"optimizer": "adamw"} | keys
    return Config(dataset="", data_root="", backbone="", crop_size=1, epochs=1, batch_size=1, lr=0.1, lr_multi=10.0, **given)


def names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    known = {p: name for name, p in model.named_parameters()}
    return [[known[p] for p in group["params"]] for group in optimizer.param_groups]


def test_two_groups_as_published() -> None:
    model = Model()
    optimizer = make_optimizer(model, config())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01]
    assert names(model, optimizer)[1] == ["head.weight", "head.bias"]


def test_parts_with_a_rate_of_their_own() -> None:
    """The longest name counts; every parameter is in one group, and the rate of all follows the schedule."""
    model = Model()
    optimizer = make_optimizer(model, config(lr_factors={"backbone.stem": 0.5, "backbone.stem.bias": 0.0}, weight_decay=0.2))
    assert names(model, optimizer) == [
        ["backbone.body.weight", "backbone.body.bias"],
        ["head.weight", "head.bias"],
        ["backbone.stem.weight"],
        ["backbone.stem.bias"],
    ]
    set_rate_(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1, 0.005, 0])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2}


def test_a_part_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(UserError, match="lr_factors: no parameter of the model begins with 'neck'"):
        make_optimizer(Model(), config(lr_factors={"neck": 2.0}))


def test_sgd_is_its_formula() -> None:
    """v = m v + (g + d w); w = w - r v: no dampening, no Nesterov."""
    torch.manual_seed(0)
    model = Model()
    optimizer = make_optimizer(model, config(optimizer="sgd", momentum=0.8))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    speed = {name: torch.zeros_like(p) for name, p in weights.items()}
    for _ in range(3):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            speed[name] = 0.8 * speed[name] + p.grad + 1e-4 * weights[name]
            weights[name] = weights[name] - (0.1 if "backbone" in name else 1.0) * speed[name]
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name])


def test_the_state_of_another_optimiser_is_refused() -> None:
    adamw, sgd = (make_optimizer(Model(), config(optimizer=name)) for name in ("adamw", "sgd"))
    with pytest.raises(ValueError, match="another optimiser's"):
        load_optimizer_(sgd, adamw.state_dict())
