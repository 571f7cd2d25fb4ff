"""Where the two dates and the label of a change detection pair lie (METHOD.md 2.1)."""


def date_paths(name: str) -> list[str]:
    """Paths of both dates below the data root."""
    return [f"A/{name}", f"B/{name}"]


def label_path(name: str) -> str:
    """Path of the pair's label, 0 for unchanged and 255 for changed."""
    return f"label/{name}"
