"""Weights under other programs' names: recognised, converted, loaded whole, or refused.

The key maps are written here a second time, from our names to theirs, as renamings of whole state dicts.
"""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from model.backbone.clip import CLIP
from model.backbone.dinov2 import DINOv2
from model.backbone.mit import MiT
from model.backbone.resnet import ResNetV1cStage
from model.encoder import Encoder
from model.foreign import OtherFormatError, State
from model.formats import recognise
from tests.model.test_dinov3 import CONVNEXT, VITS, random_


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    """Every pair replaces its regular expression in all names, one after the other."""
    for pattern, replacement in pairs:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    return state


def split(state: State, name: str, new: str) -> State:
    """Tensors called `name` (a suffix) become equal pieces along the first dimension, called by the words of `new`; `-` drops one."""
    out: State = {}
    for key, value in state.items():
        words = new.split()
        if not key.endswith(name):
            out[key] = value
            continue
        pieces = zip(words, value.chunk(len(words)), strict=True)
        out |= {key.removesuffix(name) + word: piece.clone() for word, piece in pieces if word != "-"}
    return out


def without(state: State, *suffixes: str) -> State:
    return {name: value for name, value in state.items() if not name.endswith(suffixes)}


def hugging_face_dinov2(state: State) -> State:
    state = split(
        state, "attn.qkv.weight", "attention.attention.query.weight attention.attention.key.weight attention.attention.value.weight"
    )
    state = split(state, "attn.qkv.bias", "attention.attention.query.bias attention.attention.key.bias attention.attention.value.bias")
    return renamed(
        state,
        (r"^norm\.", "layernorm."),
        (r"^blocks", "encoder.layer"),
        (r"attn\.proj", "attention.output.dense"),
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
        ("w12", "weights_in"),
        ("w3", "weights_out"),
        ("^pos_embed", "position_embeddings"),
        (r"^patch_embed\.proj", "patch_embeddings.projection"),
        (r"^(cls_token|mask_token|register_tokens|position_emb|patch_emb)", r"embeddings.\1"),
    )


def transformers_5_dinov2(state: State) -> State:
    state = split(hugging_face_dinov2(state), "weights_in.weight", "gate_proj.weight up_proj.weight")
    state = split(state, "weights_in.bias", "gate_proj.bias up_proj.bias")
    return renamed(
        state,
        (r"attention\.attention\.(query|key|value)", r"attention.\1"),
        (r"attention\.(.)(uery|ey|alue)\.", r"attention.\1_proj."),
        (r"attention\.output\.dense", "attention.o_proj"),
        ("weights_out", "down_proj"),
    )


def hugging_face_dinov3(state: State) -> State:
    state = split(state, "attn.qkv.weight", "attention.q_proj.weight attention.k_proj.weight attention.v_proj.weight")
    state = split(state, "attn.qkv.bias", "attention.q_proj.bias - attention.v_proj.bias")
    state["mask_token"] = state["mask_token"][None]
    return renamed(
        state,
        (r"^blocks\.", "layer."),
        (r"attn\.proj", "attention.o_proj"),
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
        (r"\.w1\.", ".gate_proj."),
        (r"\.(w2|fc1)\.", ".up_proj."),
        (r"\.(w3|fc2)\.", ".down_proj."),
        ("storage_tokens", "register_tokens"),
        (r"^patch_embed\.proj", "patch_embeddings"),
        (r"^(cls_token|mask_token|register_tokens|patch_emb)", r"embeddings.\1"),
    )


def transformers_5_dinov3(state: State) -> State:
    return renamed(hugging_face_dinov3(state), (r"^layer\.", "model.layer."))


