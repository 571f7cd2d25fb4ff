"""Runs arranged like the paper's tables: a table per data set, rows method and encoder, columns splits, published values beside."""

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

from scripts.report.identity import own_method
from scripts.report.parse import Run

# methods of the public logs that this program has not
METHODS = {
    "unimatch_v2_noEMA": "UniMatch V2, student as teacher",
    "fixmatch_addfeataug": "FixMatch + feature dropout (4a)",
    "fixmatch_dualstream": "FixMatch, two views (4b)",
    "fixmatch_addfeataug_dualstream": "FixMatch, two views + feature dropout (4c)",
}
_ENCODERS = {
    "dinov3_convnext": "DINOv3-ConvNeXt",
    "dinov3": "DINOv3",
    "dinov2": "DINOv2",
    "resnet": "ResNet",
    "mit": "MiT",
    "beit": "BEiT",
    "sam": "SAM",
    "efficientnet": "EfficientNet",
    "clip": "CLIP",
    "xception": "Xception-65",
}
TITLES = {"pascal": "Pascal", "cityscapes": "Cityscapes", "ade20k": "ADE20K", "coco": "COCO", "levir": "LEVIR-CD", "whu": "WHU-CD",
          "camvid": "CamVid", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}  # fmt: skip
RULES = {
    "segmentation": "mIoU in %: maximum over epochs of the EMA teacher's; labelled only, and without EMA: of the student's.",
    "change": "Changed IoU in %: maximum over epochs of the student's, with the overall accuracy in % of that same epoch.",
    "classification": "Accuracy in %: maximum over epochs of the EMA's; without EMA: of the model's.",
}
KINDS = {"segmentation": ("miou",), "change": ("cd_iou", "cd_oa"), "classification": ("acc1",)}
PLACES = {"miou": 1, "cd_iou": 1, "cd_oa": 2, "acc1": 2}
# a run with another value here is another experiment than the published one: it gets its own row and no published value
_DEFAULTS = {"conf_thresh": 0.95, "threshold": 0.95, "lossu_weight": 1.0, "lock_backbone": False}
_OTHER_DEFAULTS = {("unimatch_v1", "cityscapes"): {"conf_thresh": 0.0}}

ColumnKey = tuple[str, str]  # split, kind
RowKey = tuple[str, str, str]  # method, encoder, variant


@dataclass
class Cell:
    """One figure of a table: what was published, and the runs that stand beside it (several: seeds of one experiment)."""

    kind: str
    published: Decimal | None = None
    runs: list[Run] = field(default_factory=list)

    def _values(self) -> list[Decimal]:
        figures = [run.accuracy if self.kind == "cd_oa" else run.best for run in self.runs]
        return [Decimal(str(figure)) for figure in figures if figure is not None]

    @property
    def value(self) -> Decimal | None:
        """Mean over the runs, rounded half up to the table's decimals."""
        values = self._values()
        return round_half_up(sum(values, Decimal(0)) / len(values), PLACES[self.kind]) if values else None

    @property
    def spread(self) -> Decimal | None:
        """Standard deviation over the seeds (n - 1); None for a single run."""
        values = self._values()
        return round_half_up(statistics.stdev(values), PLACES[self.kind]) if len(values) > 1 else None

    @property
    def difference(self) -> Decimal | None:
        return None if self.value is None or self.published is None else self.value - self.published

    @property
    def unfinished(self) -> bool:
        return any(not run.complete for run in self.runs)


@dataclass
class Row:
    method: str
    encoder: str
    cells: dict[ColumnKey, Cell]

    @property
    def has_runs(self) -> bool:
        return any(cell.runs for cell in self.cells.values())


@dataclass
class Table:
    """title and rule of a data set's table; columns: label by key, in the order of the paper."""

    title: str
    rule: str
    columns: dict[ColumnKey, str]
    rows: list[Row]


def round_half_up(value: Decimal | float | str, places: int) -> Decimal:
    """As the published numbers are rounded: 86.25 -> 86.3, never to even."""
    return Decimal(str(value)).quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP)


@cache
def published() -> list[dict[str, str | None]]:
    """The published tables as one list of cells, `table` added; `method_name`, `dataset`, `split`, `backbone` are our names."""
    tables = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))["tables"]
    return [{"table": name, **cell} for name, cells in tables.items() for cell in cells]


def build_tables(runs: list[Run]) -> list[Table]:
    """One table per data set and task, in the order of the paper; columns are the splits that have a run."""
    by_dataset: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in map(_placed, runs):
        by_dataset[run.dataset or "unknown data set", run.task].append(run)
    order = list(TITLES)
    keys = sorted(by_dataset, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), key))
    return [_build_table(dataset, task, by_dataset[dataset, task]) for dataset, task in keys]


def _placed(run: Run) -> Run:
    """The run, under the names of the published cell when its log is the one that the cell comes from."""
    name = Path(run.log).name
    for cell in published():
        if cell["log"] == name:
            return replace(run, method=cell["method_name"], dataset=cell["dataset"], split=cell["split"], backbone=cell["backbone"])
    return run


