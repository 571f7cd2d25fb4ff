"""What a run says on the screen beside its log: read here as a cluster's log, without a terminal."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import evaluate
import predict
import supervised
import unimatch_v2
from engine import screen
from scripts.report.parse import read_log
from tests.conftest import Tiny
from tests.pairs import make_pairs
from util import progress

Said = Callable[[], list[str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """The lines of stdout and stderr since the last call that are not the log's."""

    def read() -> list[str]:
        out, err = capsys.readouterr()
        return [line for line in (out + err).splitlines() if line.startswith("# ")]

    return read


def test_a_run_says_what_it_is_and_what_it_has_made(tiny: Tiny, tmp_path: Path, said: Said) -> None:
    folder = tmp_path / "a run"
    unimatch_v2.main(tiny.args(folder, "shards=2", "epochs=1"))
    first, second, third, fourth, *last = said()
    assert first == "# UniMatch V2 on demo, 6 classes: 6 labelled, 12 unlabelled and 4 validation images."
    assert second == "# 1 epoch of 3 steps. A step sees 2 + 2 images on each of 2 shards, by one process on the CPU, fp32."
    assert third == "# Encoder dinov2_tiny, model dpt, crop 28. Starts from random weights."
    assert fourth.startswith(f"# Files in {folder}: train.log, metrics.jsonl, report.html, latest.pth, best.pth.")
    assert fourth.endswith("These lines count epochs from 1, the log counts them from 0.")
    log = read_log(folder / "train.log")[0]
    assert last[0].startswith("# Finished: 1 epoch in ")
    score = f"{log.best:.2f} in epoch 1 (0 in the log)"
    assert last[1] == f"# mIoU (EMA): best {score}, last {score}."
    assert last[2] == f"# Curves, classes and pictures: {folder}/report.html"
    assert last[3] == f"# Next: python evaluate.py --checkpoint '{folder}/best.pth'"
    assert last[4] == f"#       python predict.py --checkpoint '{folder}/best.pth' --out '{folder}/predictions' IMAGE_OR_FOLDER"
    assert "#" not in "".join(line[0] for line in (folder / "train.log").read_text().splitlines() if line)
    unimatch_v2.main(tiny.args(folder, "shards=2", "epochs=2", "resume=force"))
    assert said()[2].endswith("Resumes in epoch 2 of 2, after 0 of 3 steps.")
    unimatch_v2.main(tiny.args(folder, "shards=2", "epochs=2", "resume=force"))
    again = said()
    assert again[2].endswith("This run is finished already: nothing is left to train.")
    assert again[4].startswith("# Finished: 2 epochs in ")


def test_the_commands_for_pairs_are_accepted(tmp_path: Path, said: Said) -> None:
    """What a run of change detection proposes is what evaluate.py and predict.py take."""
    pairs = make_pairs(tmp_path / "pairs")
    supervised.main(pairs.args(tmp_path / "run", "epochs=1", "supervised_length=8", unlabeled=False))
    score, predict_pairs = (line.partition("python ")[2] for line in said()[-2:])
    assert predict_pairs.endswith(f"--out {tmp_path}/run/predictions --pair BEFORE AFTER")
    dates = {"BEFORE": str(pairs.root / "A/0.png"), "AFTER": str(pairs.root / "B/0.png")}
    for module, line in ((evaluate, score), (predict, predict_pairs)):
        name, *words = shlex.split(line)
        assert name == f"{module.__name__}.py"
        module.main([dates.get(word, word) for word in words])
    assert (tmp_path / "run/predictions/0.png").exists()


def test_steps_and_evaluations_say_how_far_they_are(
    tiny: Tiny, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clock on which every look takes half a minute; and the report reads the screen like the log."""
    now = iter(range(0, 10**6, 30))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    supervised.main(tiny.args(tmp_path / "run", "epochs=1", "supervised_length=16"))
    out, err = capsys.readouterr()
    steps = [line.rpartition(",")[0] for line in err.splitlines() if "step" in line]
    images = [line.rpartition(",")[0] for line in err.splitlines() if "image" in line]
    assert steps == [f"# step {i} of 4, epoch 1 of 1" for i in range(1, 5)]
    assert images == [f"# evaluation: image {i} of 4" for i in range(1, 5)]
    (tmp_path / "slurm-1.log").write_text(out + err)
    (run,) = read_log(tmp_path / "slurm-1.log")
    assert (run.unread_lines, run.best) == (0, read_log(tmp_path / "run/train.log")[0].best)


def test_where_counts_epochs_from_one() -> None:
    steps = screen.steps(screen.World(), total=60, done=0, epochs=2)
    found = []
    for done in (1, 30, 31, 60):
        steps.done = done
        assert steps.where is not None
        found.append(steps.where())
    assert found == ["epoch 1 of 2", "epoch 1 of 2", "epoch 2 of 2", "epoch 2 of 2"]
