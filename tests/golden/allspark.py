"""Golden numbers of AllSpark: K = 5 classes, MiT as the file's name says, nothing dropped in training.

keys_allspark_<encoder>.txt: names and shapes. fwd_allspark_<encoder>.npz, crop 97: `eval_<H>x<W>_<B>` logits,
with `_every<n>` flattened, every n-th; `backbone_<i>` maps of image(97, 97, 1); `train_<plain|memory>_<what>` of a training pass of
image(97, 97, 2) and image(98, 97, 2)[:, :, :97] without and with the memory: `guide`, `logits`, `queue_ptr`, `queue_changed` (rows of
each class), `queue_norms`, `queue_head` (first 4 rows), `bn_mean`, `bn_var`, `gradnorm/NAME` of mean(logits^2).
traj_allspark_<encoder>[_ohem].npz, crop 70: `scalar/train/*` per step, `model/<delta_norm|head16>/NAME`, `model/int/NAME`,
`model/queue_row_norms`, final `lr` of both groups, `config/*`; OHEM: thresh 0.7, min_kept 2000.
"""

import math
import re
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allspark import METHOD, Settings
from dataset.batch import Batch
from engine.update import Learner
from model import build_model
from model.semseg.allspark import STRIDE, AllSpark
from tests.model.test_allspark import undropped

Numbers = dict[str, np.ndarray]
FORWARD = 1e-5  # ||a - b|| / ||b||
# Relative. A class that one channel changes in the memory is 1e-2 of a step's loss; measured: losses 3e-6, changes of tensors 1.3e-4.
TRAJECTORY = 1e-3
GRADIENT = 2e-3  # relative: of the first layers, measured 4e-4
STILL = 1e-6  # absolute: the biases before BatchNorm, whose gradient is rounding
CROP, TRAJECTORY_CROP, CLASSES = 97, 70, 5
PATTERN = r"allspark_(mit_b\d)"
ATTENTION, BN = "decoder.allspark.attn", "decoder.decoder.linear_fuse.bn"


def encoder_of(name: str) -> str:
    found = re.search(PATTERN, name)
    assert found, f"{name}: names no encoder"
    return found[1]


def filled(inputs: ModuleType, encoder: str, crop: int) -> AllSpark:
    model = build_model(encoder, CLASSES, model="allspark", crop_size=crop)
    assert isinstance(model, AllSpark)
    model.load_state_dict(inputs.fill(model.state_dict()))
    undropped(model)
    return model.eval()


def relative(found: Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.detach().numpy() - expected) / np.linalg.norm(expected))


def check_keys(name: str, lines: list[str]) -> None:
    nclass, _, positions = next(map(int, re.findall(r"\d+", line.split(" ", 1)[1])) for line in lines if "kv_queue" in line)
    with torch.device("meta"):
        model = build_model(encoder_of(name), nclass, model="allspark", crop_size=STRIDE * (math.isqrt(positions) - 1) + 1)
    assert [f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items()] == lines


