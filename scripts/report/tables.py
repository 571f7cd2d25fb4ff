"""Runs arranged like the paper's tables: rows method and encoder, columns splits, published values beside them.

`build_tables` makes a table of each data set that has runs; reproduce.py makes those of the paper.
"""

import itertools
import statistics
from collections import defaultdict
from dataclasses import dataclass, field, fields
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from scripts.report import paper
from scripts.report.identity import AUTHORS, encoder_name, method_name, own_method
from scripts.report.paper import KINDS, Entry
from scripts.report.parse import Run
from scripts.report.recipe import differences
from util.config import Config

TITLES = {"camvid": "CamVid", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}  # of data sets that are not in paper.yaml
RULES = {
    "segmentation": "mIoU in %: maximum over epochs of the EMA teacher's; labelled only, and without EMA: of the student's.",
    "change": "Changed IoU in %: maximum over epochs of the student's, with the overall accuracy in % of that same epoch.",
    "classification": "Accuracy in %: maximum over epochs of the EMA's; without EMA: of the model's.",
}
PLACES = {"miou": 1, "cd_iou": 1, "cd_oa": 2, "acc1": 2}
# a run with another value than the default of one of these, or of a key that its method adds, is another experiment than the published
# one: it gets its own row, no published value
_TELLING = ("conf_thresh", "lossu_weight", "lock_backbone", "batch_norm")
# as published; not read from the configs, which people change
_OTHER_DEFAULTS: dict[tuple[str, str], dict[str, float | bool | str]] = {
    ("unimatch_v1", "cityscapes"): {"conf_thresh": 0.0},
    ("semivl", "cityscapes"): {"conf_mode": "pixelavg"},
    ("allspark", "cityscapes"): {"memory_epoch": 15},
    ("allspark", "coco"): {"memory_epoch": 1},
    ("allspark", "demo"): {"memory_epoch": 1},
}

ColumnKey = tuple[str, str]  # split, kind
RowKey = tuple[str, str]  # label, encoder


@dataclass
class Cell:
    """One figure of a table: what was published, and the runs that stand beside it, by who made them (several: seeds of one experiment).

    statistic: which figure of the runs it is, None for the published one. logged: what is known of the authors' log without it.
    """

    kind: str
    published: Decimal | None = None
    logged: Decimal | None = None
    statistic: str | None = None
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def _figures(self, origin: str, last: bool) -> list[Decimal]:
        figures = [run.figure(self.kind, last, self.statistic) for run in self.runs.get(origin, [])]
        return [Decimal(str(figure)) for figure in figures if figure is not None]

    def value(self, origin: str, last: bool = False) -> Decimal | None:
        """Mean over the runs of their best epochs, or of their last ones, rounded half up to the table's decimals."""
        figures = self._figures(origin, last)
        if not figures and origin == AUTHORS and self.logged is not None and not last:
            return round_half_up(self.logged, PLACES[self.kind])
        return round_half_up(sum(figures, Decimal(0)) / len(figures), PLACES[self.kind]) if figures else None

    def spread(self, origin: str, last: bool = False) -> Decimal | None:
        """Standard deviation over the seeds (n - 1); None for a single run."""
        figures = self._figures(origin, last)
        return round_half_up(statistics.stdev(figures), PLACES[self.kind]) if len(figures) > 1 else None

    def difference(self, origin: str) -> Decimal | None:
        """Ours minus what was published; None where one of them is missing."""
        value = self.value(origin)
        return None if value is None or self.published is None else value - self.published

    def unfinished(self, origin: str) -> bool:
        """Whether a run behind the figure has not reached its last epoch."""
        return any(not run.complete for run in self.runs.get(origin, []))


@dataclass
class Row:
    """method: its label, with what it does otherwise than published."""

    method: str
    encoder: str
    cells: dict[ColumnKey, Cell] = field(default_factory=dict)

    @property
    def has_runs(self) -> bool:
        return any(cell.runs for cell in self.cells.values())


@dataclass
class Table:
    """title and rule of a table; columns: label by key, in the order of the paper."""

    title: str
    rule: str
    columns: dict[ColumnKey, str]
    rows: list[Row]


def round_half_up(value: Decimal | float | str, places: int) -> Decimal:
    """As the published numbers are rounded: 86.25 -> 86.3, never to even."""
    return Decimal(str(value)).quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP)


def build_tables(runs: list[Run]) -> list[Table]:
    """One table per data set and task, in the order of the paper; columns are the splits that have a run. Names each run's row."""
    by_dataset: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        by_dataset[_dataset(run), run.task].append(run)
    order = [*paper.datasets(), *TITLES]
    keys = sorted(by_dataset, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), key))
    return [_build_table(dataset, task, by_dataset[dataset, task]) for dataset, task in keys]


def makes(entry: Entry, run: Run) -> bool:
    """Whether a run makes a cell of the paper: a public log by its name, another one by what it is and all its settings."""
    if run.origin == AUTHORS:
        return Path(run.log).name == entry.log
    return is_like(entry, run) and entry.recipe is not None and not differences(entry.recipe, run.settings)


def is_like(entry: Entry, run: Run) -> bool:
    """Whether a run has the method, data set, split and encoder of a cell."""
    return (run.method, run.dataset, run.split, run.backbone) == (entry.method, entry.dataset, entry.split, entry.backbone)


