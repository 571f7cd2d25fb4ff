"""The rule for batch statistics, with a small encoder that has BatchNorm, on one process and on two."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dataset.batch import Batch
from engine.batch_norm import frozen_without_statistics, prepare_batch_norm_
from engine.update import Learner
from model import build_model
from model.encoder import batch_norms
from tests import toy
from tests.conftest import ROOT, Tiny, command
from util import checkpoint
from util.config import Config
from util.dist import World
from util.error import UserError

TWO_PROCESSES = """
import sys, torch
from torch import nn
from engine.batch_norm import SyncBatchNorm
from util.dist import processes
with processes("cpu") as world:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    weights = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    layer = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
    if world.size == 2:
        layer.__class__ = SyncBatchNorm
    own = slice(world.rank * 4 // world.size, (world.rank + 1) * 4 // world.size)
    part = x[own].requires_grad_()
    out = layer(part)
    (out * weights[own]).sum().backward()
    found = world.gather([(out.detach(), part.grad)])
    state = {"out": torch.cat([a for a, _ in found]), "grad": torch.cat([b for _, b in found])}
    state |= {name: buffer for name, buffer in layer.named_buffers()} | {"weight": world.sum_(layer.weight.grad)}
    if world.main:
        torch.save(state, sys.argv[1])
"""


def test_two_processes_share_one_statistic(tmp_path: Path) -> None:
    """Outputs, gradients and running statistics are those of PyTorch's layer over both mini-batches, in float64."""
    (tmp_path / "layer.py").write_text(TWO_PROCESSES)
    states = []
    for processes in (1, 2):
        path = tmp_path / f"{processes}.pth"
        done = command(tmp_path / "layer.py", path, processes=processes, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
        states.append(torch.load(path))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-12, atol=1e-12, msg=name)


def learner(world: World, **keys: object) -> Learner:
    values = {"dataset": "", "data_root": "", "backbone": "toy", "model": "toy", "crop_size": 16, "epochs": 1, "batch_size": 2, "lr": 0.1}
    return Learner(toy.ToyConfig(**values | keys), build_model("toy", 3, model="toy"), toy.METHOD, 10, world)  # type: ignore[arg-type]


def test_fewer_processes_than_shards_are_refused_with_the_ways_out() -> None:
    with pytest.raises(UserError, match=r"2 shards need 2 processes, found 1; start 2, or set shards=1 .* batch_norm=frozen or per_shard"):
        learner(World(), shards=2)
    learner(World(), shards=2, batch_norm="frozen")
    learner(World(), shards=2, batch_norm="per_shard")


def test_the_key_says_nothing_of_a_model_without_such_layers() -> None:
    cfg = Config("", "", "dinov2_tiny", 28, 1, 1, 0.1, batch_norm="frozen")
    with pytest.raises(UserError, match="batch_norm: found frozen, but this model has no batch normalisation"):
        Learner(cfg, build_model("dinov2_tiny", 3), toy.METHOD, 10)


def test_frozen_statistics_stay_and_weights_learn() -> None:
    one = learner(World(), batch_norm="frozen")
    one.student.train()
    layer = one.student.backbone.blocks[0].get_submodule("1")
    assert isinstance(layer, nn.BatchNorm2d)
    assert not layer.training
    assert layer.weight.requires_grad
    assert one.student.backbone.blocks[0].get_submodule("3").training


def test_frozen_layers_without_statistics_are_named() -> None:
    """A new decoder's do not normalise; those of an encoder whose file has statistics are not named."""
    model = build_model("resnet50", 3, model="deeplabv3plus")
    assert frozen_without_statistics(model) == [], "they will have some"
    prepare_batch_norm_(model, "frozen", 2, World())
    (found,) = frozen_without_statistics(model)
    assert "64 of 64 BatchNorm layers have no statistics from a file (backbone.conv1.1, ...)" in found
    for layer in batch_norms(model.backbone).values():
        layer.get_buffer("running_mean").fill_(0.5)
    (found,) = frozen_without_statistics(model)
    assert "9 of 64 BatchNorm layers have no statistics from a file (head." in found
    model.train()(torch.rand(1, 3, 64, 64))  # one image will do: nothing is normalised over the batch


def given_batch(shard: int) -> Batch:
    """A mini-batch of the toy method, whose images are brighter in each shard."""
    g = torch.Generator().manual_seed(shard)
    images = torch.randn(3, 2, 3, 16, 16, generator=g) + shard
    mask = torch.randint(0, 3, (2, 16, 16), generator=g)
    return Batch(images[0], mask, images[1], images[2], ignore_u=torch.zeros(2, 16, 16), drop=torch.ones(2, 24))


PER_SHARD = """
import sys, torch
from engine.batch_norm import average_buffers_
from tests.engine.test_batch_norm import given_batch, learner
from util.dist import World, processes
with processes("cpu") as world:
    found = {}
    for name, place in (("alone", World(rank=world.rank)), ("together", world)):  # alone: the same draws, and nobody to average with
        torch.manual_seed(0)
        one = learner(place, shards=2, batch_norm="per_shard")
        one.update([given_batch(world.rank)])
        found[name] = {name: buffer.clone() for name, buffer in one.student.named_buffers()}
    one.update([given_batch(2 + world.rank)])
    found |= {name: model.state_dict() for name, model in one.models.items()}
    given = [torch.tensor([1.0, 5.0]) * (1 + world.rank), torch.tensor(7), torch.tensor([[4.0]]) + world.rank]
    average_buffers_(given, world)
    states = world.gather([found | {"given": dict(zip("abc", given))}])
    if world.main:
        torch.save(states, sys.argv[1])
"""


def test_with_per_shard_the_processes_hold_the_mean_of_what_each_ran_up(tmp_path: Path) -> None:
    """Each normalises with its own images; after an update, student and teacher are the same models everywhere."""
    (tmp_path / "update.py").write_text(PER_SHARD)
    done = command(tmp_path / "update.py", tmp_path / "states.pth", processes=2, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    first, second = torch.load(tmp_path / "states.pth")
    running = [name for name in first["alone"] if not name.endswith("num_batches_tracked")]
    assert len(running) == 2 * 2, "mean and variance of two layers"
    for name in running:
        one, other = first["alone"][name], second["alone"][name]
        assert float((one - other).norm()) > 0.01 * float(one.norm()), name
        # one sum and one division in float32
        torch.testing.assert_close(first["together"][name], (one + other) / 2, rtol=1e-6, atol=1e-7, msg=name)
    assert all(int(value) == 2 for name, value in first["together"].items() if name not in running), "the labelled and the strong images"
    for part in ("together", "student", "EMA", "given"):
        for name, value in first[part].items():
            assert torch.equal(second[part][name], value), f"{part} {name}"
    assert [value.tolist() for value in first["given"].values()] == [[1.5, 7.5], 7, [[4.5]]], "counts stay as they are"


EVALUATED = """
import os, torch
from engine.trainer import Trainer
from tests import toy
from util.error import run
evaluate = Trainer._evaluate
def kept(self, epoch):
    folder = os.path.join(self.cfg.save_path, "evaluated")
    os.makedirs(folder, exist_ok=True)
    states = {name: model.state_dict() for name, model in self.learner.models.items()}
    torch.save(states, os.path.join(folder, f"{epoch}_{self.world.rank}.pth"))
    return evaluate(self, epoch)
Trainer._evaluate = kept
run(toy.main)
"""


@pytest.mark.parametrize("rule", ["frozen", "sync", "per_shard"])
def test_a_run_of_two_shards_on_two_processes(rule: str, tiny: Tiny, tmp_path: Path) -> None:
    """All processes evaluate the same models, those of the checkpoint; a frozen run is the same on one process."""
    args = tiny.args(tmp_path / "two", "backbone=toy", "model=toy", "crop_size=16", "shards=2", "epochs=2", f"batch_norm={rule}")
    (tmp_path / "train.py").write_text(EVALUATED)
    done = command(tmp_path / "train.py", *args, processes=2, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    two = checkpoint.load(tmp_path / "two/latest.pth")
    counts = [value for name, value in two["model"].items() if name.endswith("num_batches_tracked")]
    forwards = 0 if rule == "frozen" else 2 * 2 * (12 // 2 // 2)  # the labelled and the strong images of each step of two epochs
    assert {int(value) for value in counts} == {forwards}
    for epoch in (0, 1):
        first, second = (torch.load(tmp_path / f"two/evaluated/{epoch}_{rank}.pth") for rank in (0, 1))
        for which, state in first.items():
            for name, value in state.items():
                assert torch.equal(second[which][name], value), f"epoch {epoch}, {which} {name}"
    for which, key in (("student", "model"), ("EMA", "model_ema")):
        assert all(torch.equal(first[which][name], value) for name, value in two[key].items()), which
    if rule == "frozen":
        toy.main(tiny.args(tmp_path / "one", *[word for word in args[args.index("--set") + 1 :: 2] if "=" in word]))
        one = checkpoint.load(tmp_path / "one/latest.pth")
        for name, value in one["model"].items():
            # float32, 6 steps of AdamW, lr 3e-4 and 9e-4: the same bits on x86; gradients rounded to bf16 move weights by 7e-6
            torch.testing.assert_close(two["model"][name], value, rtol=1e-5, atol=1e-6, msg=name)
