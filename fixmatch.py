"""FixMatch: an EMA teacher labels the weak view, the student learns from one strong, CutMixed view (METHOD.md 3).

    python fixmatch.py --config configs/camvid.yaml --labeled-id-path splits/camvid/1_8/labeled.txt \\
        --unlabeled-id-path splits/camvid/1_8/unlabeled.txt --save-path exp/camvid/fixmatch
"""

import torch
from torch import Tensor, nn

from dataset.batch import Batch, Reads
from engine.method import SEMI_LABELS, Method
from engine.trainer import train
from model.loss import labeled_loss, mask_ratio, semi_loss, unlabeled_loss
from model.pseudo import cutmix, labels_of, pseudo_label, pseudo_label_in_eval_mode
from util.config import Config
from util.error import run


def step(student: nn.Module, teacher: nn.Module, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of a FixMatch mini-batch, and what the log shows of it: detached scalars by their names."""
    pseudo, conf = pseudo_label(teacher, batch.img_u_w)  # (B, H, W) each
    view = cutmix(batch.img_u_s1, pseudo, conf, batch.ignore_u, batch.box1)
    pred_x, pred_s = student(torch.cat((batch.img_x, view.img))).split((len(batch.img_x), len(view.img)))  # (B, K, H, W) each
    loss_x = labeled_loss(pred_x, batch.mask_x, cfg.criterion)
    loss_s = unlabeled_loss(pred_s, view.pseudo, view.conf, view.ignore, cfg.conf_thresh)
    return semi_loss(loss_x, loss_s, cfg.lossu_weight, mask_ratio(conf, batch.ignore_u, cfg.conf_thresh))


def step_of_2023(student: nn.Module, teacher: nn.Module, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The same as UniMatch V1's program has it (METHOD.md 3.2): see `unimatch_v1.step_of_2023`. teacher: the student without wrappers."""
    assert batch.second is not None
    pasted = (*pseudo_label_in_eval_mode(teacher, batch.second.img_u_w), batch.second.ignore_u)
    pred_x, pred_w = student(torch.cat((batch.img_x, batch.img_u_w))).split((len(batch.img_x), len(batch.img_u_w)))
    pseudo, conf = labels_of(pred_w)
    view = cutmix(batch.img_u_s1, pseudo, conf, batch.ignore_u, batch.box1, (batch.second.img_u_s1, *pasted))
    loss_x = labeled_loss(pred_x, batch.mask_x, cfg.criterion)
    loss_s = unlabeled_loss(student(view.img), view.pseudo, view.conf, view.ignore, cfg.conf_thresh)
    return semi_loss(loss_x, loss_s, cfg.lossu_weight, mask_ratio(conf, batch.ignore_u, cfg.conf_thresh))


OF_2023 = Method(
    "fixmatch",
    step_of_2023,
    SEMI_LABELS,
    teacher="student",
    reads=Reads(strong_views=1, cut_labeled=True, second_draw=True),
    optimizer="sgd",
)
METHOD = Method("fixmatch", step, SEMI_LABELS, reads=Reads(strong_views=1), programs={"unimatch_v1": OF_2023}, title="FixMatch")


def main(argv: list[str]) -> None:
    train(METHOD, argv, __doc__)


if __name__ == "__main__":
    run(main)
