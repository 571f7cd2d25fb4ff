"""The paper's tables and figures, cell by cell: the run that makes it, what was published, and the authors' log (paper.yaml)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from engine.method import DEFAULT
from scripts.report.identity import encoder_name, method_name, own_method, task_of
from scripts.report.recipe import Recipe
from util.config import read_yaml
from util.files import ROOT

# logs of a data set's own table are named after it, and need no `log` in paper.yaml
_MAIN_LOG = "{main}-{dataset}_{method}_{labels}_{backbone}.log"
KINDS = {"segmentation": ("miou",), "change": ("cd_iou", "cd_oa"), "classification": ("acc1",)}  # figures of a run, by its task
_IN_LOGS = {"supervised": "labeled_only", "unimatch_v2": "unimatch_v2"}


@dataclass(frozen=True)
class Entry:
    """A cell of a table, or a point of a figure. table: "1" to "14", "figure 5" or "figure 6"; x: of a point.

    published: percentages by kind (miou; change detection: cd_iou, cd_oa), empty where none is known. logged: the figure of the authors'
    log, where it is known without that. log: its name, empty where there is none. statistic: which figure of a run it is, None for the
    published one. recipe: None for what this program does not train, and `note` says why. differs: {key of the log's header: its value}
    of what the recipe has otherwise.
    """

    table: str
    label: str
    detail: str
    encoder: str
    method: str
    backbone: str
    dataset: str
    split: str
    published: Mapping[str, Decimal]
    logged: Decimal | None
    log: str
    statistic: str | None
    recipe: Recipe | None
    note: str
    differs: Mapping[str, Any]
    x: float | None

    @property
    def name(self) -> str:
        """The row's label."""
        return f"{self.label} ({self.detail})" if self.detail else self.label


@cache
def _facts() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))


def tables() -> list[str]:
    """The names of all tables and figures: 1 to 14, figure 5, figure 6."""
    return [*_facts()["tables"], *(f"figure {number}" for number in _facts()["figures"])]


def _table(name: str) -> dict[str, Any]:
    kind, _, number = name.rpartition(" ")
    return _facts()["figures" if kind else "tables"][number]


def title(table: str) -> str:
    """What a table or figure is about."""
    return _table(table)["title"]


def axis(figure: str) -> str:
    """The config key that a figure's points differ in."""
    return _table(figure)["axis"]


def columns(table: str) -> dict[str, list[str]]:
    """{data set: splits}, in the table's order."""
    return _table(table)["columns"]


def datasets() -> list[str]:
    """Those of the paper, in its order."""
    return list(_facts()["datasets"])


def dataset_title(dataset: str) -> str | None:
    """The paper's name of a data set; None for one that is not in it."""
    return _facts()["datasets"].get(dataset, {}).get("title")


def heading(dataset: str, split: str) -> str | None:
    """The paper's name of a split; None for one that is not in it."""
    return _facts()["datasets"].get(dataset, {}).get("splits", {}).get(split)


@cache
def entries(table: str) -> tuple[Entry, ...]:
    """The cells of a table, row by row."""
    return tuple(entry for row in _table(table)["rows"] for entry in _row(table, row))


@cache
def by_log() -> dict[str, Entry]:
    """The cell of each public log; of those that show it, the first, which is in the log's own table."""
    found: dict[str, Entry] = {}
    for table in tables():
        for entry in entries(table):
            if entry.log:
                found.setdefault(entry.log, entry)
    return found


def published_of(entry: Entry) -> Mapping[str, Decimal]:
    """What was published of a cell, there or where the paper shows the same run."""
    same = (one for one in published() if one.log and (one.log, one.statistic) == (entry.log, entry.statistic))
    return entry.published or next((one.published for one in same), {})


@cache
def published() -> tuple[Entry, ...]:
    """The cells with a published value."""
    return tuple(entry for table in tables() for entry in entries(table) if entry.published)


def _row(table: str, row: dict[str, Any]) -> Iterator[Entry]:
    for dataset, splits in columns(table).items():
        covered = _covered(row, dataset, splits)
        for column, split in enumerate(splits):
            if split in covered:
                yield _entry(table, row, dataset, column, split)


def _covered(row: dict[str, Any], dataset: str, splits: list[str]) -> list[str]:
    """The columns that a row has cells in."""
    if "only" in row:
        return row["only"].get(dataset, [])
    if row.get("all_labels"):
        return ["all"]
    return [split for split in splits if split != "all" and not split.startswith("extra")]


def _entry(table: str, row: dict[str, Any], dataset: str, column: int, split: str) -> Entry:
    quoted = row.get("quoted", "")
    method, backbone = row.get("method", DEFAULT), row.get("backbone", "" if quoted else "dinov2_base")
    config = row.get("config", "configs/{dataset}.yaml").format(dataset=dataset)
    note = quoted or ("" if own_method(method) and (ROOT / config).is_file() else "this program has no recipe for it")
    at = f"{axis(table)} {row['x']:g}" if "x" in row else ""
    return Entry(
        table=table,
        label=row.get("name") or method_name(method),
        detail=row.get("detail", at),
        encoder=encoder_name(backbone) if backbone else "",
        method=method,
        backbone=backbone,
        dataset=dataset,
        split=split,
        published=_published(_value(row, "published", dataset, column), dataset),
        logged=_number(_value(row, "logged", dataset, column)),
        log="" if quoted else _log(row, method, backbone, dataset, split),
        statistic=row.get("figure"),
        recipe=None if note else _recipe(row, method, backbone, config, dataset, split),
        note=note,
        differs=row.get("differs", {}).get(dataset, {}),
        x=row.get("x"),
    )


def _log(row: dict[str, Any], method: str, backbone: str, dataset: str, split: str) -> str:
    """The name of the authors' log; empty where they published none."""
    pattern = row.get("log", _MAIN_LOG if method in _IN_LOGS else "")
    facts = _facts()["datasets"][dataset]
    labels = "all_labels" if split == "all" else f"{split}labels"
    words = {"main": facts["main"], "dataset": facts.get("logs", dataset), "method": _IN_LOGS.get(method), "x": row.get("x")}
    return pattern.format(split=split, labels=labels, backbone=backbone, **words)


def _recipe(row: dict[str, Any], method: str, backbone: str, config: str, dataset: str, split: str) -> Recipe:
    facts, given = _facts()["datasets"][dataset], row.get("set", [])
    for part in (dataset, split):
        given = given.get(part, []) if isinstance(given, dict) else given
    settings = [text.format(x=row.get("x")) for text in given]
    if backbone != read_yaml(str(ROOT / config))["backbone"]:
        settings.insert(0, f"backbone={backbone}")
    if "shards" in row:
        settings.append(f"shards={row['shards']}")
    if not row.get("all_labels"):
        return Recipe(method, dataset, split, config, tuple(settings))
    if "epochs_on_all_labels" in facts:
        settings.append(f"epochs={facts['epochs_on_all_labels']}")
    return Recipe(method, dataset, split, config, tuple(settings), facts.get("all_labels", ""))


def _value(row: dict[str, Any], key: str, dataset: str, column: int) -> str:
    """The word of a row's list of values that belongs to a column; "-" for none."""
    values = row.get(key, {}).get(dataset, "").split()
    return values[column] if column < len(values) else "-"


def _published(value: str, dataset: str) -> dict[str, Decimal]:
    return {} if value == "-" else dict(zip(KINDS[task_of(dataset)], map(Decimal, value.split("/")), strict=True))


def _number(value: str) -> Decimal | None:
    return None if value == "-" else Decimal(value)
