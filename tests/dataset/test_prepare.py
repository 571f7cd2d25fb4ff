"""Conversions, on small archives and folders in the official layouts."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dataset.prepare.__main__ import main
from dataset.prepare.coco import IDS
from dataset.spec import bit_palette, get_spec
from util.error import UserError, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ids(values: list[int] | np.ndarray, size: tuple[int, int] = (6, 4)) -> np.ndarray:
    """uint8 (H, W) that repeats the values; size is (width, height)."""
    return np.resize(np.array(values, dtype=np.uint8), (size[1], size[0]))


def write(path: str, array: np.ndarray | None = None, palette: bool = False) -> None:
    """An image file; without an array a photograph."""
    img = Image.fromarray(ids([90], (6, 4)) if array is None else array)
    if palette:
        img.putpalette([c for color in bit_palette(256) for c in color])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    img.convert("RGB" if path.endswith(".jpg") else img.mode).save(path)


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def read(path: str | Path) -> list[int]:
    """The distinct values of a label, in the order of their first appearance."""
    return list(dict.fromkeys(pixels(path).ravel().tolist()))


def pack(folder: str, archive: str) -> str:
    """Packs what is in a folder: .zip, .tar or .tgz."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    if archive.endswith(".zip"):
        with zipfile.ZipFile(archive, "w") as out:
            for path in files:
                out.write(path, path.relative_to(folder).as_posix())
    else:
        with tarfile.open(archive, "w:gz" if archive.endswith("gz") else "w") as tar:
            for path in files:
                tar.add(path, path.relative_to(folder).as_posix())
    return archive


