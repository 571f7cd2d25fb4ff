"""Figures as SVG. One of the paper: mIoU against a setting, a panel for each data set, a line for each split and maker of runs. Curves
of methods over the epochs: a line for each method, and a thin one for each of its seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean

from engine.page.chart import number, ticks
from scripts.report import paper
from scripts.report.identity import AUTHORS, OWN, SHIPPED
from scripts.report.reproduce import Reproduction
from scripts.report.tables import Table

Down = Callable[[float], float]  # a value's distance from the top
WIDTH, HEIGHT = 460, 310  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 34, 86
COLORS = ("#0b6bcb", "#c4520b", "#2a8a3e", "#7a3fa0", "#9a7b00", "#c2185b", "#00838f", "#555555")  # of the splits, or the methods
DASHES = {"published": "8 2 2 2", OWN: "", AUTHORS: "6 4", SHIPPED: "2 3"}
_STYLE = "text{font:13px sans-serif;fill:#222}.grid{stroke:#ddd}.title{font-weight:bold}"


@dataclass(frozen=True)
class Curve:
    """A split's values from one maker of runs. points: (index of the setting, value)."""

    name: str
    color: str
    dash: str
    points: list[tuple[int, float]]


def draw(found: Reproduction) -> str:
    """The figure as text of an SVG file: two panels a row. Values of x are spaced evenly, whatever lies between them."""
    points = {entry.name: entry.x for entry in paper.entries(found.name) if entry.x is not None}
    panels = [_panel(table, sorted(points.items(), key=lambda item: item[1]), paper.axis(found.name)) for table in found.parts]
    rows = (len(panels) + 1) // 2
    placed = [f'<g transform="translate({i % 2 * WIDTH} {30 + i // 2 * HEIGHT})">{panel}</g>' for i, panel in enumerate(panels)]
    title = f'<text class="title" x="{WIDTH}" y="20" text-anchor="middle">{escape(found.title)}, mIoU in %</text>'
    return _document(2 * WIDTH, 30 + rows * HEIGHT, [title, *placed])


def draw_curves(title: str, curves: Mapping[str, Sequence[dict[int, float]]]) -> str:
    """Text of an SVG file. curves: for each method {epoch: figure} of each seed; the thick line is their mean where all have one."""
    values = [value for seeds in curves.values() for one in seeds for value in one.values()]
    last = max(epoch for seeds in curves.values() for one in seeds for epoch in one)
    low, high, down = _scale(values)
    epochs = [epoch for epoch in ticks(0, last) if epoch == int(epoch)]

    def across(epoch: float) -> float:
        return round(LEFT + epoch / max(1, last) * (WIDTH - LEFT - RIGHT), 1)

    parts = [f'<text class="title" x="{WIDTH / 2}" y="20" text-anchor="middle">{escape(title)}</text>']
    parts += _axes(
        "epoch, from 0 as in the log; thick: mean, thin: each seed", ticks(low, high), down, [(across(epoch), epoch) for epoch in epochs]
    )
    for i, (name, seeds) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        common = sorted(set.intersection(*(set(one) for one in seeds)))
        average = {epoch: mean(one[epoch] for one in seeds) for epoch in common}
        for one, width, strength in [*((one, 1, 0.35) for one in seeds), (average, 3, 1)]:
            points = " ".join(f"{across(epoch)},{down(value)}" for epoch, value in sorted(one.items()))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}" stroke-opacity="{strength}"/>')
            for epoch, value in one.items():
                parts.append(f'<circle cx="{across(epoch)}" cy="{down(value)}" r="{width}" fill="{color}" fill-opacity="{strength}"/>')
        parts += _key(0, i, f"{name}: {number(average[common[-1]])}" if common else name, f'stroke="{color}" stroke-width="3"')
    return _document(WIDTH, HEIGHT + max(0, (len(curves) - 2) * 16), parts)


def _document(width: int, height: int, parts: Sequence[str]) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    body = "\n".join([f"<style>{_STYLE}</style>", '<rect width="100%" height="100%" fill="#fff"/>', *parts])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{body}\n</svg>\n'


def _scale(values: Sequence[float]) -> tuple[float, float, Down]:
    """The lowest and the highest value of the vertical axis, and where a value stands on it."""
    low, high = min(values) - 0.5, max(values) + 0.5
    return low, high, lambda value: round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def _key(column: int, line: int, name: str, look: str) -> list[str]:
    """An entry of the legend."""
    x, y = LEFT + column * 200, HEIGHT - 26 + line * 16
    return [f'<line x1="{x}" x2="{x + 24}" y1="{y - 4}" y2="{y - 4}" {look}/>', f'<text x="{x + 30}" y="{y}">{escape(name)}</text>']


def _panel(table: Table, rows: list[tuple[str, float]], axis: str) -> str:
    """A data set's panel. rows: each row of the table that is a point, with its x."""
    lines = _lines(table, [name for name, _ in rows])
    head = f'<text class="title" x="{WIDTH / 2}" y="20" text-anchor="middle">{escape(table.title)}</text>'
    low, high, down = _scale([value for line in lines for _, value in line.points])
    lefts = [round(LEFT + (i + 0.5) / len(rows) * (WIDTH - LEFT - RIGHT), 1) for i in range(len(rows))]
    parts = [head, *_axes(axis, ticks(low, high), down, list(zip(lefts, (x for _, x in rows), strict=True)))]
    for i, line in enumerate(lines):
        look = f'stroke="{line.color}" stroke-width="2" stroke-dasharray="{line.dash}"'
        parts.append(f'<polyline points="{" ".join(f"{lefts[i]},{down(value)}" for i, value in line.points)}" fill="none" {look}/>')
        for i, value in line.points:
            tip = f"<title>{escape(line.name)}, {axis} {rows[i][1]:g}: {number(value)}</title>"
            parts.append(f'<circle cx="{lefts[i]}" cy="{down(value)}" r="3.5" fill="{line.color}">{tip}</circle>')
        parts += _key(i % 2, i // 2, line.name, look)
    return "\n".join(parts)


def _axes(axis: str, values: list[float], down: Down, settings: list[tuple[float, float]]) -> list[str]:
    """Grid lines with their values, and below them the setting with its values. settings: (distance from the left, value)."""
    parts = [f'<text x="{WIDTH / 2}" y="{HEIGHT - BOTTOM + 36}" text-anchor="middle">{escape(axis)}</text>']
    for value in values:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(value)}" y2="{down(value)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(value) + 4}" text-anchor="end">{value:g}</text>')
    return parts + [f'<text x="{left}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>' for left, x in settings]


def _lines(table: Table, names: list[str]) -> list[Curve]:
    """A line of each split and maker, or what is published of it, that has a value. names: the rows, from left to right."""
    cells = {row.method: row.cells for row in table.rows}
    lines = []
    for color, (key, split) in zip(COLORS[: len(table.columns)], table.columns.items(), strict=True):
        for origin, dash in DASHES.items():
            row = [cells[name][key] for name in names]
            found = [cell.published if origin == "published" else cell.value(origin) for cell in row]
            points = [(i, float(value)) for i, value in enumerate(found) if value is not None]
            if points:
                lines.append(Curve(f"{split}, {origin}", color, dash, points))
    return lines
