"""The map of the paper's tables (paper.yaml): every recipe starts, is what the public log of its cell says, and no cell is forgotten."""

import json
import shlex
from collections import Counter
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dataset.custom import spec_of
from dataset.sampler import Stream
from model import configured_model
from model.spec import check_crop, get_encoder
from model.text import reserve_text_
from scripts.report import paper, read_log
from scripts.report.identity import AUTHORS
from scripts.report.recipe import ABSENT, Recipe, differences, same
from util.files import ROOT

ENTRIES = [entry for table in paper.tables() for entry in paper.entries(table)]
RECIPES = {entry.recipe: entry for entry in ENTRIES if entry.recipe}
MODELS = list({(recipe.config, tuple(s for s in recipe.settings if "backbone" in s or "crop" in s)): recipe for recipe in RECIPES}.values())
# column of log_index.tsv: key of the header
COLUMNS = {"dataset": "dataset", "backbone": "backbone", "crop": "crop_size", "epochs": "epochs", "batch": "batch_size", "gpus": "ngpus",
           "lr": "lr", "lr_multi": "lr_multi", "conf_thresh": "conf_thresh", "lossu_weight": "lossu_weight",
           "lock_backbone": "lock_backbone", "criterion": "name"}  # fmt: skip
# the logs' names of encoders
ENCODERS = {"mitb5": "mit_b5", "beit_b": "beit_base", "beit_l": "beit_large", "sam_b": "sam_base", "sam_l": "sam_large"}
OTHERS = ("table15", "table16", "table17")  # classification


def of_timm(recipe: Recipe) -> bool:
    return get_encoder(recipe.header()["backbone"]).of_timm


def built(recipe: Recipe) -> torch.nn.Module:
    """The recipe's model on the meta device; skips where that takes timm."""
    if of_timm(recipe) and find_spec("timm") is None:
        pytest.skip("timm is an extra: pip install -r requirements-extra.txt")
    _, cfg = recipe.run()
    spec = spec_of(cfg)
    with torch.device("meta"):
        model = configured_model(cfg, spec.nclass, spec.task)
        reserve_text_(model)
    return model


def test_every_recipe_parses() -> None:
    assert len(RECIPES) > 200
    for recipe, entry in RECIPES.items():
        method, cfg = recipe.run()
        assert (method.name, cfg.dataset, cfg.backbone) == (entry.method, entry.dataset, entry.backbone)
        assert spec_of(cfg).nclass == cfg.nclass


@pytest.mark.parametrize("recipe", MODELS, ids=lambda recipe: f"{recipe.config}-{','.join(recipe.settings)}")
def test_every_recipe_builds(recipe: Recipe) -> None:
    model = built(recipe)
    assert sum(p.numel() for p in model.parameters()) > 1e6
    check_crop(recipe.run()[1].crop_size, model.get_submodule("backbone"))  # type: ignore[arg-type]


def test_semivl_on_cityscapes_has_the_published_number_of_steps() -> None:
    """83 760, in whole epochs, whose length depends on the split (configs/semivl/cityscapes.yaml)."""
    recipes = [recipe for recipe in RECIPES if (recipe.method, recipe.dataset) == ("semivl", "cityscapes")]
    labels = {"1_16": 186, "1_8": 372, "1_4": 744, "1_2": 1488}
    assert sorted(recipe.split for recipe in recipes) == sorted(labels)
    for recipe in recipes:
        _, cfg = recipe.run()
        steps = Stream(0, 2975 - labels[recipe.split], cfg.batch_size).steps(cfg.shards or 1)
        assert 0 <= cfg.epochs * steps - 83760 < steps, recipe


def test_commands_say_all_that_a_recipe_has() -> None:
    """To train.sh and the method; and different recipes of a split go to different folders."""
    folders: Counter[str] = Counter()
    for recipe in RECIPES:
        words = shlex.split(recipe.command([recipe.split]))
        at = words.index("sh")
        given, options = dict(word.split("=", 1) for word in words[:at]), words[at + 4 :]
        method, dataset = given.get("method", "unimatch_v2"), given["dataset"]
        usual = next(name for name in (f"configs/{method}/{dataset}.yaml", f"configs/{dataset}.yaml") if (ROOT / name).is_file())
        found = (method, dataset, given["split"], given.get("config", usual))
        assert found == (recipe.method, recipe.dataset, recipe.split, recipe.config)
        assert words[at : at + 4] == ["sh", "scripts/train.sh", recipe.header()["ngpus"], "29500"]
        expected = ["--labeled-id-path", recipe.all_labels] if recipe.all_labels else []
        assert options == expected + [word for setting in recipe.settings for word in ("--set", setting)]
        folders[f"{dataset}/{method}/{given.get('exp', recipe.header()['backbone'])}/{recipe.split}"] += 1
    assert max(folders.values()) == 1


