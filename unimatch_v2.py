"""UniMatch V2: an EMA teacher labels the weak view, the student learns from two strong, CutMixed views whose encoder features are
dropped out complementarily (METHOD.md 3, arXiv:2410.10777). `Settings` has the keys of the paper's ablations (METHOD.md 3.4).

    python unimatch_v2.py --config configs/camvid.yaml --labeled-id-path splits/camvid/1_8/labeled.txt \\
        --unlabeled-id-path splits/camvid/1_8/unlabeled.txt --save-path exp/camvid/unimatch_v2
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dataset.batch import Batch, Reads
from engine.method import SEMI_LABELS, Method
from engine.trainer import train
from model import CLASSIFIER_DROPOUT
from model.dropout import channel_factors, complementary_factors, factor_width, scaled
from model.loss import labeled_loss, mask_ratio, semi_loss, unlabeled_loss
from model.pseudo import cutmix, pseudo_label
from model.spec import architecture, get_encoder
from util.config import Config, key
from util.error import UserError, run


@dataclass(frozen=True)
class Settings(Config):
    """The keys that UniMatch V2 adds to a config. Raises UserError where dropout cannot be where they say."""

    # of channels of the strong views: complementary (of half of the images; what one view loses the other keeps) | independent | none
    dropout: str = key("complementary", choices=("complementary", "independent", "none"))
    # where: encoder (the maps that the decoder reads) | classifier (what the decoder's last layer reads)
    dropout_at: str = key("encoder", choices=("encoder", "classifier"))
    strong_views: int = key(2, positive=True, most=2)  # of each unlabelled image

    def __post_init__(self) -> None:
        super().__post_init__()
        model = architecture(self.backbone, self.model)
        if self.dropout_at == "classifier" and model not in CLASSIFIER_DROPOUT:
            known = ", ".join(CLASSIFIER_DROPOUT)
            raise UserError(f"dropout_at: found classifier with model {model}, expected encoder; only {known} has the other")
        if self.dropout_at == "classifier" and self.dropout == "none":
            raise UserError("dropout_at: found classifier with dropout none, expected encoder; without dropout it has no effect")


def step(student: nn.Module, teacher: nn.Module, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of a UniMatch V2 mini-batch, and what the log shows of it: detached scalars by their names."""
    pseudo, conf = pseudo_label(teacher, batch.img_u_w)  # (B, H, W) each
    views = [cutmix(batch.img_u_s1, pseudo, conf, batch.ignore_u, batch.box1)]
    if len(batch.img_u_s2):
        views.append(cutmix(batch.img_u_s2, pseudo, conf, batch.ignore_u, batch.box2))
    pred_x = student(batch.img_x)  # (B, K, H, W)
    dropped: dict[str, Any] = {}
    if len(batch.drop):
        at_classifier = isinstance(cfg, Settings) and cfg.dropout_at == "classifier"
        dropped = {"classifier_factors": batch.drop} if at_classifier else {"perturb": scaled(batch.drop)}
    pred_s = student(torch.cat([view.img for view in views]), **dropped)
    loss_x = labeled_loss(pred_x, batch.mask_x, cfg.criterion)
    pairs = zip(pred_s.chunk(len(views)), views, strict=True)
    losses = [unlabeled_loss(pred, view.pseudo, view.conf, view.ignore, cfg.conf_thresh) for pred, view in pairs]
    loss_s = torch.stack(losses).mean()
    return semi_loss(loss_x, loss_s, cfg.lossu_weight, mask_ratio(conf, batch.ignore_u, cfg.conf_thresh))


def _draw(images: int, channels: tuple[int, ...], generator: torch.Generator, cfg: Settings) -> Tensor:
    """Feature dropout: factors (B, C) for view 1, then, where there are two, as many for view 2; none without dropout."""
    if cfg.dropout == "none":
        return torch.empty(0)
    width = factor_width(channels) if cfg.dropout_at == "encoder" else get_encoder(cfg.backbone).fusion
    if cfg.dropout == "independent":
        return channel_factors(cfg.strong_views * images, width, generator)
    return complementary_factors(images, width, generator)[: cfg.strong_views * images]


def _reads(cfg: Config) -> Reads:
    return Reads(strong_views=cfg.strong_views) if isinstance(cfg, Settings) else Reads()


METHOD = Method("unimatch_v2", step, SEMI_LABELS, reads_of=_reads, draw=_draw, config=Settings, title="UniMatch V2")


def main(argv: list[str]) -> None:
    train(METHOD, argv, __doc__)


if __name__ == "__main__":
    run(main)
