"""Lists: fetched from a bad server, imported, drawn, made from folders."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset.lists import Entry, format_line, missing_validation, parse_line, read_lines
from dataset.splits import published
from dataset.splits.__main__ import main
from dataset.splits.make import choose, rank
from dataset.splits.published import manifest, published_length
from tests.server import Page, Server
from util.error import UserError, run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """A manifest of three small lists, one known by its blob sum only, and what they contain."""
    contents = {
        "splits/toy/1_2/labeled.txt": b"a b\n",
        "remote-sensing/splits/toy/5%/x.txt": b"c.png\nd.png",
        "splits/toy/val.txt": b"e f\n" * 500,
    }
    rows = ["path\tlines\tbytes\tgit_blob_sha1\tsha256"]
    for path, content in contents.items():
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        known = ("", "", blob, "") if "labeled" in path else ("1", str(len(content)), blob, hashlib.sha256(content).hexdigest())
        rows.append("\t".join((path, *known)))
    (tmp_path / "manifest.tsv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(published, "MANIFEST", tmp_path / "manifest.tsv")
    return contents


def local(path: str) -> Path:
    return Path(path.removeprefix("remote-sensing/"))


def serve_toy(server: Server, toy: dict[str, bytes]) -> None:
    server.pages = {f"/base/{path.replace('%', '%25')}": Page(content) for path, content in toy.items()}


def test_fetch(server: Server, toy: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    serve_toy(server, toy)
    server.pages["/base/splits/toy/val.txt"].faults = ["cut", "busy", "stall"]
    main(["fetch", "toy", "--url", f"{server.url}/base/"])
    assert {p: local(p).read_bytes() for p in toy} == toy
    assert sorted(p for p in Path("splits").rglob("*") if p.is_file()) == sorted(map(local, toy))
    assert "3 downloaded, 0 already existed" in capsys.readouterr().out
    asked = len(server.requests)
    local("splits/toy/val.txt").write_bytes(b"changed")
    main(["fetch", "toy", "--url", f"{server.url}/base"])
    assert len(server.requests) == asked + 1  # only what is not as published
    assert "1 downloaded, 2 already existed" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_corrupted_list_leaves_nothing(server: Server, toy: dict[str, bytes], bad: int, capsys: pytest.CaptureFixture[str]) -> None:
    serve_toy(server, toy)
    page = list(server.pages.values())[bad]
    page.content = page.content[:-1] + b"X"
    with pytest.raises(SystemExit, match="2"):
        run(main, ["fetch", "toy", "--url", f"{server.url}/base"])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert list(toy)[bad].replace("%", "%25") in error
    assert not Path("splits").exists()


def test_missing_list_keeps_what_was_there(server: Server, toy: dict[str, bytes]) -> None:
    serve_toy(server, toy)
    first = next(iter(toy))
    local(first).parent.mkdir(parents=True)
    local(first).write_bytes(toy[first])
    del server.pages["/base/splits/toy/val.txt"]
    with pytest.raises(UserError, match="404"):
        main(["fetch", "toy", "--url", f"{server.url}/base"])
    assert [p for p in Path("splits").rglob("*") if p.is_file()] == [local(first)]


def test_interrupted_fetch_goes_on(server: Server, toy: dict[str, bytes]) -> None:
    serve_toy(server, toy)
    server.pages["/base/splits/toy/val.txt"].faults = ["cut", *["busy"] * 3]
    with pytest.raises(UserError, match="503"):
        main(["fetch", "toy", "--url", f"{server.url}/base"])
    assert not local("splits/toy/val.txt").exists()
    asked = len(server.requests)
    main(["fetch", "toy", "--url", f"{server.url}/base"])
    assert [r[1] for r in server.requests[asked:]] == ["bytes=1000-"]


def test_fetch_as_a_command(server: Server) -> None:
    """The real manifest, in a process of its own."""
    server.pages["/splits/pascal/1464/labeled.txt"] = Page(b"nonsense")
    done = subprocess.run(
        [sys.executable, "-m", "dataset.splits", "fetch", "pascal", "--url", server.url],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "pascal/1464/labeled.txt" in done.stderr
    assert not Path("splits").exists()


def test_each_list_comes_from_its_own_repository(
    server: Server, toy: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (tmp_path / "manifest.tsv").read_text().splitlines()
    (tmp_path / "manifest.tsv").write_text("\n".join([f"{rows[0]}\trepository", *rows[1:-1], f"{rows[-1]}\tUniMatch"]) + "\n")
    monkeypatch.setattr(published, "PUBLISHED", {"UniMatch-V2": f"{server.url}/base", "UniMatch": f"{server.url}/older"})
    serve_toy(server, toy)
    server.pages["/older/splits/toy/val.txt"] = server.pages.pop("/base/splits/toy/val.txt")
    main(["fetch", "toy"])
    assert {path: local(path).read_bytes() for path in toy} == toy


def test_manifest_is_whole() -> None:
    lists = manifest()
    assert {name: len(of) for name, of in lists.items()} == {
        "levir": 11,
        "whu": 11,
        "ade20k": 14,
        "cityscapes": 13,
        "coco": 13,
        "pascal": 24,
    }
    assert sum(one.repository == "UniMatch" for one in lists["pascal"]) == 12, "those that only V1 has"
    assert all(re.fullmatch("[0-9a-f]{40}", one.blob) and re.fullmatch("[0-9a-f]{64}|", one.sha256) for of in lists.values() for one in of)


def test_import(toy: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone = tmp_path / "clone"
    for path, content in list(toy.items())[1:]:
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_bytes(content.replace(b"\n", b"\r\n"))  # as a checkout on Windows has it
    main(["import", str(clone)])
    assert "2 of 3 lists" in capsys.readouterr().out
    assert sorted(p for p in Path("splits").rglob("*") if p.is_file()) == sorted(local(p) for p in list(toy)[1:])
    assert local("splits/toy/val.txt").read_bytes() == toy["splits/toy/val.txt"]


def test_import_of_a_changed_list(toy: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "clone/splits/toy").mkdir(parents=True)
    (tmp_path / "clone/splits/toy/val.txt").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"toy/val.txt: found 7 bytes .*expected 2000 bytes"):
        main(["import", str(tmp_path / "clone"), "toy"])
    assert not Path("splits").exists()


def test_every_published_list_has_a_length() -> None:
    """Also those that nobody has counted: a split's unlabelled images are all those that it has no labels of."""
    assert all(published_length(str(one.local)) > 0 for lists in manifest().values() for one in lists)
    assert published_length("splits/coco/1_512/unlabeled.txt") == 118287 - 232
    assert published_length("splits/pascal/93/labeled.txt") == 0


