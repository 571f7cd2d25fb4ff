"""The method as plainly as it can be written, to compare speeds with: float32, eager, softmax(QK^T)V, losses read back every step.

Only the benchmark uses it. What it computes is the same (tests/scripts/benchmark); the literal data path is in data.py beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.batch import Batch
from engine.ema import ema_decay
from engine.evaluation import predict
from engine.method import Step
from engine.schedule import poly
from model.backbone.dinov2 import Attention
from model.segmenter import Segmenter
from util.config import Config


def _attend(self: Attention, x: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, heads, tokens, tokens)
    return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


def literal_model(model: Segmenter) -> Segmenter:
    """A copy of the model whose attention keeps the whole matrix of weights."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Attention):
            module.forward = MethodType(_attend, module)  # type: ignore[method-assign]
    return model


class LiteralLoop:
    """Student, EMA teacher and AdamW; `update` is one optimiser step of a method from one mini-batch on the host."""

    def __init__(self, cfg: Config, model: Segmenter, step: Step, total_steps: int, device: torch.device) -> None:
        self.cfg, self.step, self.total_steps, self.device, self.it = cfg, step, total_steps, device, 0
        self.student = literal_model(model).to(device).train()
        self.teacher = literal_model(self.student).eval().requires_grad_(False)
        encoder = list(self.student.backbone.parameters())
        groups = [{"params": encoder, "lr": cfg.lr}, {"params": list(self.student.head.parameters()), "lr": cfg.lr * cfg.lr_multi}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)

    def update(self, batch: Batch) -> dict[str, float]:
        """batch: images (B, C, S, S) float, normalised on the host. Returns the stats as numbers."""
        moved: dict[str, Any] = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in vars(batch).items()}
        labels_by = self.student if self.cfg.teacher == "student" else self.teacher
        loss, stats = self.step(self.student, labels_by, Batch(**moved), self.cfg)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        rate = poly(self.cfg.lr, self.it, self.total_steps)
        self.optimizer.param_groups[0]["lr"], self.optimizer.param_groups[1]["lr"] = rate, rate * self.cfg.lr_multi
        decay = ema_decay(self.it)
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                t.copy_(t * decay + s * (1 - decay))
        self.it += 1
        return {name: value.item() for name, value in stats.items()}


def literal_evaluation(
    models: Sequence[Segmenter], images: Iterable[tuple[Tensor, Tensor]], nclass: int, device: torch.device
) -> list[np.ndarray]:
    """IoU (K,) of each model: a pass over the images for each of them, and numpy's histograms of every image.

    images: (C, H, W) float, normalised, and class ids (H, W), 255 ignored; read again for each model.
    """
    scores = []
    for model in models:
        intersection, union = np.zeros(nclass), np.zeros(nclass)
        for img, mask in images:
            with torch.no_grad():
                pred = predict(model, img[None].to(device), "original", 0).argmax(dim=1)[0].cpu().numpy()
            true = mask.numpy()
            pred[true == 255] = 255
            both, of_pred, of_true = (np.histogram(ids, nclass, (0, nclass))[0] for ids in (pred[pred == true], pred, true))
            intersection += both
            union += of_pred + of_true - both
        scores.append(100 * intersection / (union + 1e-10))
    return scores
