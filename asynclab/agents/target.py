"""Target networks.  T: parameters of one."""

import copy
from typing import Generic, TypeVar

from torch import Tensor, nn

from asynclab import flat, nets

Network = TypeVar("Network", bound=nn.Module)


class Target(Generic[Network]):
    """A lagging copy of a network: one for all sessions, or one of the session's own.

    Attributes:
        source: The network that is trained.
        network: The copy, without gradients.
        weights: [T] its weights; shared ones lie in the CPU's memory, and others read and write them at any time.

    Args:
        source: To be copied.
    """

    weights: Tensor

    def __init__(self, source: Network) -> None:
        self.source = source
        self.network = copy.deepcopy(source).requires_grad_(False)

    def bind(self, theta: flat.Vector, shared: Tensor | None) -> None:
        """Let the copy use ``shared`` [T], or begin as a copy of its own.

        Args:
            theta: The weights of ``source`` [T], on its device; if they come in bfloat16 too, so do the copy's.
            shared: The copy of all sessions; None for one of its own.
        """
        self._theta = theta
        self.weights = theta.full.clone() if shared is None else shared
        self._used = flat.Vector.make(self.weights.to(theta.full.device), bf16=theta.low is not None)
        nets.bind(self.network, self._used)

    def move(self, step: float) -> None:
        """Move the copy towards theta: target <- (1 - step) target + step theta; a step of 1 copies."""
        self.weights.lerp_(self._theta.full.to(self.weights.device), step)
        self.follow()

    def follow(self) -> None:
        """Use the weights as they are now, whoever moved them."""
        if self._used.full is not self.weights:  # on a GPU
            self._used.full.copy_(self.weights)
        self._used.round_()
