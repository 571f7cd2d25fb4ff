"""The names of encoder weights in other programs: the rules of each format, which is recognised by its names (model/foreign.py)."""

import re
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from model.backbone.clip import CLIP
from model.backbone.dinov2 import DINOv2
from model.backbone.dinov3 import DINOv3
from model.backbone.dinov3_convnext import DINOv3ConvNeXt
from model.backbone.mit import MiT
from model.backbone.resnet import ResNet, ResNetV1cStage
from model.backbone.timm_model import TimmEncoder
from model.backbone.xception import Xception
from model.foreign import Format, OtherFormatError, State, unwrap


def _metas_vit(encoder: DINOv3, state: State) -> dict[str, Tensor | None]:
    """The constants that DINOv3's files hold for each layer; a norm for local crops that only the pretraining of some has used."""
    return {**encoder.constants(), **dict.fromkeys(encoder.unused)}


def _metas_convnext(encoder: nn.Module, state: State) -> dict[str, Tensor | None]:
    """The final norm stands in Meta's files under a second name."""
    return {f"norms.3.{leaf}": state.get(f"norm.{leaf}") for leaf in ("weight", "bias")}


# BatchNorm's counters, which nothing reads: they start at 0, and files of old PyTorch versions have none
_COUNTERS = ((r".+\.num_batches_tracked", "0"),)


def _beside_resnet(encoder: nn.Module, state: State) -> dict[str, Tensor | None]:
    """The counters of BatchNorm, and the classifier of ImageNet."""
    return dict.fromkeys(["fc.weight", "fc.bias", *(name for name in state if name.endswith("num_batches_tracked"))])


def _beside_xception(encoder: nn.Module, state: State) -> dict[str, Tensor | None]:
    """The counters of BatchNorm and of Xception's training."""
    return dict.fromkeys(name for name in state if any(part in name for part in ("itr", "tmp", "track")))


def _beside_timm(encoder: TimmEncoder, state: State) -> dict[str, Tensor | None]:
    """The tensors that only timm's whole model has: its head, and layers that no map depends on."""
    return dict.fromkeys(encoder.pruned)


def _beside_clip(encoder: nn.Module, state: State) -> dict[str, Tensor | None]:
    """The text encoder, and the numbers that say how it is built."""
    text = r"(text_model|transformer|token_embedding|ln_final)\..+|positional_embedding|text_projection(\.weight)?|logit_scale|logit_bias"
    numbers = r"input_resolution|context_length|vocab_size|attn_mask|vision_model\.embeddings\.position_ids"
    return dict.fromkeys(name for name in state if re.fullmatch(f"{text}|{numbers}", name))


def _beside_stage(encoder: nn.Module, state: State) -> dict[str, Tensor | None]:
    """The counters of BatchNorm, later stages, and the classifier of ImageNet."""
    later = ("layer2.", "layer3.", "layer4.", "fc.", "head.")
    return dict.fromkeys(name for name in state if name.startswith(later) or name.endswith("num_batches_tracked"))


def _beside_mit(encoder: nn.Module, state: State) -> dict[str, Tensor | None]:
    """The classifier of ImageNet."""
    return dict.fromkeys(("head.weight", "head.bias"))


