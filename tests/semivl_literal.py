"""SemiVL's losses a second time: plain loops over images, read against METHOD.md 3.3, not against the method."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.batch import Batch

Maps = list[Tensor]


def dropped(factors: Tensor) -> Callable[[Maps], Maps]:
    """Clean maps, then dropped ones."""

    def perturb(maps: Maps) -> Maps:
        out, start = [], 0
        for x in maps:
            own = factors[:, start : start + x.shape[1]]
            out.append(torch.cat((x, x * own[:, :, None, None])))
            start += x.shape[1]
        return out

    return perturb


def ce(pred: Tensor, label: Tensor) -> Tensor:
    """Of each pixel (B, H, W), 0 where the label is 255."""
    log = pred.log_softmax(1)
    seen = label != 255
    return -log.gather(1, torch.where(seen, label, 0)[:, None])[:, 0] * seen


def pseudo(pred: Tensor, label: Tensor, conf: Tensor, ignore: Tensor, mode: str, thresh: float) -> Tensor:
    losses, valid = ce(pred, label), ignore != 255
    if mode == "pixelwise":
        return losses[valid & (conf >= thresh)].sum() / valid.sum()
    means = [conf[i][valid[i]].mean() for i in range(len(conf))]
    return losses.sum() * sum(means, torch.zeros(())) / valid.sum()


def losses(
    model: Any, guide: Any, batch: Batch, mode: str, thresh: float, guidance: tuple[float, float], progress: float
) -> dict[str, Tensor]:
    other = batch.second
    assert other is not None
    n = len(batch.img_u_w)
    with torch.no_grad():
        conf_o, label_o = model.eval()(other.img_u_w).softmax(1).max(1)
        guides = []
        for view in (batch, other):
            found = guide(view.img_u_w, guidance[1])
            guides.append(torch.where(view.ignore_u == 255, 255, found))
    model.train()
    pred_x, pred_w, _, pred_fp = model(torch.cat((batch.img_x, batch.img_u_w)), dropped(batch.drop)).split(n)
    conf, label = pred_w.detach().softmax(1).max(1)
    views = [(batch.img_u_s1, other.img_u_s1, batch.box1), (batch.img_u_s2, other.img_u_s2, batch.box2)]
    preds = model(torch.cat([torch.where(box[:, None] == 1, b, a) for a, b, box in views])).split(n)
    out = {"loss_x": F.cross_entropy(pred_x, batch.mask_x, ignore_index=255)}
    for i, (pred, (_, _, box)) in enumerate(zip(preds, views, strict=True), 1):
        mixed = [
            torch.where(box == 1, b, a)
            for a, b in ((label, label_o), (conf, conf_o), (batch.ignore_u, other.ignore_u), (guides[0], guides[1]))
        ]
        out[f"loss_s{i}"] = pseudo(pred, mixed[0], mixed[1], mixed[2], mode, thresh)
        out[f"loss_mc_s{i}"] = ce(pred, mixed[3]).mean()
    out["loss_fp"] = pseudo(pred_fp, label, conf, batch.ignore_u, mode, thresh)
    out["loss_mc_fp"] = ce(pred_fp, guides[0]).mean()
    unlabeled = 0.25 * out["loss_s1"] + 0.25 * out["loss_s2"] + 0.5 * out["loss_fp"]
    guided = 0.25 * out["loss_mc_s1"] + 0.25 * out["loss_mc_s2"] + 0.5 * out["loss_mc_fp"]
    out["loss_all"] = (out["loss_x"] + unlabeled) / 2 + guidance[0] * (1 - progress) * guided
    valid = batch.ignore_u != 255
    out["mask_ratio"] = ((conf >= thresh) & valid).sum() / valid.sum()
    return out
