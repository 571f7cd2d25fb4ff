"""A confusion matrix as inline SVG, in the page's colours: cells are blue of more or less opacity, so that they go with light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

BLUE = (44, 123, 214)
FIGURES = 30  # classes up to which the cells hold their figures


def confusion_svg(share: np.ndarray, classes: Sequence[str]) -> str:
    """share: (K, K) percent of the true class's pixels (rows) that were predicted as a class (columns)."""
    n = len(classes)
    cell, size = (34, 12) if n <= FIGURES else (11, 9)
    margin = round(0.62 * size * max(map(len, classes))) + 12  # the letters' width, roughly
    side = margin + n * cell + 2
    parts = [
        f'<svg class="confusion" viewBox="0 0 {side} {side}" style="max-width:{2 * side}px;min-width:{min(round(0.8 * side), 900)}px" '
        f'role="img" aria-label="confusion matrix"><rect class="cells" x="{margin}" y="{margin}" width="{n * cell}" height="{n * cell}"/>'
        f'<image x="{margin}" y="{margin}" width="{n * cell}" height="{n * cell}" preserveAspectRatio="none" href="{_cells(share)}"/>'
    ]
    for i, name in enumerate(classes):
        middle, text = margin + (i + 0.5) * cell, escape(name)
        parts.append(f'<text x="{margin - 5}" y="{middle + 0.35 * size:.1f}" font-size="{size}" text-anchor="end">{text}</text>')
        parts.append(f'<text transform="translate({middle + 0.35 * size:.1f} {margin - 5}) rotate(-90)" font-size="{size}">{text}</text>')
        for j in range(n) if n <= FIGURES else ():
            if (value := share[i, j]) >= 0.05:
                figure = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
                kind = " full" if value > 40 else ""
                parts.append(f'<text class="cell{kind}" x="{margin + (j + 0.5) * cell:g}" y="{middle + 4:g}">{figure}</text>')
    return "".join(parts) + "</svg>"


def _cells(share: np.ndarray) -> str:
    """One pixel a cell, whose opacity is the square root of its share: small confusions stay visible beside the diagonal."""
    opacity = 255 * np.sqrt(share / 100)
    pixels = np.dstack([np.full_like(opacity, channel) for channel in BLUE] + [opacity])
    buffer = io.BytesIO()
    Image.fromarray((pixels + 0.5).astype(np.uint8), "RGBA").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
