"""Training logs, ours and the authors', read by the published rule (METHOD.md 4, 5) and set beside the published tables.

parse.py reads a log into runs, identity.py says which experiment a run is, tables.py arranges runs and published values,
render.py prints them. Command: `python -m scripts.report [--format markdown|json|latex] PATH...`.
"""

from scripts.report.parse import Run, read_log

__all__ = ["Run", "read_log"]
