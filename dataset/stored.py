"""Reads what an image file stores, where Pillow returns something else: grey values of few bits, inverted TIFF, one of several pages."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dataset.spec import IGNORE, DatasetSpec
from util.error import UserError, reason

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of half the size at which Pillow refuses an image as an attack
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, CHANNELS, PLANAR, SAMPLE_FORMAT = 254, 258, 259, 262, 277, 284, 339  # tags of TIFF files
PART_OF_A_PAGE = 1 | 4  # bits of SUBFILE: a smaller copy of another page, its transparency
ORIENTATION = 274  # of EXIF
NOT_APPLIED = (
    "by which viewers turn it; here its pixels count as they are stored: turn the file itself (`mogrify -auto-orient`, or "
    "PIL.ImageOps.exif_transpose), so that image and mask lie the same way"
)
ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B")
COLOR = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # modes whose colours are known
MOVING = ("GIF", "WEBP", "PNG")  # formats of moving pictures


def _tag(image: Image.Image, number: int, default: int) -> int:
    """A number in the header of a TIFF file, the largest where each channel has one; `default` where there is none or in other formats."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return max(value) if isinstance(value, tuple) else value


def check_whole(image: Image.Image, path: str) -> None:
    """Raises ValueError for a file of which Pillow reads a part, or wrong pixels. image: opened, its pixels not read yet."""
    if image.format == "TIFF":
        pages = _tiff_pages(path)
    else:
        pages = getattr(image, "n_frames", 1) if image.format in MOVING else 1
    if pages > 1:
        raise ValueError(f"{pages} pages, of which one would be read: save one page a file")
    separate = _tag(image, PLANAR, 1) == 2 and _tag(image, CHANNELS, 1) > 1
    if separate and _tag(image, BITS, 8) > 8 and _tag(image, COMPRESSION, 1) == 1:
        raise ValueError("channels one after the other, of 16 bits, without compression: save them interleaved, or with 8 bits")


def _tiff_pages(path: str) -> int:
    """The number of pictures in a TIFF, apart from smaller copies of one (the overviews of a GeoTIFF).

    Read from the heads alone: Image.n_frames fails where one of them is of a kind that Pillow cannot read.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        page = ImageFileDirectory_v2(head + file.read(8) if head[2] == 43 else head)  # 43: BigTIFF
        count, seen = 0, set()
        while page.next and page.next not in seen:
            seen.add(page.next)
            file.seek(page.next)
            page.load(file)
            count += not page.get(SUBFILE, 0) & PART_OF_A_PAGE
    return count


def unreadable(error: Exception, advice: str) -> str:
    """The message for a file that Pillow fails to read with `error`, with advice."""
    if isinstance(error, Image.DecompressionBombError):
        found, limit = (int(number) / 1e6 for number in re.findall(r"\d+", str(error))[:2])
        return f"found {found:.0f} megapixels, expected at most {limit:.0f} in one image; cut it into tiles"
    return f"cannot be read as an image ({reason(error)}); {advice}"


def orientation(image: Image.Image) -> int:
    """The EXIF orientation by which viewers turn an image and its reader does not: 2 to 8, or 1 where there is none."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    found = Image.Image.getexif(image).get(ORIENTATION, 1)  # of PNG, its own method would decode all pixels
    return found if found in range(2, 9) else 1


def turned(path: str) -> str:
    """The message for an image file with such an orientation; "" for another one."""
    try:
        with Image.open(path) as image:
            found = orientation(image)
    except Exception:  # PIL raises whatever broken bytes lead it to; who reads the pixels will say it
        return ""
    return f"{path} has the EXIF orientation {found}, {NOT_APPLIED}" if found > 1 else ""


def unknown_range(image: Image.Image) -> str:
    """The kind of pixels of an image that are not 8 or 16 bits without sign, whose black and white are unknown; "" for those that are."""
    bits = _tag(image, BITS, 32)
    if image.mode == "F":
        return "floating-point values"
    if _tag(image, SAMPLE_FORMAT, 1) == 2:
        return f"values of {bits} bits with a sign"
    return f"{bits} bits a value" if image.mode == "I" and image.format == "TIFF" else ""


