"""Learning rate of a step (METHOD.md 3)."""


def poly(base: float, it: int, total: int, power: float = 0.9) -> float:
    """Rate after step `it` (0-based) of `total`, that is for step it + 1: base * (1 - it / total) ** power."""
    return base * (1 - it / total) ** power