def test_published_lists(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["import", str(shared.resolve() / "splits")])
    out = capsys.readouterr().out
    # of Pascal those of UniMatch V2 alone
    for counts in ("pascal: 12 of 24 lists", "cityscapes: 13 of 13 lists", "levir: 11 of 11 lists"):
        assert counts in out
    assert len(list(Path("splits").rglob("*.txt"))) == 36


def test_shipped_camvid_lists_are_what_make_draws(capsys: pytest.CaptureFixture[str]) -> None:
    for share, count in (("1/8", 46), ("1/4", 92)):
        main(["make", "camvid", "--labeled", share, "--seed", "0", "--from", str(ROOT / "splits/camvid/train.txt")])
        folder = share.replace("/", "_")
        for part in ("labeled", "unlabeled"):
            assert Path(f"splits/camvid/{folder}/{part}.txt").read_bytes() == (ROOT / f"splits/camvid/{folder}/{part}.txt").read_bytes()
        assert len(Path(f"splits/camvid/{folder}/labeled.txt").read_text().splitlines()) == count
    small, large = (set(Path(f"splits/camvid/{f}/labeled.txt").read_text().splitlines()) for f in ("1_8", "1_4"))
    assert small < large


@pytest.mark.parametrize("seed", range(5))
def test_shipped_draws_of_three_are_what_make_draws(seed: int, shared: Path) -> None:
    """They hold every class, for which the masks are read."""
    arguments = ["--from", str(ROOT / "splits/camvid/train.txt"), "--data-root", str(shared.resolve() / "camvid")]
    main(["make", "camvid", "--count", "63", "--select", "60", "--seed", str(seed), "--stratify", "--name", f"3_draw{seed}", *arguments])
    for part in ("labeled", "unlabeled", "select"):
        path = f"splits/camvid/3_draw{seed}/{part}.txt"
        assert Path(path).read_bytes() == (ROOT / path).read_bytes()


@settings(deadline=None)
@given(
    st.sets(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=30),
    st.integers(),
    st.randoms(),
)
def test_rank_depends_on_the_lines_only(lines: set[str], seed: int, random) -> None:
    one, other = sorted(lines), sorted(lines)
    random.shuffle(other)
    assert [one[i] for i in rank(one, seed)] == [other[i] for i in rank(other, seed)]