def to_rgb(image: Image.Image) -> Image.Image:
    """The 8-bit RGB image of one of any mode: grey, palette, RGBA (alpha is dropped), CMYK; of more bits the upper 8.

    Raises ValueError where Pillow cannot convert it.
    """
    if image.mode.startswith("I"):
        bits = _tag(image, BITS, 16)
        values = np.asarray(image).astype(np.int32).clip(0, 65535)
        if _tag(image, PHOTOMETRIC, 1) == 0:  # white is 0, which Pillow heeds up to 8 bits
            values = (1 << bits) - 1 - values
        image = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def mask_values(image: Image.Image, path: str, spec: DatasetSpec | None) -> np.ndarray:
    """The integers (H, W) that a mask file stores, for every number of bits; of a data set of colour masks, the colours as 0xRRGGBB.

    image: the file, decoded; spec None: of no data set yet. Raises UserError where there are channels that are not expected, or where
    the file does not say which integers were meant.
    """
    if spec is not None and spec.colors:
        return _mask_colors(image, path)
    if image.mode not in ONE_CHANNEL:
        raise UserError(
            f"{path}: found mode {image.mode}, expected one channel of class ids (8-bit grey or palette); convert the mask, or say in "
            'label_map which colour is which class: {"#rrggbb": class}'
        )
    bits = _mask_bits(image, path)
    values = np.asarray(image)
    if image.mode == "1":
        return values * np.uint8(_white(spec))
    if image.mode == "L" and bits < 8:
        values = values // np.uint8(255 // ((1 << bits) - 1))  # Pillow has spread them over 0 to 255
    if image.mode == "L" and _tag(image, PHOTOMETRIC, 1) == 0:
        values = np.uint8((1 << bits) - 1) - values  # Pillow has turned them around
    if _tag(image, SAMPLE_FORMAT, 1) == 2 and bits == 8:
        values = values.view(np.int8)
    return values


def _mask_colors(image: Image.Image, path: str) -> np.ndarray:
    """The colours (H, W) int32 of a mask, its transparency left aside."""
    bits = _mask_bits(image, path)
    if image.mode not in COLOR or bits > 8:
        raise UserError(f"{path}: found mode {image.mode} of {bits} bits, expected a colour mask of 8 bits (RGB or RGBA); convert it")
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _white(spec: DatasetSpec | None) -> int:
    """The value of the set bits of a 1-bit mask: 1, or 255 in a data set whose label_map knows 255 and not 1."""
    return IGNORE if spec is not None and IGNORE in spec.label_map and 1 not in spec.label_map else 1


def _mask_bits(image: Image.Image, path: str) -> int:
    """Bits of each value of a mask file. Raises UserError for a file that does not keep the values that were meant."""
    expected = "expected a mask without rescaling; save it as PNG of 8 or 16 bits"
    if image.format == "TIFF":
        bits = _tag(image, BITS, 1)
        if bits == 1 and _tag(image, PHOTOMETRIC, 1) == 0:
            raise UserError(f"{path}: found a TIFF of 1 bit whose 0 is white: the file does not say which value is class 1, {expected}")
        return bits
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]  # IHDR: 8 bytes of signature, 8 of the chunk's head, width, height, bits
    if image.format == "PPM":
        return _pnm_bits(path, expected)
    if image.format == "GIF":
        raise UserError(f"{path}: found a GIF, whose values are renumbered as it is read, {expected}")
    if image.format not in (None, "BMP"):  # None: of the faster decoder, which reads PNG of 8 bits only
        raise UserError(f"{path}: found {image.format}, which does not keep the values of a mask exactly, {expected}")
    return 8


def _pnm_bits(path: str, expected: str) -> int:
    """The bits of each value of a PGM or PBM file. Readers rescale what has another largest value than 8 or 16 bits have."""
    head = re.sub(rb"#[^\n]*", b"", Path(path).read_bytes()[:4096]).split()
    if head[0] in (b"P1", b"P4"):
        raise UserError(f"{path}: found a PBM of 1 bit, whose 1 is black: the file does not say which value is class 1, {expected}")
    if head[3] not in (b"255", b"65535"):
        raise UserError(f"{path}: found a PGM with a largest value of {head[3].decode()}, by which readers rescale, {expected}")
    return 8 if head[3] == b"255" else 16
