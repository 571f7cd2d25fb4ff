"""Pictures: what they show of values that are no numbers."""

import numpy as np

from dataset.picture import heat, palette_mask
from dataset.spec import DatasetSpec, bit_palette


def test_heat_shows_a_confidence_that_is_no_number_as_the_lowest() -> None:
    shown = np.asarray(heat(np.array([[0.0, np.nan, 1.0, np.inf, -np.inf]], np.float32)))[0]
    assert shown[0].tolist() == shown[1].tolist() == shown[4].tolist()
    assert shown[2].tolist() == shown[3].tolist() != shown[0].tolist()


def test_a_mask_has_class_ids_where_the_labels_have_16_bits() -> None:
    spec = DatasetSpec("deep", ("a", "b"), bit_palette(2), label_map={1000: 0, 2000: 1})
    assert np.asarray(palette_mask(np.array([[0, 1, 255]], np.uint8), spec)).tolist() == [[0, 1, 255]]
