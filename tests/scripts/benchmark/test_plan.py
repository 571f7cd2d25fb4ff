"""`python -m scripts.benchmark plan`: cards, steps, hours, limits, and the mistakes a user can make."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dataset.custom import spec_of
from scripts.benchmark.__main__ import main
from scripts.benchmark.cards import CARDS, get_card
from scripts.benchmark.footprint import Footprint
from scripts.benchmark.recipe import Lengths, Recipe, find_lengths
from scripts.benchmark.scaling import Cluster, Cost, all_reduce_seconds, cost, limits, scale, table, verdict
from tests.conftest import ROOT
from tests.scripts.benchmark.recipes import recipe
from util.error import UserError

SMALL = ("--config", str(ROOT / "configs/camvid.yaml"), "--split", "1_8")
PASCAL = ("--config", str(ROOT / "configs/pascal.yaml"))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def pascal(method: str = "unimatch_v2", **changed: object) -> Recipe:
    cfg = recipe("pascal", **changed)
    return Recipe(cfg, spec_of(cfg), method, Lengths(92, 10490, 1449), (375, 500))


def some(floor: float = 1.0, sent: int = 400_000_000) -> Cost:
    return Cost(floor, shard=2 * floor, backward=floor, update=0.0, evaluation=3600.0, sent=sent)


def test_every_card_is_plausible() -> None:
    for card in CARDS.values():
        assert card.fp32 <= max(card.tf32, card.fp32) <= max(card.bf16, card.fp16), card.name
        assert card.bf16 in (0, card.fp16)
        assert bool(card.tf32) == bool(card.bf16)
        assert 20 <= card.memory <= 200
        assert 500 <= card.bandwidth <= 5000
    assert get_card("H100") is CARDS["h100"]


def test_rates_follow_the_precision() -> None:
    card = get_card("a100-80")
    assert card.rates("fp32") == {"linear": 19.5, "attention": 52.0, "convolution": 156.0}
    assert card.rates("tf32") == {"linear": 156.0, "attention": 52.0, "convolution": 156.0}
    assert set(card.rates("bf16").values()) == {312.0}
    assert not any(get_card("v100").rates("bf16").values())
    assert not any(get_card("v100").rates("tf32").values())
    assert set(get_card("v100").rates("fp32").values()) == {15.7}


# (config, method, split, steps of an epoch): by hand from METHOD.md 2.1; the public logs print a line every steps // 8
STEPS = [
    ("pascal", "unimatch_v2", "92", 655),
    ("cityscapes", "unimatch_v2", "1_16", 349),
    ("ade20k", "unimatch_v2", "1_4", 1895),
    ("levir", "unimatch_v2", "5%", 845),
    ("levir", "supervised", "5%", 187),
    ("coco", "unimatch_v2", "1_512", -(-(118287 - 232) // 4) // 4),
    ("pascal", "supervised", "92", 93),
]


@pytest.mark.parametrize(("name", "method", "split", "steps"), STEPS)
def test_steps_of_an_epoch(name: str, method: str, split: str, steps: int) -> None:
    cfg = recipe(name)
    lengths = find_lengths(cfg, method != "supervised", split, None, None, None)
    assert Recipe(cfg, spec_of(cfg), method, lengths, (1, 1)).steps(cfg.shards or 1) == steps


def test_lengths_of_lists_in_files_and_of_several() -> None:
    assert find_lengths(recipe("camvid"), True, "1_8", None, None, None) == Lengths(46, 321, 101)
    assert find_lengths(recipe("ade20k_coco241k"), True, None, None, None, None) == Lengths(20210, 118287 + 123403, 2000)
    assert find_lengths(recipe("pascal"), False, "92", None, None, 7) == Lengths(92, 0, 7)


def test_evaluation_counts_models_and_windows() -> None:
    cfg = recipe("cityscapes")
    lengths = Lengths(186, 2789, 500)
    windows = Recipe(cfg, spec_of(cfg), "unimatch_v2", lengths, (1024, 2048))
    one = Recipe(replace(cfg, eval_mode="original"), spec_of(cfg), "supervised", lengths, (798, 798))
    assert sum(windows.evaluation_work.values()) == 2 * 8 * sum(one.evaluation_work.values())  # two models, 2 x 4 windows


def test_estimate_is_products_and_traffic() -> None:
    used = Footprint(0, 0, 400, 0, 0, 0, 0, moved=3350 * 10**9, operations=1000)  # a second of an H100's bandwidth
    found = cost(pascal(), Cluster(get_card("h100"), efficiency=0.5), "bf16", used)
    assert found.floor == pytest.approx(sum(pascal().work.values()) / 989.4e12)
    assert found.shard == pytest.approx(2 * (found.floor + 1))
    assert found.sent == 400
    slow = cost(pascal(), Cluster(get_card("h100"), efficiency=0.5), "bf16", replace(used, operations=10**6))
    assert slow.shard == pytest.approx(6)  # a million operations to start
    compressed = cost(pascal(grad_compression="bf16"), Cluster(get_card("h100")), "bf16", used)
    assert compressed.sent == 200


def test_shards_over_gpus() -> None:
    rows = {row.gpus: row for row in table(pascal(), Cluster(get_card("h100")), some(), (1, 2, 3, 4, 8, 4096))}
    assert list(rows) == [1, 2, 4, 8]  # 3 does not divide 4 shards; 4096 shards make no full mini-batch of 10490 images
    assert [(row.shards, row.batch, row.steps) for row in rows.values()] == [(4, 16, 655)] * 3 + [(8, 32, 328)]
    assert rows[1].step_seconds == pytest.approx(8)
    assert rows[1].hours == pytest.approx(655 * 60 * 8 / 3600 + 1)
    assert rows[4].evaluation_hours == pytest.approx(1 / 4)


def test_ring_and_overlap() -> None:
    cluster = Cluster(get_card("h100"), node=8, network=25)
    assert all_reduce_seconds(10**9, 1, cluster) == 0
    assert all_reduce_seconds(10**9, 8, cluster) == pytest.approx(2 * 7 / 8 / (450 * 0.7))
    assert all_reduce_seconds(10**9, 16, cluster) == pytest.approx(2 * 15 / 16 / (25 * 0.7))
    hidden = scale(pascal(), cluster, some(floor=1), 16)
    shown = scale(pascal(), cluster, some(floor=0.001), 16)
    assert hidden is not None
    assert shown is not None
    send = all_reduce_seconds(400_000_000, 16, cluster)
    assert hidden.exposed == pytest.approx(send * 25 * 2**20 / 400_000_000)  # only the last bucket
    assert shown.exposed == pytest.approx(send - 0.001)


def test_limits_and_the_first_of_them() -> None:
    fast = Cluster(get_card("h100"), network=1, cores=1)
    rows = table(pascal(), fast, some(floor=0.005))
    found = {row.gpus: set(limits(row, pascal(), fast)) for row in rows}
    assert found[1] == {"loader"}  # 16 pairs in 0.04 s take 3.5 ms of a core each
    assert found[8] == {"loader", "shards"}
    assert found[64] == {"shards", "network", "steps"}  # a step that waits for gradients leaves the loader time
    text = verdict(rows, pascal(), fast)
    assert text.startswith("from 1 GPU on: 1.4 CPU cores a card")
    assert "from 8 GPUs on: 8 shards instead of the recipe's 4: the learning rate was tuned for 4" in text
    assert verdict(rows[:3], pascal(), Cluster(get_card("h100"))) == "nothing breaks up to 4 GPUs"


def test_views_made_by_the_loader_cost_its_cores() -> None:
    assert pascal(views="worker").sample_seconds > 2 * pascal(views="auto").sample_seconds
    assert pascal(views="worker").sample_seconds > 2 * pascal("supervised", views="worker").sample_seconds


def test_plan_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *SMALL, "--card", "v100", "--efficiency", "0.5", "--json", str(tmp_path / "plan.json")])
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert "from 4 GPUs on: 4 shards instead of the recipe's 2" in out
    assert "bf16, fp16, checkpointing" in out
    assert list(figures["hours"]) == ["fp32", "fp16"]  # a V100 has neither bf16 nor tf32
    assert figures["steps"] == figures["steps_per_epoch"] * 20 == 40 * 20
    assert figures["verdict"] in out
    assert figures["costs"]["fp32"]["floor"] == pytest.approx(sum(figures["step_work"].values()) / 15.7e12)
    assert "800 in all" in out
    assert [row["gpus"] for row in figures["gpus"]] == [1, 2, 4, 8, 16, 32, 64]
    assert all(entry["fits"] for entry in figures["memory"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*SMALL, "--card", "h1000"), ["--card", "'h1000'", "a100-40", "rtx4090"]),
        (PASCAL, ["--split", "found none", "1464, 183, 366, 732, 92", "--labeled N --unlabeled N"]),
        ((*PASCAL, "--split", "93"), ["splits/pascal/93/labeled.txt", "--labeled"]),
        ((*PASCAL, "--split", "92", "--set", "batch_size=4000"), ["batch_size", "4000", "4 shard"]),
        ((*PASCAL, "--split", "92", "--labeled", "0"), ["--labeled", "found 0", "above 0"]),
        ((*PASCAL, "--split", "92", "--efficiency", "1.5"), ["--efficiency", "1.5", "at most 1"]),
        ((*PASCAL, "--split", "92", "--efficiency", "nan"), ["--efficiency", "nan", "above 0"]),
        ((*PASCAL, "--split", "92", "--image-size", "500"), ["--image-size", "'500'", "375x500"]),
        ((*PASCAL, "--split", "92", "--method", "unimatch"), ["--method", "'unimatch'", "unimatch_v2"]),
        ((*PASCAL, "--split", "92", "--set", "backbone=dinov2_huge"), ["backbone", "dinov2_huge", "dinov2_giant"]),
        (("--config", "absent.yaml"), ["absent.yaml", "no such config file"]),
        ((*PASCAL, "--gpus", "8"), ["--gpus", "--help"]),
        ((*SMALL, "--json", "/dev/null/plan.json"), ["/dev/null/plan.json"]),
    ],
    ids=lambda value: None if isinstance(value, list) else " ".join(value)[-30:],
)
def test_mistakes_end_in_one_line(arguments: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        main(["plan", *arguments])
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
