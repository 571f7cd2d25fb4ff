"""A table or figure of the paper with the runs that are its cells, and the commands that make the missing ones."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from scripts.report import paper
from scripts.report.identity import OWN, task_of
from scripts.report.paper import KINDS, Entry
from scripts.report.parse import Run
from scripts.report.recipe import Recipe, differences
from scripts.report.tables import RULES, Cell, Row, Table, column_label, is_like, makes

_UNRECORDED = (
    "published values are recorded for the cells of the authors' README (Tables 1 to 4, 13 and 14); what the paper prints in other "
    "cells is not. Rows without a value are those of the authors' public logs"
)


@dataclass
class Reproduction:
    """name: "1" to "14", "figure 5", "figure 6". parts: a table of each data set. runs: those that are cells.

    remarks: of rows that nothing here trains, or not quite so, and of runs that are nearly a cell. commands: a line for the missing cells
    of each row and data set.
    """

    name: str
    parts: list[Table]
    runs: list[Run]
    remarks: list[str]
    commands: list[str]

    @property
    def title(self) -> str:
        name = self.name.capitalize() if self.name.startswith("figure") else f"Table {self.name}"
        return f"{name}: {paper.title(self.name)}"


def reproduce(name: str, runs: list[Run]) -> Reproduction:
    """The table or figure `name` with the runs, of all that were read, that are its cells."""
    entries = paper.entries(name)
    found: dict[int, dict[str, list[Run]]] = {i: defaultdict(list) for i in range(len(entries))}
    used, remarks = [], _of_rows(entries)
    for run in runs:
        made = [i for i, entry in enumerate(entries) if makes(entry, run)]
        if not made:
            remarks += _nearly(entries, run)
            continue
        group = found[made[0]][run.origin]
        if twin := next((one for one in group if None in (one.seed, run.seed) or one.seed == run.seed), None):
            why = "one of them has no seed" if None in (twin.seed, run.seed) else f"seed {run.seed}"
            remarks.append(f"{run.log}: not in the table, which has this run already: {twin.log} ({why})")
            continue
        run.row = entries[made[0]].name
        used.append(run)
        for i in made:
            found[i][run.origin].append(run)
    parts = [_part(name, dataset, [(entry, found[i]) for i, entry in enumerate(entries) if entry.dataset == dataset]) for dataset in
             paper.columns(name)]  # fmt: skip
    missing = [entry.recipe for i, entry in enumerate(entries) if entry.recipe and not found[i].get(OWN)]
    return Reproduction(name, parts, used, remarks, commands(missing))


def _part(name: str, dataset: str, cells: list[tuple[Entry, dict[str, list[Run]]]]) -> Table:
    """The table's part of a data set."""
    task = task_of(dataset)
    rows: dict[tuple[str, str], Row] = {}
    for entry, runs in cells:
        row = rows.setdefault((entry.name, entry.encoder), Row(entry.name, entry.encoder))
        for kind in KINDS[task]:
            value = paper.published_of(entry).get(kind)
            row.cells[entry.split, kind] = Cell(kind, value, entry.logged, entry.statistic, dict(runs))
    splits = [split for split in paper.columns(name)[dataset] if any(entry.split == split for entry, _ in cells)]
    columns = {(split, kind): column_label(dataset, split, kind) for split in splits for kind in KINDS[task]}
    return Table(paper.dataset_title(dataset) or dataset, RULES[task], columns, list(rows.values()))


def _of_rows(entries: tuple[Entry, ...]) -> list[str]:
    """What is to be known of rows without a recipe, or with one that is not quite the published one."""
    remarks = []
    if not all(entry.note or paper.published_of(entry) for entry in entries):
        remarks.append(_UNRECORDED)
    for entry in entries:
        row = f"{entry.name} ({entry.encoder})" if entry.encoder else entry.name
        if entry.recipe is None:
            remarks.append(f"{row}: {entry.note}")
            continue
        for key, value in entry.differs.items():
            here = entry.recipe.header()[key]
            remarks.append(f"{row}, {paper.dataset_title(entry.dataset)}: {key} {value} in the authors' log, {here} here")
    return list(dict.fromkeys(remarks))


def _nearly(entries: tuple[Entry, ...], run: Run) -> list[str]:
    """Why a run is left out that has the method, data set, split and encoder of a cell: how it differs from the nearest one."""
    other = [differences(entry.recipe, run.settings) for entry in entries if entry.recipe and is_like(entry, run)]
    if not other:
        return []
    nearest = min(other, key=len)
    text = ", ".join(f"{key} {found} (expected {expected})" for key, (found, expected) in nearest.items())
    return [f"{run.log}: not in the table: {text}"]


def commands(recipes: list[Recipe]) -> list[str]:
    """The lines that train all of these: one for each row and data set."""
    splits: dict[Recipe, list[str]] = defaultdict(list)
    for recipe in recipes:
        row = splits[replace(recipe, split="")]
        if recipe.split not in row:
            row.append(recipe.split)
    return [recipe.command(names) for recipe, names in splits.items()]


def to_json(found: Reproduction) -> dict[str, Any]:
    """The table as plain values: a list of cells with every figure that stands in them."""
    cells = []
    for part in found.parts:
        for row in part.rows:
            for (split, kind), cell in row.cells.items():
                values: dict[str, Any] = {"dataset": part.title, "row": row.method, "encoder": row.encoder, "split": split, "figure": kind}
                values["published"] = None if cell.published is None else float(cell.published)
                values["logged"] = None if cell.logged is None else float(cell.logged)
                values["runs"] = [
                    {"log": run.log, "from": origin, "seed": run.seed, "best": run.figure(kind, False, cell.statistic),
                     "last": run.figure(kind, True, cell.statistic), "complete": run.complete}
                    for origin, group in cell.runs.items() for run in group
                ]  # fmt: skip
                cells.append(values)
    return {"name": found.name, "title": found.title, "cells": cells, "remarks": found.remarks, "commands": found.commands}