def _entry_of(run: Run) -> Entry | None:
    """The cell that a run makes, in the first table that has it, with the figure by which the run is judged."""
    cells = (entry for table in paper.tables() for entry in paper.entries(table))
    return next((entry for entry in cells if entry.statistic in (None, run.statistic) and makes(entry, run)), None)


def _dataset(run: Run) -> str:
    entry = paper.by_log().get(Path(run.log).name)
    return entry.dataset if entry else run.dataset or "unknown data set"


def _build_table(dataset: str, task: str, runs: list[Run]) -> Table:
    rows: dict[RowKey, Row] = {}
    groups = _group_runs(runs)
    splits = sorted({split for _, split, _ in groups}, key=_natural)
    for entry in paper.published():
        if entry.dataset == dataset and entry.split in splits:
            row = rows.setdefault((entry.name, entry.encoder), Row(entry.name, entry.encoder))
            for kind, value in entry.published.items():
                row.cells.setdefault((entry.split, kind), Cell(kind, value))
    for ((label, encoder), split, origin), group in groups.items():
        row = rows.setdefault((label, encoder), Row(label, encoder))
        for kind in KINDS[task]:
            row.cells.setdefault((split, kind), Cell(kind)).runs[origin] = group
        for run in group:
            run.row = label
    columns = {(split, kind): column_label(dataset, split, kind) for split in splits for kind in KINDS[task]}
    title = paper.dataset_title(dataset) or TITLES.get(dataset, dataset)
    return Table(title, RULES[task], columns, sorted(rows.values(), key=lambda row: row.has_runs))


def column_label(dataset: str, split: str, kind: str) -> str:
    """The paper's heading of a split, else the split's name; of change detection with the figure that stands below it."""
    suffix = {"cd_iou": " changed IoU", "cd_oa": " overall acc", "acc1": " labels"}.get(kind, "")
    return (paper.heading(dataset, split) or (split.replace("_", "/") if split.replace("_", "").isdecimal() else split)) + suffix


def _natural(split: str) -> tuple[bool, float, str]:
    """Fewer labels first: 1_16 before 1_8, 92 before 183, names last."""
    parts = split.rstrip("%").split("_")
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        return (True, 0.0, split)
    return (False, int(parts[0]) / (int(parts[-1]) or 1) if len(parts) > 1 else float(parts[0]), split)


def _group_runs(runs: list[Run]) -> dict[tuple[RowKey, str, str], list[Run]]:
    """Runs by row, split and who made them. Only seeds of one experiment share a cell; another or a repeated one has a row of its own."""
    cells: dict[tuple[str, str, str, str], list[list[Run]]] = defaultdict(list)
    for run in runs:
        label, encoder, split = _place(run)
        groups = cells[label, encoder, split, run.origin]
        fitting = [group for group in groups if group[0].settings == run.settings and run.seed not in {None, *(one.seed for one in group)}]
        if fitting and fitting[0][0].seed is not None:
            fitting[0].append(run)
        else:
            groups.append([run])
    found: dict[tuple[RowKey, str, str], list[Run]] = {}
    for (label, encoder, split, origin), groups in cells.items():
        for group in groups:
            text = _with(label, _settings_apart(group[0], groups[0][0]))
            numbered = (text if number == 1 else _with(text, f"run {number}") for number in itertools.count(1))
            name = next(name for name in numbered if ((name, encoder), split, origin) not in found)
            found[(name, encoder), split, origin] = group
    return found


def _place(run: Run) -> tuple[str, str, str]:
    """Label, encoder and split of a run's row and column."""
    entry = _entry_of(run)
    if entry:
        return entry.name, entry.encoder, entry.split
    label = method_name(run.method) if run.method else "unknown method"
    return _with(label, variant(run)), encoder_name(run.backbone or "?"), run.split or "unknown split"


def _with(label: str, text: str) -> str:
    """A label with something more in its parentheses."""
    if not text:
        return label
    return f"{label[:-1]}, {text})" if label.endswith(")") else f"{label} ({text})"


def variant(run: Run) -> str:
    """The settings that make a run another experiment than the published one of its method, as text."""
    own = own_method(run.method)
    shared = {one.name for one in fields(Config)} - set(_TELLING)
    # not what has no value of its own, such as a path
    usual = {one.name: one.default for one in fields(own.config if own else Config) if one.name not in shared and one.default is not None}
    usual |= _OTHER_DEFAULTS.get((run.method or "", run.dataset or ""), {})
    usual["threshold"] = usual["conf_thresh"]  # UniMatch V1's name for it
    if own and own.teacher == "ema":
        usual["teacher"] = str(own.programs.get(run.settings.get("program", ""), own).teacher_of(run.task))
    if own and not own.thresholded:
        del usual["conf_thresh"]
    return ", ".join(f"{key} {value}" for key, value in run.settings.items() if key in usual and not _is(value, usual[key]))


def _is(value: str, usual: Any) -> bool:
    try:
        return float(value) == usual
    except ValueError:
        return value == str(usual)


def _settings_apart(run: Run, first: Run) -> str:
    """The settings in which a run differs from the first one of its cell."""
    keys = sorted(key for key in run.settings | first.settings if run.settings.get(key) != first.settings.get(key))
    return ", ".join(f"{key} {run.settings.get(key)}" for key in keys)
