"""Which arithmetic a run uses: `precision: fp32 | tf32 | bf16 | fp16`.

fp32 is PyTorch's default, the published setting: on an NVIDIA GPU convolutions in TF32, matrix products in full float32. tf32: these too.
bf16, fp16: matrix products and convolutions in 16 bits (autocast); weights, normalisation, softmax and losses stay float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from util.error import UserError

SIXTEEN_BIT = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "tf32", *SIXTEEN_BIT)
# What x86 (the first two) and ARM multiply 16-bit numbers with, as torch.cpu.get_capabilities names it.
INSTRUCTIONS = {"bf16": ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"), "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith")}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Inside, a forward pass computes in 16 bits where `precision` says so and where that is safe."""
    return torch.autocast(device.type, SIXTEEN_BIT.get(precision), enabled=precision in SIXTEEN_BIT)


@contextmanager
def inference(precision: str, device: torch.device) -> Iterator[None]:
    """As `autocast`, for images of many sizes: without cuDNN's attention, which builds a plan for each new number of tokens."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with autocast(precision, device):
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def slow_precision(precision: str, device: torch.device) -> str | None:
    """A warning where the device is a CPU that has no instructions for the 16 bits of `precision`; None elsewhere or where nobody knows."""
    if precision not in INSTRUCTIONS or device.type != "cpu":
        return None
    # the oldest PyTorch that the project runs with may not have it
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    known = [capabilities[name] for name in INSTRUCTIONS[precision] if name in capabilities]
    if not known or any(known):
        return None
    return f"precision: this CPU has no instructions for {precision}, which takes several times as long as fp32 here; set precision=fp32"


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Keeps small gradients above fp16's smallest number; does nothing for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def matmul_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, float32 matrix products are TF32 for `precision` tf32.

    Raises UserError where the GPU lacks what is asked for, or where other code has used PyTorch's newer interface: once it has, the older
    one, which every PyTorch has that the project runs with, cannot say what is set.
    """
    if device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"precision: found bf16, but {torch.cuda.get_device_name(device)} has no bfloat16; use fp16 or fp32")
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError as error:
        raise UserError(
            "precision: found torch.backends.*.fp32_precision set by other code in this process, expected PyTorch's defaults; "
            "remove that setting: the config key `precision` decides"
        ) from error
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")  # containers may have another default
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
