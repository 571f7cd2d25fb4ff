"""`python -m scripts.benchmark plan`: cards, steps, hours, limits, and a user's errors."""

import json
from argparse import Namespace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import supervised
import unimatch_v2
from engine.footprint import DryRun, Work
from scripts.benchmark.__main__ import main
from scripts.benchmark.plan import CARDS, Plan, find_lengths, load_recipe
from tests.conftest import ROOT
from tests.scripts.benchmark.recipes import recipe
from util.config import Config
from util.error import UserError

CAMVID = ("--config", str(ROOT / "configs/camvid.yaml"), "--split", "1_8", "--set", "backbone=dinov2_tiny", "--set", "crop_size=28")
PASCAL = ("--config", str(ROOT / "configs/pascal.yaml"))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def pascal(method: Any = unimatch_v2, changed: dict[str, Any] | None = None, **more: Any) -> Plan:
    lengths = {"labeled": 92, "unlabeled": 10490, "val": 1449}
    return Plan(method.METHOD.settled(recipe("pascal", **changed or {}), "segmentation"), method.METHOD, lengths, CARDS["h100"], **more)


def lengths_of(cfg: Config, method: Any, split: str | None, val: int | None = None) -> dict[str, int]:
    return find_lengths(cfg, method.METHOD, Namespace(split=split, labeled=None, unlabeled=None, val=val))


def test_every_card_is_plausible() -> None:
    for card in CARDS.values():
        assert card.fp32 <= max(card.tf32, card.fp32) <= max(card.bf16, card.fp16), card.name
        assert card.bf16 in (0, card.fp16)
        assert bool(card.tf32) == bool(card.bf16)
        assert 20 <= card.memory <= 200
        assert 500 <= card.bandwidth <= 5000


def test_a_config_of_a_method_s_folder_is_planned_for_that_method() -> None:
    cases = {"semivl/coco": "semivl", "allspark/pascal": "allspark", "unimatch_v1/coco": "unimatch_v1", "pascal": "unimatch_v2"}
    assert {config: load_recipe(f"configs/{config}.yaml", None, None)[1].name for config in cases} == cases
    assert load_recipe("configs/pascal.yaml", None, "fixmatch")[1].name == "fixmatch"


def test_rates_follow_the_precision() -> None:
    card = CARDS["a100-80"]
    assert card.rates("fp32") == {"linear layers": 19.5, "attention": 52.0, "convolutions": 156.0}
    assert card.rates("tf32") == {"linear layers": 156.0, "attention": 52.0, "convolutions": 156.0}
    assert set(card.rates("bf16").values()) == {312.0}
    assert not any(CARDS["v100"].rates("bf16").values())
    assert not any(CARDS["v100"].rates("tf32").values())
    assert set(CARDS["v100"].rates("fp32").values()) == {15.7}


