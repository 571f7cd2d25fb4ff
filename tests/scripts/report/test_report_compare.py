"""Methods compared over their seeds: intervals against second writings, and what is compared with what."""

import html
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import supervised
import unimatch_v2
from dataset.lists import ImageList
from engine import image_counts, metric
from engine.image_counts import FILES
from engine.metrics_file import Epoch, append
from scripts.report import read_log
from scripts.report.__main__ import main
from scripts.report.bootstrap import changed_iou, mean_iou, over_images, over_seeds, t_interval, t_quantile
from scripts.report.compare import Difference, compare
from scripts.report.compare_render import MEANINGS, differences_grid, mean_figure, methods_grid
from scripts.report.tables import round_half_up
from scripts.report.uneven import uneven
from tests.conftest import Tiny
from tests.scripts.report.report_logs import whole_log
from util.error import UserError


def test_students_t_is_that_of_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}
    assert {n: round(t_quantile(n), 3) for n in table} == table
    low, high = t_interval(np.array([1.0, 2.0, 4.0]))
    half = 4.302653 * math.sqrt((16 + 1 + 25) / 9 / 2) / math.sqrt(3)
    assert (low, high) == pytest.approx((7 / 3 - half, 7 / 3 + half), abs=1e-4)


def test_bootstrap_over_seeds_is_that_of_all_resamples() -> None:
    """Of four seeds there are 4^4 resamples: their quantiles, all counted."""
    values = np.array([0.5, -1.0, 2.0, 3.5])
    means = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    expected = np.percentile(means, (2.5, 97.5))
    assert over_seeds(values) == pytest.approx(expected, abs=0.13)
    assert over_seeds(values) == over_seeds(values), "the same again"
    assert over_seeds(np.array([1.0, 2.0])) == (1, 2), "two seeds: their range"
    assert over_seeds(np.array([1.0, 5.0, 2.0])) == (1, 5), "three seeds, too"


def random_counts(rng: np.random.Generator, seeds: int, images: int, classes: int) -> tuple[np.ndarray, list[list[torch.Tensor]]]:
    """Counts of images (S, N, 3, K), and the confusion matrices that they are of."""
    matrices = [[torch.from_numpy(rng.integers(0, 40, (classes, classes))) for _ in range(images)] for _ in range(seeds)]
    return np.array([[metric.sums(one).numpy() for one in run] for run in matrices]), matrices


def test_bootstrap_over_images_resamples_confusion_matrices() -> None:
    """Against resampled lists of images, whose matrices are added up and scored as an evaluation is."""
    rng = np.random.default_rng(3)
    (first, a), (second, b) = (random_counts(rng, 2, 6, 3) for _ in range(2))
    images, both = over_images(first, second, mean_iou)

    def miou(matrices: list[torch.Tensor], chosen: np.ndarray) -> float:
        return float(metric.iou(sum(matrices[i] for i in chosen)).mean())

    draws = [[miou(run, chosen) for run in (*a, *b)] for chosen in rng.integers(0, 6, (3000, 6))]
    by_seed = np.array(draws)[:, :2] - np.array(draws)[:, 2:]
    assert images == pytest.approx(np.percentile(by_seed.mean(1), (2.5, 97.5)), abs=0.35)
    seeds = rng.integers(0, 2, (3000, 2))
    assert both == pytest.approx(np.percentile(np.take_along_axis(by_seed, seeds, 1).mean(1), (2.5, 97.5)), abs=0.35)
    assert both[1] - both[0] > images[1] - images[0]
    same, _ = over_images(first, first, mean_iou)
    assert same == (0, 0), "paired: the same images for both"


def test_scores_of_summed_counts_are_those_of_an_evaluation() -> None:
    matrix = torch.tensor([[5, 2, 0], [1, 7, 0], [0, 0, 0]])
    assert mean_iou(metric.sums(matrix).numpy()) == pytest.approx(float(metric.iou(matrix).mean()))
    assert changed_iou(metric.sums(matrix).numpy()) == pytest.approx(float(metric.iou(matrix)[1]))


