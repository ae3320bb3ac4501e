"""A module's parameters as views of one vector.  P: number of parameters.

The vector is what the parallel machinery sees: one copy pulls, one optimizer call pushes, one clip bounds.  A 4-D
weight lies in it with its channels last, the layout in which convolutions on a CPU are fastest.
"""

import torch
from torch import Tensor, nn


def size(module: nn.Module) -> int:
    """Return P."""
    return sum(p.numel() for p in module.parameters())


def flatten(module: nn.Module) -> Tensor:
    """Copy the parameters into a new vector [P], in the order and layout of ``bind``."""
    with torch.no_grad():
        return torch.cat([_channels_last(p).reshape(-1) for p in module.parameters()])


def bind(module: nn.Module, weights: Tensor, grad: Tensor | None = None) -> None:
    """Make every parameter a view of ``weights`` and, if given, its gradient a view of ``grad``.

    The parameters stay leaves, so autograd accumulates straight into ``grad``.  Their old values are dropped.

    Args:
        module: Its parameters are rebound in place, on the device of ``weights``.  Moving it later would cut it off.
        weights: [P] float32.
        grad: [P] float32 on the same device.
    """
    assert weights.shape == (size(module),), (weights.shape, size(module))
    start = 0
    for p in module.to(weights.device).parameters():
        stop = start + p.numel()
        p.data = _view(weights[start:stop], p.shape)
        if grad is not None:
            p.grad = _view(grad[start:stop], p.shape)
        start = stop


def slices(networks: nn.ModuleDict) -> dict[str, slice]:
    """Return the part of the vector that each network takes, by name."""
    result, start = {}, 0
    for name, network in networks.items():
        result[name] = slice(start, start + size(network))
        start += size(network)
    return result


def is_bound(module: nn.Module, weights: Tensor) -> bool:
    """Return whether every parameter lies in ``weights``."""
    storage = weights.untyped_storage().data_ptr()
    return all(p.untyped_storage().data_ptr() == storage for p in module.parameters())


def _channels_last(p: Tensor) -> Tensor:
    return p.permute(0, 2, 3, 1) if p.dim() == 4 else p


def _view(part: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 4:
        o, i, h, w = shape
        return part.view(o, h, w, i).permute(0, 3, 1, 2)
    return part.view(shape)
