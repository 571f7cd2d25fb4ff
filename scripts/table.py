"""Markdown tables that are aligned as text too."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Rows of cells, the heading first, with columns padded to one width: the first `names` to the left, figures to the right."""
    escaped = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in escaped)) for i in range(len(rows[0]))]
    lines = []
    for row in escaped:
        cells = [cell.ljust(width) if i < names else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    rule = [" " + "-" * width + " " if i < names else " " + "-" * width + ":" for i, width in enumerate(widths)]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])
