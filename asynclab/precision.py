"""Arithmetic in bfloat16 where the processor has instructions for it."""

import torch

CHOICES = ("auto", "fp32", "bf16")


class Precision:
    """Chooses the arithmetic of the networks' torsos; weights, heads, losses and optimizer stay float32.

    Args:
        name: ``bf16``, ``fp32``, or ``auto`` for bf16 where the processor multiplies it natively.
    """

    def __init__(self, name: str) -> None:
        if name not in CHOICES:
            raise ValueError(f"precision={name} is unknown; use one of {', '.join(CHOICES)}")
        self._bf16 = {"bf16": True, "fp32": False, "auto": None}[name]

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which a torso runs."""
        bf16 = has_native_bf16(device) if self._bf16 is None else self._bf16
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 matrix instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
