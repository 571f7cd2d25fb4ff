"""A report as text: Markdown or LaTeX tables, the list of runs, and everything that was not read."""

from collections.abc import Iterable
from dataclasses import dataclass

from scripts.report.parse import Run, count
from scripts.report.tables import Cell, Row, Table, round_half_up

Grid = list[list[str]]  # rows of cells, the heading first

MARK = "*"
_LEGEND = f"{MARK} unfinished: its best so far. ± standard deviation over seeds (their number in parentheses)."
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
    """Rows of others: the published values. Rows with a run: published, yours, difference and epochs below each other."""
    grid = [["method", "encoder", "", *table.columns.values()]]
    for row in table.rows:
        lines = {"published": [_number(row.cells.get(key, Cell(key[1])).published) for key in table.columns]}
        if row.has_runs:
            cells = [row.cells.get(key, Cell(key[1])) for key in table.columns]
            lines["yours"] = [_value(cell) for cell in cells]
            lines["difference"] = [_number(cell.difference, sign=True) for cell in cells]
            lines["epochs"] = [_epochs(cell) for cell in cells]
        grid += _labelled(row, {name: cells for name, cells in lines.items() if any(cells) or name == "yours"})
    return grid


def _labelled(row: Row, lines: dict[str, list[str]]) -> Grid:
    names = [(_plain(row.method), _plain(row.encoder))] + [("", "")] * (len(lines) - 1)
    return [[*name, what, *cells] for name, (what, cells) in zip(names, lines.items(), strict=True)]


def _number(value: object, sign: bool = False) -> str:
    return "" if value is None else f"{value:+}" if sign and value else str(value)


def _value(cell: Cell) -> str:
    if not cell.runs:
        return ""
    spread = "" if cell.spread is None else f" ± {cell.spread} ({len(cell.runs)})"
    return f"{'none yet' if cell.value is None else cell.value}{spread}{MARK if cell.unfinished else ''}"


def _epochs(cell: Cell) -> str:
    return ", ".join(dict.fromkeys(_progress(run) for run in cell.runs))


def _progress(run: Run) -> str:
    return f"{run.epochs_done}/{run.epochs or '?'}"


def runs_grid(runs: list[Run]) -> Grid:
    """One line per run, in the order given: what the tables leave out."""
    heading = ["log", "figure", "best", "@epoch", "last", "accuracy", "epochs", "state", "nan lines",
               "s/iteration", "GPUs", "seed", "unread lines"]  # fmt: skip
    return [heading, *([_plain(value) for value in _run_line(run)] for run in runs)]


def _run_line(run: Run) -> list[object]:
    state = ("" if run.complete else "unfinished") + (" resumed" if run.resumed else "")
    seconds = None if run.sec_per_iter is None else round_half_up(run.sec_per_iter, 3)
    best, last, accuracy = (None if figure is None else round_half_up(figure, _PLACES) for figure in (run.best, run.last, run.accuracy))
    return [run.log, run.statistic, best, run.best_epoch, last, accuracy, _progress(run), state.strip(), run.nan_iterations,
            seconds, run.ngpus, run.seed, run.unread_lines]  # fmt: skip


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
    return lines + [f"{_plain(file.path)}: not in the report: {_plain(file.reason)}" for file in skipped]


def markdown(tables: Iterable[Table], runs: list[Run], skipped: list[Skipped]) -> str:
    """The whole report in Markdown."""
    parts = []
    for table in tables:
        parts += [f"## {_plain(table.title)}", table.rule, _markdown_grid(table_grid(table))]
    parts += [_LEGEND, "## Runs", _markdown_grid(runs_grid(runs))]
    notes = remarks(runs, skipped)
    if notes:
        parts += ["## Remarks", "\n".join("- " + note for note in notes)]
    return "\n\n".join(parts)


def _markdown_grid(grid: Grid) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in row) + " |" for row in grid]
    return "\n".join([lines[0], "|" + "---|" * len(grid[0]), *lines[1:]])


def latex(tables: Iterable[Table], runs: list[Run], skipped: list[Skipped]) -> str:
    r"""The tables in LaTeX (package booktabs), the runs and remarks as comments above them."""
    lines = ["% " + "\t".join(row) for row in runs_grid(runs)] + ["% " + note for note in remarks(runs, skipped)]
    for table in tables:
        grid = table_grid(table)
        lines += ["", r"\begin{table}", r"\centering", rf"\caption{{{_tex(f'{table.title}. {table.rule} {_LEGEND}')}}}"]
        lines += [rf"\begin{{tabular}}{{lll{'c' * len(table.columns)}}}", r"\toprule", _tex_row(grid[0]), r"\midrule"]
        lines += [_tex_row(row) for row in grid[1:]]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines)


def _tex_row(row: list[str]) -> str:
    return " & ".join(_tex(cell) for cell in row) + r" \\"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