def rows(shared: Path) -> dict[str, dict[str, str]]:
    """log_index.tsv by the log's name."""
    heading, *lines = (shared / "log_index.tsv").read_text().splitlines()
    return {line.split("\t")[0]: dict(zip(heading.split("\t"), line.split("\t"), strict=True)) for line in lines}


def test_every_public_log_is_a_cell(shared: Path) -> None:
    logs = {name for name in rows(shared) if not name.startswith(OTHERS)}
    assert {entry.log for entry in ENTRIES if entry.log} == logs
    assert len(logs) == 325
    assert all(entry.recipe for entry in ENTRIES if entry.log)


def test_every_recipe_is_what_its_log_says(shared: Path) -> None:
    """In each key that both headers have, but for what the map says is otherwise."""
    found = rows(shared)
    for entry in ENTRIES:
        if not entry.log:
            continue
        row, header = found[entry.log], entry.recipe.header()  # type: ignore[union-attr]
        logged = {key: row[column] for column, key in COLUMNS.items() if row[column]}
        logged["backbone"] = ENCODERS.get(logged["backbone"], logged["backbone"])
        other = {key for key, value in logged.items() if not same(value, header[key])}
        assert other == set(entry.differs), (entry.log, other)
        assert all(same(str(value), logged[key]) for key, value in entry.differs.items()), entry.log


@pytest.mark.parametrize(
    "recipe", [recipe for recipe in MODELS if RECIPES[recipe].log], ids=lambda recipe: f"{recipe.config}-{','.join(recipe.settings)}"
)
def test_parameters_are_those_of_the_log(recipe: Recipe, shared: Path) -> None:
    entry, model = RECIPES[recipe], built(recipe)
    total, encoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model, model.get_submodule("backbone")))
    expected = rows(shared)[entry.log]["params_M"]
    assert f"T{total:.1f} E{encoder:.1f} D{total - encoder:.1f}".startswith(expected)


def test_headers_and_figures_of_the_logs_at_hand(shared: Path) -> None:
    """Whole headers, and the recorded figures of logs."""
    for path in sorted((shared / "logs").glob("*.log")):
        entry = paper.by_log().get(path.name)
        if entry is None:
            assert path.name.startswith(OTHERS)
            continue
        (run,) = read_log(path)
        assert run.origin == AUTHORS
        assert entry.recipe is not None
        # the second header of this log has keys of another program: teacher, class_rebalance, use_weak
        allowed = {"teacher"} if path.name.startswith("table06-figure4a_pascal_366") else set()
        other = differences(entry.recipe, run.settings)
        assert {key for key, (found, _) in other.items() if found != ABSENT} == allowed, path.name
        recorded = {(one.statistic, one.logged) for one in ENTRIES if one.log == path.name and one.logged is not None}
        assert all(Decimal(str(run.figure("miou", statistic=statistic))) == value for statistic, value in recorded), path.name


def test_published_values_are_those_of_the_authors_tables(shared: Path) -> None:
    tables = json.loads((shared / "published.json").read_text(encoding="utf-8"))["tables"]
    theirs = sorted((cell["log"] or "", cell["kind"], cell["reported"]) for cells in tables.values() for cell in cells)
    # one number stands in their table of large-scale training twice: ADE20K's labelled-only one
    ours = [(entry.log if entry.log else "", kind, str(value)) for entry in paper.published() for kind, value in entry.published.items()]
    quoted = [("", "miou", "---")]  # AllSpark on COCO 1/32
    twice = [("table03-ade20k_labeled_only_all_labels_dinov2_base.log", "miou", "54.1")]
    assert sorted(ours + quoted + twice) == theirs


def test_methods_and_columns_of_published_values(shared: Path) -> None:
    """Of what is quoted and has no log: the row by the method's name, the column by its heading."""
    tables = json.loads((shared / "published.json").read_text(encoding="utf-8"))["tables"]
    theirs = {(c["method"], c["column"], c["kind"], c["reported"]) for name, cells in tables.items() for c in cells
              if not c["log"] and c["reported"] != "---"}  # fmt: skip
    suffix = {"miou": "", "cd_iou": " changed IoU", "cd_oa": " overall acc"}
    ours = {(entry.label, f"{paper.heading(entry.dataset, entry.split)}{suffix[kind]}", kind, str(value))
            for entry in paper.published() if not entry.log for kind, value in entry.published.items()}  # fmt: skip
    assert ours == theirs
