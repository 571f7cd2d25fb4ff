"""The tables, and the command: formats, JSON keys, rounding, seeds, variants, bad input."""

import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.report import read_log
from scripts.report.__main__ import main
from scripts.report.identity import OWN, encoder_name
from scripts.report.tables import build_tables, column_label, round_half_up, variant
from tests.scripts.report.report_logs import LogWriter, whole_log
from util.error import UserError

STABLE_KEYS = (
    *("log", "method", "dataset", "split", "backbone", "task", "epochs", "epochs_done", "complete", "resumed", "statistic"),
    *("best", "best_epoch", "last", "accuracy", "nan_iterations", "sec_per_iter", "ngpus"),
)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """A folder with three seeds of one experiment, another method, an unfinished change-detection run and a file that is no log."""
    for seed, best in enumerate(("86.00", "86.20", "86.70")):
        log = whole_log(1, {0: best}.__getitem__, seed=seed, port=1000 + seed)
        write(tmp_path, f"pascal/92_seed{seed}/train.log", log)
    write(tmp_path, "pascal/sup/train.log", LogWriter().header("supervised", epochs=1).supervised_epoch(0, "76.85").text)
    write(
        tmp_path,
        "levir/train.log",
        LogWriter().header(dataset="levir", split="5%", epochs=2).change_epoch(0, "83.25", "99.08").text + "bang|`\n",
    )
    write(tmp_path, "pascal/sup/out.log", "what tee wrote: Iters: 0, Total loss: 1.000\n")  # not a run beside train.log
    write(tmp_path, "other.log", "nothing\n")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    main([str(argument) for argument in argv])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "places", "expected"), [("86.25", 1, "86.3"), ("86.35", 1, "86.4"), ("86.249", 1, "86.2"), ("99.075", 2, "99.08")]
)
def test_rounding_half_up(value: str, places: int, expected: str) -> None:
    assert str(round_half_up(value, places)) == str(round_half_up(float(value), places)) == expected


