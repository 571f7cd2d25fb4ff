"""The facts about each encoder by its name: one EncoderSpec per encoder (METHOD.md 1)."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from model.backbone.clip import CLIP
from model.backbone.dinov2 import DINOv2
from model.backbone.dinov3 import DINOv3
from model.backbone.dinov3_convnext import DINOv3ConvNeXt
from model.backbone.mit import MiT
from model.backbone.resnet import DEPTHS, ResNet, ResNetV1cStage
from model.backbone.timm_model import TimmEncoder, find_facts
from model.backbone.xception import Xception
from model.encoder import Encoder
from util.error import UserError


@dataclass(frozen=True)
class Origin:
    """Where published weights are from. source: the address below which they are, or in words who has them; empty where it is not known."""

    license: str = "unknown"
    source: str = ""


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder and the decoder widths that go with it.

    build: makes the encoder with random weights. fusion: channels inside the DPT decoder, 0 for an encoder that it does not fit. widths:
    channels of each map after the decoder's 1x1 convolution (empty: it has none). file: name of the published weights file, empty where
    none was published. model: the architecture that goes with the encoder where a config names none. origin: of the published weights.
    """

    name: str
    build: Callable[..., Encoder]
    fusion: int = 0
    widths: tuple[int, ...] = ()
    file: str = ""
    model: str = "dpt"
    origin: Origin = Origin()

    @property
    def of_timm(self) -> bool:
        """Whether the encoder is a model of the package timm."""
        return getattr(self.build, "func", None) is TimmEncoder

    def facts(self) -> Encoder:
        """The encoder without memory for its weights: `multiple`, `channels`, `mean` and so on can be read from it."""
        with torch.device("meta"):
            return self.build()


PUBLIC = "https://dl.fbaipublicfiles.com/dinov2"  # Meta's, the one that has a public address
_META = Origin("Apache-2.0", PUBLIC)
_META_BY_MAIL = Origin("DINOv3 License", "Meta sends the address by e-mail (https://ai.meta.com/dinov3)")
_NVIDIA = Origin(
    "NVIDIA Source Code License for SegFormer (research and evaluation alone)",
    "SegFormer's authors have it where a browser gets it (https://github.com/NVlabs/SegFormer), Hugging Face: nvidia/mit-b0 to b5",
)
_OPENAI = Origin("MIT", "OpenAI's repository has its address (https://github.com/openai/CLIP, clip/clip.py)")
_MMCV = Origin("Apache-2.0", "open-mmlab has it (https://github.com/open-mmlab/mmcv, open_mmlab.json)")
_PACKAGE = Origin("Apache-2.0", "a Python package carries it (model/pretrained.py)")
_SATELLITE = {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}  # of the SAT-493M images
_UNUSED = ("local_cls_norm.weight", "local_cls_norm.bias")  # a norm that only the pretraining of some used
_EVENLY = (2, 5, 8, 11)  # of twelve blocks
_SMALL, _BASE, _LARGE = (64, (48, 96, 192, 384)), (128, (96, 192, 384, 768)), (256, (256, 512, 1024, 1024))  # decoders


def _dinov2(size: str, file: str, decoder: tuple[int, tuple[int, ...]], *shape: Any) -> tuple[EncoderSpec, EncoderSpec]:
    """The EncoderSpecs of a DINOv2 encoder without and with registers."""
    return (
        EncoderSpec(f"dinov2_{size}", partial(DINOv2, *shape), *decoder, f"{file}_pretrain.pth", origin=_META),
        EncoderSpec(f"dinov2_{size}_reg", partial(DINOv2, *shape, registers=4), *decoder, f"{file}_reg4_pretrain.pth", origin=_META),
    )


def _dinov3(name: str, file: str, decoder: tuple[int, tuple[int, ...]], *shape: Any, **more: Any) -> EncoderSpec:
    return EncoderSpec(f"dinov3_{name}", partial(DINOv3, *shape, **more), *decoder, f"dinov3_{file}.pth", origin=_META_BY_MAIL)


def _convnext(size: str, digest: str, fusion: int, depths: tuple[int, ...], widths: tuple[int, ...]) -> EncoderSpec:
    file = f"dinov3_convnext_{size}_pretrain_lvd1689m-{digest}.pth"
    return EncoderSpec(f"dinov3_convnext_{size}", partial(DINOv3ConvNeXt, widths, depths), fusion, (), file, origin=_META_BY_MAIL)


