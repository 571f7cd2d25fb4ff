"""Pictures for people: palette masks, overlays with a legend, rows of panels, confusion matrices. Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataset.spec import IGNORE, DatasetSpec
from util.files import write_atomic

UNTINTED = ("background", "void", "unchanged")  # classes that an overlay leaves as they are
CHANGED = (230, 30, 60)  # white, as in the mask, would not be seen on roofs and sand
BOX = (255, 40, 200)  # outline of a CutMix box
STRIPES, OUTLINE = "stripes", "outline"
Key = tuple[int | str, str]  # an entry of a legend: STRIPES, OUTLINE, or the class id (IGNORE too) whose colour it has; its text
GAP = 6
WHITE_FROM = 50  # percent of a cell of a confusion matrix; from here on white has a contrast of 4.5 on it, below it black has


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def save(image: Image.Image, path: Path) -> None:
    """Writes a picture in the format of its suffix, atomically."""
    kind = "JPEG" if path.suffix == ".jpg" else "PNG"
    write_atomic(path, lambda file: image.save(file, kind, quality=90), sync=False)


def palette_mask(ids: np.ndarray, spec: DatasetSpec) -> Image.Image:
    """Class ids (H, W) uint8 as a palette image whose values are those of the data set's own label files (change: 0 and 255).

    Where these have 16 bits or are in colour, which a palette image has not, the values are the class ids.
    """
    table = np.arange(256, dtype=np.uint8)
    palette = np.zeros((256, 3), np.uint8)
    palette[IGNORE] = 255
    own = not spec.colors and max(spec.label_map, default=0) <= 255
    values = {label: value for value, label in spec.label_map.items()} if own else {}
    for label, color in enumerate(spec.palette):
        table[label] = values.get(label, label)
        palette[table[label]] = color
    image = Image.fromarray(table[ids])
    image.putpalette(palette.tobytes())
    return image


def colors(spec: DatasetSpec) -> np.ndarray:
    """The colour of each class on a picture, uint8 (256, 3); grey where ignored."""
    out = np.full((256, 3), 128, np.uint8)
    out[: spec.nclass] = spec.palette
    if spec.bitemporal:
        out[1] = CHANGED
    return out


def paint(ids: np.ndarray, spec: DatasetSpec) -> Image.Image:
    """Class ids (H, W) as an image of flat colours."""
    return Image.fromarray(colors(spec)[ids])


def stripes(width: int, height: int) -> Image.Image:
    """A light pattern that stands for nothing: no class looks like it."""
    y, x = np.indices((height, width))
    return Image.fromarray(np.where((x + y) // 6 % 2, 250, 205).astype(np.uint8)).convert("RGB")


def tint(image: Image.Image, ids: np.ndarray, spec: DatasetSpec, strength: float = 0.55, all_classes: bool = False) -> Image.Image:
    """The image under its classes' colours; ignored pixels, background and unchanged ones (but for all_classes) stay as they are."""
    base = np.asarray(image, np.float32)
    plain = [IGNORE] + [k for k, name in enumerate(spec.classes) if name in UNTINTED and not all_classes]
    weight = np.where(np.isin(ids, plain), 0, strength)[..., None]
    return Image.fromarray((base * (1 - weight) + colors(spec)[ids] * weight + 0.5).astype(np.uint8))


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarges a picture whose long side is below 240 pixels by a whole factor."""
    times = -(-240 // max(image.size))
    return image if times <= 1 else image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def legend(
    ids: np.ndarray, spec: DatasetSpec, width: int, shares: bool = True, more: Sequence[Key] = (), over: bool = False
) -> Image.Image:
    """A legend: colour and name of each class in `ids`, the largest first, with its share in percent, in lines of at most `width` pixels.

    more: entries after the classes. over: whether the legend is of a tinted image, on which background and unchanged pixels have no colour.
    """
    counts = np.bincount(ids[ids != IGNORE].ravel(), minlength=spec.nclass)
    named: list[Key] = []
    for label in np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]:
        share = f" {100 * counts[label] / counts.sum():.1f}%" if shares else ""
        bare = " (not coloured)" if over and spec.classes[label] in UNTINTED else ""
        named.append((int(label), f"{spec.classes[label]}{share}{bare}"))
    size = 13
    font, line, x, y = _font(size), size + 7, GAP, GAP
    entries: list[tuple[int, int, int | str, str]] = []
    for kind, text in (*named, *more):
        needed = size + 4 + int(font.getlength(text)) + 14
        if x + needed > width and x > GAP:
            x, y = GAP, y + line
        entries.append((x, y, kind, text))
        x += needed
    image = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(image)
    for x, y, kind, text in entries:
        if kind == STRIPES:
            image.paste(stripes(size, size), (x + 1, y + 2))
        coloured = isinstance(kind, int) and not (over and kind != IGNORE and spec.classes[kind] in UNTINTED)
        fill = tuple(int(v) for v in colors(spec)[kind]) if coloured else None
        outline = BOX if kind == OUTLINE else "black"
        draw.rectangle((x, y + 1, x + size, y + 1 + size), fill, outline, 2 if kind == OUTLINE else 1)
        draw.text((x + size + 4, y), text, "black", font)
    return image


def shortened(text: str, width: int) -> str:
    """A line of text, cut at its beginning where it is wider than that."""
    while len(text) > 1 and _font(13).getlength(text) > width:
        text = "\u2026" + text[2:]
    return text


def caption(text: str, width: int) -> Image.Image:
    """A line of text as a picture."""
    image = Image.new("RGB", (width, 22), "white")
    ImageDraw.Draw(image).text((GAP, 3), shortened(text, width - 2 * GAP), "black", _font(13))
    return image


def strike(image: Image.Image, ignored: np.ndarray) -> Image.Image:
    """The image with stripes where it is ignored, (H, W) bool."""
    return Image.composite(stripes(*image.size), image.convert("RGB"), Image.fromarray(ignored))


def overlay(images: Sequence[Image.Image], ids: np.ndarray, spec: DatasetSpec) -> Image.Image:
    """The tinted image above its legend; of a pair, date A beside the tinted date B."""
    shown = row([*images[:-1], tint(images[-1], ids, spec)])
    return stack([shown, legend(ids, spec, max(shown.width, 160), over=True)])


def row(images: Sequence[Image.Image], titles: Sequence[str] = ()) -> Image.Image:
    """Pictures of one size side by side, each below its title."""
    head = 20 if titles else 0
    step = images[0].width + GAP
    out = Image.new("RGB", (step * len(images) - GAP, images[0].height + head), "white")
    draw = ImageDraw.Draw(out)
    for i, image in enumerate(images):
        out.paste(image.convert("RGB"), (i * step, head))
        if titles:
            draw.text((i * step + 2, 2), shortened(titles[i], image.width - 4), "black", _font(13))
    return out


def stack(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other on white."""
    out = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    y = 0
    for image in images:
        out.paste(image, (0, y))
        y += image.height
    return out


