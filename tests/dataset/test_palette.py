"""The colours of data sets that have none: distinguished by eye, whatever the number of classes, and the same everywhere."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dataset import picture
from dataset.palette import FIRST, TAKEN, differences, distinct_palette
from dataset.spec import DatasetSpec, bit_palette


@pytest.mark.parametrize(("count", "least"), [(7, 0.15), (20, 0.13), (64, 0.06), (150, 0.03), (255, 0.015)])
def test_colours_differ(count: int, least: float) -> None:
    """From each other, and from black, white and the grey of ignored pixels. Pascal's, the former default, are 0.01 apart at 20."""
    colors = np.array(distinct_palette(count))
    assert (differences(colors, colors) + 9 * np.eye(count)).min() > least
    assert differences(colors, np.array(TAKEN)).min() > min(least, 0.06)  # to a deuteranope, Okabe and Ito's green is a little like grey
    assert len({tuple(color) for color in colors.tolist()}) == count


def test_differences_are_those_of_the_eye() -> None:
    def apart(*pair: tuple[int, int, int]) -> float:
        return float(differences(np.array([pair[0]]), np.array([pair[1]]))[0, 0])

    assert apart((0, 0, 0), (255, 255, 255)) == pytest.approx(1, abs=0.01)  # OKLab's lightness goes from 0 to 1
    assert apart((9, 9, 9), (9, 9, 9)) == 0
    red, green = (200, 90, 60), (120, 140, 60)  # of one lightness to a deuteranope
    assert apart(red, green) < apart((200, 90, 60), (90, 90, 200))


def test_a_longer_palette_begins_with_a_shorter_one() -> None:
    """Another class changes no colour of those before it."""
    longest = distinct_palette(255)
    assert longest[:7] == FIRST
    assert all(distinct_palette(count) == longest[:count] for count in (1, 2, 8, 30))


def test_no_class_is_black_or_nearly() -> None:
    assert min(max(color) for color in distinct_palette(255)) > 70
    assert bit_palette(1)[0] == (0, 0, 0), "which is what Pascal's has for class 0"


def test_masks_overlays_and_legends_have_the_same_colours() -> None:
    spec = DatasetSpec("own", tuple("abcd"), distinct_palette(4))
    ids = np.repeat(np.arange(4, dtype=np.uint8), 64).reshape(16, 16)
    expected = np.array(spec.palette)[ids]
    assert np.array_equal(np.asarray(picture.palette_mask(ids, spec).convert("RGB")), expected)
    assert np.array_equal(np.asarray(picture.paint(ids, spec)), expected)
    over = np.asarray(picture.tint(Image.new("RGB", (16, 16)), ids, spec, 1.0))
    assert np.array_equal(over, expected)
    drawn = {tuple(color) for color in np.asarray(picture.legend(ids, spec, 300)).reshape(-1, 3).tolist()}
    assert set(spec.palette) <= drawn


def test_over_an_image_background_has_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DatasetSpec("own", ("background", "a"), distinct_palette(2))
    ids = np.array([[0, 1]], np.uint8)
    for over, expected in ((False, set(spec.palette)), (True, {spec.palette[1]})):
        drawn = {tuple(color) for color in np.asarray(picture.legend(ids, spec, 300, over=over)).reshape(-1, 3).tolist()}
        assert set(spec.palette) & drawn == expected
    written: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda draw, xy, text, *more: written.append(text))
    picture.legend(ids, spec, 300, over=True)
    assert written == ["background 50.0% (not coloured)", "a 50.0%"]
