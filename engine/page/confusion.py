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


def confusion_svg(share: np.ndarray, classes: Sequence[str]) -> str:
    """share: (K, K) percent of the true class's pixels (rows) that were predicted as a class (columns).

    It fills the width of the page: places across are percentages, so that cells grow and letters do not.
    """
    n = len(classes)
    cell, size, least = (34, 13, 26) if n <= NUMBERED else (11, 9, 10)  # pixels: height of a cell, of letters, least width of a cell
    margin = round(0.62 * size * max(map(len, classes))) + 12  # the letters' width, roughly
    box = f'width="100%" height="{n * cell}"'
    parts = [
        f'<svg class="confusion" role="img" aria-label="confusion matrix" style="height:{n * cell}px;min-width:{n * least}px;'
        f'margin:{margin}px 0 4px {margin}px;width:calc(100% - {margin}px)">'
        f'<rect class="cells" {box}/><image {box} preserveAspectRatio="none" href="{_cells(share)}"/>'
    ]
    for i, name in enumerate(classes):
        across, down, text = 100 * (i + 0.5) / n, (i + 0.5) * cell, escape(name)
        parts.append(f'<text x="-5" y="{down + 0.35 * size:.1f}" font-size="{size}" text-anchor="end">{text}</text>')
        head = f'<text transform="translate({0.35 * size:.1f} -5) rotate(-90)" font-size="{size}">{text}</text>'
        parts.append(f'<svg x="{across:.3f}%">{head}</svg>')
        for j in range(n) if n <= NUMBERED else ():
            if (value := share[i, j]) >= 0.05:
                figure = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
                kind = " full" if value >= WHITE_FROM else ""
                parts.append(f'<text class="cell{kind}" x="{100 * (j + 0.5) / n:.3f}%" y="{down + 4:g}">{figure}</text>')
    return "".join(parts) + "</svg>"


def _cells(share: np.ndarray) -> str:
    """One pixel a cell, whose opacity is the square root of its share: small confusions stay visible beside the diagonal."""
    opacity = 255 * np.sqrt(share / 100)
    pixels = np.dstack([np.full_like(opacity, channel) for channel in BLUE] + [opacity])
    buffer = io.BytesIO()
    Image.fromarray((pixels + 0.5).astype(np.uint8), "RGBA").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
