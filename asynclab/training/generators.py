"""What a session's random numbers come from: the CPU's generator and, with weights on a GPU, that GPU's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def generators(device: torch.device) -> dict[str, torch.Generator]:
    """Return, by name, what this process draws random numbers from that has its weights on ``device``."""
    found = {"torch": torch.default_generator}
    if device.type == "cuda":
        torch.cuda.init()  # before it there are none
        index = torch.cuda.current_device() if device.index is None else device.index
        found["cuda"] = torch.cuda.default_generators[index]
    return found


def state(device: torch.device) -> dict[str, Tensor]:
    """Return copies of the generators' states, by name."""
    return {name: generator.get_state() for name, generator in generators(device).items()}


def restore(device: torch.device, saved: Mapping[str, Any]) -> None:
    """Take over the states that are there; a run may go on on another device than it was saved on.

    Args:
        device: Of the weights.
        saved: Has what ``state`` returned, perhaps among other things.
    """
    for name, generator in generators(device).items():
        if name in saved:
            generator.set_state(saved[name])
