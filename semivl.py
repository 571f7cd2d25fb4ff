"""SemiVL: UniMatch V1's step on CLIP with a decoder guided by the classes' names, and a frozen CLIP that labels besides, with a weight that
falls to 0 (METHOD.md 3.3, arXiv:2311.16241).

    python -m model.pretrained clip_base --from ViT-B-16.pt
    python -m model.text --config configs/semivl/pascal.yaml
    python semivl.py --config configs/semivl/pascal.yaml --labeled-id-path splits/pascal/92/labeled.txt \\
        --unlabeled-id-path splits/pascal/92/unlabeled.txt --save-path exp/pascal/semivl
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.batch import Batch, Reads
from dataset.custom import spec_of
from engine.method import Method
from engine.trainer import train
from model.dropout import channel_factors, clean_and_scaled
from model.guide import GUIDE_GRID, Guide
from model.loss import IGNORE, labeled_loss, mask_ratio, unlabeled_loss
from model.pseudo import Mixed, cutmix, labels_of, pseudo_label_in_eval_mode
from model.segmenter import Segmenter
from model.semseg.vlm import VLM, make_clip, pretrained_clip
from model.text import read_text, text_path
from model.weights import default_path
from util.config import Config, key
from util.error import UserError, run

LABELS = {
    "loss_all": "Total loss", "loss_x": "Loss x", "loss_s1": "Loss s1", "loss_s2": "Loss s2", "loss_fp": "Loss fp",
    "loss_mc_s1": "Loss mc_s1", "loss_mc_s2": "Loss mc_s2", "loss_mc_fp": "Loss mc_fp", "mask_ratio": "Mask ratio",
}  # fmt: skip


@dataclass(frozen=True)
class Settings(Config):
    """The keys that SemiVL adds to a config."""

    # what pseudo labels count: pixelwise (1 from conf_thresh on) | pixelavg (the mean confidence of the image)
    conf_mode: str = key("pixelwise", choices=("pixelwise", "pixelavg"))
    guidance_weight: float = key(0.1)  # of the frozen CLIP's labels at the start
    guidance_thresh: float = key(0.9, most=1)  # its labels count from this confidence on
    guidance_text: str | None = key(None)  # embeddings of the concepts that it labels by; null: those of `text`


class Teacher(nn.Module):
    """Who labels: the student without wrappers, and a frozen CLIP, which no checkpoint holds."""

    def __init__(self, student: Segmenter, guide: Guide) -> None:
        super().__init__()
        self.student, self.guide = student, guide


def step(student: nn.Module, teacher: Teacher, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of a SemiVL mini-batch, and what the log shows of it: detached scalars by their names."""
    second = batch.second
    assert second is not None
    assert isinstance(cfg, Settings)
    pasted = (*pseudo_label_in_eval_mode(teacher.student, second.img_u_w), second.ignore_u)
    guided = teacher.guide(torch.cat((batch.img_u_w, second.img_u_w)), cfg.guidance_thresh)
    guide, guide_second = guided.masked_fill(torch.cat((batch.ignore_u, second.ignore_u)) == IGNORE, IGNORE).chunk(2)
    preds = student(torch.cat((batch.img_x, batch.img_u_w)), clean_and_scaled(batch.drop))
    pred_x, pred_w, _, pred_fp = preds.split((len(batch.img_x), len(batch.img_u_w)) * 2)
    pseudo, conf = labels_of(pred_w)
    view1 = cutmix(batch.img_u_s1, pseudo, conf, batch.ignore_u, batch.box1, (second.img_u_s1, *pasted))
    view2 = cutmix(batch.img_u_s2, pseudo, conf, batch.ignore_u, batch.box2, (second.img_u_s2, *pasted))
    pred_s1, pred_s2 = student(torch.cat((view1.img, view2.img))).chunk(2)

    loss_x = labeled_loss(pred_x, batch.mask_x, cfg.criterion)
    weak = Mixed(batch.img_u_w, pseudo, conf, batch.ignore_u)
    loss_s1, loss_s2, loss_fp = (_pseudo_loss(pred, view, cfg) for pred, view in ((pred_s1, view1), (pred_s2, view2), (pred_fp, weak)))
    mc_s1 = guidance_loss(pred_s1, torch.where(batch.box1.bool(), guide_second, guide))
    mc_s2 = guidance_loss(pred_s2, torch.where(batch.box2.bool(), guide_second, guide))
    mc_fp = guidance_loss(pred_fp, guide)
    loss_u = (loss_s1 + loss_s2) / 4 + loss_fp / 2
    loss = (loss_x + cfg.lossu_weight * loss_u) / (1 + cfg.lossu_weight)
    loss = loss + cfg.guidance_weight * (1 - batch.progress) * ((mc_s1 + mc_s2) / 4 + mc_fp / 2)
    stats = {"loss_all": loss, "loss_x": loss_x, "loss_s1": loss_s1, "loss_s2": loss_s2, "loss_fp": loss_fp}
    stats |= {"loss_mc_s1": mc_s1, "loss_mc_s2": mc_s2, "loss_mc_fp": mc_fp}
    stats["mask_ratio"] = mask_ratio(conf, batch.ignore_u, cfg.conf_thresh)
    return loss, {name: value.detach() for name, value in stats.items()}


