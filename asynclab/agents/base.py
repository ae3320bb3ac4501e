"""The contract between an algorithm and everything that runs it.  N: batch, P: parameters."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from asynclab import flat, nets


class Agent(ABC):
    """Networks, a policy and a loss.

    An agent is built by the parent, to learn theta's size and first values, and by every session.  ``nets`` is all
    that is trained; whatever else an agent keeps (target networks) is its own and is private to the session.

    Attributes:
        nets: The trained networks by name; gradients are clipped for each of them.
        device: Where they are.
    """

    nets: nn.ModuleDict
    device = torch.device("cpu")

    def bind(self, weights: flat.Vector, grad: flat.Vector) -> None:
        """Let the networks' parameters be views of ``weights``, on its device; called before the first rollout.

        Args:
            weights: Hold theta's values, so what is copied from the networks (targets) is copied here.  If they come
                in bfloat16 too, the torsos compute in it.
            grad: Backward accumulates into it.
        """
        self.device = weights.full.device
        nets.bind(self.nets, weights, grad)

    def on_update(self) -> None:  # noqa: B027 - optional
        """Follow the new weights; called after every pull."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of what the agent has that theta does not hold, such as target networks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - optional
        """Take over such a state; called after ``bind``."""

    @abstractmethod
    def act(self, obs: Tensor, deterministic: bool = False) -> Tensor:
        """Return actions [N] int64 or [N, A] float32 for observations [N, ...] on the agent's device."""

    @abstractmethod
    def loss(self, batch: Any, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the scalar losses, whose sum is differentiated, and scalars to be logged.

        Args:
            batch: What the algorithm's memory yields, on the agent's device.
            progress: Used fraction of the frame budget, for schedules.
        """
