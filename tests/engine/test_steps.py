"""Numbers gone wrong: a step that is not finite is skipped, counted, and ends the run only after several in a row."""

import re
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unimatch_v2
from dataset.batch import Batch
from engine.averages import AverageMeter
from engine.method import Method
from engine.trainer import train
from tests import crash
from tests.conftest import Tiny
from util import checkpoint
from util.dist import World
from util.error import UserError

QUICK = ("batch_size=1", "crop_size=14")


def poisoned(bad: set[int], value: float = float("nan"), through: str = "loss") -> Method:
    """UniMatch V2's step, whose loss (or only whose gradient) is not finite in the calls `bad`."""
    calls: list[int] = []

    def step(student: Any, teacher: Any, batch: Batch, cfg: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, stats = unimatch_v2.step(student, teacher, batch, cfg)
        calls.append(1)
        if len(calls) - 1 in bad:
            if through == "gradient":
                loss.register_hook(lambda grad: grad * value)
            else:
                loss = loss * value
                stats = stats | {"loss_all": loss.detach()}
        return loss, stats

    return replace(unimatch_v2.METHOD, step=step)


@pytest.mark.parametrize(("value", "through"), [(float("nan"), "loss"), (float("inf"), "loss"), (float("nan"), "gradient")])
def test_a_step_that_is_not_finite_changes_no_weight_but_counts(value: float, through: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        seen: list[dict[str, Tensor]] = []
        rates: list[float] = []
        original = unimatch_v2_trainer().update

        def update(self: Any, *args: Any) -> dict[str, Tensor]:
            before = {
                k: v.clone() for k, v in (self.student.state_dict() | {f"t.{k}": v for k, v in self.teacher.state_dict().items()}).items()
            }
            stats = original(self, *args)
            after = self.student.state_dict() | {f"t.{k}": v for k, v in self.teacher.state_dict().items()}
            seen.append({k: after[k] - before[k] for k in before})
            rates.append(self.lr)
            return stats

        patch.setattr(unimatch_v2_trainer(), "update", update)
        train(poisoned({3, 4, 8}, value, through), tiny.args(tmp_path, *QUICK, "epochs=1"), None)
    changed = [any(bool(delta.any()) for delta in step.values()) for step in seen]
    assert [i for i, value in enumerate(changed) if not value] == [3, 4, 8]
    assert len(set(rates[1:])) == len(rates) - 1, "the schedule continues"
    log = (tmp_path / "train.log").read_text()
    told = re.findall(r"WARNING\] (Step .*)", log)
    assert told == [
        "Step 3 skipped: loss or gradient is not finite (1 in a row, 1 in all)",
        "Step 4 skipped: loss or gradient is not finite (2 in a row, 2 in all)",
        "Step 8 skipped: loss or gradient is not finite (1 in a row, 3 in all)",
    ]
    assert "nan" not in "".join(line for line in log.splitlines() if "Iters" in line), "averages are over the steps that count"
    read = crash.scalars(tmp_path)
    assert [(step, float(total)) for step, total in read["train/skipped_steps"]] == [(3, 1), (4, 2), (8, 3)]
    assert len(read["train/grad_norm"]) == 12
    state = checkpoint.load(tmp_path / "latest.pth")
    assert (state["skipped"], state["skipped_in_row"]) == (3, 0)
    assert all(torch.isfinite(v).all() for v in state["model_ema"].values())


def test_a_stat_without_a_value_costs_itself_alone() -> None:
    """A mean over no pixel is nan: the step counts for the others, and a step that counts not at all counts for none."""
    meter = AverageMeter(World())
    for loss, own, counts in ((1.0, nan, True), (3.0, 5.0, True), (50.0, 50.0, False)):
        meter.add({"loss_all": torch.tensor(loss), "own": torch.tensor(own)}, counts)
    assert [row["loss_all"] for row in meter.read()] == [1, 3, 50]
    assert meter.means() == {"loss_all": 2, "own": 5}
    resumed = AverageMeter(World())
    resumed.reset(meter.sums, meter.counts)
    assert resumed.means() == meter.means()
    resumed.reset({"loss_all": 4.0}, 2)
    assert resumed.means() == {"loss_all": 2}


def unimatch_v2_trainer() -> Any:
    from engine.update import Learner

    return Learner


def test_too_many_in_a_row_stop_with_the_images_named_and_a_good_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    args = tiny.args(tmp_path, *QUICK, "max_bad_steps=3")
    with pytest.raises(UserError) as error:
        train(poisoned({2, 14, 15, 16}), args, None)
    words = str(error.value)
    assert "stopped after 3 steps in a row" in words
    assert "latest.pth" in words
    assert len(re.findall(r"images/\d+\.jpg", words)) == 2, "one labelled and one unlabelled image"
    assert "\n" not in words
    state = checkpoint.load(tmp_path / "latest.pth")
    assert state["epoch"] == 0
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_mini_batches_without_any_label_are_no_error(tmp_path: Path) -> None:
    from PIL import Image

    from tests.conftest import make_tiny

    tiny = make_tiny(tmp_path / "data")
    for i in range(6):
        with Image.open(tiny.root / f"masks/{i}.png") as mask:
            size = mask.size
        Image.new("L", size, 255).save(tiny.root / f"masks/{i}.png")
    unimatch_v2.main(tiny.args(tmp_path / "out", *QUICK, "epochs=1"))
    log = (tmp_path / "out/train.log").read_text()
    assert "Loss x: 0.000" in log
    assert "skipped" not in log


def test_all_ranks_skip_the_same_step(tiny: Tiny, tmp_path: Path) -> None:
    """Only the second shard is bad; with two processes that is another process's."""
    states = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        script = tmp_path / "poisoned.py"
        script.write_text(
            "import sys, os\n"
            "from tests.engine.test_steps import poisoned\n"
            "from util.error import run\n"
            "from engine.trainer import train\n"
            "bad = {'1': {7}, '2': {3} if os.environ.get('RANK') == '1' else set()}[sys.argv[1]]\n"
            "method = poisoned(bad)\n"
            "run(lambda argv: train(method, argv, None), sys.argv[2:])\n"
        )
        from tests.conftest import ROOT, command

        args = tiny.args(out, *QUICK, "epochs=1", "shards=2")
        done = command(script, str(processes), *args, processes=processes, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
        states.append(checkpoint.load(out / "latest.pth"))
        assert "Step 3 skipped" in (out / "train.log").read_text()
    for key, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][key]), f"{key}: the sum of two gradients has one order"
    assert states[1]["skipped"] == 1