def _pseudo_loss(pred: Tensor, view: Mixed, cfg: Settings) -> Tensor:
    """The loss of logits (B, K, H, W) against the pseudo labels of a view."""
    if cfg.conf_mode == "pixelavg":
        return confidence_weighted_loss(pred, view.pseudo, view.conf, view.ignore)
    return unlabeled_loss(pred, view.pseudo, view.conf, view.ignore, cfg.conf_thresh)


def confidence_weighted_loss(pred: Tensor, pseudo: Tensor, conf: Tensor, ignore: Tensor) -> Tensor:
    """`pixelavg`: cross-entropy against pseudo labels, times the mean confidence. Arguments as those of `unlabeled_loss`.

    As published, cross-entropy is summed over padding too, the confidences of the images are added up, and the quotient counts the pixels
    that are not padding: a mini-batch of B images has B times the weight.
    """
    valid = ignore != IGNORE
    image_conf = (conf * valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
    return F.cross_entropy(pred, pseudo, reduction="none").sum() * image_conf.sum() / valid.sum().clamp(min=1)


def guidance_loss(pred: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy where the guide is confident, divided by the number of all pixels. label: (B, H, W), 255 where it is not."""
    return F.cross_entropy(pred, label, ignore_index=IGNORE, reduction="none").sum() / label.numel()


def _draw(images: int, channels: tuple[int, ...], generator: torch.Generator, cfg: Config) -> Tensor:
    """Feature dropout of labelled and unlabelled images: factors (2B, the sum of the maps' channels)."""
    return channel_factors(2 * images, sum(channels), generator)


def add_guide(student: Segmenter, cfg: Settings, hollow: bool = False) -> Teacher:
    """The student with a guide beside it, from the encoder's weights file and the text embeddings. Raises UserError.

    hollow: the files are not read; only shapes are asked for.
    """
    if not isinstance(student, VLM):
        raise UserError(f"model: found {cfg.model}, expected vlm, for semivl labels by the classes' names; correct the config")
    if student.bitemporal:
        raise UserError(f"dataset: found {cfg.dataset}, of change detection, expected single images, which semivl's guide labels")
    if hollow:
        text, classes = torch.zeros(student.nclass, student.backbone.channels[-1]), list(range(student.nclass))
    else:
        file = read_text(cfg.guidance_text or text_path(cfg), spec_of(cfg).classes, cfg.config, cfg.pretrained is None)
        text, classes = file.embeddings, file.index
    if hollow or cfg.pretrained is None:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(cfg.seed)  # the same guide after a resume
            encoder = make_clip(cfg.backbone, skips=(), grid=GUIDE_GRID)
    else:
        path = default_path(cfg.backbone) if cfg.pretrained == "auto" else cfg.pretrained
        encoder = pretrained_clip(cfg.backbone, path, GUIDE_GRID, skips=())
    guide = Guide(encoder, text, classes, student.renorm_clip_img)
    return Teacher(student, guide if hollow else guide.to(next(student.parameters()).device))


METHOD = Method(
    "semivl",
    step,
    LABELS,
    teacher="student",
    reads=Reads(cut_labeled=True, second_draw=True),
    draw=_draw,
    guided=add_guide,
    config=Settings,
    title="SemiVL",
)


def main(argv: list[str]) -> None:
    train(METHOD, argv, __doc__)


if __name__ == "__main__":
    run(main)
