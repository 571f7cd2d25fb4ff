"""The frozen CLIP that labels pixels for SemiVL, beside the model that is trained (METHOD.md 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone.clip import CLIP
from model.loss import IGNORE
from model.semseg.vlm import renormalized, resize

GUIDE_GRID = 32  # patches per side that the guide's positions are made for, whatever the crop


class Guide(nn.Module):
    """A frozen CLIP that labels each pixel with the class of the most similar concept.

    text: embeddings (R, 512) of concepts. classes: the class of each concept, ids 0 to K - 1, each of which has one or more.
    """

    text: Tensor

    def __init__(self, encoder: CLIP, text: Tensor, classes: Sequence[int], renorm_clip_img: bool = False) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.renorm_clip_img = renorm_clip_img
        self.counts = [list(classes).count(k) for k in range(max(classes) + 1)]
        by_class = sorted(range(len(classes)), key=lambda row: classes[row])
        self.register_buffer("text", F.normalize(text[by_class], dim=1))

    @torch.no_grad()
    def forward(self, img: Tensor, thresh: float) -> Tensor:
        """Class ids (B, H, W) of images (B, 3, H, W), 255 where the confidence is below `thresh`.

        The similarity of a class to a pixel is that of the most similar of its concepts. Similarities, resized to the image, become
        probabilities by the softmax of a hundred times their values, as CLIP was trained.
        """
        dense = self.encoder(renormalized(img) if self.renorm_clip_img else img)[-1]
        with torch.autocast(img.device.type, enabled=False):  # times a hundred, 16 bits would not do
            similarity = torch.einsum("bchw,rc->brhw", dense.to(self.text.dtype), self.text)
        similarity = torch.stack([own.amax(dim=1) for own in similarity.split(self.counts, dim=1)], dim=1)
        conf, label = (100 * resize(similarity, img.shape[-2:])).softmax(dim=1).max(dim=1)
        return label.masked_fill(conf < thresh, IGNORE)
