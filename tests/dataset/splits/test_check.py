"""`python -m dataset.splits check`: what is wrong is found, counted and explained."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.splits.__main__ import main
from util.error import UserError, run


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mask(path: str, values: list[int], size: tuple[int, int] = (8, 6), mode: str = "L") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    img = Image.fromarray(np.resize(np.array(values, dtype=np.uint8), (size[1], size[0])))
    img.convert(mode).save(path)


def data(name: str, values: list[int], image="i/{}.png", label="m/{}.png", n: int = 8) -> None:
    """n images with masks of the given values under data/<name>: two labelled, four unlabelled, two for validation."""
    lines = []
    for i in range(n):
        mask(f"data/{name}/{image.format(i)}", [9])
        mask(f"data/{name}/{label.format(i)}", values)
        lines.append(f"{image.format(i)} {label.format(i)}\n")
    Path(f"splits/{name}/1_3").mkdir(parents=True)
    Path(f"splits/{name}/val.txt").write_text("".join(lines[:2]))
    Path(f"splits/{name}/1_3/labeled.txt").write_text("".join(lines[2:4]))
    Path(f"splits/{name}/1_3/unlabeled.txt").write_text("".join(line.split()[0] + " None\n" for line in lines[4:]))


def test_good_lists(capsys: pytest.CaptureFixture[str]) -> None:
    data("pascal", [0, 0, 15, 255])
    main(["check", "pascal"])
    out = capsys.readouterr().out
    assert "splits/pascal/1_3/labeled.txt         2           2     2/21    25.0%         0" in out
    assert "splits/pascal/1_3/unlabeled.txt       4           0        -        -         0" in out
    assert "15 person        33.33%       33.33%" in out
    assert "problem:" not in out


def test_images_that_select_are_apart_from_those_of_their_pair_alone(capsys: pytest.CaptureFixture[str]) -> None:
    data("pascal", [0, 0, 15, 255], n=10)
    lists = Path("splits/pascal")
    shutil.copytree(lists / "1_3", lists / "1_3_select1")
    first, second = (lists / "1_3/labeled.txt").read_text().splitlines()
    (lists / "1_3_select1/labeled.txt").write_text(f"{first}\n")
    (lists / "1_3_select1/select.txt").write_text(f"{second}\n")
    main(["check", "pascal"])  # in 1_3/labeled.txt as well, which is another pair
    assert "splits/pascal/1_3_select1/select.txt" in capsys.readouterr().out
    for name, content in (("labeled", first), ("unlabeled", second.split()[0])):
        (lists / "1_3_select1/select.txt").write_text(f"{second}\n")
        (lists / f"1_3_select1/{name}.txt").write_text(f"{second}\n{content}\n")
        with pytest.raises(UserError):
            main(["check", "pascal"])
        assert f"splits/pascal/1_3_select1/{name}.txt: data/pascal/i/3.png is in splits/pascal/1_3_select1/select.txt too" in (
            capsys.readouterr().out
        )
        (lists / f"1_3_select1/{name}.txt").write_text(f"{first}\n" if name == "labeled" else "i/9.png None\n")
    (lists / "1_3_select1/select.txt").write_text((lists / "val.txt").read_text())
    with pytest.raises(UserError):
        main(["check", "pascal", "1_3_select1"])
    assert "select.txt: data/pascal/i/0.png is in splits/pascal/val.txt too" in capsys.readouterr().out


def test_other_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    data("own", [0, 3, 7])
    main(["check", "own", "1_3", "--classes", "4", "--ignore-index", "7"])
    assert "2/4    33.3%" in capsys.readouterr().out
    shutil.move("data/own", "elsewhere")
    main(["check", "own", "--classes", "4", "--ignore-index", "7", "--data-root", "elsewhere", "--decode"])


def change(values: list[int], mode: str = "L") -> None:
    for i in range(4):
        for folder in ("A", "B"):
            mask(f"data/levir/{folder}/{i}.png", [9])
        mask(f"data/levir/label/{i}.png", values, mode=mode)
    Path("splits/levir/5%").mkdir(parents=True)
    Path("splits/levir/5%/labeled.txt").write_text("0.png\n1.png\n")
    Path("splits/levir/5%/unlabeled.txt").write_text("2.png\n")
    Path("splits/levir/test.txt").write_text("3.png\n")


@pytest.mark.parametrize("mode", ["L", "1"])
def test_change_detection(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    change([0, 0, 0, 255], mode)
    Path("data/levir/label/2.png").unlink()  # never read: an unlabelled pair
    main(["check", "levir"])
    assert "1 changed    25.00%      25.00%" in capsys.readouterr().out


def broken(what: str) -> str:
    """Breaks a data set in one way. Returns its name."""
    labels = {"0/1 change": [0, 1], "raw ade20k": [0, 1, 150], "raw cityscapes": [7, 26, 33]}
    name = {"0/1 change": "levir", "raw ade20k": "ade20k", "shifted by nobody": "ade20k", "raw cityscapes": "cityscapes"}.get(
        what, "pascal"
    )
    if what == "0/1 change":
        change(labels[what])
        return name
    if what == "only labelIds":
        data("cityscapes", [0], label="gt/{}_labelTrainIds.png")
        for path in Path("data/cityscapes/gt").iterdir():
            path.rename(str(path).replace("labelTrainIds", "labelIds"))
        return "cityscapes"
    data(name, labels.get(what, [0, 1]), n=30 if what == "shifted by nobody" else 8)
    if what == "shifted by nobody":  # raw labels in which the last class does not occur
        Path("splits/ade20k/1_3/labeled.txt").write_text("".join(f"i/{i}.png m/{i}.png\n" for i in range(2, 27)))
        Path("splits/ade20k/1_3/unlabeled.txt").unlink()
    edits = {
        "no image": lambda: Path("data/pascal/i/2.png").unlink(),
        "no mask": lambda: Path("data/pascal/m/3.png").unlink(),
        "no unlabeled image": lambda: Path("data/pascal/i/7.png").unlink(),
        "no root": lambda: shutil.rmtree("data"),
        "size": lambda: mask("data/pascal/m/2.png", [0], (6, 8)),
        "value": lambda: mask("data/pascal/m/2.png", [0, 21]),
        "color": lambda: mask("data/pascal/m/2.png", [0], mode="RGB"),
        "depth": lambda: Image.new("F", (8, 6)).save("data/pascal/i/2.png", "TIFF"),
        "no picture": lambda: Path("data/pascal/m/2.png").write_text("text"),
        "empty file": lambda: Path("data/pascal/i/2.png").write_bytes(b""),
        "cut mask": lambda: Path("data/pascal/m/2.png").write_bytes(Path("data/pascal/m/2.png").read_bytes()[:50]),
        "twice": lambda: Path("splits/pascal/1_3/labeled.txt").write_text("i/2.png m/2.png\n./i/2.png m/2.png\n"),
        "both": lambda: Path("splits/pascal/1_3/unlabeled.txt").write_text("i/4.png None\ni/3.png None\n"),
        "validation": lambda: Path("splits/pascal/1_3/unlabeled.txt").write_text("i/4.png None\ni/0.png None\n"),
    }
    edits.get(what, lambda: None)()
    return name


ROWS = [
    ("no image", "i/2.png: no such file", ""),
    ("no mask", "m/3.png: no such file", ""),
    ("no unlabeled image", "i/7.png: no such file", ""),
    ("no root", "no such file", "hint: most files are missing"),
    ("size", "i/2.png is 8 x 6, m/2.png is 6 x 8", ""),
    ("value", "m/2.png: found the values 21, expected 0..20 or 255", ""),
    ("color", "m/2.png: found mode RGB, expected one channel", "hint: some masks do not hold one class id for each pixel"),
    ("depth", "i/2.png: found floating-point values, expected 8 or 16 bits", ""),
    ("no picture", "m/2.png: cannot be read", ""),
    ("empty file", "i/2.png: cannot be read", ""),
    ("cut mask", "m/2.png: cannot be read", ""),
    ("twice", "i/2.png is in the list 2 times", "hint: images in more than one place"),
    ("both", "i/3.png is in splits/pascal/1_3/labeled.txt too", "hint: images in more than one place"),
    ("validation", "i/0.png is in splits/pascal/val.txt too", "hint: images in more than one place"),
    ("0/1 change", "label/0.png: found the values 1, expected 0 (unchanged), 255 (changed)", "hint: change masks of 0 and 1"),
    ("raw ade20k", "found the values 150", "hint: these look like raw ADE20K labels"),
    ("shifted by nobody", "", "hint: these look like raw ADE20K labels"),
    ("raw cityscapes", "found the values 26, 33", "hint: ids from 19 to 33 are raw Cityscapes ids"),
    ("only labelIds", "labelTrainIds.png: no such file", "hint: only the raw Cityscapes label ids"),
]


@pytest.mark.parametrize(("what", "problem", "hint"), ROWS, ids=[row[0] for row in ROWS])
def test_problems(what: str, problem: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = broken(what)
    with pytest.raises(SystemExit, match="2"):
        run(main, ["check", name])
    out, error = capsys.readouterr()
    assert len(error.splitlines()) == 1
    assert f"lists of {name}" in error
    assert problem in out
    assert hint in out
    assert ("hint:" in out) == bool(hint)


def test_cut_image_needs_decode() -> None:
    data("pascal", [0])
    Image.effect_noise((64, 64), 50).save("data/pascal/i/2.png")
    mask("data/pascal/m/2.png", [0], (64, 64))
    whole = Path("data/pascal/i/2.png").read_bytes()
    Path("data/pascal/i/2.png").write_bytes(whole[: len(whole) // 2])
    main(["check", "pascal"])
    with pytest.raises(UserError, match="found problems in 1 of 3 lists of pascal, 1 in all"):
        main(["check", "pascal", "--decode"])


def test_many_problems_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    data("pascal", [77])
    with pytest.raises(UserError, match=r"found problems in 2 of .* lists of .*, 4 in all"):
        main(["check", "pascal"])
    assert "... and 1 more of this kind" in capsys.readouterr().out


def test_camvid(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(Path(__file__).parents[3] / "splits/camvid", "splits/camvid")
    main(["check", "camvid", "--data-root", str(shared.resolve() / "camvid")])
    assert "splits/camvid/1_8/labeled.txt 46 46 11/11" in " ".join(capsys.readouterr().out.split())


def test_a_validation_image_under_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A copied or re-saved file is found by its pixels; a blank tile, of which many sets have some, is no copy of another."""
    data("own", [0, 1])
    for i in range(8):
        Image.effect_noise((8, 6), 50).convert("RGB").save(f"data/own/i/{i}.png")
    Image.open("data/own/i/0.png").save("data/own/i/3.bmp")
    Path("data/own/i/5.png").write_bytes(Path("data/own/i/1.png").read_bytes())
    Path("splits/own/1_3/labeled.txt").write_text("i/2.png m/2.png\ni/3.bmp m/3.png\n")
    Path("splits/own/1_3/unlabeled.txt").write_text("i/4.png None\ni/5.png None\n")
    with pytest.raises(UserError, match="found problems in 2 of 3 lists of own, 2 in all"):
        main(["check", "own", "--classes", "2"])
    out = capsys.readouterr().out
    assert "labeled.txt: data/own/i/3.bmp has the same pixels as data/own/i/0.png of splits/own/val.txt" in out
    assert "unlabeled.txt: data/own/i/5.png has the same pixels as data/own/i/1.png of splits/own/val.txt" in out
    assert "hint: the score of an image that was trained with under another name" in out
    for i in range(8):
        Image.new("RGB", (8, 6), "black").save(f"data/own/i/{i}.png")
    Image.new("L", (8, 6)).save("data/own/i/3.bmp")
    main(["check", "own", "--classes", "2"])
