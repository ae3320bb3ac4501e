"""The contract between an algorithm and everything that runs it.  N: batch, P: parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asynclab import flat, nets
from asynclab.agents.target import Target


class Agent(ABC):
    """Networks, a policy and a loss.

    An agent is built by the parent, to learn theta's size and first values, and by every session.  ``nets`` is all
    that is trained; whatever else an agent keeps (target networks) is its own and is private to the session.

    Attributes:
        nets: The trained networks by name; gradients are clipped for each of them.
        target_part: The part of theta of which all sessions share a lagging copy; None for none.
        targets: Target networks.
        own: Parameters that are no part of theta: the agent itself steps them, in ``on_update``.
        deterministic: Whether it is to be judged by its best actions, unless somebody asks for sampled ones.
        advantages: As ``returns.gae`` estimates them, for the agent and for the doctor; None if it needs none.
        device: Where they are.
    """

    nets: nn.ModuleDict
    target_part: slice | None = None
    targets: Sequence[Target] = ()
    own: Sequence[nn.Parameter] = ()
    deterministic: bool = False
    advantages: Callable[..., Tensor] | None = None
    device = torch.device("cpu")

    def bind(self, weights: flat.Vector, grad: flat.Vector, target: Tensor | None = None) -> None:
        """Let the networks' parameters be views of ``weights``, on its device; called before the first rollout.

        Args:
            weights: Hold theta's values, so what is copied from the networks (targets) is copied here.  If they come
                in bfloat16 too, the torsos compute in it.
            grad: Backward accumulates into it.
            target: The lagging copy of ``target_part``, in the CPU's memory, which others read and write at any time;
                None where there are no other sessions to share it with.
        """
        self.device = weights.full.device
        nets.bind(self.nets, weights, grad)

    def start(self, num_envs: int, rank: int = 0) -> None:  # noqa: B027 - optional
        """Begin ``num_envs`` episodes; called after ``bind``, with the rank among the network's sessions."""

    def on_step(self, done: Tensor) -> None:  # noqa: B027 - optional
        """Take note of the episodes [B] bool that ended with the last action."""

    def begin_batch(self) -> None:  # noqa: B027 - optional
        """Take note that the next step is the first one of a batch, although the last batch was not learned from."""

    def minibatches(self, batch: Any) -> Iterator[Any]:
        """Yield what is learned from, one update each, of what the memory hands out: named tuples of tensors.

        ``loss`` tells them apart by their fields: those of a simulation that goes on are of another class.
        """
        yield batch

    def on_update(self, frames: int, updates: int) -> None:  # noqa: B027 - optional
        """Follow the new weights; called after every update of the session's own, when it has pulled.

        Args:
            frames: On the global clock.
            updates: That theta has seen since the last call, others' included: 1 with one session.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of what the agent has that theta does not hold, such as target networks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - optional
        """Take over such a state; called after ``bind``."""

    @abstractmethod
    def act(self, obs: Tensor, deterministic: bool = False, progress: float = 1.0) -> Tensor:
        """Return actions [N] int64, [N, A] int64 or [N, A] float32 for observations [N, ...] on the agent's device.

        Args:
            obs: Of the environments that were started, in their order.
            deterministic: Take the best action instead of exploring.
            progress: Used fraction of the frame budget, for schedules.
        """

    @abstractmethod
    def loss(self, batch: Any, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the scalar losses, whose sum is differentiated, and scalars to be logged.

        Args:
            batch: What ``minibatches`` yields.
            progress: Used fraction of the frame budget, for schedules.
        """