def heat(values: np.ndarray) -> Image.Image:
    """Values (H, W) in [0, 1] from dark blue over teal to yellow; NaN, as of a model that has diverged, is shown as 0."""
    stops = np.array([(38, 24, 74), (44, 113, 142), (53, 183, 121), (253, 231, 37)], np.float32)
    level = np.nan_to_num(values).clip(0, 1) * (len(stops) - 1)
    low = np.minimum(level.astype(int), len(stops) - 2)
    part = (level - low)[..., None]
    return Image.fromarray((stops[low] * (1 - part) + stops[low + 1] * part + 0.5).astype(np.uint8))


def confusion_picture(matrix: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """A confusion matrix (rows: true class, columns: prediction), each row in percent of the true class's pixels.

    Up to 30 classes the cells hold their figures; of more, colours and names are left.
    """
    n = len(classes)
    numbers = n <= 30
    cell, size = (38, 13) if numbers else (13, 11)
    font = _font(size)
    margin = int(max(font.getlength(name) for name in classes)) + 34
    heading = "predicted class (% of the true class)"
    width = max(margin + n * cell, margin + int(_font(13).getlength(heading)))
    out = Image.new("RGB", (width + 12, margin + n * cell + 12), "white")
    draw = ImageDraw.Draw(out)
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    for i, name in enumerate(classes):
        draw.text((margin - 6, margin + (i + 0.5) * cell), name, "black", font, anchor="rm")
        _vertical(out, name, font, margin + i * cell + cell // 2, margin - 6)
        for j in range(n):
            x, y = margin + j * cell, margin + i * cell
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), _blue(share[i, j]), (225, 228, 232))
            if numbers and share[i, j] >= 0.05:
                figure = f"{share[i, j]:.0f}" if share[i, j] >= 9.95 else f"{share[i, j]:.1f}"
                draw.text((x + cell / 2, y + cell / 2), figure, "white" if share[i, j] >= WHITE_FROM else "black", _font(12), anchor="mm")
    draw.text((margin, 4), heading, "black", _font(13))
    draw.text((4, margin - 20), "true", "black", _font(13))
    return out


def _blue(percent: float) -> tuple[int, int, int]:
    # the square root makes small confusions visible beside the diagonal
    red, green, blue = (round(255 + (full - 255) * (percent / 100) ** 0.5) for full in (8, 64, 129))
    return red, green, blue


def _vertical(image: Image.Image, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, x: int, bottom: int) -> None:
    """Writes `text` upwards, centred on x and ending at `bottom`."""
    _, top, right, base = (int(v) for v in font.getbbox(text))
    label = Image.new("RGB", (right + 2, base + 2), "white")
    ImageDraw.Draw(label).text((1, 0), text, "black", font)
    label = label.rotate(90, expand=True)
    image.paste(label, (x - (top + base) // 2 - 1, bottom - label.height))
