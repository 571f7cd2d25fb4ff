"""Pictures of what the network sees."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import supervised
import unimatch_v2
from dataset import picture
from dataset.batch import Batch, Reads, denormalize, normalize
from dataset.preview import first_mini_batches, sheets
from dataset.spec import SPECS
from model.encoder import Encoder
from tests.conftest import Tiny
from util.config import parse_command

S = 40  # crop; a panel is 8 times as large: 320
SCALE, GAP, HEAD, LEGEND = 8, 6, 22 + 20, 26  # the head: a line of names, and the panels' titles


def test_denormalize_is_exact() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    for dates in (1, 2):
        img = values.repeat(3 * dates, 1, 1)
        assert torch.equal(denormalize(normalize(img, Encoder()), Encoder()), img)


def batch(dates: int) -> Batch:
    """Two samples of flat views 0.., one grey value for each view and sample (and 5 more for the second date); a box and some padding."""

    def view(first: int) -> torch.Tensor:
        values = torch.tensor([first, first + 10])[:, None, None, None] + 5 * torch.arange(dates).repeat_interleave(3)[:, None, None]
        return normalize(values.expand(2, 3 * dates, S, S).to(torch.uint8), Encoder())

    ignore, mask, box = (
        torch.zeros(2, S, S, dtype=torch.uint8),
        torch.zeros(2, S, S, dtype=torch.long),
        torch.zeros(2, S, S, dtype=torch.bool),
    )
    ignore[1, :, 30:] = 255  # of the second sample
    mask[0, :, :20], mask[0, 20:, 20:] = 1, 255
    box[0, 4:20, 24:36] = True  # of the first sample: shows the second one, its padding too
    names = ["a.png", "b.png"]
    return Batch(
        view(50), mask, view(80), view(110), view(140), ignore, box, torch.zeros_like(box), name_x=names, name_u=names,
    )  # fmt: skip


def pixel(image: Image.Image, sample: int, panel: int, row: int, column: int, dates: int, date: int = 0) -> int:
    """The middle of a crop's pixel on a sheet; grey."""
    y = sample * (HEAD + dates * S * SCALE) + HEAD + (date * S + row) * SCALE + SCALE // 2
    x = panel * (S * SCALE + GAP) + column * SCALE + SCALE // 2
    values = np.asarray(image)[y, x]
    assert np.ptp(values) == 0, values
    return int(values[0])


@pytest.mark.parametrize("dates", [1, 2])
def test_views_are_the_batch_itself(dates: int) -> None:
    image = sheets([batch(dates)], SPECS["levir" if dates == 2 else "camvid"], Encoder())["unlabeled"]
    assert image.size == (5 * S * SCALE + 4 * GAP, 2 * (HEAD + dates * S * SCALE) + LEGEND)
    for date in range(dates):
        for panel, value in enumerate((80, 110, 140, 110, 140)):
            assert pixel(image, 0, panel, 30, 10, dates, date) == value + 5 * date
            assert pixel(image, 1, panel, 30, 10, dates, date) == value + 10 + 5 * date
            assert pixel(image, 1, panel, 30, 35, dates, date) in (205, 250)  # padding is striped
        assert pixel(image, 0, 3, 12, 27, dates, date) == 120 + 5 * date  # inside the box: the partner
        assert pixel(image, 0, 3, 12, 33, dates, date) in (205, 250)  # and the partner's padding
        assert pixel(image, 0, 4, 12, 27, dates, date) == 140 + 5 * date  # the other view has no box
        y, x = HEAD + (date * S + 4) * SCALE, 3 * (S * SCALE + GAP) + 24 * SCALE
        assert tuple(np.asarray(image)[y, x]) == picture.BOX


