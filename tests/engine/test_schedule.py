"""Learning rates and EMA decays against tables worked out by hand, and the teacher's closed form (METHOD.md 3)."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dataset.batch import Batch
from engine.ema import Ema, ema_decay, make_teacher
from engine.method import Method
from engine.schedule import poly
from tests.engine.test_update import tiny_trainer

# (1 - it / 10) ** 0.9, to ten digits: 4e-10 of the smallest. Factors of lr are compared: approx allows 1e-12 of anything.
POLY = {0: 1.0, 1: 0.9095325761, 2: 0.8180521461, 5: 0.5358867313, 8: 0.2349237886, 9: 0.1258925412}


@pytest.mark.parametrize("it", POLY)
def test_rates_by_hand(it: int) -> None:
    assert poly(5e-6, it, 10) / 5e-6 == pytest.approx(POLY[it], rel=1e-9)


@pytest.mark.parametrize(
    ("it", "decay"), [(0, 0.0), (1, 0.5), (2, 2 / 3), (3, 0.75), (9, 0.9), (248, 248 / 249), (249, 0.996), (250, 0.996)]
)
def test_decays_by_hand(it: int, decay: float) -> None:
    """1 - 1/250 is 0.996: from step 249 on the decay stays."""
    assert ema_decay(it) == pytest.approx(decay, rel=1e-9)
    assert ema_decay(10**6) == 0.996


def test_the_first_two_steps_share_the_base_rate() -> None:
    rates = []

    def step(student: nn.Module, *_: object) -> tuple[Tensor, dict[str, Tensor]]:
        rates.append([group["lr"] for group in learner.optimizer.param_groups])
        loss = sum(p.sum() for p in student.parameters() if p.requires_grad)
        assert isinstance(loss, Tensor)
        return loss, {"loss_all": loss.detach()}

    learner = tiny_trainer(Method("probe", step), 10)
    for _ in range(10):
        learner.update([Batch(torch.empty(0), torch.empty(0))])
    expected = [1.0, *(POLY.get(it, (1 - it / 10) ** 0.9) for it in range(9))]
    assert [encoder / learner.cfg.lr for encoder, _ in rates] == pytest.approx(expected, rel=1e-9)
    assert [decoder / (40 * learner.cfg.lr) for _, decoder in rates] == pytest.approx(expected, rel=1e-9)
    assert learner.lr / learner.cfg.lr == pytest.approx(POLY[9], rel=1e-9)  # what a log line after the last step shows


class Counting(nn.Module):
    """A parameter, a floating-point and an integer buffer."""

    floating: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("floating", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(7))


def test_teacher_after_n_steps_is_the_closed_form() -> None:
    """teacher_N = sum over steps of (1 - d_i) * prod of later d_j * student_i: the start never counts, because d_0 = 0."""
    student = Counting()
    teacher = make_teacher(student)
    assert isinstance(teacher, Counting)
    ema = Ema(teacher, student)
    values = torch.randn(300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for it, value in enumerate(values):
        with torch.no_grad():
            student.weight.copy_(value)
            student.floating.copy_(value[:2] * 3)
            student.seen.fill_(it)
        ema.update(it)
        assert int(teacher.seen) == it
    decays = torch.tensor([min(1 - 1 / (it + 1), 0.996) for it in range(300)], dtype=torch.float64)
    shares = torch.stack([(1 - decays[i]) * decays[i + 1 :].prod() for i in range(300)])
    assert float(shares.sum()) == pytest.approx(1)
    assert torch.allclose(teacher.weight, shares @ values, rtol=1e-12, atol=1e-14)
    assert torch.allclose(teacher.floating, shares @ values[:, :2] * 3, rtol=1e-12, atol=1e-14)


def test_the_teacher_is_the_mean_of_all_students_until_step_249() -> None:
    student = Counting()
    teacher = make_teacher(student)
    assert isinstance(teacher, Counting)
    ema = Ema(teacher, student)
    for it in range(50):
        with torch.no_grad():
            student.weight.fill_(it)
        ema.update(it)
    assert teacher.weight.tolist() == pytest.approx([24.5] * 3)


def test_the_teacher_is_a_frozen_copy_in_eval_mode() -> None:
    student = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    before = copy.deepcopy(student.state_dict())
    teacher = make_teacher(student)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        student.get_parameter("0.weight").zero_()
    assert torch.equal(teacher.state_dict()["0.weight"], before["0.weight"])
