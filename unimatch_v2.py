"""UniMatch V2: an EMA teacher labels the weak view, the student learns from two strong, CutMixed views whose encoder features are
dropped out complementarily (METHOD.md 3, arXiv:2410.10777).

    python unimatch_v2.py --config configs/camvid.yaml --labeled-id-path splits/camvid/1_8/labeled.txt \\
        --unlabeled-id-path splits/camvid/1_8/unlabeled.txt --save-path exp/camvid/unimatch_v2
"""

import torch
from torch import Tensor, nn

from dataset.batch import Batch
from engine.method import SEMI_LABELS, Method
from engine.trainer import train
from model.dropout import complementary_factors, factor_width, scaled
from model.loss import labeled_loss, mask_ratio, semi_loss, unlabeled_loss
from model.pseudo import cutmix, pseudo_label
from util.config import Config
from util.error import run


def step(student: nn.Module, teacher: nn.Module, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of a UniMatch V2 mini-batch, and what the log shows of it: detached scalars by their names."""
    pseudo, conf = pseudo_label(teacher, batch.img_u_w)  # (B, H, W) each
    view1 = cutmix(batch.img_u_s1, pseudo, conf, batch.ignore_u, batch.box1)
    view2 = cutmix(batch.img_u_s2, pseudo, conf, batch.ignore_u, batch.box2)
    pred_x = student(batch.img_x)  # (B, K, H, W)
    pred_s1, pred_s2 = student(torch.cat((view1.img, view2.img)), scaled(batch.drop)).chunk(2)
    loss_x = labeled_loss(pred_x, batch.mask_x, cfg.criterion)
    loss_s1 = unlabeled_loss(pred_s1, view1.pseudo, view1.conf, view1.ignore, cfg.conf_thresh)
    loss_s2 = unlabeled_loss(pred_s2, view2.pseudo, view2.conf, view2.ignore, cfg.conf_thresh)
    return semi_loss(loss_x, (loss_s1 + loss_s2) / 2, cfg.lossu_weight, mask_ratio(conf, batch.ignore_u, cfg.conf_thresh))


def _draw(images: int, channels: tuple[int, ...], generator: torch.Generator, cfg: Config) -> Tensor:
    """Complementary dropout: factors (2B, C) for view 1, then view 2."""
    return complementary_factors(images, factor_width(channels), generator)


METHOD = Method("unimatch_v2", step, SEMI_LABELS, draw=_draw, title="UniMatch V2")


def main(argv: list[str]) -> None:
    train(METHOD, argv, __doc__)


if __name__ == "__main__":
    run(main)
