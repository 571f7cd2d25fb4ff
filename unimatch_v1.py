"""UniMatch V1: the student learns from two strong, CutMixed views and from the weak view with channels of its encoder features dropped.

`step` is the method on today's networks, labelled by an EMA teacher (METHOD.md 3.1; Table 5 of arXiv:2410.10777). `step_of_2023` is
the program of 2023, for DeepLabV3+, whose student labels for itself (METHOD.md 3.2; arXiv:2208.09910).

    python unimatch_v1.py --config configs/camvid.yaml --labeled-id-path splits/camvid/1_8/labeled.txt \\
        --unlabeled-id-path splits/camvid/1_8/unlabeled.txt --save-path exp/camvid/unimatch_v1
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataset.batch import Batch, Reads
from engine.method import Method
from engine.trainer import train
from model.dropout import channel_factors, clean_and_scaled, factor_width, scaled
from model.loss import labeled_loss, mask_ratio, semi_loss, unlabeled_loss
from model.pseudo import Mixed, cutmix, labels_of, pseudo_label, pseudo_label_in_eval_mode
from util.config import Config, key
from util.error import run

LABELS = {"loss_all": "Total loss", "loss_x": "x", "loss_u": "u", "loss_s": "strong", "loss_w_fp": "fp", "mask_ratio": "Mask ratio"}
LABELS_OF_2023 = {
    "loss_all": "Total loss", "loss_x": "Loss x", "loss_s": "Loss s", "loss_w_fp": "Loss w_fp", "mask_ratio": "Mask ratio",
}  # fmt: skip


@dataclass(frozen=True)
class Settings(Config):
    """The key that UniMatch V1 adds to a config."""

    feature_dropout: str = key("shared", choices=("shared", "per_level"))  # one mask for all maps of an image, or one for each map


def step(student: nn.Module, teacher: nn.Module, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of a UniMatch V1 mini-batch, and what the log shows of it: detached scalars by their names."""
    pseudo, conf = pseudo_label(teacher, batch.img_u_w)  # (B, H, W) each
    view1 = cutmix(batch.img_u_s1, pseudo, conf, batch.ignore_u, batch.box1)
    view2 = cutmix(batch.img_u_s2, pseudo, conf, batch.ignore_u, batch.box2)
    pred_x = student(batch.img_x)  # (B, K, H, W)
    pred_fp = student(batch.img_u_w, scaled(batch.drop))
    pred_s1, pred_s2 = student(torch.cat((view1.img, view2.img))).chunk(2)
    weak = Mixed(batch.img_u_w, pseudo, conf, batch.ignore_u)
    return _loss(pred_x, batch.mask_x, [(pred_s1, view1), (pred_s2, view2)], pred_fp, weak, cfg)


def step_of_2023(student: nn.Module, teacher: nn.Module, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The same as the program of 2023 has it (METHOD.md 3.2): the student labels for itself, in training mode, and CutMix pastes from a
    second draw of the same images, which it labels in eval mode. teacher: the student without wrappers.
    """
    assert batch.second is not None
    pasted = (*pseudo_label_in_eval_mode(teacher, batch.second.img_u_w), batch.second.ignore_u)
    # labelled images are dropped as well: they enter the decoder's batch statistics
    preds = student(torch.cat((batch.img_x, batch.img_u_w)), clean_and_scaled(batch.drop))
    pred_x, pred_w, _, pred_fp = preds.split((len(batch.img_x), len(batch.img_u_w)) * 2)
    pseudo, conf = labels_of(pred_w)
    view1 = cutmix(batch.img_u_s1, pseudo, conf, batch.ignore_u, batch.box1, (batch.second.img_u_s1, *pasted))
    view2 = cutmix(batch.img_u_s2, pseudo, conf, batch.ignore_u, batch.box2, (batch.second.img_u_s2, *pasted))
    pred_s1, pred_s2 = student(torch.cat((view1.img, view2.img))).chunk(2)
    weak = Mixed(batch.img_u_w, pseudo, conf, batch.ignore_u)
    return _loss(pred_x, batch.mask_x, [(pred_s1, view1), (pred_s2, view2)], pred_fp, weak, cfg)


def _loss(
    pred_x: Tensor, mask_x: Tensor, strong: list[tuple[Tensor, Mixed]], pred_fp: Tensor, weak: Mixed, cfg: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss from logits (B, K, H, W) of labelled images, of strong views with their labels, and of the weak view, features dropped."""
    loss_x = labeled_loss(pred_x, mask_x, cfg.criterion)
    loss_s1, loss_s2 = (unlabeled_loss(pred, view.pseudo, view.conf, view.ignore, cfg.conf_thresh) for pred, view in strong)
    loss_s = (loss_s1 + loss_s2) / 2
    loss_fp = unlabeled_loss(pred_fp, weak.pseudo, weak.conf, weak.ignore, cfg.conf_thresh)
    loss_u = (loss_s + loss_fp) / 2
    loss, stats = semi_loss(loss_x, loss_u, cfg.lossu_weight, mask_ratio(weak.conf, weak.ignore, cfg.conf_thresh))
    return loss, stats | {"loss_u": loss_u.detach(), "loss_s": loss_s.detach(), "loss_w_fp": loss_fp.detach()}


def _draw(images: int, channels: tuple[int, ...], generator: torch.Generator, cfg: Settings) -> Tensor:
    """Feature dropout: factors (B, C), or (B, the sum of the maps' channels) where each map has a mask of its own."""
    width = factor_width(channels) if cfg.feature_dropout == "shared" else sum(channels)
    return channel_factors(images, width, generator)


def _draw_of_2023(images: int, channels: tuple[int, ...], generator: torch.Generator, cfg: Settings) -> Tensor:
    """The same for labelled and unlabelled images, (2B, ...)."""
    return _draw(2 * images, channels, generator, cfg)


OF_2023 = Method(
    "unimatch_v1",
    step_of_2023,
    LABELS_OF_2023,
    teacher="student",
    reads=Reads(cut_labeled=True, second_draw=True),
    draw=_draw_of_2023,
    optimizer="sgd",
    config=Settings,
)
METHOD = Method("unimatch_v1", step, LABELS, draw=_draw, config=Settings, programs={"unimatch_v1": OF_2023}, title="UniMatch V1")


def main(argv: list[str]) -> None:
    train(METHOD, argv, __doc__)


if __name__ == "__main__":
    run(main)
