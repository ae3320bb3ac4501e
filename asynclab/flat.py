"""A module's parameters as views of one vector.  P: number of parameters.

The vector is what the parallel machinery sees: one copy pulls, one optimizer call pushes, one clip bounds.  A 4-D
weight lies in it with its channels last, the layout in which convolutions on a CPU are fastest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Vector:
    """The weights of a network or their gradient; twice, if some of its parameters compute in bfloat16.

    Attributes:
        full: [P] float32, the truth.
        low: [P] bfloat16 of which those parameters are views; None if there are none.  It is rounded once per pull,
            where ``torch.autocast`` rounds in every call.
    """

    full: Tensor
    low: Tensor | None = None

    @classmethod
    def make(cls, full: Tensor, bf16: bool) -> "Vector":
        """Return ``full`` [P] itself, with a rounded copy if asked for."""
        return cls(full, full.bfloat16() if bf16 else None)

    def __getitem__(self, part: slice) -> "Vector":
        return Vector(self.full[part], None if self.low is None else self.low[part])

    def round_(self) -> None:
        """Let the bfloat16 weights follow the float32 ones."""
        if self.low is not None:
            self.low.copy_(self.full)

    def gather_(self) -> None:
        """Add to the float32 gradient what was accumulated in bfloat16."""
        if self.low is not None:
            self.full.add_(self.low)

    def zero_(self) -> None:
        """Forget everything."""
        self.full.zero_()
        if self.low is not None:
            self.low.zero_()


def size(module: nn.Module) -> int:
    """Return P."""
    return sum(p.numel() for p in module.parameters())


def flatten(module: nn.Module) -> Tensor:
    """Copy the parameters into a new vector [P] float32, in the order and layout of ``bind``."""
    with torch.no_grad():
        return torch.cat([_channels_last(p).reshape(-1).float() for p in module.parameters()])


def bind(module: nn.Module, weights: Vector, grad: Vector | None = None) -> None:
    """Make every parameter a view of ``weights`` and, if given, its gradient a view of ``grad``.

    The parameters stay leaves, so autograd accumulates straight into ``grad``.  Their old values are dropped.

    Args:
        module: Its parameters are rebound in place, on the device of ``weights``.  Moving it later would cut it off.
            Those of type bfloat16 become views of the ``low`` vectors.
        weights: Of P numbers.
        grad: Of P numbers, on the same device.
    """
    assert weights.full.shape == (size(module),), (weights.full.shape, size(module))
    for p, part in _places(module.to(weights.full.device)):
        p.data = _view(weights[part], p)
        if grad is not None:
            p.grad = _view(grad[part], p)


def signature(module: nn.Module) -> list[str]:
    """Return what lies where in the vector: name and shape of every parameter, in order."""
    return [f"{name} {list(p.shape)}" for name, p in module.named_parameters()]


def slices(networks: nn.ModuleDict) -> dict[str, slice]:
    """Return the part of the vector that each network takes, by name."""
    ends = accumulate(map(size, networks.values()), initial=0)
    return {name: slice(*part) for name, part in zip(networks, pairwise(ends), strict=True)}


def matrices(module: nn.Module) -> list[tuple[int, int]]:
    """Return where in the vector weights of two dimensions and more begin and end: no biases, gains or lone numbers."""
    return [(part.start, part.stop) for p, part in _places(module) if p.dim() > 1]


def is_bound(module: nn.Module, weights: Vector, grad: Vector) -> bool:
    """Return whether every parameter lies in ``weights`` and its gradient in ``grad``."""
    return all(_lies_in(p, weights) and p.grad is not None and _lies_in(p.grad, grad) for p in module.parameters())


def _places(module: nn.Module) -> Iterator[tuple[nn.Parameter, slice]]:
    """Yield every parameter, and the part of the vector that it takes."""
    stop = 0
    for p in module.parameters():
        start, stop = stop, stop + p.numel()
        yield p, slice(start, stop)


def _lies_in(tensor: Tensor, vector: Vector) -> bool:
    parts = [part for part in (vector.full, vector.low) if part is not None]
    return tensor.untyped_storage().data_ptr() in {part.untyped_storage().data_ptr() for part in parts}


def _channels_last(p: Tensor) -> Tensor:
    return p.permute(0, 2, 3, 1) if p.dim() == 4 else p


def _view(part: Vector, p: Tensor) -> Tensor:
    vector = part.low if p.dtype is torch.bfloat16 else part.full
    assert vector is not None, "a bfloat16 parameter needs a vector with a bfloat16 copy"
    if p.dim() == 4:
        o, i, h, w = p.shape
        return vector.view(o, h, w, i).permute(0, 3, 1, 2)
    return vector.view(p.shape)