def check_forward(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    model = filled(inputs, encoder_of(name), CROP)
    for key, expected in numbers.items():
        if found := re.fullmatch(r"eval_(\d+)x(\d+)_(\d+)(?:_every(\d+))?", key):
            with torch.no_grad():
                logits = model(inputs.image(*map(int, found.groups()[:3])))
            logits = logits.flatten()[:: int(found[4])] if found[4] else logits
            assert relative(logits, expected) <= FORWARD, key
        elif found := re.fullmatch(r"backbone_(\d)", key):
            with torch.no_grad():
                assert relative(model.backbone(inputs.image(CROP, CROP, 1))[int(found[1])], expected) <= FORWARD, key
        else:
            assert key.startswith(("train_plain_", "train_memory_")), f"{key}: unknown"
    for kind in ("plain", "memory"):
        prefix = f"train_{kind}_"
        own = {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}
        if own:
            check_training(filled(inputs, encoder_of(name), CROP), own, inputs, kind == "memory")


def check_training(model: AllSpark, numbers: Numbers, inputs: ModuleType, memory: bool) -> None:
    """A training pass and its gradients."""
    images = torch.cat((inputs.image(CROP, CROP, 2), inputs.image(CROP + 1, CROP, 2)[:, :, :CROP]))
    with torch.no_grad():
        guide = model(images[2:])
    before = model.get_buffer(f"{ATTENTION}.kv_queue").clone()
    logits = model.train()(images, guide=guide, memory=memory)
    logits.square().mean().backward()
    queue, pointers = (model.get_buffer(f"{ATTENTION}.{name}") for name in ("kv_queue", "queue_ptr"))
    found = {"guide": guide, "logits": logits, "queue_norms": queue.norm(dim=2), "queue_head": queue[:, :4]}
    found |= {f"bn_{name}": model.get_buffer(f"{BN}.running_{name}") for name in ("mean", "var")}
    counts = {"queue_ptr": pointers, "queue_changed": (queue != before).any(dim=2).sum(dim=1)}
    for key, expected in numbers.items():
        if key in counts:
            assert counts[key].tolist() == expected.tolist(), key
        elif key.startswith("gradnorm/"):
            grad = model.get_parameter(key.removeprefix("gradnorm/")).grad
            assert grad is not None
            assert abs(float(grad.norm()) - float(expected)) <= GRADIENT * float(expected) + STILL, key
        else:
            assert relative(found[key], expected) <= FORWARD, key


def settings_of(name: str, numbers: Numbers) -> Settings:
    keys: dict[str, Any] = {key.removeprefix("config/"): value.item() for key, value in numbers.items() if key.startswith("config/")}
    keys = {"epochs": 2, "lr": 1e-3, "lr_multi": 10.0, "memory_epoch": 1} | keys
    kwargs = {"ignore_index": 255, "thresh": keys.pop("thresh", 0.7), "min_kept": int(keys.pop("min_kept", 2000))}
    if "ohem" in name:
        keys["criterion"] = {"name": "OHEM", "kwargs": kwargs}
    shape: dict[str, Any] = {"crop_size": TRAJECTORY_CROP, "batch_size": 2, "model": "allspark", "backbone": encoder_of(name)}
    return Settings(dataset="", data_root="", **shape, **keys)


def given_batch(inputs: ModuleType, it: int) -> Batch:
    img_x, mask_x, img_u_w, _, _, ignore_u, *_ = inputs.semi_batch(it)
    return Batch(img_x, mask_x, img_u_w, ignore_u=ignore_u)


def check_trajectory(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    cfg = settings_of(name, numbers)
    model = filled(inputs, cfg.backbone, cfg.crop_size)
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    steps = len(numbers["scalar/train/loss_all"])
    learner = Learner(cfg, model, METHOD, steps)
    stats = [learner.update([given_batch(inputs, it)]) for it in range(steps)]
    final = learner.student.state_dict()
    for key, expected in numbers.items():
        kind, _, tensor = key.removeprefix("model/").partition("/")
        if key.startswith("scalar/train/"):
            found = [float(row[key.removeprefix("scalar/train/")]) for row in stats]
            np.testing.assert_allclose(found, expected, rtol=TRAJECTORY, err_msg=key)
        elif kind == "delta_norm":
            change = float((final[tensor] - initial[tensor]).norm())
            assert abs(change - float(expected)) <= TRAJECTORY * float(expected), key
        elif kind == "head16":
            assert relative(final[tensor].flatten()[: expected.size], expected) <= TRAJECTORY, key
        elif kind == "int":
            assert final[tensor].tolist() == expected.tolist(), key
        elif kind == "queue_row_norms":
            assert relative(final[f"{ATTENTION}.kv_queue"].norm(dim=2), expected) <= TRAJECTORY, key
        elif key == "lr":
            np.testing.assert_allclose([group["lr"] for group in learner.optimizer.param_groups], expected, rtol=1e-6)
        else:
            assert key.startswith("config/"), f"{key}: unknown"
