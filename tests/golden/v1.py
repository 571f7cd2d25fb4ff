"""Golden numbers of UniMatch V1 as published: DeepLabV3+ on ResNet and Xception.

fwd_*, keys_*: as of the other encoders. v1extra_<encoder>.npz, every third pixel of the logits of `image(H, W, 2)`: `fp_<H>x<W>`, of the
maps dropped by `feature_draw(i)`, i the map; `os8_<H>x<W>`, with dilation in place of stride in stages 3 and 4, and dilations 12, 24, 36.
traj_unimatch_v1_*, traj_v1_fixmatch_*, traj_v1_supervised_*: `scalar/train/*`, and `model/<kind>/NAME` with kind first_norm and delta_norm
(change after the first step and after all), norm and head16 (of the final value), integer; `config/*`.
evalv1_<encoder>.npz: `<mode>_<H>x<W>` -> class ids of `image(H, W, 1)`, `iou/<mode>_<H>x<W>` -> IoU of each class, or their mean.
"""

import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fixmatch
import supervised
import unimatch_v1
from dataset.batch import Batch
from engine.evaluation import Prediction
from engine.method import Method
from engine.update import Learner
from model import build_model
from model.segmenter import Segmenter
from tests import unimatch_v1_literal as literal
from util.config import Config

PATTERN = r"(?:resnet\d+|xception)"  # of an encoder in a file's name
Numbers = dict[str, np.ndarray]
FORWARD = 1e-4  # ||a - b|| / ||b||
# Relative. The first step is exact up to rounding: what a wrong step would change is 1e-2 and more. Then rounding turns single pseudo
# labels, ReLUs and OHEM's choices around under a large rate. This step measured against the files, in float32 with one and two threads,
# with and without oneDNN, and in float64: first step 3e-7, second 6e-4, until the fourth 8e-3, until the eighth 2e-2; changes of single
# tensors after the first step 9e-4, after the eighth 6e-2, their median 6e-4.
STEPS = (1e-5, 3e-3, 2e-2, 2e-2, 5e-2, 5e-2, 5e-2, 5e-2)
FIRST, FINAL, MEDIAN = 3e-3, 1e-1, 2e-3
ULP = 2.0**-23  # a change is the difference of two rounded weights


@dataclass
class Trajectory:
    """A run: weights and statistics before it, after its first step and after its last, and what each step logs."""

    initial: dict[str, Tensor]
    first: dict[str, Tensor]
    final: dict[str, Tensor]
    stats: list[dict[str, float]]


def encoder_of(name: str) -> str:
    found = re.search(PATTERN, name)
    assert found, f"{name}: names no encoder"
    return found[0]


def filled(inputs: ModuleType, encoder: str, nclass: int, **changes: Any) -> Segmenter:
    model = build_model(encoder, nclass, model="deeplabv3plus", **changes)
    model.load_state_dict(inputs.fill(model.state_dict()))
    return model.eval()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@torch.no_grad()
