"""Training logs, ours and the authors', read by the published rule (METHOD.md 4, 5) and set beside the published tables.

parse.py reads a log into runs, identity.py says which experiment a run is, tables.py arranges runs and published values, render.py
prints them. paper.yaml maps each cell of the paper's tables and figures to a recipe (recipe.py), to what was published and to the authors'
log; reproduce.py fills such a table with runs, figure.py draws. Commands: `python -m scripts.report --help`.
"""

from scripts.report.parse import Run, read_log

__all__ = ["Run", "read_log"]
