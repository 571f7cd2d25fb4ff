"""Change detection end to end: log lines and scalars as published, who labels, which epoch is the best, the final test."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import evaluate
import fixmatch
import supervised
import unimatch_v2
from dataset.batch import Batch
from dataset.loader import test_source as find_test_source
from dataset.loader import validation_source
from dataset.spec import get_spec
from engine import metric
from engine.method import Method
from engine.records import Record
from engine.schedule import poly
from engine.update import Learner
from model import build_model
from scripts.report import read_log
from tests.conftest import ROOT, Tiny, command
from tests.pairs import make_pairs, write_pair
from util import checkpoint
from util.config import Config, load_config
from util.error import run
from util.log import open_log

METHODS = {"supervised": supervised, "fixmatch": fixmatch, "unimatch_v2": unimatch_v2}
# supervised training repeats the labelled list, here to 20 pairs: 10 steps of twice 1
SHORT: dict[str, tuple[str, ...]] = {"supervised": ("batch_size=1", "supervised_length=20"), "fixmatch": (), "unimatch_v2": ()}
STEPS = {"supervised": 10, "fixmatch": 6, "unimatch_v2": 6}
PUBLIC = {
    "supervised": "table14-levir_cd_labeled_only_5%labels_dinov2_base.log",
    "unimatch_v2": "table14-levir_cd_unimatch_v2_5%labels_dinov2_base.log",
}
EVALUATION = "***** Evaluation ***** >>>> "


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Shared by the tests here: do not change its files."""
    return make_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def runs(pairs: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three methods, trained for two epochs each."""
    root = tmp_path_factory.mktemp("runs")
    for name, module in METHODS.items():
        module.main(pairs.args(root / name, *SHORT[name], "device=cpu", unlabeled=name != "supervised"))
    return {name: root / name for name in METHODS}


def messages(log: Path) -> list[str]:
    """What the lines of a log say behind the time stamp; lines without one (the header's, blank ones) as they are."""
    return [re.sub(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\]\[    INFO\] ", "", line) for line in log.read_text().splitlines()]


def shape(line: str) -> str:
    """A line with every digit as 0 and every number as long as its decimals say: 0.00, 0.0000000, 0."""
    return re.sub(r"\d+", "0", re.sub(r"\.(\d+)", lambda m: "." + "#" * len(m[1]), line))


def shapes(log: Path) -> list[str]:
    """The shapes of a log's lines in order, its header and repetitions left out."""
    kept = [shape(line) for line in messages(log) if not line.startswith(("{", " "))]
    return [line for i, line in enumerate(kept) if i == 0 or line != kept[i - 1]]


def ours_only(line: str) -> bool:
    return line.startswith(("Changed class: ", "Selection: ", "Pseudo labels ")) or "][ WARNING] " in line


def test_the_page_says_which_date_is_which(runs: dict[str, Path]) -> None:
    page = (runs["supervised"] / "report.html").read_text()
    assert [page.count(f'alt="{name}"') for name in ("A: before", "B: after")] == [3, 3]


@pytest.mark.parametrize("name", PUBLIC)
def test_log_lines_have_the_shapes_and_the_order_of_the_public_logs(name: str, runs: dict[str, Path], shared: Path) -> None:
    public, ours = shapes(shared / "logs" / PUBLIC[name]), shapes(runs[name] / "train.log")
    kept = [line for line in ours if not ours_only(line)]
    assert len(kept) == 15
    assert kept == public[: len(kept)], "two epochs"
    assert [sum(line.startswith(word) for line in ours) for word in ("Selection: ", "Changed class: ")] == [1, 2]
    stamp = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\]\[(?:    INFO| WARNING)\] ")
    assert all(stamp.match(line) or line.startswith(" ") for line in (runs[name] / "train.log").read_text().splitlines() if line)


SCORES = r"Changed IoU: \d+\.\d\d, Overall Accuracy: \d+\.\d\d"
EPOCH_LINE = {
    "supervised": rf"===========> Epoch: \d, LR: (0\.\d{{7}}), Previous best {SCORES}",
    "unimatch_v2": rf"===========> Epoch: \d, LR: (0\.\d{{7}}), Previous best {SCORES} @epoch-\d, EMA: {SCORES} @epoch-\d",
}
STEP_LINE = {
    "supervised": r"Iters: \d+, Total loss: \d\.\d{3}",
    "unimatch_v2": r"Iters: \d+, Total loss: \d\.\d{3}, Loss x: \d\.\d{3}, Loss s: \d\.\d{3}, Mask ratio: \d\.\d{3}",
}


@pytest.mark.parametrize("name", METHODS)
def test_log_lines_without_the_public_logs(name: str, runs: dict[str, Path]) -> None:
    lines, like = messages(runs[name] / "train.log"), "supervised" if name == "supervised" else "unimatch_v2"
    rates = [found[1] for line in lines if (found := re.fullmatch(EPOCH_LINE[like], line))]
    # the encoder's rate for the next step, with the index of the step just done: step 0 and 1 have the base rate
    assert rates == [f"{3e-4:.7f}", f"{poly(3e-4, STEPS[name] - 1, 2 * STEPS[name]):.7f}"]
    assert sum(bool(re.fullmatch(STEP_LINE[like], line)) for line in lines) == 2 * STEPS[name]
    number = r"\d+\.\d\d"
    second = "" if name == "supervised" else rf", EMA: {number}"
    for title, between in (("Unchanged IoU", second), ("Changed IoU", second.replace(",", ":")), ("Overall Accuracy", second)):
        assert sum(bool(re.fullmatch(re.escape(EVALUATION) + f"{title}: {number}{between}", line)) for line in lines) == 2
    figures = rf"precision {number}, recall {number}, F1 {number}"
    more = "" if name == "supervised" else f", EMA: {figures}"
    assert sum(bool(re.fullmatch(f"Changed class: {figures}{more}", line)) for line in lines) == 2
    assert sum(line.endswith(" params: 2.8M") for line in lines) == 1, "the total alone"


@pytest.mark.parametrize("name", METHODS)
def test_scalars_have_the_published_names(name: str, runs: dict[str, Path]) -> None:
    board = EventAccumulator(str(runs[name])).Reload()
    train = {"train/loss_all", "train/loss_x"} | (set() if name == "supervised" else {"train/loss_u_s", "train/mask_ratio"})
    published = {"eval/unchanged_IoU", "eval/changed_IoU", "eval/overall_accuracy"}
    scores = published | {"eval/changed_precision", "eval/changed_recall", "eval/changed_F1"}
    scores |= set() if name == "supervised" else {f"{tag}_ema" for tag in scores}
    tags = set(board.Tags()["scalars"])
    assert train | scores <= tags
    assert not {"eval/mIoU", "train/loss_s"} & tags
    assert [event.step for event in board.Scalars("eval/changed_IoU")] == [0, 1]
    assert [event.step for event in board.Scalars("train/loss_all")] == list(range(2 * STEPS[name]))


@pytest.mark.parametrize("name", METHODS)
def test_checkpoints_and_report_follow_the_published_rule(name: str, runs: dict[str, Path]) -> None:
    (row,) = read_log(runs[name] / "train.log")
    best, latest = (checkpoint.load(runs[name] / f"{which}.pth") for which in ("best", "latest"))
    assert (row.task, row.statistic, row.epochs_done, row.complete, row.unread_lines) == ("change", "changed_iou", 2, True, 0)
    assert best["epoch"] == latest["best_epoch"] == row.best_epoch
    assert f"{latest['previous_best_iou']:.2f}" == f"{row.best:.2f}"
    assert f"{latest['previous_best_acc']:.2f}" == f"{row.accuracy:.2f}"
    assert ("model_ema" in latest) == ("previous_best_ema_iou" in latest) == (name != "supervised")


def counts(hit: int, missed: int, false_alarm: int, rest: int) -> Tensor:
    return torch.tensor([[rest, false_alarm], [missed, hit]])


def test_best_is_the_students_changed_iou_with_the_accuracy_of_that_epoch() -> None:
    spec = get_spec("levir")
    record = Record(open_log(None), None, spec, unimatch_v2.METHOD, {"teacher": "student"})
    ema = [counts(90, 5, 5, 900), counts(10, 40, 50, 900), counts(95, 2, 3, 900), counts(1, 1, 1, 900)]
    student = [counts(50, 25, 25, 900), counts(60, 20, 20, 900), counts(59, 41, 0, 900), counts(60, 20, 20, 800)]
    pairs = [[metric.scores(matrix, spec) for matrix in pair] for pair in zip(student, ema, strict=True)]
    better = [record.evaluation(epoch, "original", pair) for epoch, pair in enumerate(pairs)]
    assert better == [True, True, False, True], "epoch 2 has the better EMA and accuracy, epoch 3 ties"
    state = record.state()
    assert (state["best_epoch"], state["best_epoch_ema"]) == (3, 2)
    assert state["previous_best_iou"] == pytest.approx(60)
    assert state["previous_best_acc"] == pytest.approx(100 * 860 / 900)
    assert state["previous_best_ema_iou"] == pytest.approx(95)


def test_precision_recall_and_f1_of_the_changed_class() -> None:
    keys = ("precision", "recall", "f1")
    for matrix, expected in ((counts(hit=30, missed=20, false_alarm=10, rest=40), (75, 60, 90 / 1.35)), (counts(0, 0, 0, 100), (0, 0, 0))):
        found = metric.scores(matrix, get_spec("levir"))
        assert [found[key] for key in keys] == pytest.approx(list(expected))


@pytest.mark.parametrize("teacher", ["student", "ema"])
def test_the_config_says_who_gives_the_pseudo_labels(teacher: str, pairs: Tiny) -> None:
    cfg = load_config(str(pairs.config), [f"teacher={teacher}"])
    seen = []

    def step(student: torch.nn.Module, labels_by: torch.nn.Module, batch: Batch, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(labels_by)
        loss = student(batch.img_x).square().mean()
        return loss, {"loss_all": loss.detach()}

    learner = Learner(cfg, build_model("dinov2_tiny", 2, "change"), Method("probe", step), total_steps=4)
    for _ in range(2):
        learner.update([Batch(torch.randn(1, 6, 28, 28), torch.zeros(1, 28, 28))])
    assert learner.teacher is not None
    assert learner.teacher is not learner.student
    assert all(one is (learner.student if teacher == "student" else learner.teacher) for one in seen)
    name = "head.scratch.output_conv.2.weight"
    assert not torch.equal(learner.student.state_dict()[name], learner.teacher.state_dict()[name]), "the EMA is kept either way"


def test_published_configs_say_what_was_published() -> None:
    for name in ("levir", "whu"):
        cfg, text = load_config(f"{ROOT}/configs/{name}.yaml"), (ROOT / f"configs/{name}.yaml").read_text()
        assert (cfg.backbone, cfg.crop_size, cfg.batch_size, cfg.shards, cfg.epochs) == ("dinov2_base", 252, 8, 1, 60)
        assert (cfg.teacher, cfg.lr, cfg.lr_multi, cfg.conf_thresh, cfg.lock_backbone) == ("student", 5e-6, 40.0, 0.95, False)
        assert (cfg.val_id_path, get_spec(name).val_list) == (None, f"splits/{name}/test.txt"), "selected on the test list"
        assert len(text.splitlines()) <= 30
        assert "table14" in text


def figures(log: Path) -> list[str]:
    return [line for line in messages(log) if line.startswith((EVALUATION, "Changed class", "Test of best"))]


def test_counts_are_exact_on_any_number_of_processes(pairs: Tiny, tmp_path: Path) -> None:
    """Five test pairs and three validation pairs on two processes: none is counted twice. The rate leaves the weights as they are."""
    logs = {}
    for processes in (1, 2):
        settings = ("lr=1e-30", "epochs=1", "shards=2", f"val_id_path={pairs.root}/val.txt", f"test_id_path={pairs.root}/test.txt")
        done = command("unimatch_v2.py", *pairs.args(tmp_path / str(processes), *settings), processes=processes)
        assert done.returncode == 0, done.stderr
        logs[processes] = figures(tmp_path / str(processes) / "train.log")
    assert logs[1] == logs[2]
    assert len(logs[1]) == 6


TESTED = {"changed_iou": "changed IoU", "unchanged_iou": "unchanged IoU", "overall_accuracy": "overall accuracy"}
TESTED |= {"precision": "precision", "recall": "recall", "f1": "F1"}


def test_val_id_path_selects_and_the_best_epoch_is_scored_once_on_the_test_list(
    pairs: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = pairs.args(tmp_path, f"val_id_path={pairs.root}/val.txt", f"test_id_path={pairs.root}/test.txt")
    unimatch_v2.main(args)
    lines = figures(tmp_path / "train.log")
    best, result = checkpoint.load(tmp_path / "best.pth"), json.loads((tmp_path / "test.json").read_text())
    assert (result["epoch"], result["list"], result["images"]) == (best["epoch"], f"{pairs.root}/test.txt", 5)
    assert [line for line in lines if line.startswith("Test")] == [
        f"Test of best.pth (epoch {best['epoch']}, selected on {pairs.root}/val.txt) on {pairs.root}/test.txt, {name}: "
        + ", ".join(f"{label} {result['scores'][name][key]:.2f}" for key, label in TESTED.items())
        for name in ("student", "EMA")
    ]
    # the same weights, selected on the test list itself: what the loop prints there
    shutil.copy(tmp_path / "best.pth", tmp_path / "weights.pth")
    same = pairs.args(tmp_path / "again", f"init={tmp_path}/weights.pth", "lr=1e-30", "epochs=1", f"val_id_path={pairs.root}/test.txt")
    unimatch_v2.main(same)
    again = figures(tmp_path / "again" / "train.log")
    assert f"Changed IoU: {result['scores']['EMA']['changed_iou']:.2f}:" in again[2], "init starts from the EMA"
    assert not (tmp_path / "again" / "test.json").exists()
    # it is best.pth that is scored: here one that says changed everywhere
    (tmp_path / "test.json").unlink()
    for key in ("model", "model_ema"):
        best[key]["head.scratch.output_conv.2.bias"] = torch.tensor([-1e3, 1e3])
    torch.save(best, tmp_path / "best.pth")
    unimatch_v2.main(args)
    assert json.loads((tmp_path / "test.json").read_text())["scores"]["student"]["recall"] == 100
    lines = figures(tmp_path / "train.log")[-2:]
    monkeypatch.setattr("engine.final_test.evaluate", lambda *_: pytest.fail("tested twice"))
    unimatch_v2.main(args)
    assert figures(tmp_path / "train.log")[-2:] == lines, "started again: reported again, not tested again"
    old = json.loads((tmp_path / "test.json").read_text())
    old["scores"] = {name: {"changed IoU": 1.0} for name in old["scores"]}
    (tmp_path / "test.json").write_text(json.dumps(old))
    with pytest.raises(pytest.fail.Exception, match="tested twice"):  # an earlier version's file, with other names: tested again
        unimatch_v2.main(args)
    (tmp_path / "best.pth").unlink()
    unimatch_v2.main(args)
    assert "best.pth: does not exist" in (tmp_path / "train.log").read_text(), "that there is nothing to test is reported, and ends no run"


def test_the_test_list_of_the_data_set_is_the_default_for_the_final_test(
    pairs: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, own = get_spec("demo_change"), f"{pairs.root}/test.txt"
    whole = tmp_path / "whole"
    for name in ("test_0000.png", "val_0000.png"):
        write_pair(whole, name, 40, 40, seed=0)
    for root, val, test, expected in (
        (whole, "null", "null", None),  # selected on the test list
        (whole, f"{ROOT}/splits/demo_change/test.txt", "null", None),  # likewise
        (whole, "splits/demo_change/val.txt", "null", "splits/demo_change/test.txt"),
        (pairs.root, "splits/demo_change/val.txt", own, own),
        (pairs.root, "splits/demo_change/val.txt", "null", None),  # other people's pairs under this name: warned, see below
    ):
        cfg = load_config(str(pairs.config), [f"data_root={root}", f"val_id_path={val}", f"test_id_path={test}"])
        validation = validation_source(cfg, spec)
        assert (val != "null") or validation.ids.path == "splits/demo_change/test.txt"
        source = find_test_source(cfg, spec, validation, open_log(tmp_path / "log"))
        assert (source and source.ids.path) == expected
    assert capsys.readouterr().out.count("no test score at the end") == 1


@pytest.mark.parametrize(("task", "by"), [("change", "student"), ("segmentation", "teacher")])
def test_who_labels_where_the_config_does_not_say(task: str, by: str) -> None:
    """As the data sets' own: an authors' config has no such key."""
    given = []

    def step(student: Any, teacher: Any, batch: Batch, cfg: Config) -> Any:
        given.append(teacher)
        return unimatch_v2.step(student, teacher, batch, cfg)

    cfg = Config(dataset="", data_root="", backbone="dinov2_tiny", crop_size=28, epochs=1, batch_size=1, lr=1e-4)
    learner = Learner(cfg, build_model("dinov2_tiny", 2, task), Method("probe", step), 10)
    images = [torch.randn(1, 6 if task == "change" else 3, 28, 28) for _ in range(4)]
    mask = torch.zeros(1, 28, 28, dtype=torch.long)
    boxes = (mask.byte(), mask.bool(), mask.bool(), torch.ones(2, 192))
    learner.update([Batch(images[0], mask, images[1], images[2], images[3], *boxes)])
    assert given == [getattr(learner, by)]


def test_a_machine_without_the_test_pairs_costs_the_test_and_not_the_run(pairs: Tiny, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(pairs.root, whole)
    write_pair(whole, "test_0000.png", 40, 40, seed=0)
    keys = (f"val_id_path={pairs.root}/val.txt", "test_id_path=null", "epochs=1", "shards=2", "batch_size=1")
    words = [pairs.args(tmp_path / "run", *keys, f"data_root={root}") for root in (whole, pairs.root)]
    (tmp_path / "start.py").write_text(f"import os, unimatch_v2; unimatch_v2.main({words!r}[int(os.environ['RANK'])])\n")
    done = command(tmp_path / "start.py", processes=2)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run/train.log").read_text()
    assert log.count("no test score at the end: another machine does not find the test images") == 1
    assert not (tmp_path / "run/test.json").exists()


def break_file(name: str, content: str | None):
    def broken(pairs: Tiny, out: Path) -> list[str]:
        path = pairs.root / name
        path.unlink() if content is None else path.write_text(content)
        return pairs.args(out)

    return broken


def label_of_16_bits(pairs: Tiny, out: Path) -> list[str]:
    with Image.open(pairs.root / "label/0.png") as image:
        values = np.asarray(image).astype(np.uint16) * 257
    Image.fromarray(values).save(pairs.root / "label/0.png")
    return pairs.args(out)


ROWS = {
    "B missing": (break_file("B/0.png", None), ("B/0.png", "no such file")),
    "list line that ends in a blank": (
        break_file("labeled.txt", "0.png \n1.png\n"),
        ("labeled.txt:1: found '0.png '", "remove the blank"),
    ),
    "label of 0 and 65535": (label_of_16_bits, ("label/0.png: found label 65535", "8 bits (divide it by 257)")),
    "label missing": (break_file("label/0.png", None), ("label/0.png", "no such file")),
    "list of image-mask pairs": (break_file("unlabeled.txt", "a.jpg a.png\n"), ("unlabeled.txt:1", "one file name", "image-mask pairs")),
    "list of names for segmentation": (lambda p, out: p.args(out, "dataset=demo"), ("labeled.txt:1", "no mask", "change detection")),
    "pair of the test list missing": (
        lambda p, out: p.args(out, "test_id_path=splits/demo_change/test.txt"),
        ("A/test_0000.png", "no such file"),
    ),
    "test list missing": (lambda p, out: p.args(out, "test_id_path=no/such.txt"), ("no/such.txt", "no such list")),
    "classes of another data set": (lambda p, out: p.args(out, "nclass=21"), ("nclass", "found 21", "has 2")),
}


@pytest.mark.parametrize("name", ROWS)
def test_one_clear_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, words = ROWS[name]
    args = broken(make_pairs(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(SystemExit) as end:
        run(unimatch_v2.main, args)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


def script(name: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    full = {k: v for k, v in os.environ.items() if k not in ("dataset", "method", "split", "exp", "config", "save_path")}
    full["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(["sh", f"scripts/{name}", *args], cwd=ROOT, env=full | env, capture_output=True, text=True, timeout=200)


def test_evaluate_scores_the_published_model_by_default(pairs: Tiny, runs: dict[str, Path], tmp_path: Path) -> None:
    best = checkpoint.load(runs["unimatch_v2"] / "best.pth")
    words = ["--config", str(pairs.config), "--checkpoint", str(runs["unimatch_v2"] / "best.pth"), "--json", str(tmp_path / "s.json")]
    evaluate.main(words)
    scores = json.loads((tmp_path / "s.json").read_text())
    assert (scores["which"], scores["epoch"]) == ("student", best["best_epoch"])
    assert scores["changed_iou"] == pytest.approx(best["previous_best_iou"], abs=1e-6)
    assert scores["overall_accuracy"] == pytest.approx(best["previous_best_acc"], abs=1e-6)


def test_a_split_with_a_percent_sign_trains(pairs: Tiny, tmp_path: Path) -> None:
    """dataset=levir split=5%: the sign reaches lists, save path and log untouched."""
    folder = tmp_path / "5%"
    for name in ("labeled", "unlabeled"):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.txt").write_text("0.png\n1.png\n")
    lists = [f"--{name}-id-path={folder}/{name}.txt" for name in ("labeled", "unlabeled")]
    named = {"dataset": "levir", "split": "5%", "config": str(pairs.config), "save_path": f"{folder}/run"}
    done = script("train.sh", "1", "0", *lists, "--set", "epochs=1", "--set", "dataset=levir", **named)
    assert done.returncode == 0, done.stderr
    assert f"'labeled_id_path': '{folder}/labeled.txt'" in (folder / "run/train.log").read_text()
    assert (folder / "run/best.pth").exists()


def test_slurm_writes_its_log_into_a_folder_with_a_percent_sign() -> None:
    """Slurm replaces %j by the job's number and %% by a percent sign."""
    done = script("slurm_train.sh", "--dry-run", "1", "29500", "gpu", dataset="levir", split="5%", exp="dinov2_base")
    assert '#SBATCH --output="exp/levir/unimatch_v2/dinov2_base/5%%/slurm-%j.log"\n' in done.stdout
    assert "split='5%'\n" in done.stdout
    assert "save_path='exp/levir/unimatch_v2/dinov2_base/5%'\n" in done.stdout