# (config, method, split, steps of an epoch): by hand from METHOD.md 2.1; the public logs print a line every steps // 8
STEPS = [
    ("pascal", unimatch_v2, "92", 655),
    ("cityscapes", unimatch_v2, "1_16", 349),
    ("ade20k", unimatch_v2, "1_4", 1895),
    ("levir", unimatch_v2, "5%", 845),
    ("levir", supervised, "5%", 187),
    ("coco", unimatch_v2, "1_512", -(-(118287 - 232) // 4) // 4),
    ("pascal", supervised, "92", 93),
]


@pytest.mark.parametrize(("name", "method", "split", "steps"), STEPS)
def test_steps_of_an_epoch(name: str, method: Any, split: str, steps: int) -> None:
    cfg = recipe(name)
    plan = Plan(cfg, method.METHOD, lengths_of(cfg, method, split), CARDS["h100"])
    assert plan.steps(plan.shards) == steps


def test_lengths_of_lists_in_files_and_of_several() -> None:
    assert lengths_of(recipe("camvid"), unimatch_v2, "1_8") == {"labeled": 46, "unlabeled": 321, "val": 101}
    both = {"labeled": 20210, "unlabeled": 118287 + 123403, "val": 2000}
    assert lengths_of(recipe("ade20k_coco241k"), unimatch_v2, None) == both
    assert lengths_of(recipe("pascal"), supervised, "92", val=7) == {"labeled": 92, "unlabeled": 0, "val": 7}


def test_estimate_is_products_and_traffic() -> None:
    def cost(moved: int, operations: int) -> dict[str, Any]:
        work, used = Work({"attention": 10**12, "convolutions": 3 * 10**12}), SimpleNamespace(moved=moved, operations=operations)
        return pascal(efficiency=0.5).cost("bf16", work, Work(), used, trained=100)  # type: ignore[arg-type]

    found = cost(moved=3350 * 10**9, operations=1000)  # a second of an H100's bandwidth
    assert found["floor"] == pytest.approx(4 / 989.4)
    assert found["shard"] == pytest.approx(2 * (found["floor"] + 1))
    assert cost(moved=3350 * 10**9, operations=10**6)["shard"] == pytest.approx(6)  # a million operations to start


def test_an_update_moves_what_its_optimiser_and_its_average_need() -> None:
    found = []
    for method, optimizer in ((unimatch_v2, "adamw"), (supervised, "adamw"), (supervised, "sgd")):
        plan = pascal(method, changed={"optimizer": optimizer}, efficiency=1.0)
        used: Any = SimpleNamespace(moved=0, operations=0)
        cost = plan.cost("fp32", Work({"attention": 1}), Work(), used, trained=3350 * 10**9)  # a byte of each takes a second
        found.append(cost["update"])
    assert found == pytest.approx([28 + 20, 28, 20])


def test_evaluation_is_of_both_models() -> None:
    work = []
    for method in (unimatch_v2, supervised):
        paragraphs = pascal(method, changed={"backbone": "dinov2_tiny"}).paragraphs((375, 500))
        (found,) = (figures["evaluation_work"] for _, figures in islice(paragraphs, 3) if "evaluation_work" in figures)
        work.append(found)
    assert work[0] == 2 * work[1] > 1449 * 1e9


def test_what_is_known_is_said_before_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hours need a step in 32 bits and one in 16, with the config's own checkpointing; the memory needs all four."""
    step, counted = DryRun.step, list[dict[str, Any]]()

    def spy(run: DryRun, **changed: Any) -> Any:
        counted.append(changed)
        return step(run, **changed)

    monkeypatch.setattr(DryRun, "step", spy)
    small = {"backbone": "dinov2_tiny", "crop_size": 28, "activation_checkpointing": True}
    at = {name: len(counted) for _, figures in pascal(changed=small).paragraphs((28, 28)) for name in figures}
    assert [at[name] for name in ("config", "step_work", "evaluation_work", "gpus", "memory")] == [0, 1, 1, 2, 4]
    assert counted[2:] == [{"precision": precision, "activation_checkpointing": False} for precision in ("fp32", "bf16")]


def test_each_precision_is_planned_by_its_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    cost, given = Plan.cost, dict[str, Any]()

    def spy(plan: Plan, precision: str, *counted: Any) -> Any:
        given[precision] = counted
        return cost(plan, precision, *counted)

    monkeypatch.setattr(Plan, "cost", spy)
    plan = pascal(changed={"backbone": "dinov2_tiny", "crop_size": 28})
    list(islice(plan.paragraphs((28, 28)), 5))
    run = DryRun(plan.cfg, plan.method)
    for precision, (work, _, used, trained) in given.items():
        meter = run.step(precision=precision)[1]
        assert (work, used.moved, used.operations) == (meter.work, meter.moved, meter.operations)
        assert trained == sum(p.numel() for p in run.student.parameters() if p.requires_grad)
    assert list(given) == ["fp32", "tf32", "bf16", "fp16"]


def test_shards_over_gpus() -> None:
    plan, cost = pascal(), {"floor": 1.0, "shard": 2.0, "update": 0.0, "evaluation": 3600.0}
    hours = {gpus: plan.hours(cost, gpus) for gpus in (1, 2, 3, 4, 8, 4096)}
    assert hours[3] is hours[4096] is None  # 3 does not divide 4 shards; 4096 shards make no full mini-batch of 10490 images
    assert hours[1] == pytest.approx(655 * 60 * 8 / 3600 + 1)
    assert hours[2] == pytest.approx(655 * 60 * 4 / 3600 + 1 / 2)
    assert hours[4] == pytest.approx(655 * 60 * 2 / 3600 + 1 / 4)
    assert hours[8] == pytest.approx(328 * 60 * 2 / 3600 + 1 / 8)  # of 8 shards


def test_plan_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *CAMVID, "--card", "V100", "--efficiency", "0.5", "--json", str(tmp_path / "plan.json")])
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert "bf16, fp16, checkpointing" in out
    assert list(figures["gpus"]) == ["fp32", "fp16"]  # a V100 has neither bf16 nor tf32
    assert figures["steps"] == figures["steps_per_epoch"] * 20 == 40 * 20
    assert figures["costs"]["fp32"]["floor"] == pytest.approx(sum(figures["step_work"].values()) / 15.7e12)
    assert "800 in all" in out
    assert [row["gpus"] for row in figures["gpus"]["fp32"]] == [1, 2, 4, 8]
    assert f"{figures['gpus']['fp16'][3]['hours']:.3g} |" in out
    assert all(entry["fits"] and entry["total"] > 2 * entry["weights"] for entry in figures["memory"])


