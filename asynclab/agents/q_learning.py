"""What the forms of Q-learning share: network, target network, exploration.  N: batch, B: environments, A: actions."""

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.nn.functional import relu

from asynclab import check, flat
from asynclab.agents.base import Agent
from asynclab.agents.histogram import Histogram
from asynclab.agents.target import Target
from asynclab.memory import ActionSpace
from asynclab.nets import Torso, linear
from asynclab.schedules import Linear


class QNetwork(nn.Module):
    """Observations [N, ...] -> Q(s, .) [N, A].

    Args:
        obs_space: Space of one observation.
        actions: A.
        torso: Makes the torso.
        histogram: How K outputs stand for each value; None for one output, the value itself.
    """

    def __init__(self, obs_space: Box, actions: int, torso: Torso, histogram: Histogram | None = None) -> None:
        super().__init__()
        self.actions = actions
        self.histogram = histogram
        self.torso = torso(obs_space)
        self.add_heads(self.torso.features, 1 if histogram is None else histogram.bins)

    def add_heads(self, features: int, outputs: int) -> None:
        """Make what lies above the torso, with so many outputs for each action."""
        self.linear = linear(features, self.actions * outputs, gain=1.0)

    def scores(self, obs: Tensor) -> Tensor:
        """Return the outputs [N, A, K]: values, or the logits of their histograms."""
        return self.linear(self.torso(obs)).unflatten(-1, (self.actions, -1))

    def forward(self, obs: Tensor) -> Tensor:
        """Return Q(s, a) of every action."""
        scores = self.scores(obs)
        return scores.squeeze(-1) if self.histogram is None else self.histogram.mean(scores)


class DuelingQNetwork(QNetwork):
    """Q(s, .) = V(s) + A(s, .) - mean A(s, .) [N, A]   (Wang et al., 2016, eq. 9); of histograms, each logit likewise.

    V and A have a dense layer each, as wide as the torso's last one, which the paper's have in its stead.
    """

    def add_heads(self, features: int, outputs: int) -> None:
        """Make what lies above the torso, with so many outputs for each action."""
        self.hidden = linear(features, 2 * features, gain=sqrt(2))  # of V and of A, in one product
        self.value = linear(features, outputs, gain=1.0)
        self.advantage = linear(features, self.actions * outputs, gain=1.0)

    def scores(self, obs: Tensor) -> Tensor:
        """Return the outputs [N, A, K]: values, or the logits of their histograms."""
        v, a = relu(self.hidden(self.torso(obs))).chunk(2, -1)
        advantage = self.advantage(a).unflatten(-1, (self.actions, -1))
        return self.value(v).unsqueeze(-2) + advantage - advantage.mean(-2, keepdim=True)


class QLearning(Agent):
    """A Q-network, perhaps a target network that all sessions share, and random actions at rates that fall.

    Attributes:
        lagging: What values the actions of next observations: the target network, or without one the network itself.

    Args:
        obs_space: Space of one observation.
        action_space: A Discrete.
        torso: Makes the torso.
        dueling: Whether Q is made of V and advantages.
        gamma: Discount.
        epsilons: Final rates of random actions; who takes which says ``start``.
        anneal: Share of the frame budget, on the global clock, in which the rates go from 1 to their final values.
        target_every: Frames on the global clock between two copies of theta into the target network.  Each session
            copies when it first sees that a period is over.  None for no target network.
        temperature: Of the softmax of Q from which actions are drawn where they are not random, at the beginning of the
            budget; it falls to 0 at the end.  0 for the best action always.
        histogram: As which values are learned; None for numbers.

    Raises:
        ValueError: The action space is not a Discrete, or a setting is out of range.
    """

    name: str  # on the command line
    deterministic = True

    def __init__(
        self,
        obs_space: Box,
        action_space: ActionSpace,
        torso: Torso,
        dueling: bool,
        gamma: float,
        epsilons: Sequence[float],
        anneal: float,
        target_every: int | None,
        temperature: float = 0.0,
        histogram: Histogram | None = None,
    ) -> None:
        if not isinstance(action_space, Discrete):
            raise ValueError(
                f"algo={self.name} needs discrete actions, and this env has {action_space}; use algo=a3c or another env"
            )
        if not isinstance(epsilons, Sequence) or isinstance(epsilons, str) or not epsilons:
            raise ValueError(f"algo.agent.epsilons={epsilons} must be a list of one rate of exploration or more")
        self.actions = int(action_space.n)
        network = DuelingQNetwork if check.flag("algo.agent.dueling", dueling) else QNetwork
        self.q = network(obs_space, self.actions, torso, histogram)
        self.nets = nn.ModuleDict({"q": self.q})
        self.target_every = None if target_every is None else check.count("algo.agent.target_every", target_every)
        self.lagging: nn.Module = self.q
        if self.target_every is not None:
            self.targets = [Target(self.q)]
            self.target_part = slice(0, flat.size(self.nets))
            self.lagging = self.targets[0].network
        self.gamma = check.fraction("algo.agent.gamma", gamma)
        self.epsilons = [check.fraction("algo.agent.epsilons", epsilon) for epsilon in epsilons]
        self.anneal = check.positive("algo.agent.anneal", check.fraction("algo.agent.anneal", anneal))
        self.temperature = check.not_negative("algo.agent.temperature", temperature)
        self._final = self.epsilons[:1]  # of each environment, or one for all
        self._period: int | None = None  # on the global clock, of the last copy; unknown before the first update

    def bind(self, weights: flat.Vector, grad: flat.Vector, target: Tensor | None = None) -> None:
        """Bind the network to ``weights``, and a target network to the shared copy."""
        super().bind(weights, grad, target)
        for lagging in self.targets:
            lagging.bind(weights, target)

    def on_update(self, frames: int, updates: int) -> None:
        """Copy theta into the target network when a period is over."""
        if self.target_every is None:
            return
        period = frames // self.target_every
        if self._period is not None and period > self._period:
            self.targets[0].move(1.0)
        self._period = period
        self.targets[0].follow()  # others may have copied

    def state_dict(self) -> dict[str, Tensor]:
        """Return when the last copy was made; the copy itself is shared, like theta."""
        return {"period": torch.tensor(-1 if self._period is None else self._period)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over such a state."""
        period = int(state["period"])
        self._period = None if period < 0 else period
        for lagging in self.targets:
            lagging.follow()

    def epsilon(self, progress: float) -> Tensor:
        """Return the share of random actions [B] of each environment, or [1] of all."""
        return torch.tensor([Linear(final)(progress / self.anneal) for final in self._final])

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False, progress: float = 1.0) -> Tensor:
        """Return the best actions, or others that are nearly as good; with probability epsilon random ones."""
        q = self.q(obs)
        chosen = q.argmax(-1)
        if deterministic:
            return chosen
        if (temperature := self.temperature * (1 - progress)) > 0:
            chosen = torch.multinomial((q / temperature).softmax(-1), 1).squeeze(-1)
        random = torch.randint(self.actions, chosen.shape, device=chosen.device)
        explores = torch.rand(chosen.shape, device=chosen.device) < self.epsilon(progress).to(chosen.device)
        return torch.where(explores, random, chosen)