def _hugging_face_dinov2(attention: str, project: str, swiglu: str, out: str) -> tuple[tuple[str, str], ...]:
    """The rules for DINOv2 of Transformers, whose version 5 names the tensors of a block otherwise than the published files."""
    qkv = " + ".join(rf"encoder.layer.\1.attention.{part}.\2" for part in attention.split())
    halves = " + ".join(rf"encoder.layer.\1.mlp.{part}.\2" for part in swiglu.split())
    return (
        (r"cls_token|mask_token|register_tokens", r"embeddings.\g<0>"),
        (r"pos_embed", "embeddings.position_embeddings"),
        (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
        (r"blocks\.(\d+)\.attn\.qkv\.(\w+)", qkv),
        (r"blocks\.(\d+)\.attn\.proj\.(\w+)", rf"encoder.layer.\1.attention.{project}.\2"),
        (r"blocks\.(\d+)\.ls(\d)\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
        (r"blocks\.(\d+)\.mlp\.w12\.(\w+)", halves),
        (r"blocks\.(\d+)\.mlp\.w3\.(\w+)", rf"encoder.layer.\1.mlp.{out}.\2"),
        (r"blocks\.(.+)", r"encoder.layer.\1"),
        (r"norm\.(\w+)", r"layernorm.\1"),
    )


def _hugging_face_dinov3(start: str) -> tuple[tuple[str, str], ...]:
    """The rules for DINOv3 of Transformers; its blocks begin with `start` (empty in the published files). Keys have no bias."""
    layer = rf"{start}layer.\1."
    return (
        (r"cls_token|mask_token", r"embeddings.\g<0>"),
        (r"storage_tokens", "embeddings.register_tokens"),
        (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.\1"),
        (r"blocks\.(\d+)\.attn\.qkv\.weight", " + ".join(f"{layer}attention.{part}_proj.weight" for part in "qkv")),
        (r"blocks\.(\d+)\.attn\.qkv\.bias", f"{layer}attention.q_proj.bias + 0 + {layer}attention.v_proj.bias"),
        (r"blocks\.(\d+)\.attn\.proj\.(\w+)", rf"{layer}attention.o_proj.\2"),
        (r"blocks\.(\d+)\.ls(\d)\.gamma", rf"{layer}layer_scale\2.lambda1"),
        (r"blocks\.(\d+)\.mlp\.w1\.(\w+)", rf"{layer}mlp.gate_proj.\2"),
        (r"blocks\.(\d+)\.mlp\.(?:w2|fc1)\.(\w+)", rf"{layer}mlp.up_proj.\2"),
        (r"blocks\.(\d+)\.mlp\.(?:w3|fc2)\.(\w+)", rf"{layer}mlp.down_proj.\2"),
        (r"blocks\.(\d+)\.(.+)", rf"{layer}\2"),
    )


def _hugging_face_convnext(start: str) -> tuple[tuple[str, str], ...]:
    layer = rf"{start}stages.\1.layers.\2."
    return (
        (r"downsample_layers\.(\d)\.(.+)", rf"{start}stages.\1.downsample_layers.\2"),
        (r"stages\.(\d)\.(\d+)\.dwconv\.(\w+)", rf"{layer}depthwise_conv.\3"),
        (r"stages\.(\d)\.(\d+)\.norm\.(\w+)", rf"{layer}layer_norm.\3"),
        (r"stages\.(\d)\.(\d+)\.pwconv(.+)", rf"{layer}pointwise_conv\3"),
        (r"stages\.(\d)\.(\d+)\.gamma", f"{layer}gamma"),
        (r"norm\.(\w+)", r"layer_norm.\1"),
    )


_TIMM_VIT = (
    (r"mask_token", "0"),
    (r"register_tokens|storage_tokens", "reg_token"),
    (r"blocks\.(\d+)\.mlp\.w12\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks\.(\d+)\.mlp\.w1\.(\w+)", r"blocks.\1.mlp.fc1_g.\2"),
    (r"blocks\.(\d+)\.mlp\.w2\.(\w+)", r"blocks.\1.mlp.fc1_x.\2"),
    (r"blocks\.(\d+)\.mlp\.w3\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
)
_TIMM_DINOV3 = (*_TIMM_VIT, (r"blocks\.(\d+)\.ls(\d)\.gamma", r"blocks.\1.gamma_\2"))
_TIMM_CONVNEXT = (
    (r"downsample_layers\.0\.(.+)", r"stem.\1"),
    (r"downsample_layers\.(\d)\.(.+)", r"stages.\1.downsample.\2"),
    (r"stages\.(\d)\.(\d+)\.dwconv\.(\w+)", r"stages.\1.blocks.\2.conv_dw.\3"),
    (r"stages\.(\d)\.(\d+)\.pwconv(.+)", r"stages.\1.blocks.\2.mlp.fc\3"),
    (r"stages\.(\d)\.(\d+)\.(.+)", r"stages.\1.blocks.\2.\3"),
    (r"norm\.(\w+)", r"head.norm.\1"),
)

_OPENAI_CLIP = (
    (r"cls_token", "visual.class_embedding"),
    (r"pos_embed", "visual.positional_embedding"),
    (r"patch_embed\.projection\.weight", "visual.conv1.weight"),
    (r"layers\.(\d+)\.ln(\d)\.(\w+)", r"visual.transformer.resblocks.\1.ln_\2.\3"),
    (r"layers\.(\d+)\.attn\.attn\.(.+)", r"visual.transformer.resblocks.\1.attn.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)", r"visual.transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.1\.(\w+)", r"visual.transformer.resblocks.\1.mlp.c_proj.\2"),
    (r"ln0\.(\w+)", r"visual.ln_pre.\1"),
    (r"ln1\.(\w+)", r"visual.ln_post.\1"),
    (r"proj\.weight", "visual.proj^T"),
)
_CLIP_LAYER = r"vision_model.encoder.layers.\1."
_HUGGING_FACE_CLIP = (
    (r"cls_token", "vision_model.embeddings.class_embedding"),
    (r"pos_embed", "vision_model.embeddings.position_embedding.weight"),
    (r"patch_embed\.projection\.weight", "vision_model.embeddings.patch_embedding.weight"),
    (r"layers\.(\d+)\.ln(\d)\.(\w+)", rf"{_CLIP_LAYER}layer_norm\2.\3"),
    (r"layers\.(\d+)\.attn\.attn\.in_proj_(\w+)", " + ".join(rf"{_CLIP_LAYER}self_attn.{part}_proj.\2" for part in "qkv")),
    (r"layers\.(\d+)\.attn\.attn\.(.+)", rf"{_CLIP_LAYER}self_attn.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)", rf"{_CLIP_LAYER}mlp.fc1.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.1\.(\w+)", rf"{_CLIP_LAYER}mlp.fc2.\2"),
    (r"ln0\.(\w+)", r"vision_model.pre_layrnorm.\1"),
    (r"ln1\.(\w+)", r"vision_model.post_layernorm.\1"),
    (r"proj\.weight", "visual_projection.weight"),
)


def _hugging_face_mit() -> tuple[tuple[str, str], ...]:
    """The rules for SegFormer of Transformers, which counts stages from 0."""
    rules = []
    for ours, theirs in ((i, i - 1) for i in range(1, 5)):
        block, layer = rf"block{ours}\.(\d+)\.", rf"encoder.block.{theirs}.\1."
        attention = rf"{layer}attention.self."
        rules += [
            (rf"patch_embed{ours}\.proj\.(\w+)", rf"encoder.patch_embeddings.{theirs}.proj.\1"),
            (rf"patch_embed{ours}\.norm\.(\w+)", rf"encoder.patch_embeddings.{theirs}.layer_norm.\1"),
            (rf"{block}norm(\d)\.(\w+)", rf"{layer}layer_norm_\2.\3"),
            (rf"{block}attn\.q\.(\w+)", rf"{attention}query.\2"),
            (rf"{block}attn\.kv\.(\w+)", rf"{attention}key.\2 + {attention}value.\2"),
            (rf"{block}attn\.sr\.(\w+)", rf"{attention}sr.\2"),
            (rf"{block}attn\.norm\.(\w+)", rf"{attention}layer_norm.\2"),
            (rf"{block}attn\.proj\.(\w+)", rf"{layer}attention.output.dense.\2"),
            (rf"{block}mlp\.fc(\d)\.(\w+)", rf"{layer}mlp.dense\2.\3"),
            (rf"{block}mlp\.dwconv\.(.+)", rf"{layer}mlp.dwconv.\2"),
            (rf"norm{ours}\.(\w+)", rf"encoder.layer_norm.{theirs}.\1"),
        ]
    return tuple(rules)


def _efficientnet_lite(repeats: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    """The rules for the package efficientnet-lite-pytorch, which numbers blocks across stages. repeats: blocks of each stage."""
    parts = "conv_pw=_expand_conv bn1=_bn0 conv_dw=_depthwise_conv bn2=_bn1 conv_pwl=_project_conv bn3=_bn2"
    first = "conv_dw=_depthwise_conv bn1=_bn1 conv_pw=_project_conv bn2=_bn2"  # the first stage does not expand
    rules = [(r"net\.conv_stem\.(\w+)", r"_conv_stem.\1"), (r"net\.bn1\.(\w+)", r"_bn0.\1")]
    for count, (stage, i) in enumerate((stage, i) for stage, repeat in enumerate(repeats) for i in range(repeat)):
        for pair in (parts if stage else first).split():
            ours, theirs = pair.split("=")
            rules.append((rf"net\.blocks\.{stage}\.{i}\.{ours}\.(\w+)", rf"_blocks.{count}.{theirs}.\1"))
    return tuple(rules)


def _beside_efficientnet_lite(encoder: nn.Module, state: State) -> dict[str, Tensor | None]:
    """The layers after the last map, and the classifier of ImageNet."""
    return dict.fromkeys(name for name in state if name.startswith(("_conv_head.", "_bn1.", "_fc.")))


FORMATS: dict[type[nn.Module], tuple[Format, ...]] = {
    DINOv2: (
        Format("Meta's DINOv2"),
        Format("Hugging Face's DINOv2", _hugging_face_dinov2(
            "attention.query attention.key attention.value", "output.dense", "weights_in", "weights_out")),
        Format("Transformers 5's DINOv2", _hugging_face_dinov2("q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj")),
        # its class token includes the position
        Format("timm's DINOv2 with registers", ((r"pos_embed", "0 + pos_embed"), *_TIMM_VIT), needs="register_tokens"),
        Format("timm's DINOv2", _TIMM_VIT),
    ),
    DINOv3: (
        Format("Meta's DINOv3", beside=_metas_vit),
        Format("Hugging Face's DINOv3", _hugging_face_dinov3("")),
        Format("Transformers 5's DINOv3", _hugging_face_dinov3("model.")),
        Format("timm's DINOv3 with biases (qkvb)", (
            (r"blocks\.(\d+)\.attn\.qkv\.bias", r"blocks.\1.attn.q_bias + 0 + blocks.\1.attn.v_bias"), *_TIMM_DINOV3)),
        Format("timm's DINOv3", ((r"blocks\.(\d+)\.attn\.qkv\.bias", "0"), *_TIMM_DINOV3)),
    ),
    DINOv3ConvNeXt: (
        Format("Meta's DINOv3 ConvNeXt", beside=_metas_convnext),
        Format("Hugging Face's DINOv3 ConvNeXt", _hugging_face_convnext("")),
        Format("Transformers 5's DINOv3 ConvNeXt", _hugging_face_convnext("model.")),
        Format("timm's ConvNeXt", _TIMM_CONVNEXT),
    ),
    ResNet: (Format("a ResNet with a deep stem", _COUNTERS, _beside_resnet),),
    Xception: (Format("UniMatch V1's Xception", _COUNTERS, _beside_xception),),
    ResNetV1cStage: (Format("mmsegmentation's ResNet v1c", _COUNTERS, _beside_stage),),
    CLIP: (
        Format("MaskCLIP's"),
        Format("OpenAI's CLIP", _OPENAI_CLIP, _beside_clip),
        Format("Hugging Face's CLIP", _HUGGING_FACE_CLIP, _beside_clip),
    ),
    MiT: (Format("SegFormer's MiT", beside=_beside_mit), Format("Hugging Face's MiT", _hugging_face_mit())),
    TimmEncoder: (
        Format("timm's", ((r"net\.(.+)", r"\1"),), _beside_timm),
        Format("timm's under `net.`"),
        Format("EfficientNet-Lite0's", _efficientnet_lite((1, 2, 2, 3, 3, 4, 1)), _beside_efficientnet_lite),
    ),
}  # fmt: skip


def recognise(encoder: nn.Module, state: dict[str, Any]) -> tuple[Format, State]:
    """The format of a checkpoint and its tensors under our names. Raises OtherFormatError: the nearest format and what differs first."""
    weights = unwrap(state)
    own = encoder.state_dict()
    formats = [known for known in FORMATS.get(type(encoder), (Format("this program's"),)) if not known.needs or known.needs in own]
    formats.sort(key=lambda known: known.likeness(encoder, weights), reverse=True)
    differences = []
    for known in formats:
        try:
            return known, known.convert(encoder, weights)
        except OtherFormatError as error:
            differences.append(error)
    if isinstance(encoder, TimmEncoder) and (converted := encoder.converted(weights)) is not None:
        known = replace(FORMATS[TimmEncoder][0], title="other names or another image size by timm's own function")
        try:
            return known, known.convert(encoder, converted)
        except OtherFormatError:
            pass  # the first difference says more
    raise OtherFormatError(f"nearest format: {formats[0].title}, but {differences[0]}")
