"""One update against METHOD.md 3 written a second time: plain loops for CutMix and losses, AdamW and EMA by hand.

The network itself is checked in tests/model; here it runs in float64, so that the two writings agree to 1e-9.
SemiVL and AllSpark have files of their own: tests/test_semivl.py, tests/test_allspark.py.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fixmatch
import supervised
import unimatch_v1
import unimatch_v2
from dataset.batch import Batch
from engine.method import Method
from engine.update import Learner
from model import build_model
from model.dropout import complementary_factors, scaled
from model.segmenter import Segmenter

METHODS = {method.name: method for method in (unimatch_v2.METHOD, unimatch_v1.METHOD, fixmatch.METHOD, supervised.METHOD)}
OHEM = {"name": "OHEM", "kwargs": {"ignore_index": 255, "thresh": 0.2, "min_kept": 300}}
CE = {"name": "CELoss", "kwargs": {"ignore_index": 255}}
SIDE, CLASSES, B = 28, 3, 3
TOTAL = 4
UNUSED = {"backbone.mask_token", *(f"head.scratch.refinenet4.resConfUnit1.conv{i}.{k}" for i in (1, 2) for k in ("weight", "bias"))}


def tiny_trainer(method: Method, total: int, task: str = "segmentation", **changes: Any) -> Learner:
    """A float64 learner of the smallest encoder, with weights lively enough that two classes win somewhere."""
    torch.manual_seed(0)
    model = build_model("dinov2_tiny", CLASSES, task).double()
    with torch.no_grad():
        model.get_parameter("head.scratch.output_conv.2.weight").mul_(20)
    keys: dict[str, Any] = {"crop_size": SIDE, "epochs": 1, "batch_size": B, "lr": 1e-4, "conf_thresh": 0.5} | changes
    return Learner(method.config(dataset="", data_root="", backbone="dinov2_tiny", **keys), model, method, total)


def batch(it: int, channels: int = 3) -> Batch:
    g = torch.Generator().manual_seed(it)
    imgs = torch.randn(4, B, channels, SIDE, SIDE, generator=g, dtype=torch.float64)
    mask = torch.randint(0, CLASSES, (B, SIDE, SIDE), generator=g)
    mask[:, :4] = 255
    ignore = torch.zeros(B, SIDE, SIDE, dtype=torch.uint8)
    ignore[1, 20:] = 255
    box1, box2 = torch.zeros(2, B, SIDE, SIDE, dtype=torch.bool)
    box1[0, 3:20, 5:25], box1[1, 10:28, 0:9], box2[2, 0:12, 8:28] = True, True, True
    return Batch(imgs[0], mask, imgs[1], imgs[2], imgs[3], ignore, box1, box2, complementary_factors(B, 192, g).double())


def batch_of(method: str, it: int) -> Batch:
    """With as many factors as the method draws."""
    made = batch(it)
    return replace(made, drop=made.drop[:B]) if method == "unimatch_v1" else made


# the ablations of UniMatch V2: number of views, kind of dropout, where it acts
ABLATIONS = [
    (1, "independent", "encoder"), (2, "none", "encoder"), (2, "independent", "encoder"),  # Table 6
    (2, "complementary", "classifier"),  # Table 12
    (1, "complementary", "classifier"), (1, "none", "encoder"),
]  # fmt: skip
FUSION = 32  # channels that the decoder's last layer reads


def ablated(b: Batch, views: int, kind: str, place: str) -> Batch:
    """The mini-batch with the views and factors of an ablation, drawn by hand."""
    width, g = FUSION if place == "classifier" else 192, torch.Generator().manual_seed(5)
    drop = torch.empty(0)
    if kind == "complementary":
        drop = complementary_factors(B, width, g)[: views * B].double()
    elif kind == "independent":
        drop = torch.tensor(
            [[2.0 * coin for coin in row] for row in torch.randint(0, 2, (views * B, width), generator=g).tolist()]
        ).double()
    return replace(b, drop=drop) if views == 2 else replace(b, drop=drop, img_u_s2=torch.empty(0), box2=torch.empty(0))


def literal_head(model: Segmenter, img: Tensor, factors: Tensor) -> Tensor:
    """Logits with the decoder's last convolution as a product of matrices, channel by channel of its input times a factor."""
    last = model.get_submodule("head.scratch.output_conv.2")
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    model(img)
    hook.remove()
    weight, bias = last.get_parameter("weight")[:, :, 0, 0], last.get_parameter("bias")[:, None, None]
    images = [torch.einsum("kc,chw->khw", weight * factor, x) + bias for factor, x in zip(factors, seen[0], strict=True)]
    return torch.nn.functional.interpolate(torch.stack(images), (SIDE, SIDE), mode="bilinear", align_corners=True)


