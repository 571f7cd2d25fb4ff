"""The page of a run, report.html: one file without any outside resource, made of the plain values of a `PageData`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image

from dataset.picture import colors
from dataset.spec import DatasetSpec
from engine import metric
from engine.method import Method, judged
from engine.metrics_file import Epoch
from engine.page.chart import chart
from engine.page.confusion import NUMBERED, confusion_svg
from util.progress import duration

HERE = Path(__file__).parent


@dataclass
class PageData:
    """What a run has to show.

    settings: config keys as they are in effect. epochs: those that are finished, in their order. confusion: (K, K) counts of the judged
    model. at_zero: why classes are at 0 in the last evaluation, by name. samples: of an image its name, panels (caption,
    data URI) and the class ids in them. warnings, tested: lines of the log; tested has the score of best.pth on the test list.
    """

    title: str
    settings: dict[str, Any]
    spec: DatasetSpec
    method: Method
    total_epochs: int
    memory_name: str = "peak memory"
    epochs: list[Epoch] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    at_zero: dict[str, str] = field(default_factory=dict)
    samples: list[tuple[str, list[tuple[str, str]], list[int]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tested: list[str] = field(default_factory=list)
    updated: str = ""

    @property
    def evaluated(self) -> list[Epoch]:
        """The epochs that were evaluated."""
        return [row for row in self.epochs if row.scores]

    @property
    def measured(self) -> list[Epoch]:
        """Those in which it was measured what the pseudo labels are worth."""
        return [row for row in self.epochs if row.pseudo_quality]

    @property
    def judged(self) -> str:
        """The model that the published rule looks at."""
        return self.method.models[judged(self.method.models, self.spec.task)]

    @property
    def figure(self) -> str:
        """What the score is called by which the best epoch is chosen."""
        return metric.FIGURES[self.spec.task][metric.chosen_by(self.spec.task)].label

    def score(self, row: Epoch, model: str) -> float:
        """The score of an evaluated epoch by which the best one is chosen."""
        return row.scores[model][metric.chosen_by(self.spec.task)]

    @property
    def best(self) -> Epoch | None:
        """The best epoch by the published rule (METHOD.md 4); of equal ones the later."""
        return max(self.evaluated, key=lambda row: (self.score(row, self.judged), row.epoch), default=None)


def data_uri(image: Image.Image) -> str:
    """A picture as the text that an <img> can hold."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _tile(value: str, label: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _head(data: PageData) -> str:
    done = data.epochs[-1].epoch + 1 if data.epochs else 0
    seconds = [row.seconds for row in data.epochs]
    spent = duration(sum(seconds))
    left = "no epoch finished yet"
    if done >= data.total_epochs:
        left = f"finished in {spent}"
    elif done:
        left = f"{spent} so far, about {duration((data.total_epochs - done) * mean(seconds[-5:]))} left"
    bar = f'<div class="progress"><div style="width:{100 * done / data.total_epochs:.1f}%"></div></div>'
    state = f"epoch {done} of {data.total_epochs}, {left}"
    note = f"Epochs are numbered from 0 below, as in the log: the last one is epoch {data.total_epochs - 1}."
    line = f'<p>{escape(state)} <span class="quiet">({escape(data.updated)})</span></p>'
    return f'<h1>{escape(data.title)}</h1>{bar}{line}<p class="quiet">{note}</p>'


