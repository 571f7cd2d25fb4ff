"""Tables and figures of the paper from logs: whose run stands where, best beside last, what is left out and why, the missing commands."""

import json
import pprint
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scripts.report import paper
from scripts.report.__main__ import main
from scripts.report.paper import Entry
from tests.scripts.report.report_logs import LogWriter
from util.error import UserError


def entry(table: str, name: str, dataset: str, split: str) -> Entry:
    found = [one for one in paper.entries(table) if (one.name, one.dataset, one.split) == (name, dataset, split)]
    assert found, name
    return found[-1]


def own_log(path: Path, of: Entry, emas: list[str], mious: list[str] | None = None, **changes: Any) -> Path:
    """The log of a run of this program with the recipe of a cell, or with other settings."""
    assert of.recipe is not None
    method, cfg = of.recipe.run()
    keys = asdict(cfg) | {"ngpus": 4, "labeled_id_path": f"splits/{of.dataset}/{of.split}/labeled.txt", "seed": 0} | changes
    keys["save_path"] = f"exp/{of.dataset}/{method.name}/{of.backbone}/{of.split}"
    log = LogWriter().record(pprint.pformat(keys)).raw("\n")
    for i, ema in enumerate(emas):
        log.epoch(i, miou=(mious or emas)[i], ema=ema)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(log.text)
    return path


def text_of(capsys: pytest.CaptureFixture[str], *argv: object) -> list[str]:
    """The lines that the command prints, blanks run together."""
    main([str(word) for word in argv])
    return [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]


NONE = "Two views (no dropout, 4b)"


def test_a_run_stands_in_its_cell_best_above_last_and_its_command_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own_log(tmp_path / "train.log", entry("6", NONE, "pascal", "366"), ["86.00", "88.24", "87.90"])
    lines = text_of(capsys, "table", "6", path)
    at = lines.index(f"| {NONE} | DINOv2-Base | yours | | | 88.2\\* | | |")
    assert lines[at + 1] == "| | | last epoch | | | 87.9\\* | | |"
    assert lines[at + 2] == "| | | epochs | | | 3/60 | | |"
    assert 'dataset=pascal split="92 183 732 1464" exp=dinov2_base_dropout_none sh scripts/train.sh 4 29500 --set dropout=none' in lines
    assert (
        'dataset=ade20k split="1_64 1_32 1_16 1_8 1_4" exp=dinov2_base_dropout_none sh scripts/train.sh 4 29500 --set dropout=none' in lines
    )
    assert not any(str(path) in line for line in lines)


def test_without_a_log_there_are_published_values_and_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = text_of(capsys, "table", "4")
    assert "| UniMatch V2 | DINOv2-Base | published | 47.9 | 55.8 | 58.7 | 60.4 | 63.3 | |" in lines
    assert 'dataset=coco split="1_512 1_256 1_128 1_64 1_32" sh scripts/train.sh 4 29500' in lines
    assert "dataset=coco method=supervised split=all exp=dinov2_base_epochs_40 sh scripts/train.sh 4 29500 " \
           "--labeled-id-path splits/coco/all/train.txt --set epochs=40" in lines  # fmt: skip