def tree(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def voc(folder: str = "voc/VOCdevkit/VOC2012") -> None:
    for name in ("a", "b", "c", "d"):
        write(f"{folder}/JPEGImages/{name}.jpg")
    write(f"{folder}/SegmentationClass/a.png", ids([0, 1, 255]), palette=True)
    write(f"{folder}/SegmentationClass/b.png", ids([20, 0]), palette=True)
    write(f"{folder}/SegmentationObject/a.png", ids([1, 2]), palette=True)


def test_pascal_with_color_and_grey_masks(capsys: pytest.CaptureFixture[str]) -> None:
    voc()
    colors = np.array(bit_palette(256), dtype=np.uint8)
    write("sbd/SegmentationClassAug/a.png", ids([7]))  # VOC's own mask counts
    write("sbd/SegmentationClassAug/c.png", ids([3, 20, 255]))
    write("sbd/SegmentationClassAug/d.png", colors[ids([0, 15, 255])])
    write("sbd/SegmentationClassAug/stray.png", ids([3]))
    main(["pascal", "--src", pack("voc", "VOCtrainval_11-May-2012.tar"), "sbd", "--dst", "out"])
    assert tree("out") == [f"JPEGImages/{n}.jpg" for n in "abcd"] + [f"SegmentationClass/{n}.png" for n in "abcd"]
    assert {n: read(f"out/SegmentationClass/{n}.png") for n in "abcd"} == {
        "a": [0, 1, 255],
        "b": [20, 0],
        "c": [3, 20, 255],
        "d": [0, 15, 255],
    }
    for n in "abcd":
        img = Image.open(f"out/SegmentationClass/{n}.png")
        assert img.mode == "P"
        assert np.array_equal(np.asarray(img.convert("RGB")), colors[np.asarray(img)])
    out = capsys.readouterr().out
    assert "4 masks: 2 of VOC, 2 of SBD; 4 written, 0 already existed; 4 new images" in out
    assert "1 masks have no image" in out


def test_pascal_with_mat(capsys: pytest.CaptureFixture[str]) -> None:
    savemat = pytest.importorskip("scipy.io", reason="scipy (an optional extra) is not installed").savemat
    voc()
    for name, values in (("a", [7]), ("c", [0, 9])):
        Path("sbd/benchmark_RELEASE/dataset/cls").mkdir(parents=True, exist_ok=True)
        label = {"Segmentation": ids(values), "Boundaries": np.zeros((20, 1)), "CategoriesPresent": np.unique(values)}
        savemat(f"sbd/benchmark_RELEASE/dataset/cls/{name}.mat", {"GTcls": label}, do_compression=True)
    main(["pascal", "--src", "voc", pack("sbd", "benchmark.tgz"), "--dst", "out"])
    assert [read(f"out/SegmentationClass/{n}.png") for n in "abc"] == [[0, 1, 255], [20, 0], [0, 9]]
    assert Image.open("out/SegmentationClass/c.png").mode == "P"
    assert "3 masks: 2 of VOC, 1 of SBD" in capsys.readouterr().out


def test_pascal_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    """The usual folder, to which SBD's masks are added."""
    voc("data")
    before = Path("data/SegmentationClass/a.png").read_bytes()
    write("sbd/SegmentationClassAug/c.png", ids([3]))
    main(["pascal", "--src", "data", "sbd", "--dst", "data"])
    assert Path("data/SegmentationClass/a.png").read_bytes() == before
    assert read("data/SegmentationClass/c.png") == [3]
    assert "1 written, 2 already existed; 0 new images" in capsys.readouterr().out


def test_comparison_with_the_lists(capsys: pytest.CaptureFixture[str]) -> None:
    voc()
    Path("splits/pascal/2").mkdir(parents=True)
    Path("splits/pascal/val.txt").write_text("JPEGImages/a.jpg SegmentationClass/a.png\n")
    main(["pascal", "--src", "voc", "--dst", "out"])
    assert "all 2 files that the lists in splits/pascal name exist" in capsys.readouterr().out
    Path("splits/pascal/2/unlabeled.txt").write_text("JPEGImages/c.jpg None\nJPEGImages/b.jpg None\n")
    main(["pascal", "--src", "voc", "--dst", "out"])
    assert "1 of the 4 files that the lists in splits/pascal name are missing, for example JPEGImages/c.jpg" in capsys.readouterr().out


def cityscapes(n: int = 2) -> None:
    for part, city in (("train", "jena"), ("val", "ulm"), ("test", "bonn")):
        for i in range(n):
            write(f"labels/gtFine/{part}/{city}/{city}_{i}_gtFine_labelIds.png", ids([0, 7, 8, 26, 33, 255]))
            write(f"labels/gtFine/{part}/{city}/{city}_{i}_gtFine_color.png", ids([0, 7]))
            write(f"images/leftImg8bit/{part}/{city}/{city}_{i}_leftImg8bit.png")


def test_cityscapes(capsys: pytest.CaptureFixture[str]) -> None:
    cityscapes()
    sources = [pack("labels", "gtFine_trainvaltest.zip"), pack("images", "leftImg8bit_trainvaltest.zip")]
    main(["cityscapes", "--src", *sources, "--dst", "out"])
    assert read("out/gtFine/train/jena/jena_1_gtFine_labelTrainIds.png") == [255, 0, 1, 13, 18]
    assert [n for n in tree("out") if n.startswith("gtFine/val")] == [f"gtFine/val/ulm/ulm_{i}_gtFine_labelTrainIds.png" for i in (0, 1)]
    assert not Path("out/gtFine/test").exists()
    assert Path("out/leftImg8bit/train/jena/jena_0_leftImg8bit.png").exists()
    assert not Path("out/.unpacked").exists()
    assert "4 labels: 2 train, 2 val (complete: 2975 and 500); 4 written, 0 already existed; 6 new images" in capsys.readouterr().out


def test_cityscapes_ids_are_the_official_ones() -> None:
    """Every id, against the official table: name of the class by id."""
    official = {7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light", 20: "traffic sign"}
    official |= {21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train"}
    official |= {32: "motorcycle", 33: "bicycle"}
    write("gtFine/train/x/x_gtFine_labelIds.png", np.arange(34, dtype=np.uint8)[None])
    main(["cityscapes", "--src", "gtFine", "--dst", "out"])
    train = pixels("out/gtFine/train/x/x_gtFine_labelTrainIds.png")[0]
    classes = get_spec("cityscapes").classes
    assert {i: classes[c] for i, c in enumerate(train) if c != 255} == official


def test_resumes_where_it_stopped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, on several processes; one label is broken until it is repaired."""
    cityscapes(20)
    os.rename("labels/gtFine", "images/gtFine")
    bad = Path("images/gtFine/val/ulm/ulm_9_gtFine_labelIds.png")
    good = bad.read_bytes()
    bad.write_bytes(good[:60])
    with pytest.raises(UserError, match=r"ulm_9_gtFine_labelIds\.png: cannot be read"):
        main(["cityscapes", "--src", "images", "--dst", "images"])
    assert [p for p in tree("images") if p.endswith(".tmp")] == []
    for path in Path("images").rglob("*_labelTrainIds.png"):
        assert read(path) == [255, 0, 1, 13, 18]
    bad.write_bytes(good)
    main(["cityscapes", "--src", "images", "--dst", "images"])
    assert "40 labels: 20 train, 20 val" in capsys.readouterr().out
    stamp = Path("images/gtFine/val/ulm/ulm_9_gtFine_labelTrainIds.png").stat().st_mtime_ns
    main(["cityscapes", "--src", "images", "--dst", "images"])
    assert "0 written, 40 already existed" in capsys.readouterr().out
    assert Path("images/gtFine/val/ulm/ulm_9_gtFine_labelTrainIds.png").stat().st_mtime_ns == stamp
    main(["cityscapes", "--src", "images", "--dst", "images", "--overwrite"])
    assert "40 written, 0 already existed" in capsys.readouterr().out


def ade(values: list[int]) -> None:
    for part in ("training", "validation"):
        write(f"ade/ADEChallengeData2016/images/{part}/ADE_{part}_1.jpg")
        write(f"ade/ADEChallengeData2016/annotations/{part}/ADE_{part}_1.png", ids(values))


def test_ade20k(capsys: pytest.CaptureFixture[str]) -> None:
    ade([0, 1, 2, 150])
    main(["ade20k", "--src", pack("ade", "ADEChallengeData2016.zip"), "--dst", "out"])
    assert read("out/annotations/validation/ADE_validation_1.png") == [255, 0, 1, 149]
    assert (
        "2 labels: 1 training, 1 validation (complete: 20210 and 2000); 2 written, 0 already existed; 2 new images"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="converted already"):  # converted labels are not shifted again
        main(["ade20k", "--src", "out", "--dst", "again"])
    with pytest.raises(UserError, match="choose another folder"):
        main(["ade20k", "--src", "ade", "--dst", "ade/ADEChallengeData2016", "--overwrite"])
    assert read("ade/ADEChallengeData2016/annotations/training/ADE_training_1.png") == [0, 1, 2, 150]


def coco_images() -> None:
    for part, name in (("train2017", "000000000009"), ("val2017", "000000000139")):
        write(f"coco/{part}/{name}.jpg", np.zeros((4, 6, 3), dtype=np.uint8))


def test_coco_classes_are_in_order() -> None:
    assert len(IDS) == 80
    assert [get_spec("coco").classes[IDS.index(i) + 1] for i in (1, 13, 44, 62, 90)] == [
        "person",
        "stop sign",
        "bottle",
        "chair",
        "toothbrush",
    ]


def test_coco_panoptic(capsys: pytest.CaptureFixture[str]) -> None:
    coco_images()
    segments = {0: 0, 300: 1, 70000: 90, 5: 200, 9: 17}  # segment: category; 200 is stuff, 0 has no segment
    for part, name in (("train2017", "000000000009"), ("val2017", "000000000139")):
        seg = np.resize(np.array(list(segments)), (4, 6))
        write(f"inner/{part}/panoptic_{part}/{name}.png", np.stack((seg % 256, seg // 256 % 256, seg // 65536), -1).astype(np.uint8))
        facts = [{"id": i, "category_id": c, "iscrowd": int(i == 9)} for i, c in segments.items() if i]
        Path("panoptic/annotations").mkdir(parents=True, exist_ok=True)
        content = {"annotations": [{"file_name": f"{name}.png", "image_id": int(name), "segments_info": facts}]}
        Path(f"panoptic/annotations/panoptic_{part}.json").write_text(json.dumps(content))
        pack(f"inner/{part}", f"panoptic/annotations/panoptic_{part}.zip")
    main(["coco", "--src", pack("panoptic", "panoptic_annotations_trainval2017.zip"), pack("coco", "train2017.zip"), "--dst", "out"])
    assert tree("out") == ["masks/000000000009.png", "masks/000000000139.png", "train2017/000000000009.jpg", "val2017/000000000139.jpg"]
    assert read("out/masks/000000000009.png") == [0, 1, 80, 16]
    assert pixels("out/masks/000000000009.png")[0].tolist() == [0, 1, 80, 0, 16, 0]
    assert "2 masks from panoptic" in capsys.readouterr().out
    main(["coco", "--src", "panoptic", "coco", "--dst", "out"])
    assert "0 written, 2 already existed; 0 new images" in capsys.readouterr().out


def test_coco_stuff() -> None:
    coco_images()
    write("maps/train2017/000000000009.png", ids([0, 89, 100, 255, 12]))  # person, toothbrush, stuff, nothing, stop sign
    write("maps/val2017/000000000139.png", ids([16]))
    main(["coco", "--labels", "stuff", "--src", pack("maps", "stuffthingmaps_trainval2017.zip"), "coco", "--dst", "out"])
    assert pixels("out/masks/000000000009.png")[0, :5].tolist() == [1, 80, 0, 0, 12]
    assert read("out/masks/000000000139.png") == [16]


def test_coco_instances() -> None:
    pytest.importorskip("pycocotools", reason="pycocotools (an optional extra) is not installed")

    def box(x: int, y: int, w: int, h: int) -> list[list[int]]:
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]

    crowd = {"size": [4, 6], "counts": [0, 24]}  # everywhere
    notes = [
        {"image_id": 9, "category_id": 17, "area": 2, "iscrowd": 0, "segmentation": box(1, 1, 2, 1)},  # small: stays visible
        {"image_id": 9, "category_id": 90, "area": 12, "iscrowd": 0, "segmentation": box(0, 0, 4, 3)},
        {"image_id": 9, "category_id": 1, "area": 1, "iscrowd": 1, "segmentation": crowd},  # small area, but painted first
    ]
    images = [{"id": 9, "file_name": "000000000009.jpg", "height": 4, "width": 6}]
    images.append({"id": 10, "file_name": "000000000010.jpg", "height": 2, "width": 3})
    Path("notes/annotations").mkdir(parents=True)
    Path("notes/annotations/instances_train2017.json").write_text(json.dumps({"images": images, "annotations": notes}))
    main(["coco", "--labels", "instances", "--src", "notes", "--dst", "out"])
    mask = pixels("out/masks/000000000009.png").tolist()
    assert mask == [[80] * 4 + [1] * 2, [80, 16, 16, 80, 1, 1], [80] * 4 + [1] * 2, [1] * 6]
    assert read("out/masks/000000000010.png") == [0]


def levir(part: str = "train", label: int = 255) -> None:
    y, x = np.divmod(np.arange(1024 * 1024).reshape(1024, 1024), 1024)
    tile = (y // 256 * 4 + x // 256 + 1).astype(np.uint8)  # each crop has its number
    for folder, shift in (("A", 0), ("B", 100)):
        write(f"{part}/{folder}/{part}_7.png", np.stack((tile + shift,) * 3, -1))
    write(f"{part}/label/{part}_7.png", np.where(tile == 6, label, 0).astype(np.uint8))


@pytest.mark.parametrize("label", [255, 1])
def test_levir(label: int, capsys: pytest.CaptureFixture[str]) -> None:
    levir(label=label)
    main(["levir", "--src", pack("train", "train.zip"), "--dst", "out"])
    assert len(tree("out")) == 48
    for i in range(1, 17):
        crops = {folder: pixels(f"out/{folder}/train_7_{i}.png") for folder in ("A", "B", "label")}
        assert [c.shape for c in crops.values()] == [(256, 256, 3), (256, 256, 3), (256, 256)]
        assert [np.unique(c).tolist() for c in crops.values()] == [[i], [i + 100], [255 if i == 6 else 0]]
    out = capsys.readouterr().out
    assert "1 tiles" in out
    assert "numbering is not documented" in out
    Path("out/B/train_7_3.png").unlink()
    main(["levir", "--src", "train", "--dst", "out"])
    assert "1 files cut, 2 already existed" in capsys.readouterr().out
    main(["levir", "--src", "train", "--dst", "columns", "--order", "column"])
    assert np.unique(pixels("columns/A/train_7_2.png")).tolist() == [5]


def whu(nodata: str | None = None, alpha: bool = False, label: int = 255, size: tuple[int, int] = (600, 520), **options: Any) -> None:
    """before.tif, after.tif and label.tif of two by two crops and a rest; GeoTIFF's tags for position and pixels without data."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[33550] = (0.2, 0.2, 0.0)
    tags.tagtype[33550] = 12
    if nodata is not None:
        tags[42113] = nodata
        tags.tagtype[42113] = 2
    rng = np.random.default_rng(0)
    before = rng.integers(1, 255, (size[1], size[0], 3), dtype=np.uint8)
    after = before.copy()
    after[:100, :100] = 0  # without data
    mask = np.where(np.arange(size[0]) < 300, label, 0).astype(np.uint8) * np.ones((size[1], 1), dtype=np.uint8)
    Path("whu").mkdir(exist_ok=True)
    if alpha:
        after = np.dstack((after, np.where((after == 0).all(-1), 0, 255).astype(np.uint8)))
    for name, array in (("before", before), ("after", after), ("change_label", mask)):
        Image.fromarray(array).save(f"whu/{name}.tif", tiffinfo=tags, **options)


@pytest.mark.parametrize(
    ("nodata", "alpha", "holes"),
    [(None, False, 0), ("0", False, 10000), (None, True, 10000), ("-9999", False, 0), ("nan", False, 0)],
    ids=["no tag", "tag", "alpha", "tag that 8 bits cannot have", "nan"],
)
def test_whu(nodata: str | None, alpha: bool, holes: int, capsys: pytest.CaptureFixture[str]) -> None:
    whu(nodata, alpha)
    main(["whu", "--src", pack("whu", "whu.zip"), "--dst", "out"])
    assert tree("out") == [f"{folder}/whucd_0000{i}.png" for folder in ("A", "B", "label") for i in (1, 2, 3, 4)]
    before, mask = pixels("whu/before.tif"), pixels("whu/change_label.tif").copy()
    if holes:
        mask[:100, :100] = 0
    for i in range(4):
        part = np.s_[i // 2 * 256 : i // 2 * 256 + 256, i % 2 * 256 : i % 2 * 256 + 256]
        assert np.array_equal(pixels(f"out/A/whucd_0000{i + 1}.png"), before[part])
        assert np.array_equal(pixels(f"out/label/whucd_0000{i + 1}.png"), mask[part])
        assert Image.open(f"out/B/whucd_0000{i + 1}.png").mode == "RGB"
    out = capsys.readouterr().out
    assert "2 x 2 = 4 crops (complete: 7434)" in out
    assert f"{holes} pixels without data" in out
    main(["whu", "--src", "whu", "--dst", "out"])
    assert "0 files cut, 12 already existed" in capsys.readouterr().out


def test_whu_label_with_a_copied_tag() -> None:
    whu("255")
    main(["whu", "--src", "whu", "--dst", "out"])
    assert read("out/label/whucd_00001.png") == [255]


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"big_tiff": True}], ids=str)
def test_whu_other_tiffs(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed and 64-bit files; and an image beyond what PIL opens by itself, whose limit holds again afterwards."""
    whu(label=1, **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # the image has 312 000, a crop 65 536
    main(["whu", "--src", "whu", "--dst", "out"])
    assert Image.MAX_IMAGE_PIXELS == 100_000
    assert read("out/label/whucd_00002.png") == [255, 0]


HOSTILE = ("../out2/annotations/training/a.png", "{root}/annotations/training/b.png", "x/../../../annotations/training/c.png")


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ids([1])).save(buffer, "PNG")
    return buffer.getvalue()


def hostile_tar(path: Path, root: Path) -> None:
    """Names that lead outside; links to `root` and to a file, a file "inside" a link, a device."""
    special = {
        "ADE": (tarfile.SYMTYPE, str(root)),
        "annotations/training/link.png": (tarfile.SYMTYPE, str(root / "secret.png")),
        "annotations/training/hard.png": (tarfile.LNKTYPE, str(root / "secret.png")),
        "annotations/training/device.png": (tarfile.CHRTYPE, ""),
        "annotations/training/pipe.png": (tarfile.FIFOTYPE, ""),
    }
    with tarfile.open(path, "w") as tar:
        for name, (kind, target) in special.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        for name in (*HOSTILE, "ADE/annotations/training/y.png"):
            info = tarfile.TarInfo(name.format(root=root))
            info.size = len(png())
            tar.addfile(info, io.BytesIO(png()))


def hostile_zip(path: Path, root: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("ADE")
        link.create_system, link.external_attr = 3, 0o120777 << 16  # a symbolic link, as Unix archives have them
        archive.writestr(link, str(root))
        for name in (*HOSTILE, "ADE/annotations/training/y.png"):
            archive.writestr(name.format(root=root), png())


def test_a_zip_with_the_paths_of_windows() -> None:
    """Some programs part folders by a backslash in it, against the standard."""
    write("ade/annotations/training/a.png", ids([0, 1, 150], (3, 1)))
    with zipfile.ZipFile("windows.zip", "w") as archive:
        archive.writestr("ADE\\annotations\\training\\", b"")
        archive.write("ade/annotations/training/a.png", "ADE\\annotations\\training\\a.png")
    main(["ade20k", "--src", "windows.zip", "--dst", "out"])
    assert np.asarray(Image.open("out/annotations/training/a.png")).tolist() == [[255, 0, 149]]


@pytest.mark.parametrize("make", [hostile_tar, hostile_zip])
def test_an_archive_reaches_nothing_outside(make: Callable[[Path, Path], None], tmp_path: Path) -> None:
    root = tmp_path / "root"
    write("root/secret.png", ids([7]))
    make(tmp_path / "bad.archive", root)
    main(["ade20k", "--src", "bad.archive", "--dst", "deep/out"])
    assert tree(".") == ["bad.archive", "deep/out/annotations/training/y.png", "root/secret.png"]
    assert read("root/secret.png") == [7]
    assert not [path for path in Path(".").rglob("*") if path.is_symlink()]


def test_as_a_command() -> None:
    cityscapes()
    done = subprocess.run(
        [sys.executable, "-m", "dataset.prepare", "cityscapes", "--src", "labels", "images", "--dst", "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "4 labels" in done.stdout


def situation(what: str) -> None:
    """Makes the files of a broken situation."""
    voc()
    cityscapes()
    ade([0, 1])
    levir()
    if "whu" in what:
        whu()
    coco_images()
    Path("empty").mkdir()
    Path("text.zip").write_text("no archive")
    pack("ade", "whole.tgz")
    Path("cut.tgz").write_bytes(Path("whole.tgz").read_bytes()[:-200])
    pack("ade", "whole.zip")
    Path("cut.zip").write_bytes(Path("whole.zip").read_bytes()[:-60])
    Path("file").write_text("")
    edits: dict[str, Callable[[], object]] = {
        "voc value": lambda: write("voc/VOCdevkit/VOC2012/SegmentationClass/a.png", ids([21]), palette=True),
        "voc color": lambda: write("voc/VOCdevkit/VOC2012/SegmentationClass/a.png", np.full((4, 6, 3), 7, dtype=np.uint8)),
        "color in place": lambda: write("voc/VOCdevkit/VOC2012/SegmentationClass/a.png", np.zeros((4, 6, 3), dtype=np.uint8)),
        "no jpg": lambda: shutil.rmtree("voc/VOCdevkit/VOC2012/JPEGImages"),
        "city value": lambda: write("labels/gtFine/val/ulm/ulm_0_gtFine_labelIds.png", ids([40])),
        "city color": lambda: write("labels/gtFine/val/ulm/ulm_0_gtFine_labelIds.png", np.zeros((4, 6, 3), dtype=np.uint8)),
        "ade text": lambda: Path("ade/ADEChallengeData2016/annotations/training/ADE_training_1.png").write_text("no image"),
        "levir size": lambda: write("train/B/train_7.png", np.zeros((256, 256, 3), dtype=np.uint8)),
        "levir grey label": lambda: write("train/label/train_7.png", ids([3], (1024, 1024))),
        "levir color label": lambda: write("train/label/train_7.png", np.tile(np.array([1, 2, 3], dtype=np.uint8), (1024, 1024, 1))),
        "levir alone": lambda: Path("train/B/train_7.png").unlink(),
        "whu size": lambda: write("whu/after.tif", np.zeros((300, 300, 3), dtype=np.uint8)),
        "whu small": lambda: write("whu/before.tif", ids([0], (100, 100))),
        "whu two": lambda: write("whu/sub/before_2.tif", ids([0])),
        "whu none": lambda: Path("whu/after.tif").unlink(),
        "whu deep": lambda: write("whu/after.tif", np.zeros((520, 600), dtype=np.float32)),
        "coco text": lambda: write_text("coco/annotations/panoptic_train2017.json", "[1"),
        "coco other": lambda: write_text("coco/annotations/panoptic_train2017.json", '{"images": []}'),
        "coco no png": lambda: write_text("coco/panoptic_val2017.json", '{"annotations": [{"file_name": "x.png", "segments_info": []}]}'),
        "coco segment": lambda: write_text("coco/panoptic_val2017.json", '{"annotations": [{"file_name": "y.png", "segments_info": []}]}'),
    }  # fmt: skip
    write("coco/panoptic_val2017/y.png", np.full((4, 6, 3), 1, dtype=np.uint8))
    edits.get(what, lambda: None)()


def write_text(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


ROWS = [
    ("no name", "cityscape --src labels", "invalid choice"),
    ("no src", "pascal", "--src"),
    ("missing", "pascal --src absent", "--src: no such file or folder: absent"),
    ("no archive", "pascal --src text.zip", "text.zip: cannot be unpacked"),
    ("cut tgz", "ade20k --src cut.tgz", "cut.tgz: cannot be unpacked"),
    ("cut zip", "ade20k --src cut.zip", "cut.zip: cannot be unpacked (File is not a zip file)"),
    ("dst is a file", "ade20k --src ade --dst file", "--dst: file"),
    ("empty voc", "pascal --src empty", "expected VOCtrainval_11-May-2012.tar"),
    ("empty city", "cityscapes --src empty", "expected gtFine_trainvaltest.zip"),
    ("empty ade", "ade20k --src empty", "expected ADEChallengeData2016.zip"),
    ("empty coco", "coco --src empty", "expected panoptic_annotations_trainval2017.zip"),
    ("empty levir", "levir --src empty", "expected train.zip"),
    ("empty whu", "whu --src empty", "found no before image"),
    ("voc value", "pascal --src voc", "a.png: found the value 21, expected 0 to 20 or 255"),
    ("voc color", "pascal --src voc", "a.png: found the color (7, 7, 7)"),
    ("color in place", "pascal --src voc --dst voc/VOCdevkit/VOC2012", "choose another --dst"),
    ("no jpg", "pascal --src voc", "found no images"),
    ("city value", "cityscapes --src labels", "found the id 40"),
    ("city color", "cityscapes --src labels", "found mode RGB"),
    ("ade text", "ade20k --src ade", "cannot be read as an image"),
    ("levir size", "levir --src train", "train_7.png: found 256 x 256, expected an official tile of 1024 x 1024"),
    ("levir grey label", "levir --src train", "found the values 3, expected 0 and 255"),
    ("levir color label", "levir --src train", "found colors"),
    ("levir alone", "levir --src train", "train_7.png is in one of A/ and B/ only"),
    ("whu size", "whu --src whu", "found (300, 300), expected (600, 520)"),
    ("whu small", "whu --src whu", "found 100 x 100"),
    ("whu two", "whu --src whu", "name it with --before FILE"),
    ("whu none", "whu --src whu", "found no after image"),
    ("whu named", "whu --src whu --after absent.tif", "absent.tif: cannot be read"),
    ("whu deep", "whu --src whu", "found mode F, expected 8 bits"),
    ("coco text", "coco --src coco", "panoptic_train2017.json: not a COCO annotation file"),
    ("coco other", "coco --src coco", "panoptic_train2017.json: not a COCO annotation file"),
    ("coco no png", "coco --src coco", "found no x.png"),
    ("coco segment", "coco --src coco", "found segment 65793"),
]


@pytest.mark.parametrize(("what", "command", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_user_errors(what: str, command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    situation(what)
    argv = command.split()
    with pytest.raises(SystemExit, match="2"):
        run(main, argv if "--dst" in argv else [*argv, "--dst", "out"])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert words in error
    assert [name for name in tree(".") if name.endswith(".tmp")] == []


@pytest.mark.parametrize(("module", "command"), [("scipy", "pascal --src voc sbd"), ("pycocotools", "coco --src notes --labels instances")])
def test_missing_extra(module: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.io", None)
    voc()
    write_text("sbd/cls/c.mat", "")
    write_text("notes/instances_val2017.json", '{"images": [{"id": 1, "file_name": "x.jpg", "height": 1, "width": 1}], "annotations": []}')
    with pytest.raises(UserError, match=f"needs {module}; `pip install -r requirements-extra.txt`"):
        main([*command.split(), "--dst", "out"])
