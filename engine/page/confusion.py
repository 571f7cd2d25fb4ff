"""A confusion matrix as inline SVG, in the page's colours: cells are blue of more or less opacity, so that they go with light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

BLUE = (28, 100, 184)
NUMBERED = 30  # classes up to which the cells hold their figures
WHITE_FROM = 76  # percent; from here on white has a contrast of 4.5 on a cell, light and dark; below it the colour `--cell` of the page has
WIDEST = 180  # pixels of the page that a cell may be wide: with six classes or more the matrix fills the page, with two it keeps its shape


def confusion_svg(share: np.ndarray, classes: Sequence[str]) -> str:
    """share: (K, K) percent of the true class's pixels (rows) that were predicted as a class (columns)."""
    n = len(classes)
    cell, size = (34, 12) if n <= NUMBERED else (11, 9)
    wide = max(cell, min(56, 374 // n))  # few classes have cells wider than high, so that letters and height stay those of eleven
    margin = round(0.62 * size * max(map(len, classes))) + 12  # the letters' width, roughly
    width, height = margin + n * wide + 2, margin + n * cell + 2
    box = f'x="{margin}" y="{margin}" width="{n * wide}" height="{n * cell}"'
    parts = [
        f'<svg class="confusion" viewBox="0 0 {width} {height}" role="img" aria-label="confusion matrix" '
        f'style="max-width:{WIDEST * width // wide}px;min-width:{min(round(0.8 * width), 900)}px">'
        f'<rect class="cells" {box}/><image {box} preserveAspectRatio="none" href="{_cells(share)}"/>'
    ]
    for i, name in enumerate(classes):
        across, down, text = margin + (i + 0.5) * wide, margin + (i + 0.5) * cell, escape(name)
        parts.append(f'<text x="{margin - 5}" y="{down + 0.35 * size:.1f}" font-size="{size}" text-anchor="end">{text}</text>')
        parts.append(f'<text transform="translate({across + 0.35 * size:.1f} {margin - 5}) rotate(-90)" font-size="{size}">{text}</text>')
        for j in range(n) if n <= NUMBERED else ():
            if (value := share[i, j]) >= 0.05:
                figure = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
                kind = " full" if value >= WHITE_FROM else ""
                parts.append(f'<text class="cell{kind}" x="{margin + (j + 0.5) * wide:g}" y="{down + 4:g}">{figure}</text>')
    return "".join(parts) + "</svg>"


def _cells(share: np.ndarray) -> str:
    """One pixel a cell, whose opacity is the square root of its share: small confusions stay visible beside the diagonal."""
    opacity = 255 * np.sqrt(share / 100)
    pixels = np.dstack([np.full_like(opacity, channel) for channel in BLUE] + [opacity])
    buffer = io.BytesIO()
    Image.fromarray((pixels + 0.5).astype(np.uint8), "RGBA").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