def hugging_face_convnext(state: State) -> State:
    return renamed(
        state,
        (r"^norm\.", "layer_norm."),
        (r"^stages\.(\d)\.(\d+)\.norm\.", r"stages.\1.\2.layer_norm."),
        (r"^stages\.(\d)\.", r"stages.\1.layers."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample_layers."),
        ("dwconv", "depthwise_conv"),
        ("pwconv", "pointwise_conv"),
    )


def transformers_5_convnext(state: State) -> State:
    return renamed(hugging_face_convnext(state), ("^stages", "model.stages"))


def timm_dinov2(state: State) -> State:
    state = renamed(without(state, "mask_token"), ("w12", "fc1"), ("w3", "fc2"), ("register_tokens", "reg_token"))
    if "reg_token" in state:  # the class token's position is part of it
        state["cls_token"], state["pos_embed"] = state["cls_token"] + state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    return state


def timm_dinov3(state: State) -> State:
    state = split(without(state, "mask_token"), "qkv.bias", "q_bias - v_bias")
    state = renamed(state, ("storage_tokens", "reg_token"), (r"ls([12])\.gamma", r"gamma_\1"))
    return renamed(state, (r"\.w1\.", ".fc1_g."), (r"\.w2\.", ".fc1_x."), (r"\.w3\.", ".fc2."))


def timm_dinov3_without_bias(state: State) -> State:
    return without(timm_dinov3(state), "q_bias", "v_bias")


def timm_convnext(state: State) -> State:
    return renamed(
        state,
        (r"^norm\.", "head.norm."),
        (r"^stages\.(\d)\.", r"stages.\1.blocks."),
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        ("dwconv", "conv_dw"),
        ("pwconv", "mlp.fc"),
    )


def metas_vit(state: State) -> State:
    masks = {f"{name}_mask": torch.ones(192) for name in state if name.endswith("qkv.bias")}
    for mask in masks.values():
        mask[64:128] = 0
    count = 8 if masks else 16  # a quarter of the head's width
    return {**state, **masks, "rope_embed.periods": 100 ** (torch.arange(count) / count)}


def metas_convnext(state: State) -> State:
    return {**state, "norms.3.weight": state["norm.weight"], "norms.3.bias": state["norm.bias"]}


def hugging_face_mit(state: State) -> State:
    """Stages counted from 0, keys and values apart."""
    out: State = {}
    for name, value in state.items():
        part, i, rest = re.fullmatch(r"(patch_embed|block|norm)(\d)\.(.+)", name).groups()  # type: ignore[union-attr]
        stage = f"encoder.{ {'patch_embed': 'patch_embeddings', 'norm': 'layer_norm'}.get(part, part) }.{int(i) - 1}."
        if part == "patch_embed":
            rest = rest.replace("norm", "layer_norm")
        elif part == "block":
            attention = (("norm", "self.layer_norm"), ("proj", "output.dense"), ("q.", "self.query."), ("sr", "self.sr"))
            for old, new in (*((f"attn.{a}", f"attention.{b}") for a, b in attention), ("mlp.fc", "mlp.dense")):
                rest = rest.replace(old, new)
            rest = re.sub(r"\.norm(\d)", r".layer_norm_\1", rest)
            if "attn.kv" in rest:
                for half, tensor in zip(("key", "value"), value.chunk(2), strict=True):
                    out[stage + rest.replace("attn.kv", f"attention.self.{half}")] = tensor
                continue
        out[stage + rest] = value
    return out


def openai_clip(state: State) -> State:
    """In half precision, beside the text encoder and three numbers."""
    out = renamed(
        state,
        (r"^cls_token", "class_embedding"),
        (r"^pos_embed", "positional_embedding"),
        (r"^patch_embed\.projection", "conv1"),
        (r"^ln0", "ln_pre"),
        (r"^ln1", "ln_post"),
        (r"^layers\.(\d+)\.", r"transformer.resblocks.\1."),
        (r"\.ln(\d)\.", r".ln_\1."),
        (r"attn\.attn", "attn"),
        (r"ffn\.layers\.0\.0", "mlp.c_fc"),
        (r"ffn\.layers\.1", "mlp.c_proj"),
        (r"^proj\.weight", "proj"),
    )
    out["proj"] = out["proj"][:, :, 0, 0].T.contiguous()
    out["class_embedding"], out["positional_embedding"] = out["class_embedding"][0, 0], out["positional_embedding"][0]
    text = {
        "transformer.resblocks.0.ln_1.weight": torch.ones(4),
        "token_embedding.weight": torch.ones(9, 4),
        "text_projection": torch.ones(4),
    }
    text |= {"positional_embedding": torch.ones(7, 4), "ln_final.bias": torch.ones(4), "logit_scale": torch.ones(())}
    numbers = {name: torch.tensor(224) for name in ("input_resolution", "context_length", "vocab_size")}
    return {f"visual.{name}": value for name, value in out.items()} | text | numbers


def hugging_face_clip(state: State) -> State:
    for leaf in ("weight", "bias"):
        state = split(state, f"attn.attn.in_proj_{leaf}", " ".join(f"self_attn.{part}_proj.{leaf}" for part in ("q", "k", "v")))
    out = renamed(
        state,
        (r"^cls_token", "embeddings.class_embedding"),
        (r"^pos_embed", "embeddings.position_embedding.weight"),
        (r"^patch_embed\.projection", "embeddings.patch_embedding"),
        (r"^ln0", "pre_layrnorm"),
        (r"^ln1", "post_layernorm"),
        (r"^layers", "encoder.layers"),
        (r"\.ln(\d)\.", r".layer_norm\1."),
        (r"attn\.attn\.out", "self_attn.out"),
        (r"ffn\.layers\.0\.0", "mlp.fc1"),
        (r"ffn\.layers\.1", "mlp.fc2"),
    )
    projection = out.pop("proj.weight")[:, :, 0, 0]
    text = {"text_model.final_layer_norm.weight": torch.ones(4), "text_projection.weight": torch.ones(4, 4), "logit_scale": torch.ones(())}
    out["embeddings.position_ids"] = torch.arange(4)[None]
    return {f"vision_model.{name}": value for name, value in out.items()} | text | {"visual_projection.weight": projection}


def whole_resnet(state: State) -> State:
    """With the stages that are not used, without counters."""
    later = {"layer2.0.conv1.weight": torch.ones(3), "layer4.2.bn3.running_var": torch.ones(3), "fc.weight": torch.ones(3)}
    return without(state, "num_batches_tracked") | later


def same(state: State) -> State:
    return state


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "dinov2": partial(DINOv2, 64, 2, 2, (0, 0, 1, 1)),
    "dinov2 swiglu": partial(DINOv2, 64, 2, 2, (0, 0, 1, 1), 96),
    "dinov2 reg": partial(DINOv2, 64, 2, 2, (0, 0, 1, 1), registers=4),
    **{f"dinov3 {kind}": build for kind, build in VITS.items()},
    "convnext": CONVNEXT,
    "clip": partial(CLIP, 64, 2, 2, (0,), 4),
    "resnet v1c": ResNetV1cStage,
    "mit": partial(MiT, (8, 16, 20, 32), (1, 2, 1, 1)),
}
LAYOUTS: list[tuple[str, Callable[[State], State], str]] = [
    *((kind, layout, title) for kind in ("dinov2", "dinov2 swiglu", "dinov2 reg") for layout, title in (
        (same, "Meta's DINOv2"),
        (hugging_face_dinov2, "Hugging Face's DINOv2"),
        (transformers_5_dinov2, "Transformers 5's DINOv2"),
        (timm_dinov2, "timm's DINOv2"),
    )),
    *((kind, layout, title) for kind in ("dinov3 mlp", "dinov3 swiglu", "dinov3 no bias") for layout, title in (
        (same, "Meta's DINOv3"),
        (metas_vit, "Meta's DINOv3"),
        (hugging_face_dinov3, "Hugging Face's DINOv3"),
        (transformers_5_dinov3, "Transformers 5's DINOv3"),
        (timm_dinov3, "timm's DINOv3 with biases (qkvb)"),
    )),
    ("dinov3 mlp", timm_dinov3_without_bias, "timm's DINOv3"),
    ("convnext", same, "Meta's DINOv3 ConvNeXt"),
    ("convnext", metas_convnext, "Meta's DINOv3 ConvNeXt"),
    ("convnext", hugging_face_convnext, "Hugging Face's DINOv3 ConvNeXt"),
    ("convnext", transformers_5_convnext, "Transformers 5's DINOv3 ConvNeXt"),
    ("convnext", timm_convnext, "timm's ConvNeXt"),
    ("clip", same, "MaskCLIP's"),
    ("clip", openai_clip, "OpenAI's CLIP"),
    ("clip", hugging_face_clip, "Hugging Face's CLIP"),
    ("resnet v1c", whole_resnet, "mmsegmentation's ResNet v1c"),
    ("mit", same, "SegFormer's MiT"),
    ("mit", hugging_face_mit, "Hugging Face's MiT"),
]  # fmt: skip
# a text encoder, later stages, a classifier
OTHER_PARTS = re.compile(r"^(text_|token_|ln_final|logit_|positional_|transformer\.|input_|context_|vocab_|layer[24]|fc\.)|position_ids")
IDS = [f"{kind}, {layout.__name__}" for kind, layout, _ in LAYOUTS]


