"""Golden numbers of SemiVL: K = 5 classes, decoder's text `text_embedding(5)`, guide's `text_embedding(8)` with CONCEPTS, of inputs.py.

keys_semivl_<encoder>_crop<S>.txt: names and shapes, `frozen` behind what is not trained. fwd_semivl_<encoder>.npz: `eval_<H>x<W>_<B>`
logits, `features_<i>` maps (every 8th channel), `conv_feature`, `maskclip_<H>x<W>_<B>_thresh<t>` the guide's labels, `need_fp_clean`,
`need_fp_perturbed`, `gradnorm/NAME`; `crop<S>_` before the size: of a model for that crop. traj_semivl_<encoder>[_pixelavg].npz:
`scalar/train/*` per step, `model/<delta_norm|head16>/NAME`, `config/*`. eval_semivl_<encoder>.npz: `slide_<H>x<W>_to_<h>x<w>`,
`cut_windows_<H>x<W>`: class ids, and every 7th value of the scores. resize_semivl.npz: mmseg's resizing rule.
"""

import re
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import torch

from dataset.batch import Batch
from dataset.opencv import fitted, nearest_index, resize_image, with_short_side
from engine.evaluation import Prediction
from engine.update import Learner
from model import build_model
from model.guide import Guide
from model.segmenter import Segmenter
from model.semseg.vlm import VLM, make_clip
from model.spec import get_encoder
from semivl import METHOD, Settings, Teacher

Numbers = dict[str, np.ndarray]
State = dict[str, torch.Tensor]
FORWARD = 1e-5  # ||a - b|| / ||b||
GRADIENT = 1e-3  # relative: rounding is 1e-4
# Relative: the first two steps, but for a pixel or two of 9800 that crosses a threshold; later, where thresholds and AdamW amplify
# rounding, to the value or the curve's mean (small losses at the end move by 6e-2 of themselves between instruction sets of one CPU).
EXACT, PIXELS, LATER = 1e-4, 2e-4, 5e-2
ENCODERS = {"tiny": "clip_tiny", "vit_b16": "clip_base", "cityscapes": "clip_base"}
CROPS = {"tiny": 128, "vit_b16": 128, "cityscapes": 100}
PATTERN = f"semivl_({'|'.join(ENCODERS)})"


def encoder_of(name: str) -> str:
    found = re.search(PATTERN, name)
    assert found, f"{name}: names no encoder of {', '.join(ENCODERS)}"
    return found[1]


def make_model(encoder: str, crop: int) -> VLM:
    options: dict[str, Any] = {"conv_encoder": True, "renorm_clip_img": True} if encoder == "cityscapes" else {}
    model = build_model(ENCODERS[encoder], 5, model="vlm", crop_size=crop, **options)
    assert isinstance(model, VLM)
    return model


def filled(inputs: ModuleType, encoder: str, crop: int, fill: str = "fill") -> VLM:
    model = make_model(encoder, crop)
    model.load_state_dict(getattr(inputs, fill)(model.state_dict()))
    model.set_text_(inputs.text_embedding(5))
    return model.eval()


def make_guide(inputs: ModuleType, encoder: str) -> Guide:
    clip = make_clip(ENCODERS[encoder], skips=(), grid=32)
    state = inputs.fill({f"clip_encoder.{name}": value for name, value in clip.state_dict().items()})
    clip.load_state_dict({name.removeprefix("clip_encoder."): value for name, value in state.items()})
    classes = [k for k, rows in inputs.CONCEPTS.items() for _ in rows]
    return Guide(clip, inputs.text_embedding(len(classes)), classes, encoder == "cityscapes")


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    """0 where both are 0."""
    return float(np.linalg.norm(found.numpy() - expected) / (np.linalg.norm(expected) + 1e-12))


def check_keys(name: str, lines: list[str]) -> None:
    found = re.fullmatch(rf"keys_{PATTERN}_crop(\d+)", name)
    assert found
    model = make_model(found[1], int(found[2]))
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    buffers = {key for key, _ in model.named_buffers()}
    own = [f"{key} {tuple(x.shape)}" + ("" if key in trained | buffers else " frozen") for key, x in model.state_dict().items()]
    guide = get_encoder(ENCODERS[found[1]]).facts().state_dict()
    theirs = [line.split(" ", 1)[0].removeprefix("clip_encoder.") for line in lines if line.startswith("clip_encoder.")]
    assert theirs == list(guide)
    assert own == [line for line in lines if not line.startswith("clip_encoder.")]


