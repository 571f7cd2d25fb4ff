"""A comparison of methods as text for a terminal."""

from scripts.report.bootstrap import DRAWS, SEED, Interval
from scripts.report.compare import FIGURES, Compared, Comparison, Difference, Group
from scripts.report.render import Grid
from scripts.table import markdown_table

_HEADINGS = {"best": "best epoch", "last": "last epoch", "test": "best.pth on the test list"}
NOTES = (
    "Figures in %: mean ± standard deviation (n - 1) over the seeds; mIoU, or IoU of the changed class. The best epoch is chosen by the "
    "images that it is scored on; the test list has no say in it.",
    "Differences in points, over equal seeds, with 95 % intervals. t: Student's, of the seeds' differences. Seeds: percentile bootstrap of "
    "their mean, seeds resampled. Images: the validation images resampled, the same ones for all runs. Both: seeds and images resampled. "
    f"{DRAWS} draws each, generator numpy's default_rng({SEED}) for images and default_rng({SEED + 1}) for seeds.",
    '"higher" and "lower" stand where there are two or more seeds and no interval holds 0; else no difference is shown, which does not say '
    "that there is none.",
    "Few seeds: with 2 or 3 the interval of seeds is the range of their differences, which holds the median of all seeds' differences in "
    "50 % and 75 % of cases, not in 95 %. The t interval is right if differences are normally distributed: 12.7 standard errors on either "
    "side for 2 seeds, 4.3 for 3, 2.8 for 5. The interval of images says how far these runs would differ on other images, nothing of other "
    "seeds.",
)


def methods_grid(found: Comparison) -> Grid:
    """A row for each method."""
    shown = [which for which in FIGURES if any(group.figures(which) for group in found.groups)]
    rows = [[group.label, " ".join(map(str, sorted(group.runs))), *(_figures(group, which) for which in shown)] for group in found.groups]
    return [["method", "seeds", *(_HEADINGS[which] for which in shown)], *rows]


def _figures(group: Group, which: str) -> str:
    values = group.figures(which)
    if not values:
        return "-"
    spread = group.spread(which)
    deviation = "" if spread["deviation"] is None else f" ± {spread['deviation']:.2f}"
    count = "" if len(values) == len(group.runs) else f" ({len(values)} of {len(group.runs)} seeds)"
    return f"{spread['mean']:.2f}{deviation}{count}"


def differences_grid(found: Comparison) -> Grid:
    """A row for each pair of methods and figure."""
    heading = ["difference", "figure", "shown", "seeds", "mean", "t", "seeds resampled", "images", "both"]
    return [heading, *(_row(one) for one in found.differences)]


def _row(one: Difference) -> list[str]:
    intervals = [_interval(interval) for interval in (one.t, one.over_seeds, one.over_images, one.over_both)]
    names = f"{one.first} - {one.second}"
    return [names, _HEADINGS[one.figure], one.verdict, " ".join(map(str, one.seeds)), f"{one.mean:+.2f}", *intervals]


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"


def markdown(found: Compared) -> str:
    """The whole comparison in Markdown."""
    parts = []
    for one in found.comparisons:
        parts += [f"## {one.title}", markdown_table(methods_grid(one), 2)]
        nothing = "Nothing to compare: one method, or no seed in common."
        parts.append(markdown_table(differences_grid(one), 4) if one.differences else nothing)
    parts += NOTES
    parts += ["\n".join(f"- {remark}" for remark in found.remarks)] if found.remarks else []
    return "\n\n".join(parts)