def image(encoder: Encoder) -> Tensor:
    return torch.randn(1, 3, 70, 84) if isinstance(encoder, DINOv2) else torch.randn(1, 3, 64, 96)


@pytest.mark.parametrize(("kind", "layout", "title"), LAYOUTS, ids=IDS)
@torch.no_grad()
def test_the_converted_weights_compute_the_same(kind: str, layout: Callable[[State], State], title: str) -> None:
    theirs = random_(ENCODERS[kind]())
    if layout is timm_dinov3_without_bias:
        for name, parameter in theirs.named_parameters():
            parameter.mul_(0 if name.endswith("qkv.bias") else 1)
    found, state = recognise(ours := ENCODERS[kind]().eval(), layout(theirs.eval().state_dict()))
    ours.load_state_dict(state)
    img = image(ours)
    assert found.title.startswith(title)
    for x, y in zip(ours(img), theirs(img), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "layout", "title"), LAYOUTS, ids=IDS)
def test_no_file_is_loaded_in_part(kind: str, layout: Callable[[State], State], title: str) -> None:
    """Each tensor in turn is missing, has another shape or another name: all are refused, with the nearest format and that name."""
    encoder = ENCODERS[kind]()
    weights = layout(encoder.state_dict())
    for name in weights:
        if re.search(r"(blocks|resblocks|layer|layers|layer1|stages)\.[1-9]", name) or OTHER_PARTS.search(name):
            continue  # like the first, or not of the encoder
        value = weights[name]
        edits = [{**weights, name: torch.cat((value, value))}, {**weights, f"{name}.x": value}]
        constant = re.search(r"periods|bias_mask|norms\.3", name)  # which may be absent
        if not constant and not (layout is same and name == "mask_token"):  # which timm's DINOv2, otherwise the same as Meta's, lacks
            edits.append({key: tensor for key, tensor in weights.items() if key != name})
        for edited in edits:
            with pytest.raises(OtherFormatError, match=f"nearest format: .*{re.escape(name)}"):
                recognise(encoder, edited)


