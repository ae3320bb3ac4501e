"""Arithmetic by processor: in bfloat16 where it pays, and by the library that multiplies fastest."""

from collections.abc import Iterable
from functools import cache

import torch

from asynclab import machine

CHOICES = ("auto", "fp32", "bf16")


def choose(name: str, convolutional: bool, devices: Iterable[str]) -> str:
    """Return the arithmetic of the networks' torsos, fp32 or bf16; theta, heads, losses and optimizer stay float32.

    Args:
        name: ``fp32``, ``bf16``, or ``auto`` for bf16 where all torsos are convolutional and all devices multiply it
            natively.  Pixels have 8 bits anyway; dense torsos would see other observations rounded to 8 bits, and only
            large ones are faster for it.
        convolutional: Whether all torsos are.
        devices: Of the sessions' weights.

    Raises:
        ValueError: There is no such choice.
    """
    if name not in CHOICES:
        raise ValueError(f"algo.precision={name} is unknown; use one of {', '.join(CHOICES)}")
    if name != "auto":
        return name
    return "bf16" if convolutional and is_native("bf16", devices) else "fp32"


def is_native(precision: str, devices: Iterable[str]) -> bool:
    """Return whether all devices have instructions for this arithmetic; torch emulates bf16 where they do not."""
    return precision == "fp32" or all(has_native_bf16(torch.device(device)) for device in devices)


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 matrix instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def is_onednn_faster() -> bool:
    """Return whether oneDNN multiplies large float32 matrices faster than MKL, to which torch gives dense layers.

    So it is on AMD's processors with AVX-512, which MKL uses on Intel's only: twice as fast.  With AVX2 they are equal.
    """
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and machine.vendor() == "AuthenticAMD"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
