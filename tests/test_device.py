"""Every command on another device than the CPU: one made of Python (tests/far.py), as strict as a GPU about what lies where.

The numbers have to be the CPU's, and the host must not wait for the device inside a step or an evaluated image.
"""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils import backend_registration

from tests.conftest import ROOT, Tiny
from tests.pairs import make_pairs

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this PyTorch has no devices made of Python"
)

STEPS, EPOCHS = 6, 2
LABELED = ("batch_size=1", "supervised_length=12")  # 6 steps of twice 1
SHOWN = ("dataset/preview.py", "engine/page/samples.py", "engine/epoch.py")  # pictures and shares, once a run or an epoch
OHEM = "criterion={name: OHEM, kwargs: {ignore_index: 255, thresh: 0.7, min_kept: 500}}"
LOVASZ = "criterion={name: Lovasz, kwargs: {ce: 1, class_weights: [1, 2, 0.5, 1, 1, 3]}}"
DICE = "criterion={name: Dice, kwargs: {class_weights: auto}}"
SEMIVL = ("backbone=clip_tiny", "crop_size=64", "img_scale=[128, 64]", "eval_mode=slide", "guidance_thresh=0.2", "lr=1e-6")
ALLSPARK = ("backbone=mit_b0", "model=allspark", "crop_size=48", "memory_epoch=0")
Commands = dict[str, tuple[str, list[str]]]


def commands(tiny: Tiny, pairs: Tiny, out: Path) -> Commands:
    """By name: the module of a command and its arguments. One with a number resumes the run of the one before."""
    train, change = tiny.args, pairs.args
    models = ["--config", str(tiny.config), "--checkpoint", f"{out}/unimatch_v2/latest.pth"]
    changes = ["--config", str(pairs.config), "--checkpoint", f"{out}/change/latest.pth"]
    return {
        "unimatch_v2": ("unimatch_v2", train(out / "unimatch_v2", "views=device", "epochs=1", OHEM)),
        "unimatch_v2 2": ("unimatch_v2", train(out / "unimatch_v2", "views=device", f"epochs={EPOCHS}", OHEM)),
        "fixmatch": (
            "fixmatch",
            train(out / "fixmatch", "views=worker", "epochs=1", "eval_mode=sliding_window", "activation_checkpointing=true", LOVASZ),
        ),
        "supervised": (
            "supervised",
            train(out / "supervised", "views=device", "epochs=1", *LABELED, "lock_backbone=true", DICE, unlabeled=False),
        ),
        "unimatch_v1": ("unimatch_v1", train(out / "unimatch_v1", "views=device", "epochs=1", "feature_dropout=per_level")),
        "text": ("scripts.text", ["--config", str(tiny.config), "--random", "--out", f"{out}/text.pth"]),
        "semivl": ("semivl", train(out / "semivl", "views=device", "epochs=1", f"text={out}/text.pth", *SEMIVL)),
        "allspark": ("allspark", train(out / "allspark", "views=device", "epochs=1", *ALLSPARK)),
        "change": ("unimatch_v2", change(out / "change", "views=device", "epochs=1")),
        "evaluate": ("evaluate", [*models, "--json", f"{out}/plain.json", "--worst", "2", "--out", f"{out}/worst"]),
        "evaluate 2": ("evaluate", [*models, "--scales", "0.75", "1", "--flip", "--tile", "28", "--json", f"{out}/augmented.json"]),
        "evaluate 3": ("evaluate", [*changes, "--json", f"{out}/change.json"]),
        "predict": ("predict", [*models, "--confidence", "--probabilities", "--out", f"{out}/masks", str(tiny.root / "val.txt")]),
    }


@pytest.fixture(scope="module")
def ran(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, dict[str, int]]]:
    """The folders of the CPU and of the other device, and which function read how often from that device, by command."""
    root = tmp_path_factory.mktemp("devices")
    pairs = make_pairs(root / "pairs")
    for module, argv in commands(tiny, pairs, root / "cpu").values():
        importlib.import_module(module).main(argv)
    named = commands(tiny, pairs, root / "far")
    words = [sys.executable, "-m", "tests.far", str(root / "reads.json")]
    done = subprocess.run(words, input=json.dumps(list(named.values())), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "cpu", root / "far", dict(zip(named, json.loads((root / "reads.json").read_text()), strict=True))


def figures(log: Path, word: str) -> list[float]:
    """All figures of a log's lines that have the word."""
    lines = [line.split("] ", 1)[1] for line in log.read_text().splitlines() if word in line]
    return [float(number) for line in lines for number in re.findall(r"\d+\.\d+", line)]


@pytest.mark.parametrize("name", ["unimatch_v2", "fixmatch", "supervised", "unimatch_v1", "semivl", "allspark", "change"])
# The device computes with the CPU's kernels: nothing but one pixel at a tie could turn, 0.3 % of a small class. Losses have three decimals.
@pytest.mark.parametrize(("word", "tolerance"), [("Iters", 0.002), (">>>>", 0.3)])
def test_a_run_has_the_figures_of_a_cpu(name: str, word: str, tolerance: float, ran: tuple) -> None:
    expected, found = (figures(folder / name / "train.log", word) for folder in ran[:2])
    assert len(expected) > 2
    assert found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", ["plain", "augmented", "change"])
def test_scores_are_those_of_a_cpu(name: str, ran: tuple) -> None:
    results = [json.loads((folder / f"{name}.json").read_text()) for folder in ran[:2]]
    assert results[1]["iou"] == pytest.approx(results[0]["iou"], abs=0.3)
    assert results[1]["boundary_iou"] == pytest.approx(results[0]["boundary_iou"], abs=0.3)


def test_predictions_are_those_of_a_cpu(ran: tuple) -> None:
    cpu, far, _ = ran
    masks = sorted((cpu / "masks").glob("*.png"))
    assert len(masks) == 2 * 4
    for path in masks:
        a, b = (np.asarray(Image.open(file)).astype(int) for file in (path, far / "masks" / path.name))
        assert (abs(a - b) > 1).mean() < 0.01, path.name


@pytest.mark.parametrize(
    ("name", "steps", "epochs"),
    [
        ("unimatch_v2", STEPS, 1),
        ("unimatch_v2 2", STEPS, 1),
        ("fixmatch", STEPS, 1),
        ("unimatch_v1", STEPS, 1),
        ("semivl", STEPS, 1),
        ("allspark", STEPS, 1),
        ("supervised", STEPS, 1),
    ],
)
def test_the_host_reads_once_a_step_and_at_each_line_of_the_log(name: str, steps: int, epochs: int, ran: tuple) -> None:
    reads = {place: count for place, count in ran[2][name].items() if not place.startswith(SHOWN)}
    assert reads == {
        "engine/update.py _agree": steps,
        "engine/averages.py read": steps,  # epochs as short as these have a line for every step
        "engine/evaluation.py evaluate": 2 * epochs,  # the sums, and the counts of each image
        # was a process asked to stop? Once: does one lack the test images, is the last epoch saved, is there a best.pth?
        "util/dist.py any": epochs + 3,
    }


def test_the_host_reads_nothing_while_it_evaluates(ran: tuple) -> None:
    for name in ("evaluate", "evaluate 2", "evaluate 3"):
        reads = {place: count for place, count in ran[2][name].items() if place != "evaluate.py draw_worst"}
        # the sums and the counts of each image, whether it was asked to stop, the boundary counts
        assert reads == {"engine/evaluation.py evaluate": 2, "util/dist.py any": 1, "evaluate.py score": 1}, name
