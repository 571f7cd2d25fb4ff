"""Pictures of training samples: labelled crops with their masks, and the weak, strong and CutMixed views of unlabelled ones.

Training writes them of its first step to TensorBoard; `python -m dataset.preview` (scripts/preview.py) makes them before a run.
"""

import logging
import runpy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dataset import picture
from dataset.batch import Batch, Reads, denormalize, make_batch
from dataset.custom import spec_of
from dataset.loader import training_loader, training_sources
from dataset.semi import batches, tensor_images
from dataset.spec import IGNORE, DatasetSpec
from model.encoder import Encoder
from model.pseudo import cutmix
from util.config import Config
from util.dist import World

SIDE = 320  # pixels of a panel: larger crops are shown smaller, far smaller ones larger
IGNORED = (picture.STRIPES, "ignored: void or padding")
PADDING = (picture.STRIPES, "ignored: padding")
PASTED = (picture.OUTLINE, 'CutMix: what is inside the box comes from the image named "box of ..." above it, its ignored pixels too')


def sheets(mini_batches: Sequence[Batch], spec: DatasetSpec, encoder: Encoder, count: int | None = None) -> dict[str, Image.Image]:
    """Pictures of the first `count` samples (None: all) of mini-batches: "labeled" and, semi-supervised, "unlabeled"."""
    rows = [row for batch in mini_batches for row in _labeled_rows(batch, spec, encoder)][:count]
    masks = torch.cat([batch.mask_x for batch in mini_batches])[:count].cpu().numpy().astype(np.uint8)
    more = [IGNORED] if (masks == IGNORE).any() else []
    out = {"labeled": picture.stack([*rows, picture.legend(masks, spec, rows[0].width, shares=False, more=more)])}
    rows = [row for batch in mini_batches if len(batch.img_u_w) for row in _unlabeled_rows(batch, spec, encoder)][:count]
    if not rows:
        return out
    more = [PADDING] if any((batch.ignore_u == IGNORE).any() for batch in mini_batches) else []
    more += [PASTED] if any(box.any() for batch in mini_batches for box in (batch.box1, batch.box2)) else []
    key = [picture.legend(np.empty(0, np.uint8), spec, rows[0].width, more=more)] if more else []
    return out | {"unlabeled": picture.stack([*rows, *key])}


def _labeled_rows(batch: Batch, spec: DatasetSpec, encoder: Encoder) -> Iterator[Image.Image]:
    for img, mask, name in zip(batch.img_x, batch.mask_x, batch.name_x, strict=True):
        dates, ids = _dates(img, encoder), mask.cpu().numpy().astype(np.uint8)
        ignored = ids == IGNORE
        over = [picture.tint(date, ids, spec, all_classes=not spec.bitemporal) for date in dates]
        # what is ignored and black: padding, or a border of the photograph that looks like it
        padding = ignored & ~np.any([np.asarray(date).any(2) for date in dates], 0)
        panels = [_panel(dates, padding), _panel([picture.paint(ids, spec)] * len(dates), ignored), _panel(over, ignored)]
        yield _row(panels, (" above ".join(spec.date_names), "mask", "mask over image"), name)


def _unlabeled_rows(batch: Batch, spec: DatasetSpec, encoder: Encoder) -> Iterator[Image.Image]:
    """The views of each unlabelled image, those after CutMix with the boxes and the mixed ignore map."""
    absent = torch.zeros_like(batch.ignore_u)
    strong = [(img, box) for img, box in ((batch.img_u_s1, batch.box1), (batch.img_u_s2, batch.box2)) if len(img)]
    titles = [f"strong view {i}" for i in range(1, len(strong) + 1)]
    weak = f"weak view, {' above '.join(spec.date_names)}" if spec.bitemporal else "weak view"
    views = [(img, batch.ignore_u, absent) for img in (batch.img_u_w, *(img for img, _ in strong))]
    for img, box in strong:
        mixed = cutmix(img, absent, absent, batch.ignore_u, box)
        views.append((mixed.img, mixed.ignore, box))
    for i, name in enumerate(batch.name_u):
        panels = [_panel(_dates(img[i], encoder), ignore[i].cpu().numpy() == IGNORE, box[i]) for img, ignore, box in views]
        boxes = [bool(box[i].any()) for _, box in strong]
        mixed_titles = [f"CutMixed {k}" + ("" if boxed else ", no box") for k, boxed in enumerate(boxes, 1)]
        yield _row(panels, (weak, *titles, *mixed_titles), name, *([f"box of {batch.name_u[-1 - i]}"] if any(boxes) else []))


def _row(panels: Sequence[Image.Image], titles: Sequence[str], *heads: str) -> Image.Image:
    """The panels below their titles, and these below the heads, which have the row's width between them."""
    shown = picture.row(panels, titles)
    return picture.stack([picture.row([picture.caption(head, shown.width // len(heads) - picture.GAP) for head in heads]), shown])


def _dates(img: Tensor, encoder: Encoder) -> list[Image.Image]:
    """A normalised (C, S, S) tensor as its image, or as its two dates."""
    return tensor_images(denormalize(img, encoder).cpu())


def _panel(dates: Sequence[Image.Image], ignored: np.ndarray | None = None, box: Tensor | None = None) -> Image.Image:
    """The dates one above the other, striped where ignored, with the outline of a box (S, S), at the size of a panel."""
    shown = []
    for date in dates:
        shown.append(_sized(date if ignored is None else picture.strike(date, ignored), box))
    return picture.stack(shown)


def _sized(date: Image.Image, box: Tensor | None) -> Image.Image:
    size = date.width
    scale = SIDE / size if size > SIDE else max(1, SIDE // size)
    image = date.resize((int(size * scale),) * 2, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    if box is not None and box.any():
        ys, xs = (torch.nonzero(box.any(dim)).flatten() for dim in (1, 0))
        corners = [float(edge) * scale for edge in (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)]
        ImageDraw.Draw(image).rectangle((corners[0], corners[1], corners[2] - 1, corners[3] - 1), outline=picture.BOX, width=2)
    return image


def first_mini_batches(cfg: Config, reads: Reads, encoder: Encoder, count: int) -> tuple[list[Batch], DatasetSpec]:
    """The mini-batches that hold the first `count` samples of each kind of a run that reads this."""
    cfg, spec = replace(cfg, num_workers=0), spec_of(cfg)
    sources = training_sources(cfg, spec, reads.unlabeled > 0)
    sampler, loader = training_loader(cfg, spec, sources, reads, World(), logging.getLogger(__name__))
    sampler.set_epoch(0)
    out: list[Batch] = []
    for raw in batches(loader):
        out.append(make_batch(raw, torch.device("cpu"), encoder))
        if sum(len(batch.img_x) for batch in out) >= count and (not reads.unlabeled or sum(len(batch.img_u_w) for batch in out) >= count):
            break
    return out, spec


if __name__ == "__main__":
    runpy.run_module("scripts.preview", run_name="__main__", alter_sys=True)