@pytest.mark.parametrize(
    ("mean", "seeds", "intervals", "verdict"),
    [
        (1.0, [0], {"over_images": (0.5, 1.5)}, "one seed: says nothing of others"),
        (1.0, [0, 1], {"t": (-5.0, 7.0), "over_seeds": (0.5, 1.5)}, "no difference shown"),
        (1.0, [0, 1], {"t": (0.1, 1.9), "over_seeds": (0.5, 1.5), "over_both": (-0.1, 2)}, "no difference shown"),
        (1.0, [0, 1], {"t": (0.1, 1.9), "over_seeds": (0.5, 1.5)}, "higher"),
        (-1.0, [0, 1], {"t": (-1.9, -0.1), "over_seeds": (-1.5, -0.5), "over_images": (-1.2, -0.3)}, "lower"),
        (0.0, [0, 1], {"t": (0.0, 0.0), "over_seeds": (0.0, 0.0)}, "no difference shown"),
    ],
)
def test_verdicts(mean: float, seeds: list[int], intervals: dict, verdict: str) -> None:
    assert Difference("a", "b", "best", seeds, mean, **intervals).verdict == verdict


def write(folder: Path, method: str, seed: int, ema: float, **header: Any) -> Path:
    """The log of a finished run whose EMA is at `ema` in its middle epoch and one point below in the last one."""
    path = folder / f"{method}{seed}{''.join(header)}/train.log"
    path.parent.mkdir(parents=True)
    values = (ema - 2, ema, ema - 1)
    path.write_text(whole_log(ema=lambda i: f"{values[i]:.2f}", method=method, seed=seed, **header))
    return path


def test_seeds_are_runs_of_equal_settings_and_differences_are_of_equal_seeds(tmp_path: Path) -> None:
    for seed, (best_v2, fix) in enumerate([(80.0, 79.5), (81.0, 79.0), (80.5, 80.0)]):
        write(tmp_path, "unimatch_v2", seed, best_v2)
        write(tmp_path, "fixmatch", seed, fix)
    write(tmp_path, "unimatch_v2", 3, 99.0)  # a seed that FixMatch lacks
    write(tmp_path, "unimatch_v2", 0, 70.0, conf_thresh=0.9)  # another experiment
    runs = [run for path in sorted(tmp_path.rglob("train.log")) for run in read_log(path)]
    (found,) = compare(runs).comparisons
    assert found.title == "pascal 92 dinov2_base"
    groups = {group.label: group for group in found.groups}
    v2 = "UniMatch V2 (conf_thresh 0.95)"
    assert {label: sorted(group.runs) for label, group in groups.items()} == {
        "FixMatch": [0, 1, 2],
        v2: [0, 1, 2, 3],
        "UniMatch V2 (conf_thresh 0.9)": [0],
    }
    assert groups["FixMatch"].spread("best") == {"mean": pytest.approx(79.5), "deviation": pytest.approx(0.5)}
    (best,) = [
        one for one in found.differences if (one.first, one.second, one.figure) == ("UniMatch V2 (conf_thresh 0.95)", "FixMatch", "best")
    ]
    assert (best.seeds, best.mean) == ([0, 1, 2], pytest.approx(1.0))
    assert best.over_seeds == pytest.approx((0.5, 2.0))
    assert best.t == pytest.approx((1 - 4.302653 * math.sqrt(0.75 / 3), 1 + 4.302653 * math.sqrt(0.75 / 3)), abs=1e-4)
    assert best.verdict == "no difference shown"
    (last,) = [
        one for one in found.differences if (one.first, one.second, one.figure) == ("UniMatch V2 (conf_thresh 0.95)", "FixMatch", "last")
    ]
    assert last.mean == pytest.approx(1.0)


def test_a_label_names_what_most_groups_of_the_method_do_not_have(tmp_path: Path) -> None:
    for i, (thresh, rate) in enumerate([(0.5, 5e-06), (0.95, 5e-06), (0.95, 1e-05), (0.95, 5e-06)]):
        write(tmp_path / str(i), "unimatch_v2", 0, 80.0, conf_thresh=thresh, lr=rate, **{f"run{i}": 1} if i == 3 else {})
    (found,) = compare([run for path in sorted(tmp_path.rglob("train.log")) for run in read_log(path)]).comparisons
    assert {group.label for group in found.groups} == {
        f"UniMatch V2{more}" for more in ("", " (conf_thresh 0.5)", " (lr 1e-05)", " (run3 1)")
    }