def test_rank_is_fixed() -> None:
    assert rank(["a", "b", "c", "d", "e"], 0) != rank(["a", "b", "c", "d", "e"], 1)
    assert rank(["a", "b", "c", "d", "e"], 0) == sorted(range(5), key=lambda i: hashlib.sha256(b"0\n" + b"abcde"[i : i + 1]).hexdigest())


@settings(deadline=None)
@given(st.lists(st.frozensets(st.integers(0, 9), min_size=1), min_size=1, max_size=25), st.data())
def test_stratified_choice(classes: list[frozenset[int]], data) -> None:
    count = data.draw(st.integers(1, len(classes)))
    ranked = data.draw(st.permutations(range(len(classes))))
    chosen = choose(ranked, count, classes)
    assert len(chosen) == count
    everything = frozenset().union(*classes)
    if count >= len(everything):  # one image per class is enough
        assert frozenset().union(*(classes[i] for i in chosen)) == everything


def test_stratify_brings_the_rare_class(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 40, lambda i: [0, 1] if i != 17 else [0, 5])
    main(["make", "own", "--images", "data/images", "--masks", "data/masks", "--count", "2", "--stratify", "--seed", "3"])
    labeled = Path("splits/own/2/labeled.txt").read_text()
    assert "17.jpg" in labeled
    assert len(labeled.splitlines()) == 2


def make_folder(folder: Path, images: int, values=lambda i: [0, 1], suffix: str = "") -> None:
    """images/NN.jpg and masks/NN<suffix>.png, whose pixels are the given values."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for i in range(images):
        Image.new("RGB", (8, 6), (i, 0, 0)).save(folder / f"images/{i:02}.jpg")
        mask = np.resize(np.array(values(i), dtype=np.uint8), (6, 8))
        Image.fromarray(mask).save(folder / f"masks/{i:02}{suffix}.png")


def lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def test_select_holds_labelled_images_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("splits/pascal/92").mkdir(parents=True)
    labeled, unlabeled = ([f"i/{i}.jpg m/{i}.png" for i in range(*span)] for span in ((0, 30), (30, 80)))
    for name, lines in (("92/labeled", labeled), ("92/unlabeled", unlabeled), ("val", ["v.jpg v.png"])):
        Path(f"splits/pascal/{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    main(["make", "pascal", "--from", "splits/pascal/92/labeled.txt", "--select", "8"])
    said = capsys.readouterr().out
    assert "splits/pascal/92_select8: 22 labelled, 50 unlabelled, from splits/pascal/92" in said
    assert "--set val_id_path=splits/pascal/92_select8/select.txt" in said
    kept, held = (lines_of(f"splits/pascal/92_select8/{name}.txt") for name in ("labeled", "select"))
    assert (len(kept), len(held), sorted(kept + held)) == (22, 8, sorted(labeled))
    assert [line for line in labeled if line in held] == held, "in the order of the list"
    assert lines_of("splits/pascal/92_select8/unlabeled.txt") == unlabeled
    # a pair that is drawn: the same labelled images as without --select
    Path("splits/pascal/train.txt").write_text("".join(f"{line}\n" for line in labeled + unlabeled))
    for options in ([], ["--select", "4"]):
        main(["make", "pascal", "--count", "20", "--seed", "3", *options])
    drawn = lines_of("splits/pascal/20/labeled.txt")
    kept, held = (lines_of(f"splits/pascal/20_select4/{name}.txt") for name in ("labeled", "select"))
    assert (len(kept), len(held), sorted(kept + held)) == (16, 4, sorted(drawn))
    assert lines_of("splits/pascal/20_select4/unlabeled.txt") == lines_of("splits/pascal/20/unlabeled.txt")


def test_select_from_a_stratified_pair_leaves_every_class_to_learn(tmp_path: Path) -> None:
    """Of twelve images two have class 1; without a stratified choice the seed's order would hold both out."""
    for i in range(12):
        Path("data/own/m").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6), 0).save(f"data/own/m/{i}.png")
    lines = [f"m/{i}.png m/{i}.png" for i in range(12)]
    Path("splits/own/6").mkdir(parents=True)
    Path("splits/own/6/labeled.txt").write_text("".join(f"{line}\n" for line in lines))
    for i in rank(lines, 0)[-2:]:
        Image.new("L", (8, 6), 1).save(f"data/own/m/{i}.png")
    for name, more in (("plain", []), ("even", ["--stratify"])):
        main(["make", "own", "--from", "splits/own/6/labeled.txt", "--select", "2", "--name", name, *more])
    rare = {lines[i] for i in rank(lines, 0)[-2:]}
    assert not rare & set(lines_of("splits/own/plain/labeled.txt"))
    assert rare & set(lines_of("splits/own/even/labeled.txt"))