@pytest.mark.parametrize("table", paper.tables())
@pytest.mark.parametrize("form", ["markdown", "latex", "json"])
def test_every_table_and_figure_prints(table: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own_log(tmp_path / "train.log", entry("1", "UniMatch V2", "pascal", "183"), ["86.00"])
    words = table.split() if " " in table else ["table", table]
    main([*words, "--format", form, str(path)])
    out = capsys.readouterr().out
    if form == "json":
        cells = json.loads(out)["cells"]
        assert len(cells) == sum(2 if one.dataset in ("levir", "whu") else 1 for one in paper.entries(table))
    else:
        assert paper.title(table) in out or form == "latex"
        assert "sh scripts/train.sh" in out
        assert "\\hline" not in out


def test_logs_of_the_authors_and_of_the_repository_are_not_yours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = entry("7", "UniMatch V2 (frozen encoder)", "pascal", "92")
    own_log(tmp_path / here.log, here, ["80.00"])
    lines = text_of(capsys, "table", "7", tmp_path)
    assert any(line.startswith("| | | authors' log | 80.0") or "| authors' log | 80.0" in line for line in lines)
    assert not any("| yours |" in line for line in lines)
    for argv in ([tmp_path], ["training-logs"]):
        text = "\n".join(text_of(capsys, *argv))
        assert "yours" not in text
        assert ("authors' log" if argv == [tmp_path] else "shipped log") in text


def test_a_nearly_right_run_is_left_out_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = entry("1", "UniMatch V2", "pascal", "92")
    path = own_log(tmp_path / "a.log", here, ["80.00"], crop_size=224, epochs=3)
    lines = text_of(capsys, "table", "1", path)
    assert f"- {path}: not in the table: crop_size 224 (expected 518), epochs 3 (expected 60)" in lines
    assert not any("| yours |" in line for line in lines)


def test_settings_that_a_log_does_not_tell_are_no_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a header that is lost, or of another program, which has no ablations."""
    lost = tmp_path / "lost" / "pascal_unimatch_v2_366labels_dinov2_base.log"
    lost.parent.mkdir()
    lost.write_text(LogWriter().epoch(0, ema="80.00").text)
    path = own_log(tmp_path / "a.log", entry("6", "UniMatch V2 (complementary dropout)", "pascal", "366"), ["85.00"])
    path.write_text(re.sub(" '(dropout|dropout_at|strong_views)': .*\n", "", path.read_text()))
    lines = text_of(capsys, "table", "6", tmp_path)
    assert "| | | yours | | | 85.0\\* | | |" in lines
    assert sum("| yours |" in line for line in lines) == 1
    assert f"- {lost}: not in the table: config not in its header (expected configs/pascal.yaml)" in lines


def test_seeds_share_a_cell_and_a_repeated_one_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = entry("1", "UniMatch V2", "pascal", "92")
    for name, seed, best in (("a", 0, "85.00"), ("b", 1, "86.00"), ("c", 1, "10.00")):
        own_log(tmp_path / f"{name}.log", here, [best, "84.00"], seed=seed)
    lines = text_of(capsys, "table", "1", tmp_path)
    assert "| | | yours | 85.5 ± 0.7 (2)\\* | | | | | |" in lines
    assert "| | | last epoch | 84.0 ± 0.0 (2)\\* | | | | | |" in lines
    assert "| | | difference | -0.8 | | | | | |" in lines
    assert f"- {tmp_path}/c.log: not in the table, which has this run already: {tmp_path}/b.log (seed 1)" in lines


def test_table_10_shows_both_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = entry("10", "UniMatch V2 (student as teacher)", "pascal", "183")
    path = own_log(tmp_path / "train.log", here, ["86.48", "86.00"], ["86.22", "85.90"])
    lines = text_of(capsys, "table", "10", path)
    for name, best, last in (("student as teacher", "86.2", "85.9"), ("student as teacher, score of the average", "86.5", "86.0")):
        at = lines.index(f"| UniMatch V2 ({name}) | DINOv2-Base | authors' log | | {best} |")  # recorded
        assert lines[at + 1 : at + 3] == [f"| | | yours | | {best}\\* |", f"| | | last epoch | | {last}\\* |"]
    assert sum("teacher=student" in line and "dataset=pascal" in line for line in lines) == 1


def test_a_figure_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Points stand from left to right and from low to high; a picture that any browser opens."""
    for x, best in (("0", "80.00"), ("0.98", "84.00"), ("0.7", "82.00")):
        here = entry("figure 5", f"UniMatch V2 (conf_thresh {x})", "pascal", "183")
        own_log(tmp_path / x / "train.log", here, [best])
    picture = tmp_path / "out" / "figure5.svg"
    lines = text_of(capsys, "figure", "5", tmp_path, "--svg", picture)
    assert "# Figure 5: Confidence threshold" in lines
    root = ElementTree.fromstring(picture.read_text())
    lines_drawn = [e.attrib["points"].split() for e in root.iter() if e.tag.endswith("polyline")]
    (own,) = [line for line in lines_drawn if len(line) > 1]
    points = [tuple(map(float, point.split(","))) for point in own]
    assert len(lines_drawn) == 1 + 2 * 4, "and what is published of two splits of four data sets"
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    texts = [e.text for e in root.iter() if e.tag.endswith("text")]
    assert {"Pascal", "Cityscapes", "ADE20K", "COCO", "conf_thresh", "1/8 (183), yours", "1/8 (183), published", "0.7", "0.95"} <= set(
        texts
    )
    with pytest.raises(UserError, match=r"no\.svg: cannot be written .* another --svg"):
        main(["figure", "5", str(tmp_path), "--svg", str(tmp_path / "0" / "train.log" / "no.svg")])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["table", "15"], "table: found '15' behind it, expected a number: 1, 2, .*, 14; such as `table 1`"),
        (["table"], "table: found nothing behind it"),
        (["figure", "1"], "figure: found '1' behind it, expected a number: 5, 6"),
        (["figure", "--svg", "a.svg"], "figure: found '--svg' behind it"),
        (["table", "1", "--svg", "a.svg"], "unrecognized arguments: --svg"),
        (["table", "6", "no/such"], "no/such: not found"),
    ],
)
def test_bad_arguments(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main(argv)
    assert "\n" not in str(caught.value)