def _mit(size: str, decoder: tuple[int, tuple[int, ...]], depths: tuple[int, ...], widths: tuple[int, ...]) -> EncoderSpec:
    return EncoderSpec(f"mit_{size}", partial(MiT, widths, depths), *decoder, f"mit_{size}.pth", origin=_NVIDIA)


_MIT = (64, 128, 320, 512)
_VITL = (1024, 24, 16, (4, 11, 17, 23))
_VIT7B = (4096, 40, 32, (9, 19, 29, 39), 8192, False)
ENCODERS: dict[str, EncoderSpec] = {
    spec.name: spec
    for spec in (
        # not a published model: small enough to train from random weights on two CPU cores (demo, tests)
        EncoderSpec("dinov2_tiny", partial(DINOv2, 192, 4, 3, (0, 1, 2, 3)), 32, (24, 48, 96, 192)),
        *_dinov2("small", "dinov2_vits14", _SMALL, 384, 12, 6, _EVENLY),
        *_dinov2("base", "dinov2_vitb14", _BASE, 768, 12, 12, _EVENLY),
        *_dinov2("large", "dinov2_vitl14", _LARGE, *_VITL),
        *_dinov2("giant", "dinov2_vitg14", (384, (1536,) * 4), 1536, 40, 24, (9, 19, 29, 39), 4096),
        _dinov3("small", "vits16_pretrain_lvd1689m-08c60483", _SMALL, 384, 12, 6, _EVENLY),
        _dinov3("small_plus", "vits16plus_pretrain_lvd1689m-4057cbaa", _SMALL, 384, 12, 6, _EVENLY, 1536),
        _dinov3("base", "vitb16_pretrain_lvd1689m-73cec8be", _BASE, 768, 12, 12, _EVENLY),
        _dinov3("large", "vitl16_pretrain_lvd1689m-8aa4cbdd", _LARGE, *_VITL),
        _dinov3("large_sat", "vitl16_pretrain_sat493m-eadcf0ff", _LARGE, *_VITL, **_SATELLITE, unused=_UNUSED),
        _dinov3("huge_plus", "vith16plus_pretrain_lvd1689m-7c1da9a5", (384, (1280,) * 4), 1280, 32, 20, (7, 15, 23, 31), 5120),
        _dinov3("7b", "vit7b16_pretrain_lvd1689m-a955f4ea", (512, (2048,) * 4), *_VIT7B, unused=_UNUSED),
        _dinov3("7b_sat", "vit7b16_pretrain_sat493m-a6675841", (512, (2048,) * 4), *_VIT7B, **_SATELLITE, unused=_UNUSED),
        _convnext("tiny", "21b726bb", 64, (3, 3, 9, 3), (96, 192, 384, 768)),
        _convnext("small", "296db49d", 64, (3, 3, 27, 3), (96, 192, 384, 768)),
        _convnext("base", "801f2ba9", 128, (3, 3, 27, 3), (128, 256, 512, 1024)),
        _convnext("large", "61fa432d", 256, (3, 3, 27, 3), (192, 384, 768, 1536)),
        *(
            EncoderSpec(name, partial(ResNet, depths), 256, (256, 512, 1024, 1024), model="deeplabv3plus")
            for name, depths in DEPTHS.items()
        ),
        EncoderSpec("xception", Xception, model="deeplabv3plus"),
        _mit("b0", _SMALL, (2, 2, 2, 2), (32, 64, 160, 256)),
        _mit("b1", _SMALL, (2, 2, 2, 2), _MIT),
        _mit("b2", _BASE, (3, 4, 6, 3), _MIT),
        _mit("b3", _BASE, (3, 4, 18, 3), _MIT),
        _mit("b4", _LARGE, (3, 8, 27, 3), _MIT),
        _mit("b5", _LARGE, (3, 6, 40, 3), _MIT),
        EncoderSpec("beit_base", partial(TimmEncoder, "beit_base_patch16_224", img_size=512), *_BASE),
        EncoderSpec("beit_large", partial(TimmEncoder, "beit_large_patch16_224", img_size=512), *_LARGE),
        EncoderSpec("sam_base", partial(TimmEncoder, "samvit_base_patch16"), *_BASE),
        EncoderSpec("sam_large", partial(TimmEncoder, "samvit_large_patch16"), *_LARGE),
        EncoderSpec("clip_base", partial(CLIP, 768, 12, 12, skips=(0, 4)), file="ViT-B-16.pt", model="vlm", origin=_OPENAI),
        EncoderSpec("clip_tiny", partial(CLIP, 192, 6, 3, skips=(0, 2)), model="vlm"),  # not a published model: for tests
        # beside CLIP (model/semseg/vlm.py)
        EncoderSpec("resnet101_v1c_stage1", ResNetV1cStage, file="resnet101_v1c-e67eebb6.pth", model="vlm", origin=_MMCV),
        EncoderSpec(
            "efficientnet_lite0",
            partial(TimmEncoder, "tf_efficientnet_lite0"),
            64,
            file="efficientnet-lite0-57934424.pth",
            origin=_PACKAGE,
        ),
    )
}
_SIZES = ((50e6, _SMALL), (150e6, _BASE), (500e6, _LARGE))  # parameters of an encoder up to which a decoder goes with it
_FAMILIES = ("dinov3_convnext", "dinov3", "dinov2")


