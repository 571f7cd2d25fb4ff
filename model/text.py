"""Embeddings of texts, from which a language-guided model knows its classes (METHOD.md 1.8).

`python -m model.text --config C` makes them (scripts/text.py).
"""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.backbone.clip import EMBED
from model.segmenter import Segmenter
from model.semseg.vlm import VLM
from util import checkpoint
from util.config import Config
from util.error import UserError

HOW = "make it with python -m model.text --config {config} --out {path}"


@dataclass(frozen=True)
class Text:
    """Embeddings of concepts, of which each class has one or more, often only its name.

    classes: their names in id order. names: of the concepts. index: the class id of each concept. embeddings: (R, 512) float32 as the text
    encoder makes them, not normalised. prompt: the sentence that each name stands in at {}. source: the encoder.
    """

    classes: list[str]
    names: list[str]
    index: list[int]
    embeddings: Tensor
    prompt: str
    source: str

    def of_classes(self) -> Tensor:
        """The embedding of each class (K, 512): the mean of those of its concepts, normalised to length 1."""
        ids = torch.tensor(self.index)
        return F.normalize(torch.stack([self.embeddings[ids == k].mean(dim=0) for k in range(len(self.classes))]), dim=1)

    def save(self, path: Path) -> None:
        checkpoint.save(asdict(self), path)


def text_path(cfg: Config) -> Path:
    """The path of the embeddings of the data set's class names."""
    return Path(cfg.text or f"pretrained/text_{cfg.dataset}.pth")


def read_text(path: str | Path, classes: Sequence[str], config: str, random: bool = False) -> Text:
    """The embeddings of a file for a data set with these classes. Raises UserError where there is none or it is for other classes.

    random: whether the run starts from random weights and needs no texts of a trained CLIP; the error's advice is then to draw some.
    """
    how = HOW.format(config=config or "CONFIG", path=path) + (" --random" if random else "")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of text embeddings, which model vlm needs; {how}")
    state = checkpoint.load(path)
    try:
        text = Text(**state)
        rows = len(text.names)
        fits = text.embeddings.shape == (rows, EMBED) and len(text.index) == rows and set(text.index) == set(range(len(text.classes)))
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a file of text embeddings, found {', '.join(map(str, state))}; {how}") from error
    if not fits or not bool(text.embeddings.isfinite().all()):
        raise UserError(f"{path}: its embeddings do not fit its names; {how}")
    for i, (found, expected) in enumerate(zip(text.classes, classes, strict=False)):
        if found != expected:
            raise UserError(f"{path}: its class {i} is {found!r}, expected {expected!r} as in the data set; {how}")
    if len(text.classes) != len(classes):
        raise UserError(f"{path}: has {len(text.classes)} classes, expected the {len(classes)} of the data set; {how}")
    return text


def give_text_(model: Segmenter, cfg: Config, classes: Sequence[str]) -> None:
    """Gives a language-guided model the embeddings of the data set's class names; other models need none. Raises UserError."""
    if isinstance(model, VLM):
        model.set_text_(read_text(text_path(cfg), classes, cfg.config, cfg.pretrained is None).of_classes())


def reserve_text_(model: Segmenter) -> None:
    """Gives a language-guided model room for the embeddings that a checkpoint will bring."""
    if isinstance(model, VLM):
        model.set_text_(torch.zeros(model.nclass, EMBED))


if __name__ == "__main__":
    runpy.run_module("scripts.text", run_name="__main__", alter_sys=True)
