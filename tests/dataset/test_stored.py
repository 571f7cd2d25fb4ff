"""A file's stored values count, whatever Pillow makes of them; what cannot be read faithfully is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.look import Job, inspect
from dataset.source import open_mask
from dataset.spec import DatasetSpec, get_spec
from tests.dataset.by_hand import png, tiff
from util.error import UserError

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 9, 13


def own(classes: int, label_map: dict[int, int] | None = None) -> DatasetSpec:
    return DatasetSpec("own", tuple(f"class {c}" for c in range(classes)), (), label_map=label_map or {})


def ids(largest: int) -> np.ndarray:
    """Values (H, W) of which 0 and the largest occur."""
    values = RNG.integers(0, largest + 1, (HEIGHT, WIDTH))
    values[0, :2] = 0, largest
    return values


def read(folder: Path, name: str, content: bytes, spec: DatasetSpec) -> np.ndarray:
    """A mask as training reads it. `check` must find the same pixels of each class."""
    (folder / name).write_bytes(content)
    found = open_mask(spec, str(folder), name, (WIDTH, HEIGHT))
    looked = inspect(Job(str(folder), (name,), name), spec)
    assert {int(spec.label_table[value]): n for value, n in looked.values.items()} == {i: int((found == i).sum()) for i in np.unique(found)}
    return found


def refused(folder: Path, name: str, content: bytes, words: str) -> None:
    """Training and `check` say the same of a mask that they cannot read."""
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        open_mask(own(200), str(folder), name, (WIDTH, HEIGHT))
    assert inspect(Job(str(folder), (name,), name), own(200)).problem == str(error.value)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["png", "palette", "tiff", "deflated tiff", "big-endian tiff"])
def test_ids_of_any_number_of_bits(kind: str, bits: int, tmp_path: Path) -> None:
    values = ids(min(2**bits, 200) - 1)
    if kind == "palette" and bits == 16:
        pytest.skip("a palette has at most 8 bits")
    content = {
        "png": lambda: png(values, bits),
        "palette": lambda: png(values, bits, 3, bytes(3 << bits)),
        "tiff": lambda: tiff([values[..., None]], bits),
        "deflated tiff": lambda: tiff([values[..., None]], bits, deflate=True),
        "big-endian tiff": lambda: tiff([values[..., None]], bits, order=">"),
    }[kind]()
    assert np.array_equal(read(tmp_path, "m.png", content, own(200)), values)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_of_inverted_tiff_the_stored_value_counts(bits: int, tmp_path: Path) -> None:
    values = ids(2**bits - 1 if bits < 8 else 199)
    for deflate in (False, True):
        assert np.array_equal(read(tmp_path, "m.tif", tiff([values[..., None]], bits, photometric=0, deflate=deflate), own(200)), values)


def test_of_inverted_tiff_of_one_bit_nobody_can_tell(tmp_path: Path) -> None:
    """Programs that convert pictures store white as 0 here, those that write arrays store their ones as 1."""
    refused(tmp_path, "m.tif", tiff([ids(1)[..., None]], 1, photometric=0), r"m\.tif: found a TIFF of 1 bit whose 0 is white")


@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("tif", {}), ("tif", {"compression": "group4"}), ("bmp", {})])
def test_a_saved_bool_array_is_ids_of_0_and_1(ending: str, options: dict[str, str], tmp_path: Path) -> None:
    mask = ids(1).astype(bool)
    Image.fromarray(mask).save(tmp_path / f"x.{ending}", **options)
    content = (tmp_path / f"x.{ending}").read_bytes()
    assert np.array_equal(read(tmp_path, "m.png", content, own(2)), mask)
    assert np.array_equal(read(tmp_path, "m.png", content, own(2, {0: 1, 1: 0})), ~mask), "a label_map of the stored values"
    assert np.array_equal(read(tmp_path, "m.png", content, own(2, {0: 1, 255: 0})), ~mask), "a label_map of black and white"
    assert np.array_equal(read(tmp_path, "m.png", content, own(2, {0: 0, 1: 1, 255: 255})), mask)
    assert np.array_equal(read(tmp_path, "m.png", content, get_spec("levir")), mask), "change labels are 0 and 255"


def test_signed_values_keep_their_sign(tmp_path: Path) -> None:
    values = ids(100)
    assert np.array_equal(read(tmp_path, "m.tif", tiff([values[..., None]], 8, sign=2), own(200)), values)
    assert np.array_equal(read(tmp_path, "m.tif", tiff([values[..., None]], 16, sign=2), own(200)), values)
    values[3, 3] = 256 - 1  # -1 of 8 bits is not the 255 that is ignored
    (tmp_path / "m.tif").write_bytes(tiff([values[..., None]], 8, sign=2))
    with pytest.raises(UserError, match="found label -1"):
        open_mask(own(200), str(tmp_path), "m.tif", (WIDTH, HEIGHT))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"P5 13 9 5\n" + bytes(117), "found a PGM with a largest value of 5, by which readers rescale"),
        (b"P5 # a remark\n13 9 1000\n" + bytes(234), "a largest value of 1000"),
        (b"P2 13 9 7\n" + b"0 " * 117, "a largest value of 7"),
        (b"P4 13 9\n" + bytes(18), "found a PBM of 1 bit"),
    ],
)
def test_netpbm_files_that_readers_rescale(content: bytes, words: str, tmp_path: Path) -> None:
    refused(tmp_path, "m.ppm", content, words)


def test_pgm_of_8_and_16_bits(tmp_path: Path) -> None:
    values = ids(150)
    assert np.array_equal(read(tmp_path, "m.ppm", b"P5 13 9 255\n" + values.astype("u1").tobytes(), own(200)), values)
    assert np.array_equal(read(tmp_path, "m.ppm", b"P5 13 9 65535\n" + values.astype(">u2").tobytes(), own(200)), values)


def test_a_mask_is_not_kept_as_a_photograph(tmp_path: Path) -> None:
    """JPEG makes other values of ids, many of them legal."""
    Image.fromarray(ids(5).astype(np.uint8)).save(tmp_path / "x.jpg", quality=95)
    words = r"m\.jpg: found JPEG, which does not keep the values of a mask exactly, .*PNG"
    refused(tmp_path, "m.jpg", (tmp_path / "x.jpg").read_bytes(), words)