def literal_ce(pred: Tensor, mask: Tensor, criterion: dict[str, Any]) -> Tensor:
    """Labelled loss, pixel by pixel."""
    p = pred.log_softmax(1)
    pixels = [(b, y, x) for b in range(len(mask)) for y in range(mask.shape[1]) for x in range(mask.shape[2])]
    valid = [q for q in pixels if mask[q] != 255]
    true = {q: math.exp(float(p[q[0], int(mask[q]), q[1], q[2]].detach())) for q in valid}
    if criterion["name"] == "OHEM" and len(valid) >= criterion["kwargs"]["min_kept"] > 0:
        ordered = sorted([*true.values(), *[1.0] * (len(pixels) - len(valid))])
        bound = max(criterion["kwargs"]["thresh"], ordered[criterion["kwargs"]["min_kept"] - 1])
        valid = [q for q in valid if true[q] <= bound]
    return -sum_at(p, [(b, int(mask[b, y, x]), y, x) for b, y, x in valid]) / len(valid)


def sum_at(logp: Tensor, places: list[tuple[int, int, int, int]]) -> Tensor:
    return logp[tuple(torch.tensor(axis) for axis in zip(*places, strict=True))].sum()


def literal_mix(img: Tensor, label: Tensor, conf: Tensor, ignore: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = img.clone(), label.clone(), conf.clone(), ignore.clone()
    n = len(img)
    for i in range(n):
        for y, x in box[i].nonzero().tolist():
            other = n - 1 - i
            out[0][i, :, y, x] = img[other, :, y, x]
            out[1][i, y, x], out[2][i, y, x], out[3][i, y, x] = label[other, y, x], conf[other, y, x], ignore[other, y, x]
    return out


def literal_unlabeled(pred: Tensor, label: Tensor, conf: Tensor, ignore: Tensor, thresh: float) -> Tensor:
    pixels = [(b, y, x) for b in range(len(pred)) for y in range(SIDE) for x in range(SIDE) if ignore[b, y, x] != 255]
    sure = [(b, int(label[b, y, x]), y, x) for b, y, x in pixels if conf[b, y, x] >= thresh]
    return -sum_at(pred.log_softmax(1), sure) / len(pixels)


def literal_loss(
    method: str, student: Segmenter, teacher: Segmenter, b: Batch, criterion: dict[str, Any], thresh: float, place: str = "encoder"
) -> dict[str, Tensor]:
    if method == "supervised":
        loss = literal_ce(student(b.img_x), b.mask_x, criterion)
        return {"loss_all": loss, "loss_x": loss}
    with torch.no_grad():
        prob = teacher(b.img_u_w).softmax(1)
    conf, label = prob.max(1).values, prob.argmax(1)
    views = [(b.img_u_s1, b.box1)] if method == "fixmatch" or not len(b.img_u_s2) else [(b.img_u_s1, b.box1), (b.img_u_s2, b.box2)]
    mixed = [literal_mix(img, label, conf, b.ignore_u, box) for img, box in views]
    pred_x = student(b.img_x)
    losses = []
    for v, (img, label_v, conf_v, ignore_v) in enumerate(mixed):
        factors = b.drop[v * B : (v + 1) * B] if method == "unimatch_v2" and len(b.drop) else None
        if factors is not None and place == "classifier":
            pred = literal_head(student, img, factors)
        else:
            pred = student(img, None if factors is None else scaled(factors))
        losses.append(literal_unlabeled(pred, label_v, conf_v, ignore_v, thresh))
    loss_x, loss_s = literal_ce(pred_x, b.mask_x, criterion), torch.stack(losses).mean()
    seen = b.ignore_u != 255
    ratio = ((conf >= thresh) & seen).sum() / seen.sum()
    if method == "unimatch_v1":
        fp = literal_unlabeled(student(b.img_u_w, scaled(b.drop)), label, conf, b.ignore_u, thresh)
        total = (loss_x + (0.25 * losses[0] + 0.25 * losses[1] + 0.5 * fp)) / 2
        return {"loss_all": total, "loss_x": loss_x, "loss_u": (loss_s + fp) / 2, "loss_s": loss_s, "loss_w_fp": fp, "mask_ratio": ratio}
    return {"loss_all": (loss_x + loss_s) / 2, "loss_x": loss_x, "loss_s": loss_s, "mask_ratio": ratio}


class LiteralAdamW:
    """Decoupled weight decay, bias-corrected moments; a parameter without gradient is not touched."""

    def __init__(self, model: Segmenter, lr: float) -> None:
        self.model, self.lr, self.rate, self.t = model, lr, lr, 0
        self.moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in model.named_parameters()}

    @torch.no_grad()
    def step(self, total: int) -> None:
        self.t += 1
        for name, p in self.model.named_parameters():
            if p.grad is None:
                continue
            lr = self.rate if "backbone" in name else 40 * self.rate
            m, v = self.moments[name]
            m.copy_(0.9 * m + 0.1 * p.grad)
            v.copy_(0.999 * v + 0.001 * p.grad**2)
            p.copy_(p - lr * 0.01 * p - lr * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8))
            p.grad = None
        self.rate = self.lr * (1 - (self.t - 1) / total) ** 0.9