def test_list_from_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "my data", 4, suffix="_L")
    (tmp_path / "my data/images/sub dir").mkdir()
    Image.new("L", (8, 6)).save(tmp_path / "my data/images/sub dir/bare.PNG")
    Image.new("L", (8, 6)).save(tmp_path / "my data/masks/stray.png")
    main(
        [
            "make",
            "own",
            "--images",
            "my data/images",
            "--masks",
            "my data/masks",
            "--mask-suffix",
            "_L",
            "--data-root",
            ".",
            "--labeled",
            "1/2",
        ]
    )
    lines = Path("splits/own/train.txt").read_text().splitlines()
    assert lines[0] == "my data/images/00.jpg\tmy data/masks/00_L.png"
    assert lines[4] == "my data/images/sub dir/bare.PNG\tNone"
    assert "5 images, 1 without a mask (these can only be unlabelled), 1 masks without an image" in capsys.readouterr().out
    labeled, unlabeled = (Path(f"splits/own/1_2/{part}.txt").read_text().splitlines() for part in ("labeled", "unlabeled"))
    assert len(labeled) == 2
    assert sorted(labeled + unlabeled) == sorted(lines)
    assert "None" not in "".join(labeled)
    main(["make", "own", "--labeled", "1/1", "--name", "full"])  # all that have a mask
    assert len(Path("splits/own/full/labeled.txt").read_text().splitlines()) == 4


@settings(deadline=None)
@example("0", ".PPM")  # with a space between them, one path
@given(*[st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1) for _ in range(2)])
def test_line_round_trip(image: str, mask: str) -> None:
    for entry in (Entry(image, mask if mask != "None" else None), Entry(image, None)):
        assert parse_line(format_line(entry), "list:1") == entry


def test_a_path_with_spaces_and_no_tab_is_told_and_a_long_line_is_cut() -> None:
    with pytest.raises(UserError, match=r"list:3: found 'images/Img 005\.jpg', expected .*a TAB"):
        parse_line("images/Img 005.jpg", "list:3")
    with pytest.raises(UserError) as error:
        parse_line("a b " * 10_000, "list:1")
    assert len(str(error.value)) < 300


def test_a_published_list_is_to_be_fetched() -> None:
    """Under any folder; another list, also of that data set, is to be made."""
    fetched = "get it with `python -m dataset.splits fetch pascal`"
    for path, told in (("clone/splits/pascal/92/labeled.txt", fetched), ("splits/pascal/93/labeled.txt", "write one with")):
        with pytest.raises(UserError, match=rf"no such list in .*; {told}"):
            read_lines(path)
    assert "fetch pascal" in missing_validation("splits/pascal/val.txt")
    assert "make --config CONFIG --val 1/8 ...`, or name one with val_id_path" in missing_validation("splits/street/val.txt")


def test_change_lists(tmp_path: Path) -> None:
    Path("all.txt").write_text("\n".join(f"train_{i}_{j}.png" for i in range(10) for j in range(2)))
    main(["make", "levir", "--labeled", "15%", "--from", "all.txt"])
    assert len(Path("splits/levir/15%/labeled.txt").read_text().splitlines()) == 3
    with pytest.raises(UserError, match="published pair"):
        main(["make", "levir", "--labeled", "5%", "--from", "all.txt"])