@given(st.integers(0, 10000))
def test_rounding_is_exact_on_two_decimals(hundredths: int) -> None:
    assert round_half_up(hundredths / 100, 1) == Decimal((hundredths + 5) // 10) / 10


def test_json(exp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--format", "json", str(exp)])
    out, err = capsys.readouterr()
    runs = json.loads(out)
    assert len(runs) == 5
    assert all(tuple(run)[: len(STABLE_KEYS)] == STABLE_KEYS for run in runs)
    assert sorted((run["best"], run["seed"]) for run in runs if run["method"] == "unimatch_v2" and run["dataset"] == "pascal") == [
        (86.0, 0),
        (86.2, 1),
        (86.7, 2),
    ]
    assert "other.log: not in the report" in err


def test_markdown_shows_seeds_unfinished_runs_and_unread_lines(exp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aligned = run(capsys, exp)
    text = re.sub(" +", " ", aligned)
    assert "| UniMatch V2 | DINOv2-Base | published | 86.3 |" in text
    assert "| | | yours | 86.3 ± 0.4 (3) |" in text
    assert "| | | difference | 0.0 |" in text
    assert "| Labeled only | DINOv2-Base | yours | 76.9 |" in text
    assert "| | | yours | 83.3\\* | 99.08\\* |" in text
    assert "| | | epochs | 1/2 | 1/2 |" in text
    assert "1 line not read, such as: `bang|'`" in text
    assert "other.log: not in the report: found 1 line, none of them of a training log" in text
    for block in aligned.split("\n\n"):  # the columns of a table stand below each other
        lines = [line.replace("\\|", "  ") for line in block.splitlines() if line.startswith("|")]
        assert len({tuple(i for i, c in enumerate(line) if c == "|") for line in lines}) <= 1


def test_latex(exp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in run(capsys, "--format", "latex", exp).splitlines() if not line.startswith("%")]
    text = "\n".join(lines)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r" &  & yours & 86.3 $\pm$ 0.4 (3) \\" in lines
    assert r" &  & last epoch & 86.3 $\pm$ 0.4 (3) \\" in lines
    assert r"5\% changed IoU & 5\% overall acc \\" in text
    assert text.replace(r"\%", "").count("%") == text.replace(r"\_", "").count("_") == 0
    for row in text.split(r"\toprule")[1].split(r"\bottomrule")[0].splitlines():
        assert row in ("", r"\midrule") or (row.count("&") == 3 and row.endswith(r"\\"))


def test_other_settings_are_other_rows_without_a_published_value(tmp_path: Path) -> None:
    logs = [
        write(tmp_path, "a.log", whole_log(seed=0)),
        write(tmp_path, "b.log", whole_log(conf_thresh=0.7, seed=0)),
        write(tmp_path, "c.log", whole_log(lock_backbone=True, seed=0)),
        write(tmp_path, "d.log", whole_log(crop_size=224, seed=1)),
    ]
    (table,) = build_tables([run for log in logs for run in read_log(log)])
    rows = {row.method: cell for row in table.rows if row.has_runs for cell in row.cells.values()}
    crop = "UniMatch V2 (crop_size 224)"
    assert set(rows) == {"UniMatch V2", "UniMatch V2 (conf_thresh 0.7)", "UniMatch V2 (lock_backbone True)", crop}
    assert [cell.published for name, cell in rows.items() if name != "UniMatch V2"] == [None, None, None]
    assert rows["UniMatch V2"].published == Decimal("86.3")


@pytest.mark.parametrize(
    ("method", "dataset", "settings", "expected"),
    [
        ("semivl", "pascal", {"guidance_weight": 0, "conf_mode": "pixelwise"}, "guidance_weight 0"),
        ("semivl", "cityscapes", {"conf_mode": "pixelavg"}, ""),
        ("allspark", "pascal", {"memory_epoch": 0}, "memory_epoch 0"),
        ("allspark", "cityscapes", {"memory_epoch": 15}, ""),
        ("unimatch_v2", "pascal", {"dropout": "none", "strong_views": 2, "batch_norm": "frozen"}, "dropout none, batch_norm frozen"),
    ],
)
def test_keys_of_a_method_s_own_make_another_experiment(
    method: str, dataset: str, settings: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    (run,) = read_log(write(tmp_path, "a.log", whole_log(method=method, seed=0, dataset=dataset, **settings)))
    assert sorted(variant(run).split(", ")) == sorted(expected.split(", "))


def test_runs_without_seeds_are_not_averaged(tmp_path: Path) -> None:
    logs = [write(tmp_path, name, whole_log()) for name in ("a.log", "b.log")]
    (table,) = build_tables([run for log in logs for run in read_log(log)])
    assert [row.method for row in table.rows if row.has_runs] == ["UniMatch V2", "UniMatch V2 (run 2)"]
    assert all(cell.spread(OWN) is None for row in table.rows for cell in row.cells.values())


def test_the_list_of_runs_says_whose_row_a_log_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of rows never hold a path; the way back is the list of runs."""
    for name in ("a", "b", "c"):
        write(tmp_path, f"{name}.log", whole_log(conf_thresh=0.7))
    text = re.sub(" +", " ", run(capsys, tmp_path))
    tables, runs = text.split("## Runs")
    assert str(tmp_path) not in tables
    for name, label in (("a", ""), ("b", ", run 2"), ("c", ", run 3")):
        assert f"| {tmp_path}/{name}.log | UniMatch V2 (conf_thresh 0.7{label}) | yours | ema_miou |" in runs


def test_the_last_epoch_stands_below_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "a.log", whole_log(3, {0: "84.00", 1: "86.00", 2: "85.50"}.__getitem__))
    lines = [re.sub(" +", " ", line) for line in run(capsys, path).splitlines()]
    assert "| | | last epoch | 85.5 |" in lines
    assert lines.index("| | | last epoch | 85.5 |") == lines.index("| | | yours | 86.0 |") + 1
    (found,) = json.loads(run(capsys, "--format", "json", path))
    assert found["scores"]["ema_miou"] == {"best": 86.0, "epoch": 1, "last": 85.5}
    assert found["scores"]["miou"] == {"best": 80.0, "epoch": 2, "last": 80.0}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("coco", {"1_512": "1/512 (232)", "1_64": "1/64 (1849)", "1_8": "1/8", "all": "all (118287)"}),
        ("mine", {"1_32": "1/32", "3_4": "3/4", "5%": "5%", "20%": "20%", "92": "92", "366": "366", "1464": "1464", "few": "few"}),
    ],
)
def test_columns_go_from_few_labels_to_many(dataset: str, expected: dict[str, str], tmp_path: Path) -> None:
    splits = sorted(expected)
    runs = [read_log(write(tmp_path, f"{split}.log", whole_log(1, dataset=dataset, split=split)))[0] for split in splits]
    (table,) = build_tables(runs)
    assert list(table.columns.values()) == list(expected.values())


def test_data_set_that_nobody_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "train.log", whole_log(1, dataset="mine", split="few", backbone="vit_tiny"))
    text = run(capsys, path)
    assert "## mine" in text
    assert "| UniMatch V2 | vit_tiny | yours | 81.0 |" in re.sub(" +", " ", text)


ENCODERS = {
    "dinov2_base": "DINOv2-Base",
    "resnet152": "ResNet-152",
    "mitb5": "MiT-B5",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "beit_l": "BEiT-L",
    "sam_b": "SAM-B",
    "x": "x",
}
ENCODERS |= {"dinov2_small_reg": "DINOv2-Small reg", "dinov3_huge_plus": "DINOv3-Huge plus", "dinov3_7b": "DINOv3-7B"}
ENCODERS |= {"dinov3_convnext_tiny": "DINOv3-ConvNeXt-Tiny"}


@pytest.mark.parametrize(("backbone", "name"), ENCODERS.items())
def test_encoder_names(backbone: str, name: str) -> None:
    assert encoder_name(backbone) == name


def test_a_log_that_is_given_twice_counts_once(exp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(json.loads(run(capsys, "--format", "json", exp, exp / "levir", exp / "levir" / "train.log"))) == 5


def test_default_paths(exp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exp)
    with pytest.raises(UserError, match="found neither exp nor training-logs here"):
        main([])
    (exp / "pascal").rename(exp / "exp")
    assert len(json.loads(run(capsys, "--format", "json"))) == 4


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path, "bad/no.log", "hello\n")
    write(tmp_path, "bad/empty.log", "")
    write(tmp_path, "good.log", whole_log())
    expected = {
        "empty": r"empty: found no \*\.log in this folder or below, expected training logs; give",
        "missing": "missing: not found, expected a training log or a folder of them; check the path",
        "bad/no.log": "no.log: found 1 line, none of them of a training log, expected a log of .*; leave it out",
        "bad/empty.log": "empty.log: found an empty file, expected a log of .*; leave it out",
        "bad": r"empty.log: .*2 files like this, and no training log among them",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message) as caught:
            main([str(tmp_path / "good.log"), str(tmp_path / name)] if name != "bad" else [str(tmp_path / name)])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no\.log: found 1 line"):  # named after its folder
        main([str(tmp_path), str(tmp_path / "bad/no.log")])


def test_command_ends_in_one_line_and_exit_2(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "scripts.report", str(tmp_path / "none")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ")


def test_the_name_of_a_split_of_your_own_is_its_columns_heading_as_it_is() -> None:
    assert [column_label("street", split, "miou") for split in ("1_4", "1_4_select2", "few_labels")] == ["1/4", "1_4_select2", "few_labels"]