def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on pictures from now on."""
    written: list[str] = []
    write = ImageDraw.ImageDraw.text

    def text(draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, *more: object, **options: object) -> None:
        written.append(text)
        write(draw, xy, text, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


def test_boxes_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    written = texts(monkeypatch)
    sheets([batch(1)], SPECS["camvid"], Encoder())
    assert [written.count(name) for name in ("a.png", "b.png")] == [2, 2], "above each row of both pictures"
    assert [text for text in written if text.startswith("box of")] == ["box of b.png"], "of the first image"
    assert [text for text in written if "CutMixed 1" in text] == ["CutMixed 1", "CutMixed 1, no box"]
    assert written.count("CutMixed 2, no box") == 2
    assert any(text.startswith("CutMix: what is inside the box") for text in written)


def test_long_names_are_shortened_and_none_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two names in one row each has half of it; a title has its panel's width. The end of a name tells images apart."""
    written = texts(monkeypatch)
    one = replace(batch(1), name_u=[f"{folder}/{'very_' * 40}long_leftImg8bit.jpg" for folder in "ab"])
    sheets([one], SPECS["camvid"], Encoder())
    own, other, _ = (text for text in written if text.endswith("long_leftImg8bit.jpg"))
    assert own[0] == other[0] == "\u2026"
    picture.row([Image.new("RGB", (80, 9))] * 2, ["a title that is wider than its picture", "b"])
    assert written[-2].startswith("\u2026")
    width = picture._font(13).getlength
    assert width(own) <= (5 * S * SCALE + 4 * GAP) / 2
    assert width(written[-2]) <= 80


def test_dates_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    written = texts(monkeypatch)
    sheets([batch(2)], SPECS["levir"], Encoder())
    assert written.count("A: before above B: after") == 2
    assert written.count("weak view, A: before above B: after") == 2


def test_a_legend_has_what_is_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    written = texts(monkeypatch)
    whole = batch(1)
    sheets([whole], SPECS["camvid"], Encoder())
    names = SPECS["camvid"].classes
    assert [text for text in written if text in names] == [names[0], names[1]]
    assert {"ignored: void or padding", "ignored: padding"} <= set(written)
    whole.mask_x.clamp_(max=1)
    whole.ignore_u.zero_()
    whole.box1.zero_()
    written.clear()
    sheets([whole], SPECS["camvid"], Encoder())
    assert not [text for text in written if "ignored:" in text or "CutMix:" in text]


def test_masks_have_their_colours_and_void_is_striped() -> None:
    spec = SPECS["camvid"]
    image = np.asarray(sheets([batch(1)], spec, Encoder())["labeled"])
    middle = HEAD + 10 * SCALE
    second, third = S * SCALE + GAP, 2 * (S * SCALE + GAP)
    assert tuple(image[middle, 80]) == (50, 50, 50)
    assert tuple(image[middle, second + 80]) == spec.palette[1]
    assert tuple(image[middle, second + 30 * SCALE]) == spec.palette[0]
    assert set(image[HEAD + 30 * SCALE, second + 30 * SCALE]) <= {205, 250}
    assert np.allclose(image[middle, third + 80], 0.45 * 50 + 0.55 * np.array(spec.palette[1]), atol=1)


def test_padding_of_a_labelled_image_is_striped_and_void_is_not() -> None:
    one = batch(1)
    one.mask_x[0, 30:] = 255
    one.img_x[0, :, 30:] = normalize(torch.zeros(3, S - 30, S, dtype=torch.uint8)[None], Encoder())[0]
    image = np.asarray(sheets([one], SPECS["camvid"], Encoder())["labeled"])
    assert set(image[HEAD + 35 * SCALE, 80]) <= {205, 250}
    assert tuple(image[HEAD + 25 * SCALE, 30 * SCALE]) == (50, 50, 50), "void"


def pictures(folder: Path) -> dict[str, np.ndarray]:
    """The images of TensorBoard files, by their tags; raises for a tag that comes twice."""
    found: dict[str, np.ndarray] = {}
    for path in folder.glob("events.out.tfevents.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.startswith("data/"):
                    assert value.tag not in found
                    found[value.tag] = np.asarray(Image.open(io.BytesIO(value.tensor.string_val[2])))
    return found


def test_a_run_shows_its_first_step_once(tiny: Tiny, tmp_path: Path) -> None:
    args = tiny.args(tmp_path / "semi", "epochs=2")
    unimatch_v2.main(args)
    shown = pictures(tmp_path / "semi")
    mini_batches, spec = first_mini_batches(parse_command(args, None, True), Reads(), Encoder(), 2)
    for name, image in sheets(mini_batches, spec, Encoder()).items():
        assert np.array_equal(shown[f"data/{name}"], np.asarray(image))
    supervised.main(tiny.args(tmp_path / "sup", "epochs=1", "batch_size=1", unlabeled=False))
    assert set(pictures(tmp_path / "sup")) == {"data/labeled"}
