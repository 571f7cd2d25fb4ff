"""The losses of UniMatch V1's program a second time: plain PyTorch, read against METHOD.md 3.2, not against the methods."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Maps = list[Tensor]


@dataclass
class Settings:
    method: str  # unimatch_v1 | fixmatch | supervised
    conf_thresh: float
    ohem: tuple[float, int] | None = None  # thresh, min_kept


def labeled(pred: Tensor, mask: Tensor, ohem: tuple[float, int] | None) -> Tensor:
    """Mean cross-entropy of the pixels that are not 255; OHEM: of those whose true class is at most as probable as the bound."""
    valid = mask != 255
    losses = F.cross_entropy(pred, mask, ignore_index=255, reduction="none")
    if ohem is not None and int(valid.sum()) >= ohem[1]:
        true = torch.where(valid, (-losses.detach()).exp(), torch.ones_like(losses))
        bound = max(ohem[0], float(true.flatten().sort().values[ohem[1] - 1]))
        valid = valid & (true <= bound)
    return losses[valid].mean()


def unlabeled(pred: Tensor, label: Tensor, conf: Tensor, ignore: Tensor, thresh: float) -> Tensor:
    seen = ignore != 255
    losses = F.cross_entropy(pred, label, reduction="none")
    return losses[seen & (conf >= thresh)].sum() / seen.sum()


def clean_and_dropped(inputs: ModuleType, call: int) -> Callable[[Maps], Maps]:
    """Draws `call` and `call + 1`, one for each map."""

    def perturb(maps: Maps) -> Maps:
        draws = [inputs.feature_draw(call + i, len(x), x.shape[1]) for i, x in enumerate(maps)]
        return [torch.cat((x, x * (2 * draw)[:, :, None, None])) for x, draw in zip(maps, draws, strict=True)]

    return perturb


def losses(model: nn.Module, inputs: ModuleType, it: int, s: Settings) -> dict[str, Tensor]:
    (img_x, mask_x), (w, s1, s2, ignore, box1, box2), (w_mix, s1_mix, s2_mix, ignore_mix) = inputs.v1_batch(it)
    if s.method == "supervised":  # its batch is not doubled by the program, but by hand
        (more_x, more_mask), _, _ = inputs.v1_batch(100 + it)
        loss = labeled(model.train()(torch.cat((img_x, more_x))), torch.cat((mask_x, more_mask)), s.ohem)
        return {"loss_all": loss, "loss_x": loss}
    n = len(img_x)
    with torch.no_grad():
        conf_mix, label_mix = model.eval()(w_mix).softmax(1).max(1)
    views = [(s1, s1_mix, box1), (s2, s2_mix, box2)][: 1 if s.method == "fixmatch" else 2]
    strong = torch.cat([torch.where(box[:, None] == 1, other, img) for img, other, box in views])
    model.train()
    if s.method == "fixmatch":
        pred_x, pred_w = model(torch.cat((img_x, w))).split(n)
        fp = []
    else:
        pred_x, pred_w, _, pred_fp = model(torch.cat((img_x, w)), clean_and_dropped(inputs, 2 * it)).split(n)
        fp = [pred_fp]
    pred_strong = model(strong).split(n)
    conf, label = pred_w.detach().softmax(1).max(1)
    each = []
    for pred, (_, _, box) in zip(pred_strong, views, strict=True):
        inside = box == 1
        target = [torch.where(inside, b, a) for a, b in ((label, label_mix), (conf, conf_mix), (ignore, ignore_mix))]
        each.append(unlabeled(pred, target[0], target[1], target[2], s.conf_thresh))
    out = {"loss_x": labeled(pred_x, mask_x, s.ohem), "loss_s": sum(each, torch.zeros(())) / len(each)}
    out["loss_all"] = (out["loss_x"] + out["loss_s"]) / 2
    if fp:
        out["loss_w_fp"] = unlabeled(fp[0], label, conf, ignore, s.conf_thresh)
        out["loss_all"] = (out["loss_x"] + 0.5 * out["loss_s"] + 0.5 * out["loss_w_fp"]) / 2
    seen = ignore != 255
    out["mask_ratio"] = ((conf >= s.conf_thresh) & seen).sum() / seen.sum()
    return out
