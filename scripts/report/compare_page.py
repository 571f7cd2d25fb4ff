"""A sweep as one page without any outside resource: the comparison of its methods, their curves, and links to the pages of the runs."""

import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from html import escape
from pathlib import Path
from urllib.parse import quote

from engine import metric
from engine.method import judged
from engine.metrics_file import read_epochs
from engine.page.chart import chart
from engine.page.render import document
from engine.resume import METRICS, PAGE
from scripts.report import paper
from scripts.report.compare import Compared, Comparison, Group
from scripts.report.compare_render import MEANINGS, NOTES, differences_grid, mean_figure, methods_grid, methods_note
from scripts.report.figure import draw_curves
from scripts.report.parse import Run
from scripts.report.render import Grid
from scripts.report.tables import TITLES
from util.error import UserError


def page(found: Compared, folder: Path) -> str:
    """The page's HTML. folder: where it will lie, from which its links start."""
    title = _title(found)
    of_methods, *of_differences, of_seeds = (f'<p class="quiet">{escape(note)}</p>' for note in (methods_note(found), *NOTES))
    explained = next((one for one in found.comparisons if one.differences), None)
    body = [f"<h1>{escape(title)}</h1>", of_methods]
    for one in found.comparisons:
        body += [f"<h2>{escape(one.title)}</h2>", _table(methods_grid(one), 2), _curves(one), _links(one, folder)]
        body += ["<h3>Differences</h3>"] if one.differences else []
        body += of_differences if one is explained else []
        body += [_table(differences_grid(one), 4)] if one.differences else []
    body.append(of_seeds)
    if found.remarks:
        body.append(f'<div class="warnings"><b>Remarks</b>{"".join(f"<p>{escape(remark)}</p>" for remark in found.remarks)}</div>')
    return document(title, "\n".join(body))


def _title(found: Compared) -> str:
    datasets = dict.fromkeys(one.groups[0].first.dataset for one in found.comparisons)
    names = ", ".join(paper.dataset_title(name) or TITLES.get(name, name) for name in datasets if name)
    return f"Methods compared on {names}" if names else "Methods compared"


def _table(grid: Grid, names: int) -> str:
    """The first `names` columns are text, the others figures; a heading says what it means when the pointer rests on it."""
    heading = [f'<abbr title="{escape(MEANINGS[cell])}">{cell}</abbr>' if cell in MEANINGS else escape(cell) for cell in grid[0]]
    head = _cells("th", heading, names)
    rows = "".join(f"<tr>{_cells('td', map(escape, row), names)}</tr>" for row in grid[1:])
    return f'<div class="card wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cells(tag: str, texts: Iterable[str], names: int) -> str:
    return "".join(f'<{tag} class="{"text" if i < names else "figure"}">{text}</{tag}>' for i, text in enumerate(texts))


def _scores(run: Run) -> dict[int, float]:
    """The score that chooses the best epoch, in percent and as in the log, of each epoch in metrics.jsonl; nothing where it has none."""
    figure, found = metric.chosen_by(run.task), {}
    with suppress(OSError):
        for row in read_epochs(Path(run.log).with_name(METRICS)):
            if row.scores:
                models = tuple(row.scores)
                found[row.epoch] = round(row.scores[models[judged(models, run.task)]][figure], 2)
    return found


def curves_picture(found: Compared) -> str:
    """Text of an SVG file: the scores of each method's seeds over the epochs. Raises UserError for more than one comparison, or none."""
    titles = [one.title for one in found.comparisons]
    if len(titles) != 1:
        raise UserError(f"--svg: found {len(titles)} comparisons ({', '.join(titles)}), expected one; give the paths of its runs")
    (one,) = found.comparisons
    curves = {}
    for group in one.groups:
        found_scores = [scores for run in group.runs.values() if (scores := _scores(run))]
        missing = "" if len(found_scores) == len(group.runs) else f" ({len(found_scores)} of {len(group.runs)} seeds)"
        if found_scores:
            curves[group.label + missing] = found_scores
    if not curves:
        raise UserError(f"--svg: found no {METRICS} beside the logs of {one.title}, expected those of the runs; give their folders")
    return draw_curves(f"{one.title}, {_score_name(one)} in %", curves)


def _score_name(one: Comparison) -> str:
    """What the score that chooses the best epoch is called."""
    task = one.groups[0].first.task
    return metric.FIGURES[task][metric.chosen_by(task)].label


def _mean_curve(group: Group) -> list[tuple[float, float]]:
    """(epoch, mean) over the seeds, rounded as in the table, of epochs that all of them have evaluated."""
    by_epoch: dict[int, list[float]] = defaultdict(list)
    for run in group.runs.values():
        for epoch, score in _scores(run).items():
            by_epoch[epoch].append(score)
    return [(epoch, float(mean_figure(scores))) for epoch, scores in sorted(by_epoch.items()) if len(scores) == len(group.runs)]


def _curves(one: Comparison) -> str:
    """A line for each method, and for each of its seeds a chart of its own methods side by side."""
    curves = {group.label: _mean_curve(group) for group in one.groups}
    last = max((epoch for points in curves.values() for epoch, _ in points), default=0)
    label = _score_name(one)
    figures = [chart(f"{label}, mean over the seeds, %", curves, last)]
    seeds = sorted(set.intersection(*(set(group.runs) for group in one.groups)))
    for seed in seeds if len(seeds) > 1 else ():
        lines = {group.label: sorted(_scores(group.runs[seed]).items()) for group in one.groups}
        figures.append(chart(f"{label}, seed {seed}, %", lines, last))
    return f'<div class="charts">{"".join(figures)}</div>'


def _links(one: Comparison, folder: Path) -> str:
    """The pages of the runs, where they have one."""
    lines = []
    for group in one.groups:
        pages = {seed: Path(run.log).with_name(PAGE) for seed, run in sorted(group.runs.items())}
        links = [f'<a href="{quote(os.path.relpath(path, folder))}">seed {seed}</a>' for seed, path in pages.items() if path.is_file()]
        lines += [f"<p>Pages of {escape(group.label)}: {', '.join(links)}</p>"] if links else []
    return "".join(lines)
