"""How a server takes what nodes have changed (``cluster.exchange``).  P: parameters."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asynclab import check


@dataclass(frozen=True)
class Outer:
    """The optimizer that applies a node's change to the server's theta.

    With lr 1 and no momentum changes add up (Downpour SGD: Dean et al., 2012); lr 0.7 and Nesterov momentum 0.9 are
    DiLoCo's outer step (Douillard et al., 2023), here asynchronous (Liu et al., 2024).

    Attributes:
        lr: Factor on every change.
        momentum: Nesterov's; 0 for none.
    """

    lr: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        check.positive("distributed.outer.lr", check.number("distributed.outer.lr", self.lr))
        check.below_one("distributed.outer.momentum", self.momentum)

    def step(self, theta: NDArray, change: NDArray, velocity: NDArray | None) -> None:
        """Move theta [P] by a change [P]; the velocity [P], None without momentum, is updated."""
        if velocity is not None:
            # b <- mu b + d;  theta <- theta + lr (d + mu b)
            velocity *= self.momentum
            velocity += change
            change = change + self.momentum * velocity
        theta += change if self.lr == 1 else np.float32(self.lr) * change
