"""AllSpark: the student labels unlabelled images for itself, and its decoder makes labelled images' features anew out of unlabelled ones'
and of a memory of them for each class (METHOD.md 3.5, arXiv:2403.01818).

    python -m model.pretrained mit_b5 --from mit_b5.pth
    python allspark.py --config configs/allspark/pascal.yaml --labeled-id-path splits/pascal/92/labeled.txt \\
        --unlabeled-id-path splits/pascal/92/unlabeled.txt --save-path exp/pascal/allspark
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataset.batch import Batch, Reads
from engine.method import Method
from engine.trainer import train
from model.loss import cross_entropy, labeled_loss
from model.pseudo import logits_in_eval_mode
from model.segmenter import Segmenter
from model.semseg.allspark import STRIDE, AllSpark
from util.config import Config, key
from util.error import UserError, run


@dataclass(frozen=True)
class Settings(Config):
    """The key that AllSpark adds to a config."""

    memory_epoch: int = key(5)  # labelled images attend to the memory from this epoch on; before, to the mini-batch's unlabelled images


def step(student: nn.Module, teacher: nn.Module, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of an AllSpark mini-batch, and what the log shows of it: detached scalars by their names.

    teacher: the student without wrappers. batch.img_x: the labelled images' strong view.
    """
    assert isinstance(cfg, Settings)
    guide = logits_in_eval_mode(teacher, batch.img_u_w)
    images = torch.cat((batch.img_x, batch.img_u_w))
    pred_x, pred_u = student(images, guide=guide, memory=batch.epoch >= cfg.memory_epoch).chunk(2)
    loss_x = labeled_loss(pred_x, batch.mask_x, cfg.criterion)
    loss_u = cross_entropy(pred_u, guide.argmax(dim=1))  # of all pixels, padding too
    loss = (loss_x + cfg.lossu_weight * loss_u) / (1 + cfg.lossu_weight)
    return loss, {"loss_all": loss.detach(), "loss_x": loss_x.detach(), "loss_u": loss_u.detach()}


def check_model(student: Segmenter, cfg: Settings, hollow: bool) -> Segmenter:
    """The student itself. Raises UserError for a model or a crop that the method cannot train."""
    if not isinstance(student, AllSpark):
        raise UserError(
            f"model: found {cfg.model}, expected allspark, whose decoder the method is about; take a config of configs/allspark, "
            "or set model=allspark and backbone=mit_b5"
        )
    if cfg.crop_size % STRIDE == 0:
        raise UserError(
            f"crop_size: found {cfg.crop_size}, expected no multiple of {STRIDE}: the memory holds maps of (crop_size // {STRIDE} + 1)^2 "
            f"positions; set crop_size={cfg.crop_size + 1}"
        )
    return student


METHOD = Method(
    "allspark",
    step,
    {"loss_all": "Total loss", "loss_x": "Loss x", "loss_u": "Loss u"},
    teacher="student",
    reads=Reads(strong_labeled=True, strong_views=0, cut_labeled=True),
    guided=check_model,
    thresholded=False,
    optimizer="sgd",
    config=Settings,
    title="AllSpark",
)


def main(argv: list[str]) -> None:
    train(METHOD, argv, __doc__)


if __name__ == "__main__":
    run(main)