def test_figures_are_rounded_half_up_as_in_the_other_tables(tmp_path: Path) -> None:
    for seed, (v2, fix) in enumerate([(13.37, 12.0), (13.38, 12.0)]):
        write(tmp_path, "unimatch_v2", seed, v2)
        write(tmp_path, "fixmatch", seed, fix)
    (found,) = compare([run for path in sorted(tmp_path.rglob("train.log")) for run in read_log(path)]).comparisons
    assert [row[2] for row in methods_grid(found)] == ["best epoch", "12.00 ± 0.00", "13.38 ± 0.01"]
    heading, best, *_ = differences_grid(found)
    assert best[heading.index("mean")] == "+1.38", "13.375 - 12"
    assert MEANINGS.keys() < set(heading)
    assert str(mean_figure([13.61, 13.62])) == "13.62"


def test_draws_of_a_split_count_as_one(tmp_path: Path) -> None:
    """Class weights and the list that selects follow from the draw; a seed whose methods have different draws is left out."""
    for seed, (v2, fix) in enumerate([(80.0, 79.5), (81.0, 79.0), (80.5, 80.0)]):
        for method, score, draw in (("unimatch_v2", v2, seed), ("fixmatch", fix, min(seed, 1))):
            lists = f"splits/pascal/3_draw{draw}"
            weights = {"name": "CELoss", "kwargs": {"class_weights": [1.0 + draw, 2.0], "ignore_index": 255}}
            given = {"labeled_id_path": f"{lists}/labeled.txt", "val_id_path": f"{lists}/select.txt", "criterion": weights}
            write(tmp_path, method, seed, score, **given)
    runs = [run for path in sorted(tmp_path.rglob("train.log")) for run in read_log(path)]
    assert {one.title for one in compare(runs).comparisons} == {f"pascal 3_draw{i} dinov2_base" for i in range(3)}
    (found,) = compare(runs, draws=True).comparisons
    assert found.title == "pascal 3_draw* dinov2_base"
    assert [(group.label, sorted(group.runs)) for group in found.groups] == [("FixMatch", [0, 1, 2]), ("UniMatch V2", [0, 1, 2])]
    best = found.differences[0]
    assert (best.first, best.seeds, best.mean) == ("UniMatch V2", [0, 1], pytest.approx(1.25))
    assert compare(runs, draws=True).remarks.count("UniMatch V2, FixMatch: seed 2 not compared: of different splits") == 1


def test_a_run_that_differs_from_its_draw_is_no_seed_of_the_others(tmp_path: Path) -> None:
    """Selected on the list of another draw, without class weights, or of a draw whose seed was there already."""
    for seed, selected, weights, draw in ((0, 0, [1.0], 0), (1, 1, [2.0], 1), (2, 0, [3.0], 2), (3, 3, None, 3), (0, 4, [5.0], 4)):
        kwargs = {"ignore_index": 255} | ({"class_weights": weights} if weights else {})
        given = {"labeled_id_path": f"splits/pascal/3_draw{draw}/labeled.txt", "val_id_path": f"splits/pascal/3_draw{selected}/select.txt"}
        write(tmp_path / str(draw), "fixmatch", seed, 80.0, **given, criterion={"name": "CELoss", "kwargs": kwargs})
    found = compare([run for path in sorted(tmp_path.rglob("train.log")) for run in read_log(path)], draws=True)
    assert sorted(sorted(group.runs) for group in found.comparisons[0].groups) == [[0, 1], [2], [3]]
    assert [remark for remark in found.remarks if "has the same seed on another draw; each draw needs its own" in remark]


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "fixmatch", 0, 80.0)
    again = write(tmp_path / "again", "fixmatch", 0, 81.0)
    unfinished, unknown = tmp_path / "short/train.log", tmp_path / "unknown.log"
    unfinished.parent.mkdir()
    begun = path.read_text().partition("===========> Epoch: 2")[0].rpartition("\n")[0]
    unfinished.write_text(begun.replace("'seed': 0", "'seed': 5"))
    unknown.write_text(re.sub(r"'seed': 0,\n ", "", path.read_text()))
    runs = [run for log in (path, again, unfinished, unknown) for run in read_log(log)]
    found = compare(runs)
    assert [one.differences for one in found.comparisons] == [[]]
    assert found.remarks == [
        f"{unfinished}: not compared: it is not finished",
        f"{unknown}: not compared: its seed is not known",
        f"{again}: not compared: {path} has the same seed and settings",
    ]