def _tiles(data: PageData) -> str:
    tiles = []
    best = data.best
    if best:
        name = data.judged
        tiles.append(_tile(f"{data.score(best, name):.2f}", f"best {data.figure} ({name}), epoch {best.epoch}"))
        last = data.evaluated[-1]
        if last is not best:
            tiles.append(_tile(f"{data.score(last, name):.2f}", f"{data.figure} ({name}) now, epoch {last.epoch}"))
        for key, figure in metric.FIGURES[data.spec.task].items():
            if key != metric.chosen_by(data.spec.task) and key in last.scores[name]:  # earlier versions have fewer
                tiles.append(_tile(f"{last.scores[name][key]:.2f}", f"{figure.label} ({name}), epoch {last.epoch}"))
    if data.epochs:
        row = data.epochs[-1]
        ratio = row.means.get("mask_ratio")
        if ratio is not None:
            tiles.append(_tile(f"{100 * ratio:.1f} %", "of unlabelled pixels have a confident pseudo label (mask ratio)"))
        if data.measured and (right := data.measured[-1].pseudo_quality["right"]) is not None:
            tiles.append(_tile(f"{right:.1f} %", f"of the confident pixels of the validation {data.spec.noun}s are right"))
        if row.images_per_second is not None:
            tiles.append(_tile(f"{row.images_per_second:.1f}", f"training {data.spec.noun}s a second"))
        if row.memory is not None:
            tiles.append(_tile(f"{row.memory / 1024:.1f} GiB", data.memory_name))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tested(data: PageData) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in data.tested)


def _warnings(data: PageData) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in data.warnings)
    return f'<div class="warnings"><b>Warnings</b>{lines}</div>' if lines else ""


def _charts(data: PageData) -> str:
    labels = data.method.labels
    last = min(data.total_epochs - 1, 2 * len(data.epochs))  # early in a long run the curves would else have no width
    best = data.best

    def line(values: Iterable[float | None]) -> list[tuple[float, float]]:
        return [(row.epoch, value) for row, value in zip(data.epochs, values, strict=True) if value is not None]

    means = {key: line(row.means.get(key) for row in data.epochs) for key in labels}
    scores = {name: [(row.epoch, data.score(row, name)) for row in data.evaluated] for name in data.method.models}
    figures = [chart(f"{data.figure}, %", scores, last, (best.epoch, f"best: epoch {best.epoch}") if best else None)]
    losses = {label: means[key] for key, label in labels.items() if key.startswith("loss")}
    figures.append(chart("Loss, mean of the epoch", losses, last, y="loss"))
    for key, label in labels.items():
        if key == "mask_ratio":
            figures.append(chart(f"{label}, mean of the epoch, %", {label: [(x, 100 * ratio) for x, ratio in means[key]]}, last))
        elif not key.startswith("loss"):
            figures.append(chart(f"{label}, mean of the epoch", {label: means[key]}, last, y=label.lower()))
    figures += _worth(data, last)
    speed = f"{data.spec.noun}s a second"
    figures.append(chart("Speed", {speed: line(row.images_per_second for row in data.epochs)}, last, y=speed))
    return f'<h2>Curves</h2><div class="charts">{"".join(figures)}</div>'


def _worth(data: PageData, last: int) -> list[str]:
    """The chart of what the pseudo labels are worth."""
    if not data.measured:
        return []
    series = {
        label: [(row.epoch, row.pseudo_quality[key]) for row in data.measured if row.pseudo_quality[key] is not None]
        for key, label in (("share", "confident"), ("right", "of these right"))
    }
    return [chart(f"Pseudo labels on the validation {data.spec.noun}s, %", series, last)]


def _worth_cell(data: PageData, name: str) -> str:
    """Of the validation images' pixels that are confident of a class the share that is right; where there are none, it sorts last."""
    right = data.measured[-1].pseudo_quality["classes"][name]["right"]
    return _cell(-1, "none") if right is None else _cell(right)


def _cell(value: float, text: str = "") -> str:
    return f'<td data-value="{value}">{text or f"{value:.2f}"}</td>'


def _swatch(spec: DatasetSpec, label: int) -> str:
    """A class's colour, as it is on the pictures."""
    return f'<span class="swatch" style="background:rgb{tuple(colors(spec)[label].tolist())}"></span>'


