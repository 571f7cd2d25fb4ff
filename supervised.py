"""Supervised baseline: labelled images only (METHOD.md 3).

The mini-batch is twice `batch_size`, as in the published runs, so that a step sees as many images as a semi-supervised one;
UniMatch V1's program, which DeepLabV3+ follows, leaves that to the config.

    python supervised.py --config configs/camvid.yaml --labeled-id-path splits/camvid/1_8/labeled.txt --save-path exp/camvid/sup
"""

from torch import Tensor, nn

from dataset.batch import Batch, Reads
from engine.method import Method
from engine.trainer import train
from model.loss import labeled_loss
from util.config import Config
from util.error import run


def step(student: nn.Module, teacher: nn.Module | None, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of a supervised mini-batch, and what the log shows of it: detached scalars by their names."""
    loss = labeled_loss(student(batch.img_x), batch.mask_x, cfg.criterion)
    return loss, {"loss_all": loss.detach(), "loss_x": loss.detach()}


# UniMatch V1's program takes list and mini-batch as they are
OF_2023 = Method("supervised", step, teacher=None, reads=Reads(unlabeled=0, repeat_labeled=False), optimizer="sgd")
METHOD = Method(
    "supervised", step, teacher=None, reads=Reads(labeled=2, unlabeled=0), programs={"unimatch_v1": OF_2023}, title="Labeled only"
)


def main(argv: list[str]) -> None:
    train(METHOD, argv, __doc__)


if __name__ == "__main__":
    run(main)