@pytest.mark.parametrize("criterion", [CE, OHEM], ids=["ce", "ohem"])
@pytest.mark.parametrize("method", METHODS)
def test_updates_are_those_of_the_second_writing(method: str, criterion: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # of the position embedding, which the encoder resizes in float32
    learner = tiny_trainer(METHODS[method], TOTAL, criterion=criterion)
    student, teacher = (tiny_trainer(METHODS[method], TOTAL).student for _ in range(2))
    optimizer = LiteralAdamW(student, 1e-4)
    initial = {n: p.detach().clone() for n, p in student.named_parameters()}
    for it in range(2):
        stats = learner.update([batch_of(method, it)])
        expected = literal_loss(method, student, teacher, batch_of(method, it), criterion, 0.5)
        assert set(stats) == set(expected)
        for name, value in expected.items():
            assert float(stats[name]) == pytest.approx(float(value.detach()), rel=1e-6 if name == "mask_ratio" else 1e-10), name
        if method != "supervised":
            assert 0 < float(stats["mask_ratio"]) < 1
        expected["loss_all"].backward()
        optimizer.step(TOTAL)
        decay = min(1 - 1 / (it + 1), 0.996)
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
                t.copy_(decay * t + (1 - decay) * s)
    pairs = [(learner.student, student)] + ([(learner.teacher, teacher)] if learner.teacher is not None else [])
    for found, expected_model in pairs:
        for (name, a), b in zip(found.named_parameters(), expected_model.parameters(), strict=True):
            if name not in UNUSED:
                # AdamW makes a whole step of any gradient above its eps of 1e-8; rounding in float64 is far below that
                change = initial[name] - b.detach()
                assert float((a - b).detach().norm()) <= 1e-6 * float(change.norm()), name


@pytest.mark.parametrize(("views", "kind", "place"), ABLATIONS)
def test_ablations_of_unimatch_v2(views: int, kind: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the settings draw and read; losses and gradients of a step."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # of the position embedding, which the encoder resizes in float32
    method = unimatch_v2.METHOD
    learner = tiny_trainer(method, TOTAL, dropout=kind, dropout_at=place, strong_views=views)
    twin = tiny_trainer(method, TOTAL).student
    b = ablated(batch(0), views, kind, place)
    assert method.draw is not None
    assert torch.equal(method.draw(B, (192,) * 4, torch.Generator().manual_seed(5), learner.cfg).double(), b.drop.double())
    assert method.of(learner.cfg).reads.strong_views == views
    expected = literal_loss("unimatch_v2", twin, twin, b, CE, 0.5, place)
    loss, stats = method.step(learner.student, learner.step_teacher, b, learner.cfg)
    for name, value in expected.items():
        assert float(stats[name]) == pytest.approx(float(value.detach()), rel=1e-6 if name == "mask_ratio" else 1e-10), name
    loss.backward()
    expected["loss_all"].backward()
    for (name, p), q in zip(learner.student.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-12, msg=name)


def test_shards_accumulate_to_the_mean_of_their_gradients() -> None:
    learner = tiny_trainer(unimatch_v2.METHOD, TOTAL)
    stats = learner.update([batch(0), batch(1)])
    grads = {n: p.grad.clone() for n, p in learner.student.named_parameters() if p.grad is not None}
    alone = []
    for it in (0, 1):
        other = tiny_trainer(unimatch_v2.METHOD, TOTAL)
        one = other.update([batch(it)])
        alone.append(({n: p.grad for n, p in other.student.named_parameters()}, one))
    for name, grad in grads.items():
        first, second = alone[0][0][name], alone[1][0][name]
        assert first is not None
        assert second is not None
        assert torch.allclose(grad, (first + second) / 2, rtol=1e-8, atol=1e-12), name
    for key, value in stats.items():
        assert float(value) == pytest.approx((float(alone[0][1][key]) + float(alone[1][1][key])) / 2)


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_frozen_and_unused_parameters(method: str, locked: bool) -> None:
    """Unused ones keep their names and are never touched; lock_backbone freezes the encoder and nothing else.

    Every parameter that asks for a gradient gets one: DDP needs no search for unused parameters.
    """
    learner = tiny_trainer(METHODS[method], TOTAL, lock_backbone=locked)
    before = {n: p.detach().clone() for n, p in learner.student.named_parameters()}
    assert set(before) >= UNUSED
    learner.update([batch_of(method, 0)])
    frozen = UNUSED | ({n for n in before if n.startswith("backbone.")} if locked else set())
    for name, p in learner.student.named_parameters():
        assert p.requires_grad == (name not in frozen), name
        assert (p.grad is None) == (name in frozen), name
        assert torch.equal(p, before[name]) == (name in frozen), name
    assert set(map(id, (p for g in learner.optimizer.param_groups for p in g["params"]))) == set(map(id, learner.student.parameters()))


def test_student_as_teacher() -> None:
    """`teacher: student` labels with the student, still keeps the EMA, and lets no gradient into the labels."""
    learner = tiny_trainer(fixmatch.METHOD, TOTAL, teacher="student")
    learner.update([batch(0)])
    student = tiny_trainer(fixmatch.METHOD, TOTAL).student
    student.load_state_dict(learner.student.state_dict())
    expected = literal_loss("fixmatch", student, student, batch(1), CE, 0.5)
    stats = learner.update([batch(1)])
    assert float(stats["loss_s"]) == pytest.approx(float(expected["loss_s"].detach()), rel=1e-10)
    assert learner.teacher is not None


@pytest.mark.parametrize("place", ["encoder", "classifier"])
def test_change_detection_updates(place: str) -> None:
    learner = tiny_trainer(unimatch_v2.METHOD, TOTAL, task="change", dropout_at=place)
    twin = tiny_trainer(unimatch_v2.METHOD, TOTAL, task="change").student
    b = batch(0, 6) if place == "encoder" else ablated(batch(0, 6), 2, "complementary", place)
    expected = literal_loss("unimatch_v2", twin, twin, b, CE, 0.5, place)
    stats = learner.update([b])
    for name in ("loss_all", "loss_x", "loss_s"):
        assert float(stats[name]) == pytest.approx(float(expected[name].detach()), rel=1e-10)
