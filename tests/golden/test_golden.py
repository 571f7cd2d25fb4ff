"""Golden numbers: every .npz and keys_*.txt of the golden folder, recognised by its name; those of single encoders: encoders.py;
those of UniMatch V1: v1.py; of SemiVL: semivl.py; of AllSpark: allspark.py.

fwd_*.npz: `<encoder>_<H>x<W>` -> logits of `image(H, W, B)`, every n-th pixel where the array is smaller.
traj_<method>[_ohem][_<encoder>].npz: `scalar/train/*` per step, `<model|model_ema>/<delta_norm|head16>/NAME`.
eval_<encoder>.npz: `<original|sliding_window>_<H>x<W>` -> class ids (H, W), with `nclass` and, for windows, `window`.
Any file may hold `config/KEY` scalars: config keys (`config/conf_thresh`, OHEM: `config/thresh` and `config/min_kept`).
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.evaluation import Prediction
from model import build_model
from model.segmenter import Segmenter
from model.spec import ENCODERS
from tests.golden import allspark, encoders, semivl, v1
from tests.golden.trajectory import METHODS, train

FORWARD = 1e-4  # ||a - b|| / ||b|| of logits
# Relative: scalars and norms of weight changes, as the golden README says. In float32 the kernels' rounding turns a ReLU or a pseudo label
# that is at its threshold (one ReLU of the coarse maps is 1e-3 of a gradient), and AdamW makes a whole step of the smallest gradients:
# between SSE4.1, AVX2 and AVX-512, eight steps move scalars by up to 4e-3. In float64 all give the same numbers, 8e-4 from these.
TRAJECTORY = 2e-3
STILL = 1e-6  # absolute: tensors that never train change by rounding only
ULP = 2.0**-23  # of the reference's float32: a change is the difference of two rounded weights
# Relative, in bf16: ||a - b|| / ||b|| of a scalar's eight values, and the median of the norms of weight changes. A rounding is 2^-8 = 4e-3;
# between the kernels above, with and without instructions for bfloat16, 2e-3 to 7e-3.
BF16 = 1e-2
Numbers = dict[str, np.ndarray]
Check = Callable[[str, Numbers, ModuleType], None]


def encoder_of(name: str) -> str:
    """The `backbone` behind the name of an encoder in a golden file: `small` is DINOv2's."""
    return name if name in ENCODERS else f"dinov2_{name}"


def filled(inputs: ModuleType, encoder: str, nclass: int) -> Segmenter:
    model = build_model(encoder_of(encoder), nclass, model=None).eval()
    model.load_state_dict(inputs.fill(model.state_dict()))
    return model


