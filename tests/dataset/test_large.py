"""Large-scale training: long lists cost little, the recipes are the published ones."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.custom import spec_of, unlabeled_places
from dataset.lists import Entry, ImageList, read_list
from dataset.loader import supervised
from dataset.sampler import Stream
from tests.conftest import ROOT
from util.config import load_config, parse_command
from util.error import UserError

# config: labelled images, unlabelled images, shards, mini-batch, epochs, optimiser steps of an epoch, column of the paper's table
RECIPES = {
    "coco_extra": (118287, 123403, 8, 2, 40, 7713, "COCO (118K) + COCO Extra (123K)"),
    "ade20k_coco118k": (20210, 118287, 4, 4, 30, 7393, "ADE20K (20K) + COCO Labeled (118K)"),  # the log's last line is iteration 7392
    "ade20k_coco241k": (20210, 241690, 8, 2, 30, 15106, "ADE20K (20K) + COCO All (241K)"),
    "cityscapes_extra": (2975, 19998, 4, 2, 40, 2500, "Cityscapes (3K) + Extra (20K)"),
}


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads the memory of processes from /proc")
def test_a_list_of_240_000_lines_costs_little_and_workers_do_not_copy_it() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.list_cost", "240000"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    words = done.stdout.split()
    cost = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    assert cost["seconds"] < 0.5
    assert cost["resident"] < 50
    assert cost["peak"] < 50
    assert cost["copied"] < 2  # MB; the list has 16


name = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=6)
good_line = st.one_of(
    name,
    st.tuples(name, name).map(" ".join),
    st.tuples(name, name, name).map(lambda n: f"{n[0]} {n[1]}\t{n[2]}"),
    st.sampled_from(["a None"]),
)
any_line = st.one_of(good_line, st.text(" \tab", max_size=6))


@given(st.lists(any_line, min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.sampled_from(["", "\ufeff"]))
def test_a_long_list_reads_as_line_by_line(tmp_path_factory, lines: list[str], end: str, ended: bool, mark: str) -> None:
    path = tmp_path_factory.mktemp("list") / "l.txt"
    path.write_bytes((mark + end.join(lines) + end * ended).encode())

    def outcome(read: Callable[[], list[Entry]]) -> list[Entry] | str:
        try:
            return read()
        except UserError as error:
            return str(error)

    def indexed() -> list[Entry]:
        images = ImageList(str(path), "segmentation", masks=False)
        return [images[i] for i in range(len(images))]

    assert outcome(indexed) == outcome(lambda: read_list(path))


def test_a_path_with_a_space_is_found_when_an_unlabelled_list_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "l.txt"
    path.write_text("a.jpg a.png\nb.JPEG None\nno_ending no_ending\nmy photo.jpg\n")
    with pytest.raises(UserError, match=r"l\.txt:4: found 'my photo\.jpg', expected `image mask`"):
        ImageList(str(path), "segmentation", masks=False)
    path.write_text("a.jpg a.png\nb.JPEG None\nno_ending no_ending\n")
    assert len(ImageList(str(path), "segmentation", masks=False)) == 3


def test_the_sum_of_a_list_does_not_depend_on_ends_of_lines(tmp_path: Path) -> None:
    sums = set()
    for i, text in enumerate(("a b\nc d\n", "a b\nc d", "a b\r\nc d\r\n", "\n\na b\n \nc d\n", "\ufeffa b\nc d")):
        (tmp_path / f"{i}.txt").write_bytes(text.encode())
        sums.add(ImageList(str(tmp_path / f"{i}.txt"), "segmentation", masks=True).sha256)
    assert sums == {hashlib.sha256(b"a b\nc d").hexdigest()}


@pytest.mark.parametrize("config", RECIPES)
def test_recipes_are_the_published_ones(config: str) -> None:
    labeled, unlabeled, shards, batch, epochs, steps, _ = RECIPES[config]
    cfg = load_config(str(ROOT / f"configs/{config}.yaml"))
    assert (cfg.shards, cfg.batch_size, cfg.epochs, cfg.backbone, cfg.lock_backbone) == (shards, batch, epochs, "dinov2_base", False)
    assert (cfg.lr, cfg.lr_multi, cfg.conf_thresh) == (5e-6, 40.0, 0.95)
    base = load_config(str(ROOT / f"configs/{cfg.dataset}.yaml"))
    assert (cfg.criterion, cfg.crop_size, cfg.nclass) == (base.criterion, base.crop_size, spec_of(cfg).nclass)
    assert Stream(unlabeled, unlabeled, batch).steps(shards) == steps, "the labelled list is repeated to at least this length"
    counts = {row[0]: row[1] for row in (line.split("\t") for line in (ROOT / "splits/manifest.tsv").read_text().splitlines())}
    assert int(counts[cfg.labeled_id_path]) == labeled
    assert sum(int(counts[path]) for path, _ in unlabeled_places(cfg)) == unlabeled
    assert len(unlabeled_places(cfg)) == (2 if config == "ade20k_coco241k" else 1)


@pytest.mark.parametrize("config", RECIPES)
def test_the_numbers_to_expect_are_those_of_the_paper(config: str, shared: Path) -> None:
    rows = json.loads((shared / "published.json").read_text())["tables"]["Real-World Large-Scale"]
    head = (ROOT / f"configs/{config}.yaml").read_text().split("dataset:", 1)[0]
    said = re.search(r"EMA mIoU ([\d.]+), against ([\d.]+) of labelled-only", head)
    assert said
    for number, when in zip(said.groups(), ("after", "before"), strict=True):
        assert [row["reported"] for row in rows if row["column"] == f"{RECIPES[config][-1]} [{when}]"] == [number]


def test_lists_of_the_config_and_of_the_command_line(tmp_path: Path) -> None:
    config = ["--config", str(ROOT / "configs/ade20k_coco241k.yaml"), "--save-path", "exp"]
    cfg = parse_command(config, None, True)
    assert unlabeled_places(cfg) == [("splits/coco/all/train.txt", "data/coco"), ("splits/coco/all/unlabeled.txt", "data/coco")]
    cfg = parse_command([*config, "--unlabeled-id-path", "a b.txt", "--labeled-id-path", "l.txt"], None, True)
    assert (cfg.labeled_id_path, cfg.unlabeled_id_path) == ("l.txt", "a b.txt")  # one list is text, as in the authors' logs
    cfg = parse_command([*config, "--unlabeled-id-path", "a.txt", "b.txt", "--set", "data_root_u=[x, y]"], None, True)
    assert unlabeled_places(cfg) == [("a.txt", "x"), ("b.txt", "y")]
    assert supervised(parse_command(config, None, False)).unlabeled_id_path is None
