"""Logs of UniMatch V1's own program, in the shapes of 2022 and of 2023: they name neither the method nor the split."""

import pprint
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from scripts.report import read_log
from scripts.report.identity import AUTHORS, OWN
from scripts.report.tables import build_tables
from tests.scripts.report.report_logs import LogWriter


def v1_log(mious: list[str], old: bool = False, **changes: Any) -> str:
    """old: LR with four decimals, `Mask`, `meanIOU`, the scheduler's own lines in front, and neither paths nor GPUs in the header."""
    keys: dict[str, object] = {
        "backbone": "resnet101", "batch_size": 2, "conf_thresh": 0.95, "crop_size": 321, "dataset": "pascal", "epochs": len(mious),
        "lr": 0.001, "criterion": {"kwargs": {"ignore_index": 255}, "name": "CELoss"}, "dilations": [6, 12, 18],
        "lr_multi": 10.0, "nclass": 21, "replace_stride_with_dilation": [False, False, True],
    }  # fmt: skip
    keys |= {"multi_grid": False} if old else {"model": "deeplabv3plus", "ngpus": 4, "save_path": "exp/here", "port": 1}
    log = LogWriter()
    if old:
        log.raw("phoenix-srun: Job 1 scheduled successfully!\nphoenix-srun: job 1 has been allocated\n")
    log.record(pprint.pformat(keys | changes)).raw("\n").record("Total params: 59.5M").raw("\n")
    for epoch, miou in enumerate(mious):
        log.record(f"===========> Epoch: {epoch}, LR: {'0.0010' if old else '0.00100'}, Previous best: 0.00")
        for i in (0, 163):
            ratio = "Mask" if old else "Mask ratio"
            log.record(f"Iters: {i}, Total loss: 0.355, Loss x: 0.675, Loss s: 0.043, Loss w_fp: 0.027, {ratio}: 0.309")
        log.record("***** Evaluation ***** >>>> Class [0 background] IoU: 86.81")
        log.record(f"***** Evaluation original ***** >>>> {'meanIOU' if old else 'MeanIoU'}: {miou}").raw("\n")
    return log.text


@pytest.mark.parametrize("old", [False, True], ids=["2023", "2022"])
@pytest.mark.parametrize(
    ("file", "split", "seed"),
    [("pascal/resnet101/92-run1.log", "92", 1), ("cityscapes/1_16.log", "1_16", None), ("pascal/u2pl_1_8.log", "u2pl_1_8", None)],
)
def test_the_lines_name_the_method_and_the_path_the_split(tmp_path: Path, old: bool, file: str, split: str, seed: int | None) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(v1_log(["58.74", "75.46", "75.40"], old))
    (run,) = read_log(path)
    assert (run.method, run.dataset, run.split, run.backbone, run.seed) == ("unimatch_v1", "pascal", split, "resnet101", seed)
    assert (run.statistic, run.best, run.best_epoch, run.last, run.complete) == ("miou", 75.46, 1, 75.4, True)
    assert run.unread_lines == (2 if old else 0), "the scheduler's own lines"


def test_three_runs_of_an_experiment_share_a_cell_beside_the_published_value(tmp_path: Path) -> None:
    runs = []
    for i, best in enumerate(("75.46", "74.78", "74.74"), start=1):
        (tmp_path / f"92-run{i}.log").write_text(v1_log([best], old=True))
        runs += read_log(tmp_path / f"92-run{i}.log")
    (table,) = build_tables(runs)
    (cell,) = [cell for row in table.rows for cell in row.cells.values() if cell.runs]
    assert (len(cell.runs[AUTHORS]), cell.value(AUTHORS), cell.published) == (3, Decimal("75.0"), Decimal("75.2"))


@pytest.mark.parametrize(
    ("dataset", "split", "keys", "value"),
    [
        ("cityscapes", "1_16", {"conf_thresh": 0, "dataset": "cityscapes"}, "76.6"),
        ("coco", "1_512", {"backbone": "xception", "dataset": "coco"}, "31.9"),  # whatever the table's heading says
    ],
)
def test_published_recipes_stand_beside_their_published_value(
    tmp_path: Path, dataset: str, split: str, keys: dict[str, Any], value: str
) -> None:
    (tmp_path / f"{split}.log").write_text(v1_log(["30.00", f"{value}0"], **keys))
    (table,) = build_tables(read_log(tmp_path / f"{split}.log"))
    (row,) = [row for row in table.rows if row.has_runs]
    (cell,) = [cell for cell in row.cells.values() if cell.runs]
    assert (row.method, cell.value(OWN), cell.published) == ("UniMatch V1", Decimal(value), Decimal(value))
