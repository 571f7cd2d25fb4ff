"""A report as text: Markdown tables whose columns are aligned, or LaTeX; the list of runs, and everything that was not read."""

from collections.abc import Iterable
from dataclasses import dataclass

from scripts.report.identity import AUTHORS, OWN, SHIPPED
from scripts.report.parse import Run
from scripts.report.reproduce import Reproduction
from scripts.report.tables import Cell, Row, Table, round_half_up
from scripts.report.uneven import uneven
from scripts.table import markdown_table
from util.progress import count

Grid = list[list[str]]  # rows of cells, the heading first

MARK = "*"
LEGEND = (
    "last epoch: the same figure after the last epoch, which no validation image has chosen. ± standard deviation over seeds (their number "
    f"in parentheses). {MARK} unfinished: its best so far."
)
NAMES = 3  # columns of names before those of figures
_PLACES = 2  # decimals of a figure in a log
_TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "�": "?"} | {
    c: "\\" + c for c in "%_&#${}"
}


@dataclass
class Skipped:
    """A file that was found in a folder and is no training log."""

    path: str
    reason: str


def table_grid(table: Table) -> Grid:
    """A row's lines below each other: published, and for each maker of runs their best and last epochs, difference and epochs done."""
    grid = [["method", "encoder", "", *table.columns.values()]]
    for row in table.rows:
        cells = [row.cells.get(key, Cell(key[1])) for key in table.columns]
        lines = [("published", [_number(cell.published) for cell in cells])]
        for origin in (AUTHORS, SHIPPED, OWN):
            lines += [
                (origin, [_value(cell, origin) for cell in cells]),
                ("last epoch", [_value(cell, origin, last=True) for cell in cells]),
                ("difference", [_number(cell.difference(origin), sign=True) for cell in cells]),
                ("epochs", [_epochs(cell, origin) for cell in cells]),
            ]
        grid += _labelled(row, [(what, texts) for what, texts in lines if any(texts)] or [("none yet", [""] * len(cells))])
    return grid


def _labelled(row: Row, lines: list[tuple[str, list[str]]]) -> Grid:
    names = [(_plain(row.method), _plain(row.encoder))] + [("", "")] * (len(lines) - 1)
    return [[*name, what, *cells] for name, (what, cells) in zip(names, lines, strict=True)]


def _number(value: object, sign: bool = False) -> str:
    return "" if value is None else f"{value:+}" if sign and value else str(value)


def _value(cell: Cell, origin: str, last: bool = False) -> str:
    value, spread, runs = cell.value(origin, last), cell.spread(origin, last), cell.runs.get(origin, [])
    if value is None:
        return "none yet" if runs and not last else ""
    return f"{value}{'' if spread is None else f' ± {spread} ({len(runs)})'}{MARK if cell.unfinished(origin) else ''}"


def _epochs(cell: Cell, origin: str) -> str:
    return ", ".join(dict.fromkeys(_progress(run) for run in cell.runs.get(origin, [])))


def _progress(run: Run) -> str:
    return f"{run.epochs_done}/{run.epochs or '?'}"


def runs_grid(runs: list[Run]) -> Grid:
    """One line per run, in the order given: what the tables leave out."""
    heading = ["log", "row", "from", "figure", "best", "@epoch", "last", "accuracy", "epochs", "state", "nan lines",
               "s/iteration", "GPUs", "seed", "unread lines"]  # fmt: skip
    return [heading, *([_plain(value) for value in _run_line(run)] for run in runs)]


def _run_line(run: Run) -> list[object]:
    state = ("" if run.complete else "unfinished") + (" resumed" if run.resumed else "")
    seconds = None if run.sec_per_iter is None else round_half_up(run.sec_per_iter, 3)
    best, last, accuracy = (None if figure is None else round_half_up(figure, _PLACES) for figure in (run.best, run.last, run.accuracy))
    return [run.log, run.row, run.origin, run.statistic, best, run.best_epoch, last, accuracy, _progress(run), state.strip(),
            run.nan_iterations, seconds, run.ngpus, run.seed, run.unread_lines]  # fmt: skip


def _plain(value: object) -> str:
    """As text on one line; what a terminal cannot encode is replaced."""
    text = "" if value is None else str(value)
    return " ".join(text.encode("utf-8", errors="replace").decode("utf-8").split())


def remarks(runs: list[Run], skipped: list[Skipped]) -> list[str]:
    """What a reader must know of single logs: notes, lines that were not read (with samples), files that are no logs."""
    lines = []
    for run in runs:
        lines += [f"{_plain(run.log)}: {note}" for note in run.notes]
        if run.unread_lines:
            samples = " | ".join(f"`{_plain(sample).replace('`', chr(39))}`" for sample in run.unread_samples)
            lines.append(f"{_plain(run.log)}: {count(run.unread_lines, 'line')} not read, such as: {samples}")
    lines += [_plain(remark) for remark in uneven(runs)]
    return lines + [f"{_plain(file.path)}: not in the report: {_plain(file.reason)}" for file in skipped]


def markdown(tables: Iterable[Table], runs: list[Run], skipped: list[Skipped]) -> str:
    """The whole report in Markdown."""
    parts = []
    for table in tables:
        parts += [f"## {_plain(table.title)}", table.rule, markdown_table(table_grid(table), NAMES)]
    parts += [LEGEND, "## Runs", markdown_table(runs_grid(runs), len(runs_grid([])[0]))]
    notes = remarks(runs, skipped)
    if notes:
        parts += ["## Remarks", _listed(notes)]
    return "\n\n".join(parts)


def paper_markdown(found: Reproduction, skipped: list[Skipped]) -> str:
    """A table of the paper in Markdown, and the commands for its missing cells."""
    parts = [f"# {found.title}"]
    for i, table in enumerate(found.parts):
        new_rule = i == 0 or table.rule != found.parts[i - 1].rule
        parts += [f"## {_plain(table.title)}", *([table.rule] if new_rule else []), markdown_table(table_grid(table), NAMES)]
    if found.runs:
        parts.append(LEGEND)
    if notes := found.remarks + remarks(found.runs, skipped):
        parts += ["## Remarks", _listed(notes)]
    if found.commands:
        parts += ["## To train the cells that have no run of yours", "\n".join(["```sh", *found.commands, "```"])]
    return "\n\n".join(parts)


def _listed(notes: list[str]) -> str:
    return "\n".join("- " + _plain(note) for note in notes)


def latex(tables: Iterable[Table], runs: list[Run], skipped: list[Skipped], comments: Iterable[str] = ()) -> str:
    r"""The tables in LaTeX (package booktabs); the runs, remarks and `comments` as comments above them."""
    notes = [*("\t".join(row) for row in runs_grid(runs)), *remarks(runs, skipped), *comments]
    lines = ["% " + _plain(note) if "\t" not in note else "% " + note for note in notes]
    for table in tables:
        grid = table_grid(table)
        lines += ["", r"\begin{table}", r"\centering", rf"\caption{{{_tex(f'{table.title}. {table.rule} {LEGEND}')}}}"]
        lines += [rf"\begin{{tabular}}{{lll{'c' * len(table.columns)}}}", r"\toprule", _tex_row(grid[0]), r"\midrule"]
        lines += [_tex_row(row) for row in grid[1:]]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines)


def _tex_row(row: list[str]) -> str:
    return " & ".join(_tex(cell) for cell in row) + r" \\"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
