"""Graphics cards: what their data sheets promise, as data. Add a row for another one."""

from dataclasses import dataclass

from util.error import UserError
from util.precision import SIXTEEN_BIT


@dataclass(frozen=True)
class Card:
    """Peak rates of one card, dense, in TFLOP/s (10^12 operations a second), sums in float32; from the maker's public data sheet.

    memory: GiB. fp32: float32 without tensor cores. tf32, bf16, fp16: tensor cores; 0 where the card has none for that type.
    bandwidth: GB/s of its memory. link: GB/s in one direction between cards of a node (NVLink, else PCIe 4.0 x16 or 3.0 for older).
    """

    name: str
    memory: float
    fp32: float
    tf32: float
    bf16: float
    fp16: float
    bandwidth: float
    link: float

    def rates(self, precision: str) -> dict[str, float]:
        """TFLOP/s of linear layers, attention and convolutions at a `precision`; 0 where the card cannot do it.

        "fp32" is PyTorch's default: convolutions in TF32 on cards that have it, matrix products in full float32. The fused attention
        of float32 runs three TF32 products for each float32 one on cards that have it.
        """
        if precision in SIXTEEN_BIT:
            return dict.fromkeys(("linear", "attention", "convolution"), self.bf16 if precision == "bf16" else self.fp16)
        if precision == "tf32" and not self.tf32:
            return dict.fromkeys(("linear", "attention", "convolution"), 0.0)
        linear = self.tf32 if precision == "tf32" else self.fp32
        return {"linear": linear, "attention": max(self.fp32, self.tf32 / 3), "convolution": max(self.fp32, self.tf32)}


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        #     name       GiB   fp32   tf32   bf16   fp16   GB/s  link
        Card("a100-40", 40, 19.5, 156.0, 312.0, 312.0, 1555, 300),  # SXM4
        Card("a100-80", 80, 19.5, 156.0, 312.0, 312.0, 2039, 300),  # SXM4
        Card("h100", 80, 66.9, 494.7, 989.4, 989.4, 3350, 450),  # SXM5
        Card("h200", 141, 66.9, 494.7, 989.4, 989.4, 4800, 450),  # SXM5
        Card("l40s", 48, 91.6, 183.0, 362.0, 362.0, 864, 32),
        Card("a6000", 48, 38.7, 77.4, 154.8, 154.8, 768, 32),  # RTX A6000, Ampere
        Card("rtx4090", 24, 82.6, 82.6, 165.2, 165.2, 1008, 32),
        Card("rtx3090", 24, 35.6, 35.6, 71.0, 71.0, 936, 32),
        Card("v100", 32, 15.7, 0.0, 0.0, 125.0, 900, 150),  # SXM2
    )
}


def get_card(name: str) -> Card:
    """The card of a `--card` value. Raises UserError for a name that the table does not have."""
    if name.lower() not in CARDS:
        raise UserError(f"--card: found {name!r}, expected one of {', '.join(CARDS)}; or add it to scripts/benchmark/cards.py")
    return CARDS[name.lower()]