ROWS = [
    (["fetch", "toyota"], "toyota"),
    (["fetch", "pascal", "--url", "nowhere"], "--url: found 'nowhere"),
    (["fetch"], "fetch --help"),
    (["polish"], "invalid choice"),
    (["import", "absent"], "absent"),
    (["import", "folder"], "no published list"),
    (["make", "own"], "--labeled 1/8"),
    (["make", "own", "--labeled", "1/2"], "write one with `python -m dataset.splits make --config CONFIG ...`"),
    (["make", "own", "--labeled", "half", "--from", "good.txt"], "--labeled: found 'half'"),
    (["make", "own", "--labeled", "1/0", "--from", "good.txt"], "--labeled: found '1/0'"),
    (["make", "own", "--labeled", "3/2", "--from", "good.txt"], "6 labelled of 4"),
    (["make", "own", "--count", "4", "--from", "good.txt"], "4 labelled of 4"),
    (["make", "own", "--count", "0", "--from", "good.txt"], "0 labelled of 4"),
    (["make", "own", "--count", "many", "--from", "good.txt"], "--count"),
    (["make", "own", "--count", "1", "--labeled", "1/2", "--from", "good.txt"], "not allowed with"),
    (["make", "own", "--count", "1", "--from", "twice.txt"], "1 lines twice"),
    (["make", "own", "--count", "1", "--from", "words.txt"], "words.txt:2: found 'c d e'"),
    (["make", "own", "--count", "1", "--from", "empty.txt"], "empty list"),
    (["make", "own", "--count", "1", "--from", "folder"], "not a list"),
    (["make", "own", "--count", "1", "--from", "binary.txt"], "not a list"),
    (["make", "own", "--count", "1", "--from", "bare.txt"], "(0 have a mask)"),
    (["make", "own", "--count", "1", "--stratify", "--from", "good.txt"], "no such file"),
    (["make", "pascal", "--count", "92", "--from", "good.txt"], "92 labelled of 4"),
    (
        ["make", "own", "--count", "1", "--from", "good.txt", "--name", "taken"],
        "make: found splits/own/taken/labeled.txt with other content",
    ),
    (
        ["make", "own", "--count", "1", "--from", "good.txt", "--name", "old.txt/a"],
        "found a list where its folder splits/own/old.txt would be",
    ),
    (
        ["make", "own", "--images", "data/images", "--masks", "data/masks", "--count", "1", "--name", "train.txt"],
        "its folder splits/own/train.txt",
    ),
    (["make", "own", "--images", "data/images", "--masks", "data/masks", "--val", "1/2", "--count", "7"], "7 labelled of 1 images"),
    (["make", "own", "--masks", "folder"], "without --images"),
    (["make", "own", "--select", "1"], "--select: found no pair"),
    (["make", "own", "--select", "4", "--from", "good.txt"], "--select: found 4 of 4 labelled images"),
    (["make", "own", "--select", "0", "--from", "good.txt"], "--select: found 0 of 4 labelled images"),
    (["make", "own", "--select", "2", "--count", "2", "--from", "good.txt"], "--select: found 2 of 2 labelled images"),
    (["make", "own", "--select", "1", "--from", "bare.txt"], "--from: found 2 of 2 lines of bare.txt without a mask"),
    (["make", "own", "--images", "absent"], "--images: no such folder"),
    (["make", "own", "--images", "folder"], "found no image"),
    (["make", "own", "--images", "data/images", "--masks", "absent"], "--masks: no such folder"),
    (["make", "own", "--images", "data/images", "--masks", "other"], "--mask-suffix"),
    (["make", "own", "--images", "data/images", "--masks", "data/../data/images"], "--masks: found the folder of --images"),
    (["make", "../own", "--count", "1", "--from", "good.txt"], "make: found '../own'"),
    (["make", "own", "--count", "1", "--from", "good.txt", "--name", "a/../../b"], "--name: found 'a/../../b'"),
    (["make", "/own", "--count", "1", "--from", "good.txt"], "make: found '/own'"),
    (["make", "own", "--images", "double"], "expected one file per name"),
    (["make", "own", "--images", "data/images", "--data-root", "other"], "is not below"),
    (["check", "own"], "--classes N"),
    (["check", "own", "--classes", "0"], "--classes: found 0"),
    (["check", "other", "--classes", "2"], "found no list"),
    (["check", "pascal", "9999"], "no such pair"),
]


@pytest.mark.parametrize(("argv", "words"), ROWS, ids=[" ".join(argv) for argv, _ in ROWS])
def test_user_errors(argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {
        "good": "a b\nc d\ne f\ng h\n",
        "twice": "a b\na b\nc d\n",
        "words": "a b\nc d e\n",
        "empty": "\n\n",
        "bare": "a None\nb None\n",
    }
    for name, text in texts.items():
        Path(f"{name}.txt").write_text(text)
    Path("binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    for folder in ("folder", "other", "double", "splits/own/taken"):
        Path(folder).mkdir(parents=True)
    for name in ("taken/labeled.txt", "old.txt"):
        Path(f"splits/own/{name}").write_text("x y\n")
    make_folder(tmp_path / "data", 2)
    Image.new("L", (8, 6)).save("other/x.png")
    for name in ("a.jpg", "a.png"):
        Image.new("L", (8, 6)).save(f"double/{name}")
    with pytest.raises(SystemExit, match="2"):
        run(main, argv)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert words in error
    assert sorted(path.name for path in Path("splits").rglob("*.txt")) == ["labeled.txt", "old.txt"], "nothing is written"