@torch.no_grad()
def check_forward(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    encoder = encoder_of(name)
    models: dict[int, VLM] = {}
    guide = make_guide(inputs, encoder) if any(key.startswith("maskclip_") for key in numbers) else None
    for key, expected in numbers.items():
        parts = re.fullmatch(r"(eval|maskclip)_(?:crop(\d+)_)?(\d+)x(\d+)_(\d+)(?:_thresh([\d.]+))?", key)
        crop = int(parts[2]) if parts and parts[2] else CROPS[encoder]
        if crop not in models:
            models = {crop: filled(inputs, encoder, crop)}
        model = models[crop]
        if parts is None:
            check_parts(key, expected, model, inputs)
            continue
        img = inputs.image(*map(int, (parts[3], parts[4], parts[5])))
        if parts[1] == "eval":
            assert relative(model(img), expected) <= FORWARD, key
        else:
            assert guide is not None
            assert np.array_equal(guide(img, float(parts[6])).numpy(), expected), key


def check_parts(key: str, expected: np.ndarray, model: VLM, inputs: ModuleType) -> None:
    """What is computed of an image as large as the crop."""
    batch = 1 if key == "conv_feature" else 2
    img = inputs.image(model.crop, model.crop, batch)
    if key == "conv_feature":
        assert relative(model.conv_encoder(img)[0][:, ::8], expected) <= FORWARD, key
    elif found := re.fullmatch(r"features_(\d)", key):
        assert relative(model.maps(img)[int(found[1])][:, ::8], expected) <= FORWARD, key
    elif key in ("need_fp_clean", "need_fp_perturbed"):
        logits = model(img, lambda maps: [torch.cat((x, x * inputs.feature_drop(0, i, len(x), x.shape[1]))) for i, x in enumerate(maps)])
        assert relative(logits.chunk(2)[key == "need_fp_perturbed"], expected) <= FORWARD, key
    else:
        assert key.startswith("gradnorm/"), f"{key}: unknown"
        assert abs(gradients(model, img)[key.removeprefix("gradnorm/")] - expected) <= GRADIENT * expected, key


def gradients(model: VLM, img: torch.Tensor) -> dict[str, float]:
    """Norms of the gradients of mean(logits^2)."""
    if all(p.grad is None for p in model.parameters()):
        with torch.enable_grad():
            model(img).square().mean().backward()
    return {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}


def given_batch(inputs: ModuleType, it: int, channels: tuple[int, ...]) -> Batch:
    x, mask, weak, strong1, strong2, ignore, box1, box2 = inputs.semi_batch(it)
    second = Batch(x[:0], mask[:0], *inputs.other_batch(it))
    drop = torch.cat([inputs.feature_drop(it, level, 2 * len(x), width)[:, :, 0, 0] for level, width in enumerate(channels)], dim=1)
    return Batch(x, mask, weak, strong1, strong2, ignore, box1, box2, drop, second=second)


def train(inputs: ModuleType, encoder: str, steps: int, **keys: Any) -> tuple[Learner, State, list[State]]:
    """Runs the updates. Returns the learner, the weights it started from and the stats of each step."""
    settings: dict[str, Any] = {"lr": 1e-5, "lr_multi": 10.0, "conf_thresh": 0.6, "crop_size": 70} | keys
    model = filled(inputs, encoder, settings["crop_size"], "fill_semivl")
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    cfg = Settings(dataset="", data_root="", backbone=ENCODERS[encoder], epochs=1, batch_size=2, **settings)
    guide = make_guide(inputs, encoder)
    method = replace(METHOD, guided=lambda student, cfg, hollow: Teacher(student, guide))
    learner = Learner(cfg, model, method, steps)
    return learner, initial, [learner.update([given_batch(inputs, it, model.channels)]) for it in range(steps)]


def check_trajectory(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    keys = {key.removeprefix("config/"): value.item() for key, value in numbers.items() if key.startswith("config/")}
    changes = {"lr": keys["lr"] * keys.pop("backbone_lr_mult", 1.0), "conf_thresh": keys["conf_thresh"], "crop_size": keys["crop"]}
    if "pixelavg" in name:
        changes["conf_mode"] = "pixelavg"
    learner, initial, stats = train(inputs, encoder_of(name), len(numbers["scalar/train/loss_all"]), **changes)
    for key in (key for key in numbers if key.startswith("scalar/train/")):
        found = np.array([float(row[key.removeprefix("scalar/train/")]) for row in stats])
        np.testing.assert_allclose(found[:2], numbers[key][:2], rtol=EXACT, atol=PIXELS, err_msg=key)
        scale = np.maximum(numbers[key], numbers[key].mean())
        assert (np.abs(found - numbers[key]) <= LATER * scale).all(), (key, found, numbers[key])
    check_weights(learner.student, initial, numbers)


def check_weights(model: Segmenter, initial: State, numbers: Numbers) -> None:
    final = model.state_dict()
    for key, expected in numbers.items():
        kind, _, name = key.removeprefix("model/").partition("/")
        # the same for all classes: its gradient is rounding, which AdamW turns into steps
        if name == "decode_head.head.bias" or not key.startswith("model/"):
            continue
        if kind == "delta_norm":
            # so is that of the keys' biases
            tolerance = 4 * LATER if name.endswith("in_proj_bias") else LATER
            assert abs(float((final[name] - initial[name]).norm()) - expected) <= tolerance * expected, key
        else:
            assert kind == "head16", f"{key}: unknown"
            assert relative(final[name].flatten()[: expected.size], expected) <= LATER, key


@torch.no_grad()
def check_evaluation(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    """Class ids, and every 7th value of the scores; crop 128 unless the file says otherwise."""
    crop = int(numbers.get("config/crop", np.array(CROPS[encoder_of(name)])))
    model = filled(inputs, encoder_of(name), crop)
    seen = 0
    for key, expected in numbers.items():
        parts = re.match(r"(slide|cut_windows)_(\d+)x(\d+)(?:_to_(\d+)x(\d+))?", key)
        if parts is None:
            assert key.startswith("config/") or key in ("nclass", "crop"), f"{key}: unknown"
            continue
        height, width, *size = (int(side) for side in parts.groups()[1:] if side)
        prediction = Prediction("slide", crop) if parts[1] == "slide" else Prediction("sliding_window", crop, "cut")
        img = inputs.image(height, width, 1)
        scores, resized = prediction.class_scores(model, img), prediction.class_scores(model, img, size or (height, width))
        if expected.dtype.kind in "iu":
            # rounding may turn a pixel whose two best classes are equal to six digits
            assert (resized.argmax(dim=1).numpy().ravel() != expected.ravel()).mean() <= 1e-3, key
        else:
            every = [part for x in (scores, resized) for part in (x[..., ::7, ::7], x.flatten()[::7]) if part.numel() == expected.size]
            assert every, f"{key}: found {expected.shape} values"
            assert min(relative(part.reshape(expected.shape), expected) for part in every) <= FORWARD, key
        seen += 1
    assert seen, f"{name}: expected keys slide_<H>x<W>_to_<h>x<w> or cut_windows_<H>x<W>, found {', '.join(numbers)}"


def check_resize(name: str, numbers: Numbers, inputs: ModuleType) -> None:
    """`<train|val>_<H>x<W>[_<ratio>]_<shape|every<n>|mask_every<n>>` of noise: frame 2048 x 512 times the ratio, or the short side 512."""
    for key, expected in numbers.items():
        parts = re.fullmatch(r"(train|val)_(\d+)x(\d+)_(?:([\d.]+)_)?(shape|every(\d+)|mask_every(\d+))", key)
        assert parts, f"{key}: unknown"
        height, width, ratio = int(parts[2]), int(parts[3]), float(parts[4] or 1)
        rng = np.random.default_rng(height * 1000 + width)
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        mask = rng.integers(0, 21, (height, width)).astype(np.uint8)
        frame = int(2048 * ratio), int(512 * ratio)
        cols, rows = fitted(width, height, frame) if parts[1] == "train" else with_short_side(width, height, 512)
        if parts[5] == "shape":
            assert (rows, cols) == tuple(expected), key
        elif parts[6]:
            assert np.array_equal(resize_image(image, cols, rows).ravel()[:: int(parts[6])], expected), key
        else:
            found = mask[nearest_index(height, rows)][:, nearest_index(width, cols)]
            assert np.array_equal(found.ravel()[:: int(parts[7])], expected), key
