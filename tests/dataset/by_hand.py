"""Image files written byte by byte, so that what they store is known without a library that might rescale it."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np


def packed(rows: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Values (H, N) of `bits` each, rows filled up to whole bytes."""
    if bits >= 8:
        return rows.astype(f"{order}u{bits // 8}").tobytes() if bits != 12 else packed_bits(rows, bits)
    return packed_bits(rows, bits)


def packed_bits(rows: np.ndarray, bits: int) -> bytes:
    digits = (rows[..., None].astype(int) >> np.arange(bits - 1, -1, -1)) & 1  # (H, N, bits)
    return np.packbits(digits.reshape(len(rows), -1), axis=1).tobytes()


def png(values: np.ndarray, bits: int, colour: int = 0, palette: bytes = b"", channels: int = 1) -> bytes:
    """A PNG of values (H, W * channels); colour 0 is grey, 2 RGB, 3 palette."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1] // channels, values.shape[0], bits, colour, 0, 0, 0)
    data = b"".join(b"\0" + packed(row[None], bits) for row in values)
    colours = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(
    pages: Sequence[np.ndarray], bits: int, photometric: int = 1, planar: int = 1, deflate: bool = False, sign: int = 1,
    order: str = "<", subfiles: Sequence[int] = (), extra: int = 0,
) -> bytes:  # fmt: skip
    """A TIFF of pages (H, W, C).

    photometric 0: white is 0, 1: black is 0, 2: RGB; planar 2: channel after channel; sign 2: signed;
    extra: what further channels are, 0 unsaid, 1 and 2 transparency.
    """
    out = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    link = 4  # where the offset of the next page's head goes
    for number, page in enumerate(pages):
        height, width, channels = page.shape
        parts = [page[..., c] for c in range(channels)] if planar == 2 else [page.reshape(height, -1)]
        strips = [packed(part, bits, order) for part in parts]
        strips = [zlib.compress(strip) for strip in strips] if deflate else strips
        offsets = []
        for strip in strips:
            offsets.append(len(out))
            out += strip + bytes(len(strip) % 2)
        entries = {
            254: [subfiles[number] if subfiles else 0], 256: [width], 257: [height], 258: [bits] * channels, 259: [8 if deflate else 1],
            262: [photometric], 273: offsets, 277: [channels], 278: [height], 279: [len(strip) for strip in strips],
            284: [planar], 339: [sign] * channels,
        }  # fmt: skip
        if channels not in (1, 3):
            entries[338] = [extra] * (channels - (3 if photometric == 2 else 1))
        places = {}
        for tag, numbers in entries.items():
            if len(numbers) > 1:
                places[tag] = len(out)
                out += struct.pack(f"{order}{len(numbers)}I", *numbers)
        out[link : link + 4] = struct.pack(f"{order}I", len(out))
        out += struct.pack(f"{order}H", len(entries))
        for tag, numbers in sorted(entries.items()):
            out += struct.pack(f"{order}HHII", tag, 4, len(numbers), places.get(tag, numbers[0]))
        link = len(out)
        out += bytes(4)
    return bytes(out)
