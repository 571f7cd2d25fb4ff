"""Change detection model: two dates, one encoder, the same decoder on their difference (METHOD.md 1.4)."""

import torch
from torch import Tensor

from model.semseg.dpt import DPT


class ChangeDPT(DPT):
    """forward: (B, 6, H, W), date A in the first three channels and date B in the last -> logits (B, K, H, W)."""

    def encode(self, img: Tensor) -> list[Tensor]:
        maps = self.backbone(torch.cat((img[:, :3], img[:, 3:])))
        return [(a - b).abs() for a, b in (x.chunk(2) for x in maps)]