def test_counts_of_images_are_used_where_they_are_of_the_figure(tmp_path: Path) -> None:
    rng, scores = np.random.default_rng(0), {}
    for seed, method in itertools.product((0, 1), ("fixmatch", "unimatch_v2")):
        counts, _ = random_counts(rng, 1, 5, 4)
        scores[method, seed] = counts[0]
        log = write(tmp_path, method, seed, round(float(mean_iou(counts[0].sum(0))), 2))
        image_counts.save(log.with_name(FILES["best"]), torch.from_numpy(counts[0]), 1, "abc")
        image_counts.save(log.with_name(FILES["last"]), torch.from_numpy(counts[0]), 2, "abc")  # of another figure
    found = compare([run for path in sorted(tmp_path.rglob("train.log")) for run in read_log(path)])
    best, last = found.comparisons[0].differences
    v2, fix = (np.stack([scores[method, seed] for seed in (0, 1)]) for method in ("unimatch_v2", "fixmatch"))
    assert (best.over_images, best.over_both) == over_images(v2, fix, mean_iou)
    assert last.over_images is None
    assert len([remark for remark in found.remarks if "images_last.npz: not used: it gives" in remark]) == 4
    image_counts.save(tmp_path / "fixmatch0" / FILES["best"], torch.from_numpy(scores["fixmatch", 0]), 1, "other")
    found = compare([run for path in sorted(tmp_path.rglob("train.log")) for run in read_log(path)])
    assert found.comparisons[0].differences[0].over_images is None
    assert [remark for remark in found.remarks if "best is of different lists" in remark]
    (tmp_path / "fixmatch0" / FILES["best"]).write_bytes(b"torn")
    assert image_counts.load(tmp_path / "fixmatch0" / FILES["best"]) is None


