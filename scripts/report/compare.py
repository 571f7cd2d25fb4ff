"""Methods side by side, over their seeds: mean, deviation, and paired differences with 95 % intervals (METHOD.md 4).

    python -m scripts.report compare [PATH...] [--draws] [--part LIST TEXT] [--json FILE] [--html FILE] [--svg FILE]

The seeds of a method are the runs that differ in nothing but the seed. Finished runs of one data set, split and encoder are compared.
--draws: splits whose names end in `draw` and a number, such as 3_draw0 and 3_draw1, are draws of one. Each seed has another, so that the
deviation and the intervals are of lists and seeds together.
--part: the figures of those images alone whose line in LIST holds TEXT, such as those of one city, from the counts beside the logs. The
best epoch is still the one of all images; figures of other lists are left out.
"""

import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.lists import ImageList, read_lines
from engine import image_counts
from engine.image_counts import ImageCounts
from engine.resume import LOG
from scripts.report.bootstrap import DRAWS, LEVEL, SCORES, SEED, Interval, over_images, over_seeds, t_interval
from scripts.report.identity import method_name, own_method
from scripts.report.parse import Run
from scripts.report.uneven import uneven
from util.error import UserError

_DRAW = re.compile(r"(?<=draw)\d+$")
# figures of a run: of its best epoch, as published; of its last one; of best.pth on the list that had no say in its choice
STATISTICS = ("best", "last", "test")


class Part(NamedTuple):
    """The images of a list whose lines hold a text. sha256: of the list; chosen: (N,) bool."""

    title: str
    sha256: str
    chosen: np.ndarray


def part_of(path: str, text: str) -> Part:
    """The images of the list `path` whose lines hold `text`. Raises UserError where there are none."""
    lines = read_lines(path)
    chosen = np.array([text in line for line in lines])
    if not chosen.any():
        raise UserError(f"--part: found {text!r} in no line of {path}, expected a part of a line, such as {lines[0].split()[0]}")
    title = f"the {chosen.sum()} of {len(lines)} images of {path} with {text!r}"
    return Part(title, ImageList(path, "segmentation", masks=False).sha256, chosen)


@dataclass
class Group:
    """The runs of one method, by their seeds."""

    label: str
    runs: dict[int, Run]

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))

    def figures(self, which: str) -> dict[int, float]:
        """The figure of each seed in percent, where its log has it."""
        found = {seed: getattr(run, which) for seed, run in sorted(self.runs.items())}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, which: str) -> dict[str, float | None]:
        """Mean over the seeds, and standard deviation (n - 1) of two or more."""
        values = list(self.figures(which).values())
        return {
            "mean": statistics.mean(values) if values else None,
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
        }


@dataclass
class Difference:
    """First minus second in points, over equal seeds. An interval is None where it cannot be computed: t and seeds with one seed, the
    others without counts of the images."""

    first: str
    second: str
    figure: str
    seeds: list[int]
    mean: float
    t: Interval | None = None
    over_seeds: Interval | None = None
    over_images: Interval | None = None
    over_both: Interval | None = None

    @property
    def verdict(self) -> str:
        """A difference is shown by two or more seeds where no interval holds 0."""
        if len(self.seeds) < 2:
            return "one seed: says nothing of others"
        intervals = [one for one in (self.t, self.over_seeds, self.over_images, self.over_both) if one is not None]
        if any(low <= 0 <= high for low, high in intervals):
            return "no difference shown"
        return "higher" if self.mean > 0 else "lower"


@dataclass
class Comparison:
    """What is known of one data set, split and encoder."""

    title: str
    groups: list[Group]
    differences: list[Difference]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        groups = [
            {"label": group.label, "logs": {seed: run.log for seed, run in sorted(group.runs.items())}}
            | {which: group.spread(which) | {"seeds": group.figures(which)} for which in STATISTICS}
            for group in self.groups
        ]
        return {"title": self.title, "groups": groups, "differences": [asdict(one) | {"verdict": one.verdict} for one in self.differences]}


@dataclass
class Compared:
    """All comparisons, and what a reader should know of them."""

    comparisons: list[Comparison] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """With the bootstrap's draws and seed, so that the intervals can be computed again."""
        how = {"level": LEVEL, "draws": DRAWS, "seed": SEED}
        return {"comparisons": [one.to_json() for one in self.comparisons], "intervals": how, "remarks": self.remarks}


def compare(runs: Iterable[Run], draws: bool = False, part: Part | None = None) -> Compared:
    """Groups the runs by what they share, and compares every two methods of a group. What is left out is in the remarks.

    draws: splits whose names end in `draw` and a number count as one. part: figures of these images alone.
    """
    out = Compared()
    sweeps: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run.seed is None or not run.complete:
            out.remarks.append(f"{run.log}: not compared: {'it is not finished' if run.seed is not None else 'its seed is not known'}")
        else:
            split = _DRAW.sub("*", run.split or "") if draws else run.split
            own = replace(run, settings=_of_any_draw(run)) if draws else run
            own = _of_part(own, part, out.remarks) if part else own
            sweeps[tuple(text or "?" for text in (run.dataset, split, run.backbone))].append(own)
    for where, members in sweeps.items():
        groups = _groups(members, out.remarks)
        pairs = itertools.combinations(groups, 2)
        differences = [found for low, high in pairs for which in STATISTICS if (found := _difference(high, low, which, out.remarks, part))]
        title = " ".join(where) + (f": {part.title}" if part else "")
        out.comparisons.append(Comparison(title, groups, differences))
    out.remarks += uneven(run for members in sweeps.values() for run in members)
    out.remarks = list(dict.fromkeys(out.remarks))
    return out


