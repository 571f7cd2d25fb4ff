"""Every irregularity that public logs are known to have, on logs written here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.report import Run, read_log
from tests.scripts.report.report_logs import LogWriter, whole_log
from util.error import UserError

Read = Callable[..., Run]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """read(text, name): the single run of a log with this content."""

    def read_text(text: str | bytes, name: str = "train.log") -> Run:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        (run,) = read_log(path)
        return run

    return read_text


def test_finished_run(read: Read) -> None:
    run = read(whole_log(ngpus=2, seed=7))
    assert (run.method, run.dataset, run.split, run.backbone, run.task) == ("unimatch_v2", "pascal", "92", "dinov2_base", "segmentation")
    assert (run.epochs, run.epochs_done, run.complete, run.resumed, run.ngpus, run.seed) == (3, 3, True, False, 2, 7)
    assert (run.statistic, run.best, run.best_epoch, run.last, run.accuracy) == ("ema_miou", 83.0, 2, 83.0, None)
    assert run.sec_per_iter == 2.0  # 10 s between lines that are 5 iterations apart
    assert (run.nan_iterations, run.unread_lines, run.unread_samples, run.notes) == (0, 0, [], [])


def test_tie_goes_to_the_later_epoch(read: Read) -> None:
    assert read(whole_log(ema=lambda i: ("85.00", "85.00", "84.00")[i])).best_epoch == 1


def test_resume_redone_epochs_count_once_and_the_later_one_counts(read: Read) -> None:
    log = LogWriter().header(epochs=4).epoch(0).epoch(1, ema="90.00").begin(2).raw("slurmstepd: error: CANCELLED\n")
    log.header(epochs=4).record("************ Load from checkpoint at epoch 0").epoch(1, ema="82.00").epoch(2).epoch(3, ema="83.00")
    run = read(log.text)
    assert (run.epochs_done, run.best, run.best_epoch, run.complete, run.resumed) == (4, 83.0, 3, True, True)
    assert (run.unread_lines, run.unread_samples) == (1, ["slurmstepd: error: CANCELLED"])


def test_resume_under_another_folder_name_stays_the_same_run(read: Read) -> None:
    log = LogWriter().header("fixmatch_addfeataug", epochs=2).epoch(0)
    log.header("fixmatch_fp", epochs=2, use_weak=False).record("************ Load from checkpoint at epoch 0").epoch(1)
    assert (read(log.text).method, read(log.text).epochs_done) == ("fixmatch_addfeataug", 2)


def test_start_from_scratch_replaces_the_earlier_run(read: Read) -> None:
    log = LogWriter().header().epoch(0, ema="90.00").epoch(1, ema="91.00").header().epoch(0, ema="70.00")
    run = read(log.text)
    assert (run.epochs_done, run.best, run.resumed) == (1, 70.0, False)
    assert run.notes == ["2 epochs of an earlier start not counted: a later one began again at epoch 0"]


def test_start_that_came_nowhere_replaces_nothing(read: Read) -> None:
    log = LogWriter().header().epoch(0).epoch(1, ema="91.00").header().begin(0).iterations()
    assert (read(log.text).epochs_done, read(log.text).best) == (2, 91.0)


def test_logs_of_two_experiments_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "both.log"
    log = LogWriter().header(split="92").epoch(0, ema="70.00").header(split="183").epoch(0, ema="80.00")
    path.write_text(log.text)
    assert [(run.split, run.best) for run in read_log(path)] == [("92", 70.0), ("183", 80.0)]


def test_parts_in_the_wrong_order_are_one_run(read: Read) -> None:
    early = LogWriter(hour=12).header(epochs=2).epoch(0)
    late = LogWriter(hour=18).header(epochs=2).record("************ Load from checkpoint at epoch 0").epoch(1, ema="88.00")
    run = read(late.text + early.text)
    assert (run.epochs_done, run.best, run.complete) == (2, 88.0, True)


def test_unfinished_epoch_does_not_count(read: Read) -> None:
    run = read(LogWriter().header(epochs=3).epoch(0).epoch(1).begin(2).iterations().text)
    assert (run.epochs_done, run.complete, run.last) == (2, False, 81.0)


def test_header_only(read: Read) -> None:
    run = read(LogWriter().header().text)
    assert (run.best, run.best_epoch, run.last, run.epochs_done, run.statistic) == (None, None, None, 0, "ema_miou")


@pytest.mark.parametrize(("dataset", "task"), [("levir", None), ("demo_change", None), ("fields", "change")])
def test_change_detection_before_its_first_evaluation(read: Read, dataset: str, task: str | None) -> None:
    run = read(LogWriter().header(dataset=dataset, task=task).begin(0).iterations().text)
    assert (run.task, run.statistic, run.best) == ("change", "changed_iou", None)


def test_nan_losses_are_counted(read: Read) -> None:
    run = read(LogWriter().header(epochs=2).epoch(0, loss="nan").epoch(1).text)
    assert (run.nan_iterations, run.epochs_done, run.unread_lines) == (2, 2, 0)


def test_nan_figure_is_no_best(read: Read) -> None:
    run = read(whole_log(ema=lambda i: ("85.00", "nan", "nan")[i]))
    assert (run.best, run.last, run.epochs_done) == (85.0, None, 3)


def test_ema_not_used_as_teacher(read: Read) -> None:
    run = read(LogWriter().header("unimatch_v2_noEMA").epoch(0, ema="85.88", teacher="EMA (not used as teacher)").text)
    assert (run.method, run.statistic, run.best, run.unread_lines) == ("unimatch_v2_noEMA", "ema_miou", 85.88, 0)


def test_supervised_without_class_lines_and_with_short_learning_rates(read: Read) -> None:
    run = read(
        LogWriter().header("supervised", "cityscapes", "1_16", epochs=2).supervised_epoch(0, "80.79").supervised_epoch(1, "80.10").text
    )
    assert (run.method, run.statistic, run.best, run.split, run.complete) == ("supervised", "miou", 80.79, "1_16", True)


def test_labelled_only_counts_the_student_even_where_an_ema_is_logged(read: Read) -> None:
    run = read(LogWriter().header("labeled_only").epoch(0, miou="80.00", ema="81.00").text)
    assert (run.method, run.statistic, run.best) == ("supervised", "miou", 80.0)


@pytest.mark.parametrize("colon", [True, False])
def test_change_detection(read: Read, colon: bool) -> None:
    log = LogWriter().header("unimatch_v2", "levir", "5%", epochs=3)
    log.change_epoch(0, "83.25", "99.01", colon).change_epoch(1, "83.25", "99.08", colon).change_epoch(2, "83.00", "99.90", colon)
    run = read(log.text)
    assert (run.task, run.statistic, run.best, run.best_epoch, run.accuracy) == ("change", "changed_iou", 83.25, 1, 99.08)
    assert (run.split, run.unread_lines) == ("5%", 0)


def test_change_detection_cut_before_the_accuracy(read: Read) -> None:
    text = LogWriter().header("supervised", "whu", "20%").change_epoch(0, "83.25", "99.01").text
    assert read(text[: text.index("Overall Accuracy: 99")]).accuracy is None


def test_unimatch_v1_iterations(read: Read) -> None:
    line = "Iters: 81, LR: 0.0000050, Total loss: 0.286, x: 0.568, u: 0.004, strong: 0.003, fp: 0.004, Mask ratio: 0.371"
    run = read(LogWriter().header("unimatch_v1").begin(0).record(line).text)
    assert (run.method, run.unread_lines) == ("unimatch_v1", 0)


def test_classification(read: Read) -> None:
    folder = "exp/unimatch_v2_cifar10_4labels_seed2"
    log = LogWriter(13.4).record(
        f"Namespace(port=1, seed=2, epochs=2, checkpoint='', label_per_class=4, dataset='cifar10', output_path='{folder}')"
    )
    for epoch, ema in enumerate(("95.700", "95.340")):
        for i in (0, 100):
            log.record(
                f"Epoch {epoch}, Iter: {i}/1024, Time: 0.134 (0.164), Data: 0.000 (0.002), Loss x: nan (nan), Mask ratio: 0.042 (0.006)"
            )
        log.record(f"<====== Evaluation ======> Epoch: {epoch}, Acc@1 94.450 Acc@5 99.900 Best_Acc@1 94.450 Best_Acc@5 99.900")
        log.record(f"<====== Evaluation ======> Epoch: {epoch}, EMA@1 {ema} EMA@5 99.900 Best_EMA@1 95.700 Best_EMA@5 99.960")
    run = read(log.text)
    assert (run.task, run.method, run.dataset, run.split, run.seed) == ("classification", "unimatch_v2", "cifar10", "4", 2)
    assert (run.statistic, run.best, run.best_epoch, run.last, run.complete) == ("ema_acc1", 95.7, 0, 95.34, True)
    assert (run.nan_iterations, run.sec_per_iter, run.unread_lines) == (4, 0.134, 0)


def test_two_data_sets_and_extra_unlabelled_images(read: Read) -> None:
    log = LogWriter().header("unimatch_v2", "ade20k", "extra_123K_coco", labeled_id_path="splits/ade20k/train.txt").epoch(0)
    text = log.text.replace("'dataset': 'ade20k'", "'dataset_l': 'ade20k',\n 'dataset_u': 'coco',\n 'valset': 'ade20k'")
    run = read(text)
    assert (run.dataset, run.split) == ("ade20k", "extra_123K")


def test_carriage_returns_and_missing_final_newline(read: Read) -> None:
    text = whole_log().rstrip("\n")
    assert read(text.replace("\n", "\r\n")) == read(text) == read(whole_log())


def test_nul_bytes_are_skipped_and_told(read: Read) -> None:
    plain = read(whole_log())
    run = read(whole_log().replace("\n[", "\n" + "\0" * 50 + "["))
    assert (run.best, run.epochs_done, run.unread_lines) == (plain.best, plain.epochs_done, 0)
    assert any("NUL bytes skipped" in note for note in run.notes)


def test_other_encodings(read: Read) -> None:
    text = whole_log().replace("0 background", "0 \u00e9").encode("latin-1")
    assert (read(text).best, read(text).unread_lines) == (83.0, 0)
    assert read(whole_log().encode("utf-16-le")).best == 83.0


def test_warnings_between_and_behind_lines(read: Read) -> None:
    warning = '/opt/torch/functional.py:1381: UserWarning: dropout2d\n  warnings.warn("dropout2d")\n'
    trace = 'Traceback (most recent call last):\n  File "supervised.py", line 3\nRuntimeError: NCCL\n'
    lines = whole_log().splitlines(keepends=True)
    lines[3:3] = [warning]  # inside the header
    lines[30:30] = [trace]
    text = "".join(lines).replace("EMA: 83.00\n", "EMA: 83.00slurmstepd: error: CANCELLED\n")
    run = read(text)
    assert (run.best, run.epochs_done, run.epochs, run.split, run.method) == (83.0, 3, 3, "92", "unimatch_v2")
    assert run.unread_lines == 2 + 3 + 1
    assert run.unread_samples[0] == warning.splitlines()[0]


def test_records_glued_by_a_lost_line_end(read: Read) -> None:
    run = read(whole_log().replace("EMA: 95.89\n", "EMA: 95.89"))
    assert (run.best, run.epochs_done, run.unread_lines) == (83.0, 3, 0)


def test_cut_figure_is_not_taken_for_a_smaller_one(read: Read) -> None:
    text = whole_log()
    run = read(text[: text.rindex("83.00") + 4])  # "EMA: 83.0"
    assert (run.epochs_done, run.best) == (2, 82.0)
    assert run.unread_samples == [", EMA: 83.0"]


def test_lost_epoch_line_is_counted_on(read: Read) -> None:
    lines = [line for line in whole_log().splitlines() if "Epoch: 1," not in line]
    run = read("\n".join(lines))
    assert (run.epochs_done, run.best_epoch, run.complete) == (3, 2, True)
    assert run.notes == ["1 epoch line lost: counted on from the one before"]


def test_lost_evaluation_is_told(read: Read) -> None:
    lines = [line for line in whole_log().splitlines() if "82.00" not in line]
    assert read("\n".join(lines)).notes == ["1 epoch before epoch 2 without a figure in this log"]


def test_figures_before_any_epoch_are_unread(read: Read) -> None:
    text = "[2025-03-01 12:00:00,000][    INFO] ***** Evaluation original ***** >>>> MeanIoU: 82.93, EMA: 82.40\n"
    assert read(text + LogWriter().begin(5).text).unread_lines == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("table01-pascal_unimatch_v2_92labels_dinov2_base.log", ("unimatch_v2", "pascal", "92", "dinov2_base", None)),
        ("table02-cityscapes_labeled_only_1_16labels_dinov2_small.log", ("supervised", "cityscapes", "1_16", "dinov2_small", None)),
        ("table04-coco_labeled_only_all_labels_dinov2_base.log", ("supervised", "coco", "all", "dinov2_base", None)),
        ("table06-figure4c_pascal_366labels_dinov2_base.log", ("fixmatch_addfeataug_dualstream", "pascal", "366", "dinov2_base", None)),
        ("table09-ade20k_unimatch_v2_1_8labels_beit_l.log", ("unimatch_v2", "ade20k", "1_8", "beit_l", None)),
        ("table09-pascal_fixmatch_1464labels_resnet152.log", ("fixmatch", "pascal", "1464", "resnet152", None)),
        ("table10-pascal_unimatch_v2_noEMA_183labels_mitb5.log", ("unimatch_v2_noEMA", "pascal", "183", "mitb5", None)),
        ("table13-cityscapes_unimatch_v2_extra_20K_unlabeled_data_sam_b.log", ("unimatch_v2", "cityscapes", "extra_20K", "sam_b", None)),
        ("table14-whu_cd_unimatch_v2_20%labels_dinov2_base.log", ("unimatch_v2", "whu", "20%", "dinov2_base", None)),
        ("table15_cifar100_4labels_seed1_unimatch_v2.log", ("unimatch_v2", "cifar100", "4", None, 1)),
        ("exp/camvid/unimatch_v2/dinov2_tiny/1_8/train.log", ("unimatch_v2", "camvid", "1_8", "dinov2_tiny", None)),
        ("exp/camvid/supervised/dinov2_small/1_8/seed2/train.log", ("supervised", "camvid", "1_8", "dinov2_small", 2)),
    ],
)
def test_names_from_the_file_where_the_header_is_lost(read: Read, name: str, expected: tuple[object, ...]) -> None:
    run = read(LogWriter().epoch(0).text, name)
    assert (run.method, run.dataset, run.split, run.backbone, run.seed) == expected
    assert (run.epochs, run.complete) == (None, False)


def test_header_goes_before_the_file_name(read: Read) -> None:
    run = read(whole_log(dataset="coco", split="1_64"), "table01-pascal_fixmatch_92labels_dinov2_small.log")
    assert (run.method, run.dataset, run.split, run.backbone) == ("unimatch_v2", "coco", "1_64", "dinov2_base")


def test_unread_samples_are_few_short_and_different(read: Read) -> None:
    run = read(whole_log() + "noise\n" * 10 + "".join(f"{i} {'x' * 500}\n" for i in range(20)))
    assert run.unread_lines == 30
    assert len(set(run.unread_samples)) == len(run.unread_samples) == 5
    assert max(map(len, run.unread_samples)) <= 160


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0\0\0", b"hello\nworld\n", b"{'a': 1}\n", b"\x89PNG\r\n\x1a\n\xff\xfe"])
def test_no_log(read: Read, content: bytes) -> None:
    with pytest.raises(UserError, match=r"train\.log: found .*expected a log"):
        read(content)


def test_final_test_is_told_beside_the_figure_of_the_list_that_chose_the_epoch(read: Read) -> None:
    log = LogWriter().header(dataset="levir", split="5%", epochs=1).change_epoch(0, "80.00", "98.00")
    log.record("Changed class: precision 91.00, recall 89.00, F1 89.99, EMA: precision 92.00, recall 90.00, F1 90.99")
    tests = [f"Test of best.pth (epoch 0) on splits/levir/test.txt, {name}: changed IoU 99.00, F1 99.50" for name in ("student", "EMA")]
    run = read(log.record(tests[0]).record(tests[1]).text)
    assert (run.best, run.unread_lines) == (80.0, 0)
    assert run.notes == [f"the figure here is of the list that chose the epoch. {tests[0]}; {tests[1]}"]
    assert read(log.record(tests[0][:-20]).text).unread_lines == 1, "a line that was cut is no figure"


def test_epochs_between_evaluations_count_as_done(tmp_path: Path) -> None:
    log = LogWriter().header(epochs=10, eval_every=5)
    for epoch, score in ((4, "50.00"), (9, "60.00")):
        log.epoch(epoch, score)
    path = tmp_path / "train.log"
    path.write_text(log.text)
    (run,) = read_log(path)
    assert (run.epochs_done, run.complete, run.best_epoch, run.notes) == (10, True, 9, [])


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_resumed_in_the_middle_of_an_epoch(tmp_path: Path, epoch: int) -> None:
    log = LogWriter().header(epochs=2)
    for done in range(epoch):
        log.epoch(done)
    log.begin(epoch).iterations()
    log.header(epochs=2).record(f"************ Load from checkpoint at epoch {epoch - 1}, 40 steps of the next")
    log.iterations()
    whole = LogWriter(hour=13).epoch(epoch).text
    figures = whole[whole.index("***** Evaluation") - len("[2024-08-21 12:59:30,756][    INFO] ") :]
    path = tmp_path / "train.log"
    path.write_text(log.text + figures)
    (run,) = read_log(path)
    assert (run.epochs_done, run.resumed, run.notes, run.unread_lines) == (epoch + 1, True, [], 0)


def test_our_own_run_is_named_by_the_record_beside_its_log(read: Read, tmp_path: Path) -> None:
    log = whole_log(save_path="exp/try")
    assert read(log).method is None
    (tmp_path / "record.json").write_text('[{"command": ["/home/me/code/fixmatch.py", "--config", "c.yaml"]}]')
    assert read(log).method == "fixmatch"
    assert read(log, "copied.log").method is None, "the record is of the run whose log is train.log"
    for other in ('[{"command": ["notebook.py"]}]', '[{"command": ["evaluate.py"]}]', "[]", "{}", "torn"):
        (tmp_path / "record.json").write_text(other)
        assert read(log).method is None


def test_how_a_run_goes_is_no_setting_and_lists_are_whole(read: Read) -> None:
    names = [f"class {i}" for i in range(30)]  # longer than a line of the header
    log = whole_log(classes=names, label_map=[[i, 0, 0] for i in range(30)], data_root_u=["a", "b"], bad_images="skip", save_every=3.0)
    settings = read(log).settings
    assert settings["classes"] == str(names)
    assert settings["label_map"] == str([[i, 0, 0] for i in range(30)])
    assert settings["lock_backbone"] == "False"
    assert not {"bad_images", "save_every", "data_root_u", "seed"} & set(settings)
    assert read(whole_log(classes=["a b", "c"])).settings["classes"] == "['a b', 'c']"


def test_our_own_warnings_are_known(read: Read) -> None:
    bad = "2 samples of epoch 0 replaced, their files cannot be read:\n  /data/a.jpg: no such file\n  /data/b.jpg: not a file"
    warnings = [
        "Step 1 skipped: loss or gradient is not finite (1 in a row, 1 in all)",
        bad,
        "latest.pth: not a readable checkpoint (torn)",
    ]
    lines = whole_log().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if "Epoch: 1," in line)
    lines[at:at] = [f"[2025-03-01 12:00:00,000][ WARNING] {text}\n" for text in warnings]
    run = read("".join(lines))
    assert (run.unread_lines, run.best, run.epochs_done, run.notes) == (0, 83.0, 3, [])
    assert read("".join(lines) + "  a line of another program\n").unread_lines == 1