def test_a_part_of_the_images_has_figures_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the counts that are of this list; the best epoch stays what it is. A text that no line has is a user error."""
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{city}/{i}.jpg {city}/{i}.png\n" for i, city in enumerate("abaab")))
    sha256 = ImageList(str(listed), "segmentation", masks=True).sha256
    rng, scores = np.random.default_rng(0), {}
    for seed, method in itertools.product((0, 1), ("fixmatch", "unimatch_v2")):
        counts, _ = random_counts(rng, 1, 5, 4)
        whole = round(float(mean_iou(counts[0].sum(0))), 2)
        log = write(tmp_path, method, seed, whole)
        image_counts.save(log.with_name(FILES["best"]), torch.from_numpy(counts[0]), 1, sha256)
        scores[method, seed] = round(float(mean_iou(counts[0][[1, 4]].sum(0))), 2)
    main(["compare", str(tmp_path), "--part", str(listed), "b/", "--json", str(tmp_path / "out.json")])
    (found,) = json.loads((tmp_path / "out.json").read_text())["comparisons"]
    assert found["title"].endswith(f"the 2 of 5 images of {listed} with 'b/'")
    assert [group["best"]["seeds"] for group in found["groups"]] == [
        {str(seed): scores[method, seed] for seed in (0, 1)} for method in ("fixmatch", "unimatch_v2")
    ]
    (difference,) = found["differences"]
    assert difference["figure"] == "best", "the last epoch's counts are not there"
    assert difference["over_images"] is not None
    with pytest.raises(UserError, match=r"--part: found 'c/' in no line of .*list\.txt, expected a part of a line, such as a/0\.jpg"):
        main(["compare", str(tmp_path), "--part", str(listed), "c/"])


def test_labelled_images_of_an_epoch_that_differ_are_told(tmp_path: Path) -> None:
    for method, images in (("fixmatch", 320), ("unimatch_v2", 320), ("supervised", 368)):
        log = write(tmp_path, method, 0, 80.0)
        log.write_text("")
        metrics = log.with_name("metrics.jsonl")
        settings = {"backbone": "dinov2_base", "epochs": 1, "save_path": f"exp/pascal/{method}/dinov2_base/92", "seed": 0}
        append(metrics, "start", {"step": 0, "method": method, "settings": settings})
        scores = {"student": {"miou": 80.0}}
        append(metrics, "epoch", vars(Epoch(0, 40, 1.0, None, None, {}, {}, scores, {}, images)))
    runs = [run for path in sorted(tmp_path.rglob("train.log")) for run in read_log(path)]
    expected = "pascal 92 dinov2_base: labelled images seen in an epoch differ: 320 (FixMatch, UniMatch V2), 368 (Labeled only)"
    assert uneven(runs) == [expected]
    assert expected in compare(runs).remarks
    assert uneven([run for run in runs if run.method != "supervised"]) == []


def test_two_methods_from_their_runs_to_the_page(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        words = (f"seed={seed}", "epochs=1", "crop_size=14", "supervised_length=24", f"test_id_path={tiny.root}/labeled.txt")
        unimatch_v2.main(tiny.args(tmp_path / f"exp/unimatch_v2/{seed}", *words))
        supervised.main(tiny.args(tmp_path / f"exp/supervised/{seed}", *words, unlabeled=False))
    capsys.readouterr()
    files = [part for suffix in ("json", "html", "svg") for part in (f"--{suffix}", str(tmp_path / f"c.{suffix}"))]
    main(["compare", str(tmp_path / "exp"), *files])
    said, page = capsys.readouterr().out, (tmp_path / "c.html").read_text()
    found = json.loads((tmp_path / "c.json").read_text())
    (one,) = found["comparisons"]
    assert [len(group["logs"]) for group in one["groups"]] == [2, 2]
    assert [row["figure"] for row in one["differences"]] == ["best", "last", "test"]
    for row in one["differences"]:
        assert all(row[key] is not None for key in ("t", "over_seeds", "over_images", "over_both"))
        assert row["verdict"] in said
        assert f'<td class="figure">{round_half_up(round(row["mean"], 6), 2):+}</td>' in page
    assert "<h1>Methods compared on demo</h1>" in page
    rule = "Best epoch: mIoU in %: maximum over epochs of the EMA teacher's; labelled only, and without EMA: of the student's. The other"
    assert rule in said
    assert rule in html.unescape(page)
    chart = page.partition("<figcaption>mIoU, mean over the seeds")[2].partition("</figcaption>")[0]
    keys = re.findall(r"s\d\">([^<]*) <b>([\d.]*)</b>", chart)
    assert keys == [(group["label"], str(mean_figure(group["last"]["seeds"].values()))) for group in one["groups"]]
    tested = json.loads((tmp_path / "exp/unimatch_v2/1/test.json").read_text())["scores"]["EMA"]["miou"]
    group = next(group for group in one["groups"] if group["label"].startswith("UniMatch V2"))
    assert group["test"]["seeds"]["1"] == pytest.approx(tested, abs=0.0051)
    assert "labelled images seen in an epoch differ: 12 (UniMatch V2), 24 (Labeled only)" in said
    assert set(re.findall(r'(?:src|href)="(?!data:)([^"]*)"', page)) == {
        f"exp/{method}/{seed}/report.html" for method in ("unimatch_v2", "supervised") for seed in (0, 1)
    }
    assert page.count("<polyline") == 2 + 2 * 2, "both methods: their means, and each seed"
    picture = ElementTree.parse(tmp_path / "c.svg").getroot()
    lines = [line.get("stroke-width") for line in picture.iter("{http://www.w3.org/2000/svg}polyline")]
    assert lines == ["1", "1", "3"] * 2, "of each method: its seeds, and their mean"
    for path in (tmp_path / "exp/unimatch_v2").rglob("metrics.jsonl"):
        path.write_text(path.read_text().replace("dinov2_tiny", "dinov2_small"))
    with pytest.raises(UserError, match=r"--svg: found 2 comparisons \(.*\), expected one"):
        main(["compare", str(tmp_path / "exp"), "--svg", str(tmp_path / "c.svg")])
