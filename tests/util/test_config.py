"""Configs: the types of keys, `--set`, the authors' key names, the command line."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.loader import loader_workers
from util.config import KEYS, Config, load_config, parse_command
from util.dist import World
from util.error import UserError

BASE = """
dataset: pascal
data_root: /data
backbone: dinov2_small
crop_size: 518
epochs: 60
batch_size: 4
lr: 0.000005
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "c.yaml").write_text(BASE)
    return str(tmp_path / "c.yaml")


def test_defaults_are_the_published_settings(path: str) -> None:
    cfg = load_config(path)
    assert (cfg.lr_multi, cfg.conf_thresh, cfg.criterion["name"], cfg.teacher, cfg.lock_backbone) == (40.0, 0.95, "CELoss", None, False)
    assert cfg.pretrained == "auto"


def test_set_wins_over_the_file_and_has_its_type(path: str) -> None:
    cfg = load_config(path, ["lr=5e-6", "lr_multi=10", "pretrained=null", "shards=2", "lock_backbone=true", "epochs=3", "epochs=4"])
    assert (cfg.lr, cfg.lr_multi, cfg.pretrained, cfg.shards, cfg.lock_backbone, cfg.epochs) == (5e-6, 10.0, None, 2, True, 4)
    assert type(cfg.lr_multi) is float


def test_the_number_of_workers_is_a_number_or_follows_the_cpus(path: str) -> None:
    assert [load_config(path, [f"num_workers={value}"]).num_workers for value in ("3", "auto", "null")] == [3, "auto", None]
    one = World(local_size=4096)  # more processes than CPUs: none is left over
    assert [loader_workers(load_config(path, [f"num_workers={value}"]), one) for value in ("3", "auto", "null")] == [3, 0, 0]


def test_set_reaches_into_mappings_and_keeps_the_rest(path: str) -> None:
    settings = ["criterion.name=OHEM", "criterion.kwargs.thresh=0.7", "criterion.kwargs.min_kept=200000"]
    assert load_config(path, settings).criterion == {"name": "OHEM", "kwargs": {"ignore_index": 255, "thresh": 0.7, "min_kept": 200000}}


def test_values_may_hold_equal_signs(path: str) -> None:
    assert load_config(path, ["data_root=/a=b"]).data_root == "/a=b"


def test_the_authors_keys_for_two_data_sets(tmp_path: Path) -> None:
    text = BASE.replace("dataset: pascal\ndata_root: /data", "dataset_l: ade20k\ndataset_u: coco\nvalset: ade20k") + (
        "data_root_l: /ade\ndata_root_u: /coco\n"
    )
    (tmp_path / "c.yaml").write_text(text)
    cfg = load_config(str(tmp_path / "c.yaml"))
    assert (cfg.dataset, cfg.data_root, cfg.data_root_u) == ("ade20k", "/ade", "/coco")


PASCAL = Path(__file__).parents[2] / "configs/pascal.yaml"


def test_commands_that_run_no_method_leave_out_its_keys_but_refuse_misspelt_ones(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(PASCAL.read_text() + "feature_dropout: shared\n")
    assert replace(load_config(str(path)), config=str(PASCAL)) == load_config(str(PASCAL))
    for refused in (lambda: load_config(str(path), kind=Config), lambda: load_config(str(PASCAL), ["feature_dropout=shared"])):
        with pytest.raises(UserError, match="feature_dropout: no such config key"):
            refused()
    path.write_text(PASCAL.read_text() + "eval_mod: original\n")
    with pytest.raises(UserError, match="eval_mod: no such config key; the nearest is 'eval_mode'"):
        load_config(str(path))


@given(st.sampled_from(sorted(KEYS)), st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", max_size=3))
def test_a_misspelt_key_is_refused_and_its_neighbour_named(key: str, extra: str) -> None:
    if key + extra in KEYS:
        return
    with pytest.raises(UserError, match="no such config key"):
        load_config(str(PASCAL), [f"{key}{extra}=1"], Config)


def test_the_authors_command_line(path: str) -> None:
    lists = ["--labeled-id-path", "l.txt", "--unlabeled-id-path", "u.txt", "--save-path", "exp"]
    for spelling in ("--local_rank", "--local-rank"):
        cfg = parse_command(["--config", path, *lists, "--port", "29500", f"{spelling}=0"], None, True)
        assert (cfg.labeled_id_path, cfg.unlabeled_id_path, cfg.save_path) == ("l.txt", "u.txt", "exp")
    cfg = parse_command(["--config", path, *lists, "--pretrained-path", "w.pth"], None, False)
    assert cfg.pretrained == "w.pth"


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_load_and_are_short(file: Path) -> None:
    cfg = load_config(str(file))
    assert isinstance(cfg, Config)
    lines = file.read_text().splitlines()
    assert lines[0].startswith("#")
    assert len(lines) <= 30


def test_a_value_of_another_type_for_a_key_of_few_words_names_the_words() -> None:
    for setting in ("teacher=3", "views=no", "num_workers=[1]"):
        with pytest.raises(UserError) as refused:
            load_config(str(PASCAL), [setting])
        words = {"teacher": "expected ema or student or null;", "views": "expected auto or worker or device;"}
        assert words.get(setting.split("=")[0], "expected auto or int or null;") in str(refused.value)
