"""Arithmetic in bfloat16 where the processor has instructions for it."""

import torch

CHOICES = ("auto", "fp32", "bf16")


class Precision:
    """Chooses the arithmetic of the networks' torsos; theta, heads, losses and optimizer stay float32.

    Args:
        name: ``bf16``, ``fp32``, or ``auto`` for bf16 where the processor multiplies it natively.
    """

    def __init__(self, name: str) -> None:
        if name not in CHOICES:
            raise ValueError(f"algo.precision={name} is unknown; use one of {', '.join(CHOICES)}")
        self.name = name

    def is_bf16(self, device: torch.device | str) -> bool:
        """Return whether torsos on this device compute in bfloat16."""
        return has_native_bf16(torch.device(device)) if self.name == "auto" else self.name == "bf16"


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 matrix instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
