"""The literal way computes what the product computes: otherwise the ratio of their times would mean nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

import unimatch_v2
from dataset.batch import make_batch
from dataset.lists import ImageList
from dataset.semi import Source
from dataset.spec import get_spec
from engine import metric
from engine.evaluation import evaluate, validation_loader
from model import build_model
from model.encoder import Encoder
from scripts.benchmark.data import host_batch, write_images
from scripts.benchmark.evaluation import LiteralList
from scripts.benchmark.literal import LiteralLoop, literal_evaluation, literal_model
from scripts.benchmark.step import Alternatives
from tests.scripts.benchmark.recipes import recipe
from util.dist import World

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["pascal", "levir"])
def test_updates_agree(name: str) -> None:
    cfg = recipe(name, backbone="dinov2_tiny", crop_size=56, batch_size=2, conf_thresh=0.04, lr=1e-5)
    made = Alternatives(cfg, CPU)
    trainer = made.trainer()
    loop = LiteralLoop(made.cfg, made.model, unimatch_v2.METHOD.step, 1000, CPU)
    batch = make_batch(made.raw, CPU, made.model.backbone, made.drop)
    for _ in range(3):
        found, expected = trainer.update([batch]), loop.update(batch)
        assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert expected["mask_ratio"] > 0, "no pseudo label counts: the comparison is empty"
    assert trainer.teacher is not None
    for ours, theirs in ((trainer.student, loop.student), (trainer.teacher, loop.teacher)):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert float((p - q).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["pascal", "levir"])
def test_images_made_on_the_device_are_those_of_the_worker(name: str) -> None:
    cfg = recipe(name, backbone="dinov2_tiny", crop_size=56, batch_size=2)
    ready, unmade = (make_batch(host_batch(cfg, on_device), CPU, Encoder()) for on_device in (False, True))
    for name in ("img_x", "img_u_w", "img_u_s1", "img_u_s2"):
        assert torch.equal(getattr(ready, name), getattr(unmade, name))
    assert not torch.equal(ready.img_u_s1, ready.img_u_s2)


def test_evaluations_agree(tmp_path: Path) -> None:
    write_images(tmp_path, 90, 61, "jpg", 6.0)
    source = Source(get_spec("pascal"), str(tmp_path), ImageList(str(tmp_path / "list.txt"), "segmentation", masks=True))
    torch.manual_seed(0)
    models = [build_model("dinov2_tiny", 21).eval() for _ in range(2)]
    literal = literal_evaluation([literal_model(model) for model in models], LiteralList(source, 0, Encoder()), 21, CPU)
    ours = evaluate(models, validation_loader(source, World(), 0), "original", 0, 21, World())
    for found, expected in zip(ours, literal, strict=True):
        np.testing.assert_allclose(metric.iou(found).numpy(), expected, atol=0.05)
        assert expected.max() > 0