def test_constants_with_other_values_are_refused() -> None:
    encoder = ENCODERS["dinov3 mlp"]()
    for name in ("rope_embed.periods", "blocks.1.attn.qkv.bias_mask"):
        for value in (2.0, float("nan")):
            with pytest.raises(OtherFormatError, match=name):
                recognise(encoder, {**metas_vit(encoder.state_dict()), name: torch.full_like(metas_vit(encoder.state_dict())[name], value)})
    other = ENCODERS["convnext"]()
    with pytest.raises(OtherFormatError, match=r"norms\.3\.bias"):
        recognise(other, {**metas_convnext(other.state_dict()), "norms.3.bias": torch.ones(32)})


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


HEADS = {"dino_head.mlp.0.weight": torch.ones(2), "ibot_head.last_layer.weight": torch.ones(2)}
AROUND: dict[str, Callable[[State, State], dict]] = {
    "module.": lambda new, old: prefixed(new, "module."),
    "compiled": lambda new, old: prefixed(new, "_orig_mod."),
    "compiled blocks": lambda new, old: {name.replace("attn.", "_orig_mod.attn."): value for name, value in new.items()},
    "model.backbone.": lambda new, old: prefixed(new, "model.backbone."),
    "LightlyTrain": lambda new, old: prefixed(new, "_model."),
    "state_dict": lambda new, old: {"state_dict": prefixed(new, "module.backbone."), "epoch": 3, "optimizer": {"state": {}}},
    "teacher with heads": lambda new, old: {"teacher": prefixed(new, "backbone.") | HEADS},
    "teacher and student": lambda new, old: {"student": prefixed(old, "module.backbone."), "teacher": prefixed(new, "backbone.")},
    "teacher. and student.": lambda new, old: prefixed(old, "student.backbone.") | prefixed(new, "teacher.backbone."),
    "our own run": lambda new, old: {
        "model": old,
        "model_ema": prefixed(new, "module.backbone.") | {"module.head.projects.0.weight": torch.ones(2)},
    },
}


@pytest.mark.parametrize("kind", ["dinov2", "dinov3 mlp", "convnext"])
@pytest.mark.parametrize("around", AROUND)
def test_wrappers_and_prefixes(kind: str, around: str) -> None:
    new, old = (random_(ENCODERS[kind]()).state_dict() for _ in range(2))
    old = {name: value + 1 for name, value in old.items()}
    _, found = recognise(ENCODERS[kind](), AROUND[around](new, old))
    assert all(torch.equal(value, new[name]) for name, value in found.items())


def test_blocks_in_chunks() -> None:
    new = random_(ENCODERS["dinov2"]()).state_dict()
    chunks = renamed(new, (r"^blocks\.(\d+)\.", r"blocks.0.\1."))
    _, found = recognise(ENCODERS["dinov2"](), prefixed(chunks, "backbone."))
    assert all(torch.equal(value, new[name]) for name, value in found.items())


STRANGE: list[tuple[dict, str]] = [
    ({"epoch": 3, "config": {"lr": 1}}, "it has no weights, only epoch, config"),
    ({"backbone.cls_token": torch.ones(1), "neck.weight": torch.ones(1)}, "it has no 'cls_token'"),
    ({}, "it has no 'cls_token'"),
    ({"teacher": {"loss": 1.0}}, "it has no weights, only loss"),
    ({0: torch.ones(1)}, "it has no 'cls_token'"),
    ({"cls_token": torch.ones(1, 1, 64, dtype=torch.int8)}, "'cls_token' is torch.int8, expected floating-point numbers"),
]


@pytest.mark.parametrize(("state", "words"), STRANGE, ids=[words for _, words in STRANGE])
def test_strange_files(state: dict, words: str) -> None:
    with pytest.raises(OtherFormatError, match=re.escape(words)):
        recognise(ENCODERS["dinov3 mlp"](), state)