def get_encoder(name: str) -> EncoderSpec:
    """The EncoderSpec of a `backbone` value; for other weights, as in `dinov2_mine_small`, the end names the size. Raises UserError."""
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith("timm/"):
        return _timm(name)
    family = next((family for family in _FAMILIES if name.startswith(f"{family}_")), "")
    sizes = [spec for spec in ENCODERS.values() if spec.name.startswith(f"{family}_") and name.endswith(spec.name.removeprefix(family))]
    if family and sizes:
        longest = max(sizes, key=lambda spec: len(spec.name))  # `small_reg`, `small_plus`
        return replace(longest, name=name, file="", origin=Origin())
    near = difflib.get_close_matches(name, ENCODERS, 3, 0)
    raise UserError(f"backbone: found {name!r}, the nearest are {', '.join(near)}; all are in docs/encoders.md, and timm/NAME")


def _timm(name: str) -> EncoderSpec:
    """The EncoderSpec of a model of timm, with the decoder widths for an encoder of its size."""
    model = name.removeprefix("timm/")
    facts = find_facts(model)
    largest = (384, facts.channels)
    fusion, widths = next((decoder for most, decoder in _SIZES if facts.parameters <= most), largest)
    return EncoderSpec(name, partial(TimmEncoder, model), fusion, widths if len(set(facts.strides)) == 1 else ())


def architecture(backbone: str, model: str | None) -> str:
    """The architecture that a config names as `model`; where it names none, the one that goes with the encoder. Raises UserError."""
    return model or get_encoder(backbone).model


def check_crop(crop_size: int, encoder: Encoder) -> None:
    """Raises UserError unless the training crop's side is a multiple of what the encoder needs, and large enough for it."""
    multiple = encoder.multiple
    if crop_size < encoder.least:
        raise UserError(f"crop_size: found {crop_size}, expected {encoder.least} or more for this backbone")
    if encoder.fixed_size and crop_size != multiple:
        raise UserError(f"crop_size: found {crop_size}, expected {multiple}, the one size that this backbone takes")
    if crop_size % multiple:
        near = max(multiple, round(crop_size / multiple) * multiple)
        raise UserError(f"crop_size: found {crop_size}, expected a multiple of {multiple} for this backbone; the nearest is {near}")


def encoder_facts(name: str, encoder: Encoder) -> dict[str, Any]:
    """The facts that a checkpoint holds about an encoder and its decoder, as plain lists (see Encoder and EncoderSpec)."""
    spec, facts = get_encoder(name), ("multiple", "mean", "std", "out_indices", "channels", "strides")
    made = {key: getattr(encoder, key) for key in facts} | {"fusion": spec.fusion, "widths": spec.widths}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in made.items()}


def check_facts(state: dict[str, Any], name: str, encoder: Encoder, path: str) -> None:
    """Raises UserError for a checkpoint whose encoder was another one under the same name: its weights may fit, and mean something else."""
    recorded = state.get("encoder")
    if not isinstance(recorded, dict):  # of a checkpoint without such facts
        return
    made = state.get("config")
    trained_as = made.get("backbone", name) if isinstance(made, dict) else name
    for key, value in encoder_facts(name, encoder).items():
        if recorded.get(key, value) != value:
            if trained_as != name:
                raise UserError(f"{path}: was trained with backbone {trained_as}, found {name}; give the config of its run")
            raise UserError(
                f"{path}: its encoder has {key} {recorded[key]!r}, but {name} here has {value!r}; "
                f"use the versions of this program and of timm that it was made with"
            )
