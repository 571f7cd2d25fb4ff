"""Line charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 26
Points = Sequence[tuple[float, float]]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`, at steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.9)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A figure as short as it stays exact enough to read: 0.0035, 0.24, 12.5, 140."""
    return f"{value:.2f}" if 10 <= abs(value) < 100 else f"{value:.4g}"


def _bounds(values: list[float], zero: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low >= 0 and (zero or low < 0.5 * high):
        low = 0.0
    if high == low:
        high = low + 1
    return low, high + 0.03 * (high - low)


def chart(title: str, series: Mapping[str, Points], last_x: float, mark: tuple[float, str] | None = None, zero: bool = False) -> str:
    """A figure of several lines of (epoch, value), x from 0 to `last_x`; values that are not finite leave a gap.

    mark: an epoch to point out, and what it is. zero: the axis begins at 0.
    """
    lines = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return f'<figure class="chart"><figcaption>{escape(title)}</figcaption><p class="quiet">no figure yet</p></figure>'
    low, high = _bounds([y for points in lines.values() for _, y in points], zero)
    span = max(last_x, 1)

    def pixel(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / span * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">', *_axes(low, high, span, pixel)]
    if mark and mark[0] <= span:
        x, _ = pixel(mark[0], low)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"><title>{escape(mark[1])}</title></line>')
    keys = []
    for i, (name, points) in enumerate(lines.items()):
        path = " ".join(f"{x},{y}" for x, y in (pixel(*point) for point in points))
        parts.append(f'<polyline class="line s{i}" points="{path}"/>')
        for epoch, value in points if len(points) <= 100 else points[-1:]:
            x, y = pixel(epoch, value)
            tip = f"{name}, epoch {epoch:g}: {number(value)}"
            parts.append(f'<circle class="dot s{i}" cx="{x}" cy="{y}" r="2.5"><title>{escape(tip)}</title></circle>')
        keys.append(f'<span class="key s{i}">{escape(name)} <b>{number(points[-1][1])}</b></span>')
    return f'<figure class="chart"><figcaption>{escape(title)} {" ".join(keys)}</figcaption>{"".join(parts)}</svg></figure>'


def _axes(low: float, high: float, span: float, pixel) -> list[str]:
    """Grid lines with their figures, and the epochs below."""
    parts = [f'<text x="{LEFT}" y="{HEIGHT - 8}" text-anchor="end">epoch</text>']
    for value in ticks(low, high):
        _, y = pixel(0, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in ticks(0, span, 6):
        if value == int(value) and value > 0:
            x, _ = pixel(value, low)
            parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="middle">{value:g}</text>')
    return parts
