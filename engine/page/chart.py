"""Line charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 420, 244
LEFT, RIGHT, TOP, BOTTOM = 72, 10, 14, 38  # on the left there is room for the axis' name beside a figure as long as 0.00015
Points = Sequence[tuple[float, float]]


def ticks(low: float, high: float, count: int = 5, around: bool = False) -> list[float]:
    """About `count` round numbers from `low` to `high`, at steps of 1, 2 or 5 times a power of ten. around: the outer ones hold both."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if around:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def number(value: float) -> str:
    """A figure as short as it stays exact enough to read: 0.0035, 0.24, 12.5, 140."""
    return f"{value:.2f}" if 10 <= abs(value) < 100 else f"{value:.4g}"


def chart(title: str, series: Mapping[str, Points], last_x: float, mark: tuple[float, str] | None = None, y: str = "%") -> str:
    """A figure of several lines of (epoch, value), x from 0 to `last_x`; values that are not finite leave a gap.

    mark: an epoch to point out, and what it is. y: what the vertical axis counts. A single epoch stands in the middle.
    """
    lines = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return f'<figure class="chart"><figcaption>{escape(title)}</figcaption><p class="quiet">no figure yet</p></figure>'
    values = [0.0, *(value for points in lines.values() for _, value in points)]
    marks = ticks(min(values), max(values) if any(values) else 1, around=True)
    low, high = marks[0], marks[-1]
    first, span = (0.0, float(last_x)) if last_x > 0 else (-0.5, 1.0)

    def pixel(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / span * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">', *_axes(marks, first, span, y, pixel)]
    if mark and mark[0] <= max(last_x, 0):
        x, _ = pixel(mark[0], low)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"><title>{escape(mark[1])}</title></line>')
    keys = []
    for i, (name, points) in enumerate(lines.items()):
        path = " ".join(f"{x},{y}" for x, y in (pixel(*point) for point in points))
        parts.append(f'<polyline class="line s{i}" points="{path}"/>')
        for epoch, value in points if len(points) <= 100 else points[-1:]:
            x, top = pixel(epoch, value)
            tip = f"{name}, epoch {epoch:g}: {number(value)}"
            radius = 2.5 if len(points) > 1 else 4
            parts.append(f'<circle class="dot s{i}" cx="{x}" cy="{top}" r="{radius}"><title>{escape(tip)}</title></circle>')
        keys.append(f'<span class="key s{i}">{escape(name)} <b>{number(points[-1][1])}</b></span>')
    return f'<figure class="chart"><figcaption>{escape(title)} {" ".join(keys)}</figcaption>{"".join(parts)}</svg></figure>'


def _axes(marks: list[float], first: float, span: float, name: str, pixel: Callable[[float, float], tuple[float, float]]) -> list[str]:
    """Grid lines with their figures, the epochs below, and what each axis counts."""
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts = [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">epoch</text>',
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(name)}</text>',
    ]
    for value in marks:
        _, y = pixel(0, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in ticks(0, first + span, 6) if first == 0 else [0]:
        if value == int(value):
            x, _ = pixel(value, 0)
            parts.append(f'<text x="{x}" y="{HEIGHT - 22}" text-anchor="middle">{value:g}</text>')
    return parts