def stride(full: int, kept: int) -> int:
    """Every how many pixels `kept` of `full` pixels are."""
    return next(step for step in range(1, full + 1) if len(range(0, full, step)) == kept)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def check_forward(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    models: dict[tuple[str, int], Segmenter] = {}
    for key, expected in numbers.items():
        found_key = re.fullmatch(r"(\w+?)_(\d+)x(\d+)", key)
        assert found_key, f"{key}: expected <encoder>_<H>x<W>"
        encoder, height, width = found_key[1], int(found_key[2]), int(found_key[3])
        batch, nclass = expected.shape[:2]
        if (encoder, nclass) not in models:
            models = {(encoder, nclass): filled(inputs, encoder, nclass)}  # one at a time: the large ones fill the memory
        with torch.no_grad():
            logits = models[encoder, nclass](inputs.image(height, width, batch)).numpy()
        assert logits.shape == (batch, nclass, height, width), key
        logits = logits[..., :: stride(height, expected.shape[2]), :: stride(width, expected.shape[3])]
        assert relative(logits, expected) <= FORWARD, key


def trajectory_settings(name: str, numbers: Numbers, inputs: ModuleType) -> tuple[str, str, dict[str, Any]]:
    """(method, encoder, config keys) of a trajectory file."""
    method = next((m for m in METHODS if name.startswith(f"traj_{m}")), "unimatch_v2" if name.startswith("traj_ohem") else None)
    if method is None:
        pytest.fail(f"{name}: a trajectory of another method; known are {', '.join(METHODS)}")
    encoder = next((e for e in ENCODERS if e.removeprefix("dinov2_") in name.split("_")), "dinov2_small")
    keys: dict[str, Any] = {k.removeprefix("config/"): v.item() for k, v in numbers.items() if k.startswith("config/")}
    if "perlevel" in name:
        keys["feature_dropout"] = "per_level"
    if "ohem" in name:
        kwargs = {k: keys.pop(k) for k in ("thresh", "min_kept") if k in keys} or getattr(inputs, "OHEM", None)
        if kwargs is None:
            pytest.fail(f"{name}: which OHEM? add config/thresh and config/min_kept to the file, or OHEM = {{...}} to its inputs.py")
        keys["criterion"] = {"name": "OHEM", "kwargs": {"ignore_index": 255, **kwargs}}
    return method, encoder, keys


def check_trajectory(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    method, encoder, keys = trajectory_settings(name, numbers, inputs)
    steps = len(numbers["scalar/train/loss_all"])
    check_scalars(train(inputs, method, 2, encoder, **keys)[2], numbers)
    with patch.object(Tensor, "float", Tensor.double):  # of the position embedding, which is resized in float32
        learner, initial, stats = train(inputs, method, steps, encoder, dtype=torch.float64, **keys)
    check_scalars(stats, numbers)
    models = {"model": learner.student, "model_ema": learner.teacher}
    for prefix, model in models.items():
        if model is not None:
            check_weights(prefix, model.state_dict(), initial, numbers)


def check_scalars(stats: list[dict[str, Tensor]], numbers: Numbers) -> None:
    for key in (k for k in numbers if k.startswith("scalar/train/")):
        found = [float(row[key.removeprefix("scalar/train/")]) for row in stats]
        np.testing.assert_allclose(found, numbers[key][: len(found)], rtol=TRAJECTORY, atol=STILL, err_msg=key)


def check_weights(prefix: str, final: dict[str, Tensor], initial: dict[str, Tensor], numbers: Numbers) -> None:
    norms = {key.split("/", 2)[2]: v for key, v in numbers.items() if key.startswith(f"{prefix}/delta_norm/")}
    assert set(norms) <= set(final), "names that the model does not have"
    for name, expected in norms.items():
        change = float((final[name] - initial[name]).norm())
        rounding = max(STILL, ULP * float(initial[name].norm()))
        assert change == pytest.approx(float(expected), rel=TRAJECTORY, abs=rounding), f"{prefix} {name}"
    for key, expected in numbers.items():
        if key.startswith(f"{prefix}/head16/"):
            found = final[key.split("/", 2)[2]].flatten()[: len(expected)].numpy()
            assert relative(found, expected) <= TRAJECTORY, key


def check_evaluation(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    keys = {key: re.fullmatch(r"(original|sliding_window)_(\d+)x(\d+)", key) for key in numbers}
    if "nclass" not in numbers or not any(keys.values()):
        pytest.fail(f"{name}: expected keys `<original|sliding_window>_<H>x<W>` and `nclass`; found {', '.join(numbers)}")
    encoder = next((e for e in name.split("_") if f"dinov2_{e}" in ENCODERS), "small")
    model = filled(inputs, encoder, int(numbers["nclass"]))
    for key, parts in keys.items():
        if parts:
            img = inputs.image(int(parts[2]), int(parts[3]), 1)
            with torch.no_grad():
                scores = Prediction(parts[1], int(numbers.get("window", np.array(70)))).class_scores(model, img)
            # float32 rounding may turn a pixel whose two best classes are equal to six digits
            assert (scores.argmax(dim=1)[0].numpy() != numbers[key]).mean() <= 1e-3, key


def check_keys(name: str, lines: list[str]) -> None:
    """Names, shapes and their order, which counts: the optimiser states of the authors' checkpoints number the parameters."""
    encoder = encoder_of(name.removeprefix("keys_"))
    nclass = int(lines[-1].split("(")[1].split(",")[0])  # the last is the classifier's bias
    model = build_model(encoder, nclass, model=None)
    assert [f"{key} {tuple(tensor.shape)}" for key, tensor in model.state_dict().items()] == lines
    buffers = {key for key, _ in model.named_buffers()}
    assert [key for key, _ in model.named_parameters()] == [key for key in (line.split(" ")[0] for line in lines) if key not in buffers]


# pattern of a file's name without its ending -> its check; the first that fits counts
CHECKS: tuple[tuple[str, Check], ...] = (
    (rf"fwd_{encoders.PATTERN}", encoders.check_forward),
    (rf"v1extra_{v1.PATTERN}", v1.check_extra),
    (rf"traj_(unimatch_v1|v1_fixmatch|v1_supervised)(_ohem)?_{v1.PATTERN}", v1.check_trajectory),
    (rf"evalv1_{v1.PATTERN}", v1.check_evaluation),
    (rf"fwd_{semivl.PATTERN}", semivl.check_forward),
    (rf"traj_{semivl.PATTERN}(_pixelavg)?", semivl.check_trajectory),
    (rf"eval_{semivl.PATTERN}", semivl.check_evaluation),
    (r"resize_semivl", semivl.check_resize),
    (rf"fwd_{allspark.PATTERN}", allspark.check_forward),
    (rf"traj_{allspark.PATTERN}(_ohem)?", allspark.check_trajectory),
    (r"fwd_.*", check_forward),
    (r"traj_.*", check_trajectory),
    (r"eval_.*", check_evaluation),
)
KEYS: tuple[tuple[str, Callable[[str, list[str]], None]], ...] = (
    (rf"keys_{encoders.PATTERN}", encoders.check_keys),
    (rf"keys_{semivl.PATTERN}_crop\d+", semivl.check_keys),
    (rf"keys_{allspark.PATTERN}", allspark.check_keys),
    (r"keys_.*", check_keys),
)


def test_golden(golden: Path, folder: Path, inputs: ModuleType) -> None:
    name = golden.stem
    if golden.suffix == ".txt":
        check_names = next(check for pattern, check in KEYS if re.fullmatch(pattern, name))
        check_names(name, golden.read_text().splitlines())
        return
    check = next((check for pattern, check in CHECKS if re.fullmatch(pattern, name)), None)
    if check is None:
        pytest.fail(f"{golden.name}: unknown kind; expected one of {', '.join(pattern for pattern, _ in CHECKS)} (CONTRIBUTING.md)")
    check(name, dict(np.load(golden)), inputs)


@pytest.mark.parametrize("method", ["fixmatch", "supervised"])
def test_other_methods_train_from_given_tensors(inputs: ModuleType, method: str) -> None:
    """`Learner.update` is the entry for every method; OHEM is a criterion of any of them."""
    ohem = {"name": "OHEM", "kwargs": {"ignore_index": 255, "thresh": 0.3, "min_kept": 2000}}
    learner, initial, stats = train(inputs, method, 2, "dinov2_tiny", criterion=ohem)
    assert all(torch.isfinite(row["loss_all"]) for row in stats)
    assert float((learner.student.state_dict()["head.projects.0.weight"] - initial["head.projects.0.weight"]).norm()) > 0


def test_bf16_stays_near_the_trajectory(folder: Path, inputs: ModuleType) -> None:
    """docs/performance.md states these bounds. Single tensors differ more where the exact gradient is 0 or nearly so (biases of keys)."""
    file = folder / "traj_unimatch_v2.npz"
    if not file.is_file():
        pytest.skip(f"{folder} has no {file.name}")
    numbers = dict(np.load(file))
    learner, initial, stats = train(inputs, "unimatch_v2", len(numbers["scalar/train/loss_all"]), precision="bf16")
    for key in (k for k in numbers if k.startswith("scalar/train/")):
        found = np.array([float(row[key.removeprefix("scalar/train/")]) for row in stats])
        assert relative(found, numbers[key]) <= BF16, key
    final = learner.student.state_dict()
    expected = {k.split("/", 2)[2]: float(v) for k, v in numbers.items() if k.startswith("model/delta_norm/") and v > STILL}
    off = [abs(float((final[name] - initial[name]).norm()) - norm) / norm for name, norm in expected.items()]
    assert np.median(off) <= BF16
