"""Converts the official archives to the folders that the published lists expect: `python -m dataset.prepare pascal ...` (docs/data.md)."""
