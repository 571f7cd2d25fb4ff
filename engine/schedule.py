"""Learning rate of a step (METHOD.md 3)."""


def poly(base: float, it: int, total: int) -> float:
    """Rate after step `it` (0-based) of `total`, that is for step it + 1: base * (1 - it / total) ** 0.9."""
    return base * (1 - it / total) ** 0.9
