"""What is known about each encoder: one EncoderSpec per encoder (METHOD.md 1.1 and 1.2)."""

from dataclasses import dataclass, replace

from util.error import UserError


@dataclass(frozen=True)
class EncoderSpec:
    """Shape of a DINOv2 encoder and of the decoder that goes with it.

    taps: 0-based blocks whose outputs the decoder reads. fusion: channels inside the decoder. projections: channels of each
    tapped map after its 1x1 convolution. swiglu_hidden: hidden width of a SwiGLU feed-forward, 0 for the four-times MLP.
    file: name of the published weights file, empty where none was published.
    """

    name: str
    width: int
    depth: int
    heads: int
    taps: tuple[int, int, int, int]
    fusion: int
    projections: tuple[int, int, int, int]
    swiglu_hidden: int = 0
    file: str = ""


ENCODERS: dict[str, EncoderSpec] = {
    spec.name: spec
    for spec in (
        # not a published model: small enough to train from random weights on two CPU cores (demo, tests)
        EncoderSpec("dinov2_tiny", 192, 4, 3, (0, 1, 2, 3), 32, (24, 48, 96, 192)),
        EncoderSpec("dinov2_small", 384, 12, 6, (2, 5, 8, 11), 64, (48, 96, 192, 384), file="dinov2_vits14_pretrain.pth"),
        EncoderSpec("dinov2_base", 768, 12, 12, (2, 5, 8, 11), 128, (96, 192, 384, 768), file="dinov2_vitb14_pretrain.pth"),
        EncoderSpec("dinov2_large", 1024, 24, 16, (4, 11, 17, 23), 256, (256, 512, 1024, 1024), file="dinov2_vitl14_pretrain.pth"),
        EncoderSpec("dinov2_giant", 1536, 40, 24, (9, 19, 29, 39), 384, (1536,) * 4, swiglu_hidden=4096, file="dinov2_vitg14_pretrain.pth"),
    )
}


def get_encoder(name: str) -> EncoderSpec:
    """The EncoderSpec of a `backbone` value; of other weights, as `dinov2_mine_small`, the last part says the size. Raises UserError."""
    size = "dinov2_" + name.rsplit("_", 1)[-1]
    if name.startswith("dinov2_") and name not in ENCODERS and size in ENCODERS:
        return replace(ENCODERS[size], name=name, file="")
    if name not in ENCODERS:
        raise UserError(f"backbone: found {name!r}, expected one of {', '.join(ENCODERS)}; correct `backbone` in the config")
    return ENCODERS[name]
