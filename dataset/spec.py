"""The facts about each data set: one DatasetSpec per data set (METHOD.md 2.4)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dataset.lists import Entry
from util.error import UserError

IGNORE = 255  # ignore label inside the program, whatever the files have
DATE_FOLDERS, LABEL_FOLDER = ("A", "B"), "label"  # folders of a change detection set


@dataclass(frozen=True)
class DatasetSpec:
    """Facts about a data set that do not depend on a run.

    classes: names in id order; their number is the number of the model's output channels.
    palette: RGB colour of each class, for palette PNGs and overlays.
    ignore_index: mask value that is neither learned from nor scored.
    label_map: {mask value on disk: class id, or IGNORE}; empty when the masks already hold class ids.
    colors: the masks are in colour; a value is then 0xRRGGBB, and every one that occurs is in label_map.
    task: "segmentation" (a list line is `image mask`) or "change" (a list line is one name, found in DATE_FOLDERS and LABEL_FOLDER).
    eval_mode: "original" (whole image) or "sliding_window".
    supervised_length: number of images to which an epoch of supervised training repeats a shorter labelled list (change detection:
        or cuts a longer one); 0 leaves it.
    scale: range of the random scale of the long side, or of the frame.
    frame: sides of a frame that training images are fitted into, as mmsegmentation does; those to be predicted get its short side. None:
        training images keep their own size, times the scale, and those to be predicted as they are.
    grey: probability of greyscale in a strong view.
    image_size: height and width of a typical validation image in pixels; None where they are not known.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int = 255
    label_map: Mapping[int, int] = field(default_factory=dict)
    colors: bool = False
    task: str = "segmentation"
    eval_mode: str = "original"
    supervised_length: int = 0
    scale: tuple[float, float] = (0.5, 2.0)
    frame: tuple[int, int] | None = None
    grey: float = 0.2
    image_size: tuple[int, int] | None = None

    @property
    def nclass(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def bitemporal(self) -> bool:
        """Whether a sample is a pair of dates, and the task to find what has changed between them."""
        return self.task == "change"

    @property
    def dates(self) -> int:
        """The number of images of one area, concatenated along the channels."""
        return 2 if self.bitemporal else 1

    @property
    def date_names(self) -> tuple[str, ...]:
        """What pictures call the images of a sample."""
        return ("A: before", "B: after") if self.bitemporal else ("image",)

    @property
    def noun(self) -> str:
        """What a sample is called."""
        return "pair" if self.bitemporal else "image"

    @property
    def first_scored(self) -> int:
        """The first class that an image's own score looks at: in change detection the changed class alone counts."""
        return 1 if self.bitemporal else 0

    @cached_property
    def label_table(self) -> np.ndarray:
        """The table mask value -> class id, int16, 256 or longer: IGNORE for ignored, -1 for illegal values. Not for masks in colour."""
        legal = self.label_map or {i: i for i in range(self.nclass)}
        table = np.full(max(255, self.ignore_index, *legal) + 1, -1, dtype=np.int16)
        if self.ignore_index not in self.label_map:
            table[self.ignore_index] = IGNORE
        for value, label in legal.items():
            table[value] = label
        return table

    @property
    def legal(self) -> str:
        """The mask values that may occur, as messages show them."""
        ignored = f"{self.ignore_index} (ignored)"
        if not self.label_map:
            return f"0..{self.nclass - 1} or {ignored}"
        named = [
            f"{self.shown(v)} ({'ignored' if label == IGNORE else self.classes[label]})" for v, label in sorted(self.label_map.items())
        ]
        listed = ", ".join(named if len(named) <= 8 else [*named[:8], "..."])
        return listed if self.colors or self.ignore_index in self.label_map else f"{listed} or {ignored}"

    def shown(self, value: int) -> str:
        """A mask value as messages show it."""
        return f"#{value:06x}" if self.colors else str(value)

    def files(self, entry: Entry) -> tuple[tuple[str, ...], str | None]:
        """The paths of a list's line below the data root: of its image, or of both dates, and of its mask (None where it names none).

        A pair has the path of its label always; the file of an unlabelled one may be missing.
        """
        if self.bitemporal:
            return tuple(f"{date}/{entry.image}" for date in DATE_FOLDERS), f"{LABEL_FOLDER}/{entry.image}"
        return (entry.image,), entry.mask

    def list_path(self, split: str, name: str) -> str:
        """The path of a list below the project: `split` is "1_8" and so on, `name` is "labeled" or "unlabeled"."""
        return f"splits/{self.name}/{split}/{name}.txt"

    @property
    def val_list(self) -> str:
        """The list that the published numbers are measured on (METHOD.md 4); for change detection the test list."""
        return self.test_list if self.bitemporal else f"splits/{self.name}/val.txt"

    @property
    def test_list(self) -> str:
        """The list for the final score of a model that another list selected. Not every data set has one."""
        return f"splits/{self.name}/test.txt"


def bit_palette(n: int) -> tuple[tuple[int, int, int], ...]:
    """The Pascal VOC colour map for n classes: the bits of the class id, three at a time, become the high bits of R, G, B."""
    return tuple(
        (
            sum(((i >> (3 * k + 0)) & 1) << (7 - k) for k in range(3)),
            sum(((i >> (3 * k + 1)) & 1) << (7 - k) for k in range(3)),
            sum(((i >> (3 * k + 2)) & 1) << (7 - k) for k in range(3)),
        )
        for i in range(n)
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


_PASCAL = _names("""background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse,
    motorbike, person, potted plant, sheep, sofa, train, tv/monitor""")

_CITYSCAPES = _names("""road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person,
    rider, car, truck, bus, train, motorcycle, bicycle""")
_CITYSCAPES_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip

_ADE20K = _names("""wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat, fence,
    desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
    skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway, river,
    bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer,
    swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
    television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van,
    ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike,
    cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture,
    hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass,
    clock, flag""")

_COCO = _names("""void, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
    suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,
    wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair,
    couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
    refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush""")

_CAMVID = _names("sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist")
_CAMVID_PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip

_DEMO = _names("background, disc, square, triangle, ring, cross")
CHANGE: dict[str, Any] = {  # what all data sets of change detection share
    "classes": ("unchanged", "changed"),
    "palette": ((0, 0, 0), (255, 255, 255)),
    "label_map": {0: 0, 255: 1},
    "task": "change",
    "scale": (0.8, 1.2),
    "grey": 0.0,
}

SPECS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec("pascal", _PASCAL, bit_palette(21), supervised_length=3000, image_size=(375, 500)),
        DatasetSpec(
            "cityscapes", _CITYSCAPES, _CITYSCAPES_PALETTE, eval_mode="sliding_window", supervised_length=3000, image_size=(1024, 2048)
        ),
        DatasetSpec("ade20k", _ADE20K, bit_palette(150), supervised_length=6000, image_size=(512, 683)),
        DatasetSpec("coco", _COCO, bit_palette(81), supervised_length=30000, image_size=(480, 640)),
        DatasetSpec("levir", supervised_length=3000, image_size=(256, 256), **CHANGE),
        DatasetSpec("whu", supervised_length=3000, image_size=(256, 256), **CHANGE),
        # camvid and the demos: a supervised epoch then sees as many labelled images as a semi-supervised one
        DatasetSpec("camvid", _CAMVID, _CAMVID_PALETTE, supervised_length=367, image_size=(360, 480)),
        # a random encoder learns one range of sizes sooner than two octaves of them
        DatasetSpec("demo", _DEMO, bit_palette(6), supervised_length=480, scale=(0.75, 1.5)),
        DatasetSpec("demo_change", supervised_length=240, **CHANGE),
    )
}


def get_spec(name: str) -> DatasetSpec:
    """The DatasetSpec of a data set's name. Raises UserError for an unknown name."""
    if name not in SPECS:
        raise UserError(f"dataset: found {name!r}, expected one of {', '.join(SPECS)}, or `classes` beside it for a data set of your own")
    return SPECS[name]