def test_class_weights_of_the_labels_are_not_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    auto = tmp_path / "camvid.yaml"
    auto.write_text(Path(CAMVID[1]).read_text().replace("ignore_index: 255", "class_weights: auto"))
    main(["plan", "--config", str(auto), *CAMVID[2:]])
    assert "800 in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*CAMVID, "--card", "h1000"), ["--card", "'h1000'", "a100-40", "rtx4090"]),
        (PASCAL, ["--split", "found none", "1464, 183, 1_16", "--labeled N --unlabeled N"]),
        ((*PASCAL, "--split", "93"), ["splits/pascal/93/labeled.txt", "--labeled"]),
        ((*PASCAL, "--split", "92", "--set", "batch_size=4000"), ["batch_size", "4000", "4 shard"]),
        ((*PASCAL, "--split", "92", "--labeled", "0"), ["--labeled", "found '0'", "above 0"]),
        ((*PASCAL, "--split", "92", "--efficiency", "1.5"), ["--efficiency", "1.5", "at most 1"]),
        ((*PASCAL, "--split", "92", "--efficiency", "nan"), ["--efficiency", "nan", "above 0"]),
        ((*PASCAL, "--split", "92", "--image-size", "500"), ["--image-size", "'500'", "375x500"]),
        ((*PASCAL, "--split", "92", "--method", "unimatch"), ["--method", "'unimatch'", "unimatch_v1", "supervised"]),
        ((*PASCAL, "--split", "92", "--card", "v100", "--set", "precision=bf16"), ["precision", "bf16", "v100", "fp32, fp16"]),
        ((*PASCAL, "--split", "92", "--set", "backbone=dinov2_huge"), ["backbone", "dinov2_huge", "dinov2_large"]),
        ((*PASCAL, "--split", "92", "--set", "crop_size=500"), ["crop_size", "500", "multiple of 14", "504"]),
        (("--config", "absent.yaml"), ["absent.yaml", "no such config file"]),
        ((*PASCAL, "--gpus", "8"), ["--gpus", "--help"]),
    ],
    ids=lambda value: None if isinstance(value, list) else " ".join(value)[-30:],
)
def test_user_errors_end_in_one_line(arguments: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        main(["plan", *arguments])
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
