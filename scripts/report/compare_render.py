"""A comparison of methods as text for a terminal."""

from collections.abc import Iterable
from decimal import Decimal

from scripts.report.bootstrap import DRAWS, SEED, Interval
from scripts.report.compare import STATISTICS, Compared, Comparison, Difference, Group
from scripts.report.render import Grid
from scripts.report.tables import RULES, round_half_up
from scripts.table import markdown_table

_HEADINGS = {"best": "best epoch", "last": "last epoch", "test": "best.pth on the test list"}
# what the columns of the differences are, by their headings
MEANINGS = {
    "difference": "the first method minus the second, in points, over the seeds that both have",
    "shown": "higher or lower where there are two or more seeds and no interval holds 0",
    "t interval": "95 %: Student's, of the seeds' differences",
    "seeds resampled": "95 %: percentile bootstrap of the mean over the seeds",
    "images resampled": "95 %: percentile bootstrap over the images that are scored, the same ones for all runs",
    "both resampled": "95 %: percentile bootstrap over seeds and images",
}
NOTES = (
    "Differences in points, over equal seeds, with 95 % intervals. t interval: Student's, of the seeds' differences. Seeds resampled: "
    "percentile bootstrap of their mean. Images resampled: the images that are scored, the same ones for all runs. Both resampled: seeds "
    f"and images. {DRAWS} draws each, generator numpy's default_rng({SEED}) for images and default_rng({SEED + 1}) for seeds.",
    '"higher" and "lower" stand where there are two or more seeds and no interval holds 0; else no difference is shown, which does not say '
    "that there is none.",
    "Few seeds: with 2 or 3 the interval of seeds is the range of their differences, which holds the median of all seeds' differences in "
    "50 % and 75 % of cases, not in 95 %. The t interval is right if differences are normally distributed: 12.7 standard errors on either "
    "side for 2 seeds, 4.3 for 3, 2.8 for 5. The interval of images says how far these runs would differ on other images, nothing of other "
    "seeds.",
)


def methods_note(found: Compared) -> str:
    """What the figures of the methods are, and of which model, by the rules of the tables."""
    rules = dict.fromkeys(RULES[one.groups[0].first.task] for one in found.comparisons)
    return (
        f"Best epoch: {' '.join(rules)} The other figures are of the same model. Mean ± standard deviation (n - 1) over the seeds. "
        "The best epoch is chosen by the images that it is scored on; the test list has no say in it."
    )


def methods_grid(found: Comparison) -> Grid:
    """A row for each method."""
    shown = [which for which in STATISTICS if any(group.figures(which) for group in found.groups)]
    rows = [[group.label, " ".join(map(str, sorted(group.runs))), *(_figures(group, which) for which in shown)] for group in found.groups]
    return [["method", "seeds", *(_HEADINGS[which] for which in shown)], *rows]


def _figures(group: Group, which: str) -> str:
    values = group.figures(which)
    if not values:
        return "-"
    spread = group.spread(which)["deviation"]
    deviation = "" if spread is None else f" ± {round_half_up(spread, 2)}"
    count = "" if len(values) == len(group.runs) else f" ({len(values)} of {len(group.runs)} seeds)"
    return f"{mean_figure(values.values())}{deviation}{count}"


def mean_figure(figures: Iterable[float]) -> Decimal:
    """The mean of figures in two decimals, rounded half up to as many."""
    exact = [Decimal(str(figure)) for figure in figures]
    return round_half_up(sum(exact, Decimal(0)) / len(exact), 2)


def differences_grid(found: Comparison) -> Grid:
    """A row for each pair of methods and figure."""
    heading = ["difference", "figure", "shown", "seeds", "mean", "t interval", "seeds resampled", "images resampled", "both resampled"]
    return [heading, *(_row(one) for one in found.differences)]


def _row(one: Difference) -> list[str]:
    intervals = [_interval(interval) for interval in (one.t, one.over_seeds, one.over_images, one.over_both)]
    names = f"{one.first} - {one.second}"
    return [names, _HEADINGS[one.figure], one.verdict, " ".join(map(str, one.seeds)), _points(one.mean), *intervals]


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{_points(interval[0])} to {_points(interval[1])}"


def _points(value: float) -> str:
    """A difference of figures, whose last digits a float does not have exactly, rounded as these are."""
    return f"{round_half_up(round(value, 6), 2):+}"


def markdown(found: Compared) -> str:
    """The whole comparison in Markdown."""
    parts = []
    for one in found.comparisons:
        parts += [f"## {one.title}", markdown_table(methods_grid(one), 2)]
        nothing = "Nothing to compare: one method, or no seed in common."
        parts.append(markdown_table(differences_grid(one), 4) if one.differences else nothing)
    parts += [methods_note(found), *NOTES]
    parts += ["\n".join(f"- {remark}" for remark in found.remarks)] if found.remarks else []
    return "\n\n".join(parts)