def _of_any_draw(run: Run) -> dict[str, str]:
    """The settings without what follows from the draw: its name in the list that selects, and the class weights of its labels."""
    split = run.split or ""
    path = run.settings.get("val_id_path", "").replace(f"/{split}/", f"/{_DRAW.sub('*', split)}/")
    weights = re.sub(r"\[.*\]", "a list", run.settings.get("class_weights", ""))
    return run.settings | {"val_id_path": path, "class_weights": weights}


def _of_part(run: Run, part: Part, remarks: list[str]) -> Run:
    """The run with the figures of a part of the images; without those whose counts are missing or of another list."""
    figures: dict[str, Any] = dict.fromkeys(STATISTICS)
    for which in (which for which in STATISTICS if getattr(run, which) is not None):
        found = _counts(run, which, remarks)
        if found is not None and found.sha256 == part.sha256:
            figures[which] = round(float(SCORES[run.task](found.counts[part.chosen].sum(0))), 2)
    return replace(run, **figures)


def _groups(runs: list[Run], remarks: list[str]) -> list[Group]:
    """Runs with equal settings but the seed, labelled-only ones first. Of a seed that occurs twice the first run counts."""
    groups: list[Group] = []
    for run in runs:
        fitting = next((one for one in groups if (one.first.method, one.first.settings) == (run.method, run.settings)), None)
        if fitting is None:
            groups.append(Group("", {run.seed or 0: run}))
        elif run.seed in fitting.runs:
            other = fitting.runs[run.seed]
            same = "the same seed and settings" if other.split == run.split else "the same seed on another draw; each draw needs its own"
            remarks.append(f"{run.log}: not compared: {other.log} has {same}")
        else:
            fitting.runs[run.seed or 0] = run
    for group in groups:
        group.label = _label(group.first, [other.first for other in groups if other.first.method == group.first.method])
    return sorted(groups, key=lambda group: _semi(group.first))


def _semi(run: Run) -> bool:
    own = own_method(run.method)
    return own is None or own.semi


def _label(run: Run, same: list[Run]) -> str:
    """The method, and its settings but those that it shares with most of `same`, a run of each group of this method."""
    name = method_name(run.method) if run.method else "unknown method"
    keys = sorted({key for one in same for key in one.settings})
    own = [key for key in keys if 2 * sum(one.settings.get(key) == run.settings.get(key) for one in same) <= len(same)]
    return f"{name} ({', '.join(f'{key} {run.settings.get(key)}' for key in own)})" if own else name


def _difference(first: Group, second: Group, which: str, remarks: list[str], part: Part | None) -> Difference | None:
    ours, theirs = first.figures(which), second.figures(which)
    common = sorted(ours.keys() & theirs.keys())
    seeds = [seed for seed in common if first.runs[seed].split == second.runs[seed].split]
    remarks += [f"{first.label}, {second.label}: seed {seed} not compared: of different splits" for seed in common if seed not in seeds]
    if not seeds:
        return None
    values = np.array([ours[seed] - theirs[seed] for seed in seeds])
    found = Difference(first.label, second.label, which, seeds, float(values.mean()))
    if len(seeds) > 1:
        found.t, found.over_seeds = t_interval(values), over_seeds(values)
    runs = [group.runs[seed] for group in (first, second) for seed in seeds]
    counts = [_counts(run, which, remarks, part) for run in runs]
    known = [one for one in counts if one is not None]
    if len(known) < len(runs):
        return found
    if len({(one.sha256, one.counts.shape) for one in known}) > 1:
        remarks.append(f"{first.label}, {second.label}: no interval over images: {which} is of different lists")
        return found
    stacked = np.stack([one.counts for one in known])
    score = SCORES[runs[0].task]
    found.over_images, both = over_images(stacked[: len(seeds)], stacked[len(seeds) :], score)
    found.over_both = both if len(seeds) > 1 else None
    return found


def _counts(run: Run, which: str, remarks: list[str], part: Part | None = None) -> ImageCounts | None:
    """The counts beside a run's log, where they are of its figure; of the images of a part, where its figure is."""
    log = Path(run.log)
    path = log.with_name(image_counts.FILES[which])
    found = image_counts.load(path) if log.name == LOG else None
    if found is None:
        return None
    if part is not None:
        found = found._replace(counts=found.counts[part.chosen])
    value, figure = float(SCORES[run.task](found.counts.sum(0))), getattr(run, which)
    if abs(value - figure) > 0.0051:  # the log rounds
        remark = f"{path}: not used: it gives {value:.2f}, the log says {figure:.2f}"
        if remark not in remarks:
            remarks.append(remark)
        return None
    return found