def _build_table(dataset: str, task: str, runs: list[Run]) -> Table:
    quoted = [cell for cell in published() if cell["dataset"] == dataset]
    columns = _columns(task, runs, quoted)
    rows: dict[RowKey, Row] = {}
    for cell in quoted:
        column = (str(cell["split"]), str(cell["kind"]))
        if column in columns and (cell["reported"] or "").replace(".", "").isdecimal():
            key = (str(cell["method_name"]), cell["backbone"] or "?", "")
            encoder = encoder_name(key[1])
            row = rows.setdefault(key, Row(str(cell["method"]), str(cell["encoder"]) if encoder == key[1] else encoder, {}))
            row.cells[column] = Cell(column[1], Decimal(str(cell["reported"])))
    for key, by_split in _group_runs(runs).items():
        method, backbone, variant = key
        own = own_method(method)
        label = (own.title if own else METHODS.get(method)) or method
        label += f" ({variant})" if variant else ""
        row = rows.setdefault(key, Row(label, encoder_name(backbone), {}))
        for split, group in by_split.items():
            for kind in KINDS[task]:
                row.cells.setdefault((split, kind), Cell(kind)).runs = group
    return Table(TITLES.get(dataset, dataset), RULES[task], columns, sorted(rows.values(), key=lambda row: row.has_runs))


def _columns(task: str, runs: list[Run], quoted: list[dict[str, str | None]]) -> dict[ColumnKey, str]:
    """The splits that have a run, fewer labels first, under the paper's heading where it has one."""
    headings = {(cell["split"], cell["kind"]): str(cell["column"]) for cell in quoted if cell["table"] != "Real-World Large-Scale"}
    splits = sorted({_split(run) for run in runs}, key=_natural)
    return {(split, kind): headings.get((split, kind), _label(split, kind)) for split in splits for kind in KINDS[task]}


def _label(split: str, kind: str) -> str:
    suffix = {"cd_iou": " changed IoU", "cd_oa": " overall acc", "acc1": " labels"}.get(kind, "")
    return split.replace("_", "/" if split.replace("_", "").isdecimal() else " ") + suffix


def _split(run: Run) -> str:
    return run.split or "unknown split"


def _natural(split: str) -> tuple[bool, float, str]:
    """Fewer labels first: 1_16 before 1_8, 92 before 183, names last."""
    parts = split.rstrip("%").split("_")
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        return (True, 0.0, split)
    return (False, int(parts[0]) / (int(parts[-1]) or 1) if len(parts) > 1 else float(parts[0]), split)


def _group_runs(runs: list[Run]) -> dict[RowKey, dict[str, list[Run]]]:
    """Runs by row and split. Only seeds of one experiment share a cell; a repeated or different experiment gets a row of its own."""
    cells: dict[tuple[str, str, str, str], list[list[Run]]] = defaultdict(list)
    for run in runs:
        groups = cells[run.method or "unknown method", run.backbone or "?", variant(run), _split(run)]
        fitting = [group for group in groups if group[0].settings == run.settings and run.seed not in {None, *(one.seed for one in group)}]
        if fitting and fitting[0][0].seed is not None:
            fitting[0].append(run)
        else:
            groups.append([run])
    rows: dict[RowKey, dict[str, list[Run]]] = defaultdict(dict)
    for (method, backbone, text, split), groups in cells.items():
        for group in groups:
            extra = "" if group is groups[0] else _apart(group[0], groups[0][0])
            rows[method, backbone, ", ".join(part for part in (text, extra) if part)][split] = group
    return rows


def variant(run: Run) -> str:
    """The settings that make a run another experiment than the published one of its method, as text."""
    usual = _DEFAULTS | _OTHER_DEFAULTS.get((run.method or "", run.dataset or ""), {})
    return ", ".join(f"{key} {value}" for key, value in run.settings.items() if key in usual and not _is(value, usual[key]))


def _is(value: str, usual: float | bool) -> bool:
    try:
        return float(value) == usual
    except ValueError:
        return value == str(usual)


def _apart(run: Run, first: Run) -> str:
    """What tells a run from the first one of its cell: the settings that differ, and its log when none does."""
    keys = sorted(key for key in run.settings | first.settings if run.settings.get(key) != first.settings.get(key))
    return f"{', '.join(f'{key} {run.settings.get(key)}' for key in keys)}{': ' if keys else ''}{run.log}"


def encoder_name(backbone: str) -> str:
    """dinov2_base -> DINOv2-Base, resnet101 -> ResNet-101; a name of another family stays as it is."""
    for family, name in _ENCODERS.items():
        size = backbone.removeprefix(family).strip("_")
        if backbone.startswith(family):
            return f"{name}-{size.upper() if len(size) < 3 else size.capitalize()}".replace("_", " ") if size else name
    return backbone