def check_extra(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    for key, expected in numbers.items():
        what, size = key.split("_")
        img = inputs.image(*map(int, size.split("x")), len(expected))
        if what == "fp":
            both = filled(inputs, encoder_of(name), expected.shape[1])(img, literal.clean_and_dropped(inputs, 0))
            found = both[len(img) :]
        else:
            assert what == "os8", f"{key}: expected fp_<H>x<W> or os8_<H>x<W>"
            changes: dict[str, Any] = {"replace_stride_with_dilation": [False, True, True], "dilations": [12, 24, 36]}
            found = filled(inputs, encoder_of(name), expected.shape[1], **changes)(img)
        assert relative(found[..., ::3, ::3].numpy(), expected) <= FORWARD, key


def settings_of(name: str, numbers: Numbers) -> tuple[Method, Config]:
    """The method of a file's name, as the program of 2023 has it, and its settings."""
    own = {key.removeprefix("config/"): value.item() for key, value in numbers.items() if key.startswith("config/")}
    # as the files without `config/*` were made
    own = {"lr": 0.001, "lr_multi": 10.0, "conf_thresh": 0.3, "thresh": 0.2, "min_kept": 3000} | own
    kwargs = {"ignore_index": 255, "thresh": own.pop("thresh"), "min_kept": int(own.pop("min_kept"))}
    if "ohem" in name:
        own["criterion"] = {"name": "OHEM", "kwargs": kwargs}
    module = next(module for module in (unimatch_v1, fixmatch, supervised) if module.__name__ in name)
    shape = {"crop_size": 65, "epochs": 1, "batch_size": 2}
    cfg = module.METHOD.config(dataset="", data_root="", backbone=encoder_of(name), **shape, **own)
    return module.METHOD.of(cfg), cfg


def given_batch(inputs: ModuleType, method: str, it: int) -> Batch:
    (img_x, mask_x), (w, s1, s2, ignore, box1, box2), (w_mix, s1_mix, s2_mix, ignore_mix) = inputs.v1_batch(it)
    if method == "supervised":  # as published, a batch twice as large
        (more_x, more_mask), _, _ = inputs.v1_batch(100 + it)
        return Batch(torch.cat((img_x, more_x)), torch.cat((mask_x, more_mask)))
    second = Batch(torch.empty(0), torch.empty(0), w_mix, s1_mix, s2_mix, ignore_mix)
    draws = [2 * inputs.feature_draw(2 * it + i, 2 * len(w), channels) for i, channels in enumerate((256, 2048))]
    drop = torch.cat(draws, dim=1) if method == "unimatch_v1" else torch.empty(0)
    return Batch(img_x, mask_x, w, s1, s2, ignore, box1, box2, drop, second=second)


def check_trajectory(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    method, cfg = settings_of(name, numbers)
    model = build_model(cfg.backbone, 5, model=None)
    initial = inputs.fill(model.state_dict())
    model.load_state_dict(initial)
    steps = len(numbers["scalar/train/loss_all"])
    learner = Learner(cfg, model, method, steps)
    run = Trajectory(initial, {}, {}, [])
    for it in range(steps):
        stats = learner.update([given_batch(inputs, method.name, it)])
        run.stats.append({name: float(value) for name, value in stats.items()})
        run.final = {name: value.clone() for name, value in learner.student.state_dict().items()}
        run.first = run.first or run.final
    check_run(numbers, run)


def check_run(numbers: Numbers, run: Trajectory) -> None:
    for key in (key for key in numbers if key.startswith("scalar/train/")):
        found = np.array([stats[key.removeprefix("scalar/train/")] for stats in run.stats])
        assert (np.abs(found - numbers[key]) <= np.array(STEPS[: len(found)]) * np.abs(numbers[key])).all(), (key, found, numbers[key])
    off = {"delta_norm": check_changes("delta_norm", numbers, run.initial, run.final, FINAL)}
    off["first_norm"] = check_changes("first_norm", numbers, run.initial, run.first, FIRST)
    assert np.median(off["delta_norm"]) <= MEDIAN
    for key, expected in numbers.items():
        kind, _, parameter = key.removeprefix("model/").partition("/")
        final = run.final.get(parameter)
        if kind == "integer":
            assert final is not None
            assert int(final) == int(expected), key
        elif kind == "norm":
            assert final is not None
            assert abs(float(final.norm()) - float(expected)) <= FIRST * float(expected), key
        elif kind == "head16":
            assert final is not None
            assert relative(final.flatten()[: expected.size].numpy(), expected) <= 1e-2, key


def check_changes(kind: str, numbers: Numbers, before: dict[str, Tensor], after: dict[str, Tensor], tolerance: float) -> list[float]:
    """The relative errors of the norms of all tensors' changes."""
    start, off = f"model/{kind}/", []
    for key in (key for key in numbers if key.startswith(start)):
        name = key.removeprefix(start)
        change, expected = float((after[name] - before[name]).norm()), float(numbers[key])
        assert abs(change - expected) <= tolerance * expected + ULP * float(before[name].norm()), f"{key}: {change}, expected {expected}"
        off.append(abs(change - expected) / max(expected, 1e-12))
    return off


@torch.no_grad()
def check_evaluation(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    nclass, window = (int(numbers.get(key, np.array(value))) for key, value in (("nclass", 19), ("crop_size", 65)))
    model = filled(inputs, encoder_of(name), nclass)
    seen = 0
    for key, expected in numbers.items():
        parts = re.fullmatch(r"(iou/)?(original|sliding_window|center_crop)_(\d+)x(\d+)", key)
        if parts is None:
            assert key in ("nclass", "crop_size") or key.startswith("config/"), f"{key}: unknown"
            continue
        height, width = int(parts[3]), int(parts[4])
        found = predicted(model, inputs.image(height, width, 1), parts[2], window)
        if parts[1] is None:
            # rounding may turn a pixel whose two best classes are equal to six digits
            assert (found.numpy() != expected.reshape(found.shape)).mean() <= 1e-3, key
        else:
            label = np.random.default_rng(height * 1000 + width + 1).integers(0, nclass, (1, height, width))[0]
            label[:7] = 255
            label = middle(torch.from_numpy(label), window) if parts[2] == "center_crop" else torch.from_numpy(label)
            assert np.allclose(expected, iou(found, label, nclass, expected.size == 1), rtol=1e-2, atol=0.1), key
        seen += 1
    assert seen, f"{name}: expected keys <mode>_<H>x<W>, found {', '.join(numbers)}"


def middle(x: Tensor, size: int) -> Tensor:
    """The middle of (..., H, W), at most size x size."""
    top, left = (max(0, (side - size) // 2) for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size]


def predicted(model: Segmenter, img: Tensor, mode: str, window: int) -> Tensor:
    """Class ids (H, W)."""
    if mode == "center_crop":  # the program asks for it nowhere
        return Prediction("original", window).class_scores(model, middle(img, window))[0].argmax(0)
    return Prediction(mode, window, "cut").class_scores(model, img)[0].argmax(0)


def iou(found: Tensor, label: Tensor, nclass: int, mean: bool) -> np.ndarray:
    """Percent, of each class or their mean, of the pixels that are not 255."""
    seen = label != 255
    counts = torch.bincount(label[seen] * nclass + found[seen], minlength=nclass**2).reshape(nclass, nclass).double()
    each = 100 * counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag() + 1e-10)
    return each.mean().numpy() if mean else each.numpy()
