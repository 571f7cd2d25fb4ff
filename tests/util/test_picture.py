"""Pictures: what they show of values that are no numbers."""

import numpy as np

from util.picture import heat


def test_heat_shows_a_confidence_that_is_no_number_as_the_lowest() -> None:
    shown = np.asarray(heat(np.array([[0.0, np.nan, 1.0, np.inf, -np.inf]], np.float32)))[0]
    assert shown[0].tolist() == shown[1].tolist() == shown[4].tolist()
    assert shown[2].tolist() == shown[3].tolist() != shown[0].tolist()
