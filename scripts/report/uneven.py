"""What methods of one sweep differ in beside the method: how many labelled images they have seen in an epoch."""

from collections import defaultdict
from collections.abc import Iterable

from scripts.report.identity import method_name
from scripts.report.parse import Run


def uneven(runs: Iterable[Run]) -> list[str]:
    """A remark for each data set, split and encoder of which runs have seen unequal numbers of labelled images an epoch.

    Runs whose metrics.jsonl does not say so (others' logs, earlier versions) are left out.
    """
    found: dict[tuple[str, ...], dict[int, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if run.labeled_images is not None:
            where = tuple(text or "?" for text in (run.dataset, run.split, run.backbone))
            found[where][run.labeled_images][method_name(run.method) if run.method else "?"] = None
    return [
        f"{' '.join(where)}: labelled images seen in an epoch differ: "
        + ", ".join(f"{count} ({', '.join(methods)})" for count, methods in sorted(counts.items()))
        for where, counts in found.items()
        if len(counts) > 1
    ]