def _classes(data: PageData) -> str:
    if not data.evaluated:
        return ""
    row, best = data.evaluated[-1], data.best
    assert best is not None
    heads = ["class", *(f"{name} IoU" for name in data.method.models), f"best epoch ({best.epoch})"]
    kept = data.epochs[-1].pseudo_labels
    heads += ["pseudo labels, %"] if kept else []
    heads += ["right, %"] if data.measured else []
    heads += ["why at 0"] if data.at_zero else []
    lines = []
    for k, name in enumerate(data.spec.classes):
        cells = f'<td data-value="{escape(name)}">{_swatch(data.spec, k)}{escape(name)}</td>'
        cells += "".join(_cell(row.scores[model]["iou"][name]) for model in data.method.models)
        cells += _cell(best.scores[data.judged]["iou"][name])
        if kept:
            share = kept[name]
            cells += _cell(share, f'<span class="share" style="width:{0.6 * share:.1f}px"></span>{share:.2f}')
        cells += _worth_cell(data, name) if data.measured else ""
        if data.at_zero:
            why = escape(data.at_zero.get(name, ""))
            cells += f'<td class="why" data-value="{why}">{why}</td>'
        lines.append(f"<tr>{cells}</tr>")
    head = "".join(f"<th><button>{escape(name)}</button></th>" for name in heads)
    note = " Pseudo labels: share of all unlabelled pixels of the epoch's last step that count for the class." if kept else ""
    note += f" Right: share of the confident pixels of the validation {data.spec.noun}s whose class is true." if data.measured else ""
    table = f'<div class="card wide"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    return f'<h2>Classes, epoch {row.epoch}</h2><p class="quiet">A click on a head sorts.{note}</p>{table}'


def _confusion(data: PageData) -> str:
    if not data.confusion:
        return ""
    matrix, classes = np.array(data.confusion), data.spec.classes
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    off = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    pairs = [np.unravel_index(index, off.shape) for index in np.argsort(-off, axis=None)[:5]]
    texts = [f"{classes[i]} taken for {classes[j]} ({share[i, j]:.1f} % of {classes[i]})" for i, j in pairs if off[i, j]]
    most = f"<p>Most pixels are lost by: {escape('; '.join(texts))}.</p>" if texts else ""
    head = f"<h2>Confusion matrix ({escape(data.judged)}, last evaluation)</h2>{most}"
    kind = "Figures: percent" if len(classes) <= NUMBERED else "Colour: the share"
    note = f'<p class="quiet">Rows: true class. Columns: predicted class. {kind} of the true class\'s pixels.</p>'
    return f'{head}{note}<div class="card wide">{confusion_svg(share, classes)}</div>'


def _samples(data: PageData) -> str:
    rows = []
    for name, pictures, labels in data.samples:
        figures = ""
        for caption, uri in pictures:
            text = escape(caption)
            button = f'<button aria-label="enlarge {text}"><img src="{uri}" alt="{text}"></button>'
            figures += f"<figure>{button}<figcaption>{text}</figcaption></figure>"
        keys = "".join(f"<span>{_swatch(data.spec, k)}{escape(data.spec.classes[k])}</span>" for k in labels)
        keys += f'<span><span class="swatch striped"></span>not scored{" or no pseudo label" if data.method.semi else ""}</span>'
        rows.append(f'<section><p>{escape(name)}</p><div class="samples">{figures}</div><p class="legend">{keys}</p></section>')
    note = '<p class="quiet">A click on a picture enlarges it.</p>'
    return f"<h2>Validation {data.spec.noun}s</h2>{note}{''.join(rows)}<dialog></dialog>" if rows else ""


def _settings(data: PageData) -> str:
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in sorted(data.settings.items()))
    return f'<h2>Settings</h2><details class="card"><summary>All {len(data.settings)} settings</summary><dl>{items}</dl></details>'


def render(data: PageData) -> str:
    """The whole page as HTML."""
    parts = (_head, _tiles, _tested, _warnings, _charts, _classes, _confusion, _samples, _settings)
    return document(data.title, "\n".join(part(data) for part in parts))


def document(title: str, body: str) -> str:
    """A whole page of this look."""
    style, script = ((HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    icon = '<link rel="icon" href="data:,">'  # else browsers ask for one
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>{icon}<style>\n{style}</style></head>\n<body>\n{body}\n<script>\n{script}</script></body></html>\n"
    )
