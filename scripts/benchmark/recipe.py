"""What a run has to do, from its config and the lengths of its lists: steps, evaluations, images to read (METHOD.md 2.1 and 4)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dataset.custom import spec_of, unlabeled_places
from dataset.lists import read_lines
from dataset.sampler import epoch_steps, repeated_length
from dataset.spec import DatasetSpec
from dataset.splits.published import manifest
from engine.evaluation import nearest_multiple, window_starts
from scripts.benchmark.work import IMAGES, Part, meta_model, model_work, step_work
from util.config import Config
from util.error import UserError

# height, width of typical validation images in pixels; a data set that is not here counts with its crop
IMAGE_SIZES = {
    "pascal": (375, 500), "cityscapes": (1024, 2048), "ade20k": (512, 683), "coco": (480, 640), "levir": (256, 256), "whu": (256, 256),
    "camvid": (360, 480),
}  # fmt: skip
# seconds of one CPU core per million pixels (training-logs/PERFORMANCE.md): Pillow decodes an image and resizes it, at scales from 0.5 to
# 2; the crop's part is cut out for a GPU; Pillow makes two strong views of a crop
JPEG, PNG, RESIZE, CUT, VIEWS = 0.0065, 0.029, 0.011, 0.002, 0.075
PNG_SETS = {"cityscapes", "levir", "whu", "camvid"}


@dataclass(frozen=True)
class Lengths:
    """Images in the labelled, the unlabelled (0 for supervised) and the validation list."""

    labeled: int
    unlabeled: int
    val: int


@dataclass(frozen=True)
class Recipe:
    """A config with its method, the lengths of its lists and the (height, width) of its images in pixels."""

    cfg: Config
    spec: DatasetSpec
    method: str
    lengths: Lengths
    image: tuple[int, int]

    @property
    def semi(self) -> bool:
        return IMAGES[self.method][0] > 0

    @property
    def shards(self) -> int:
        return self.cfg.shards or 1

    @property
    def batch(self) -> int:
        """Labelled images of a shard's mini-batch; semi-supervised, as many unlabelled ones come with them."""
        return self.cfg.batch_size if self.semi else 2 * self.cfg.batch_size

    def steps(self, shards: int) -> int:
        """Optimiser steps of an epoch; 0 where the lists make no full mini-batch."""
        lists = self.lengths
        target = lists.unlabeled if self.semi else self.spec.supervised_length or lists.unlabeled
        length = repeated_length(lists.labeled, target, self.spec.task == "change")
        return epoch_steps([length, lists.unlabeled] if self.semi else [length], shards, self.batch)

    @property
    def evaluations(self) -> int:
        """Evaluations of a run: every `eval_every` epochs, and after the last one."""
        return -(-self.cfg.epochs // self.cfg.eval_every)

    @property
    def evaluated(self) -> int:
        """Images that go through a model in one evaluation: student and, semi-supervised, teacher."""
        return self.lengths.val * (2 if self.semi else 1)

    @property
    def sample_seconds(self) -> float:
        """Seconds of one core for a labelled image and, semi-supervised, the unlabelled one that comes with it."""
        read = 2 if self.semi else 1
        image, crop = self.image[0] * self.image[1], self.cfg.crop_size**2
        made = read * CUT * crop  # a GPU makes its images itself, unless `views` says otherwise
        if self.cfg.views == "worker":
            made = read * RESIZE * image + (VIEWS * crop if self.semi else 0.0)
        decode = PNG if self.cfg.dataset in PNG_SETS else JPEG
        return self.spec.dates * (read * decode * image + made) / 1e6

    @property
    def files(self) -> int:
        """Images that a shard reads for a step."""
        return self.batch * (2 if self.semi else 1) * self.spec.dates

    @cached_property
    def work(self) -> dict[Part, int]:
        """Operations of one shard's step."""
        return step_work(self.cfg, self.spec, self.method)

    @cached_property
    def evaluation_work(self) -> dict[Part, int]:
        """Operations of one evaluation."""
        height, width = self.image
        crop = self.cfg.crop_size
        windows = 1
        if (self.cfg.eval_mode or self.spec.eval_mode) == "sliding_window":
            windows = len(window_starts(height, crop)) * len(window_starts(width, crop))
            height, width = min(height, crop), min(width, crop)
        model = meta_model(self.cfg, self.spec)
        size = nearest_multiple(height, model.multiple), nearest_multiple(width, model.multiple)
        work = model_work(model, self.spec, *size)
        count = self.evaluated * windows
        return {Part("evaluation", layer, phase): count * amount for (layer, phase), amount in work.items() if phase == "forward"}


def list_length(path: str) -> int:
    """Lines of a list: of the file where it is here, else as published. Raises UserError for a list that is neither."""
    if Path(path).is_file():
        return len(read_lines(path))
    known = {str(one.local): one.lines for lists in manifest().values() for one in lists}
    if known.get(path):
        return known[path]
    parts = Path(path).parts
    train = known.get("/".join((*parts[:2], "all", "train.txt")), 0)
    if path in known and parts[-1] == "unlabeled.txt" and train:  # a split's unlabelled images are all those that it has no labels of
        return train - list_length(str(Path(path).with_name("labeled.txt")))
    raise UserError(f"{path}: no such list, and none that is published; give its length with --labeled, --unlabeled or --val")


def find_lengths(cfg: Config, semi: bool, split: str | None, labeled: int | None, unlabeled: int | None, val: int | None) -> Lengths:
    """The lengths that are given, else those of the split's lists or of the config's. Raises UserError where there is none."""
    spec = spec_of(cfg)
    lists = {"labeled": [cfg.labeled_id_path], "unlabeled": [path for path, _ in unlabeled_places(cfg)] if cfg.unlabeled_id_path else [""]}
    if split is not None:
        lists = {name: [spec.list_path(split, name)] for name in lists}
    if not semi:  # of own data, the unlabelled lists that there are give the length of an epoch: dataset/loader.py, supervised
        lists["unlabeled"] = [] if spec.supervised_length else [path for path in lists["unlabeled"] if os.path.isfile(path)]
    counts = {"labeled": 0, "unlabeled": 0}
    for name, given in (("labeled", labeled), ("unlabeled", unlabeled)):
        if given is not None:
            counts[name] = given
        elif all(lists[name]):
            counts[name] = sum(map(list_length, lists[name]))
        else:
            splits = sorted({one.local.parts[2] for one in manifest().get(spec.name, []) if one.local.name == "labeled.txt"})
            known = f" (published: {', '.join(splits)})" if splits else ""
            raise UserError(
                f"--split: found none, and no {name} list in the config; give --split NAME{known}, or --labeled N --unlabeled N"
            )
    return Lengths(**counts, val=list_length(cfg.val_id_path or spec.val_list) if val is None else val)
