"""A run of ours as the lines that its log has, from the metrics.jsonl beside it: there the figures have full precision and names."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from engine import metric
from engine.metrics_file import read_whole
from engine.resume import LOG, METRICS
from scripts.report.lines import Line, of_model

_LOGGED = {key for figures in metric.FIGURES.values() for key, figure in figures.items() if figure.log}


def read_metrics(log: Path, max_bytes: int) -> list[tuple[str, Line]]:
    """The lines of the run whose log this is. Empty where there is no file, or one that is damaged or lacks the beginning of the run, which
    another program or an earlier version may have begun.
    """
    path = log.with_name(METRICS)
    try:
        if log.name != LOG or path.stat().st_size > max_bytes:
            return []
        rows = read_whole(path)
        if not rows or rows[0]["kind"] != "start" or rows[0]["step"] != 0:
            return []
        return [("", line) for row in rows for line in _lines(row)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


def _lines(row: dict[str, Any]) -> Iterator[Line]:
    """What a line of the file says; raises what its damage gives reason for."""
    kind, time = row["kind"], datetime.fromisoformat(row["time"]).replace(tzinfo=None)
    if kind == "start":
        yield Line("header", time, header=_texts(row["settings"]) | {"method": str(row["method"])})
        if row["step"]:
            yield Line("loaded", time)
    elif kind == "step":
        yield Line("iter", time, _natural(row["epoch"]), _natural(row["iteration"]), is_nan=None in row["means"].values())
    elif kind == "epoch":
        figures, images = _figures(row["scores"], _LOGGED), _natural(row["labeled_images"])
        yield Line("eval" if figures else "info", time, _natural(row["epoch"]), figures=figures, labeled_images=images)
    elif kind == "test":
        (own, *_) = row["scores"].values()
        task = "change" if metric.chosen_by("change") in own else "segmentation"
        yield Line("test", time, test="; ".join(metric.test_lines(row, task)), figures=_figures(row["scores"], {metric.chosen_by(task)}))


def _texts(settings: dict[str, Any]) -> dict[str, str]:
    """Settings as a log's header gives them: as text, and those of the criterion by their own names."""
    texts: dict[str, str] = {}
    for key, value in settings.items():
        inside = key in ("criterion", "kwargs") and isinstance(value, dict)
        texts |= _texts(value) if inside else {key: str(value)}
    return texts


def _figures(scores: dict[str, dict[str, Any]], names: set[str]) -> dict[str, float]:
    """Those of all models, in two decimals as a log prints them: the published numbers are rounded from these."""
    found: dict[str, float] = {}
    for model, own in scores.items():
        found |= of_model(model, {key: _two_decimals(own[key]) for key in sorted(names & own.keys())})
    return found


def _natural(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value


def _two_decimals(percentage: float) -> float:
    if not 0 <= percentage <= 100:
        raise ValueError(percentage)
    return float(f"{percentage:.2f}")
