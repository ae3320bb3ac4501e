"""Asynchronous n-step Q-learning (Mnih et al., 2016, algorithm S2).  T: horizon, B: environments, A: actions."""

from collections.abc import Mapping, Sequence

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from asynclab import check, flat
from asynclab.agents.base import Agent
from asynclab.agents.target import Target
from asynclab.memory import RolloutBatch
from asynclab.nets import Torso, linear
from asynclab.returns import gae
from asynclab.schedules import Linear


class QNetwork(nn.Module):
    """Observations [N, ...] -> Q(s, .) [N, A]."""

    def __init__(self, obs_space: Box, actions: int, torso: Torso) -> None:
        super().__init__()
        self.torso = torso(obs_space)
        self.linear = linear(self.torso.features, actions, gain=1.0)

    def forward(self, obs: Tensor) -> Tensor:
        """Return Q(s, a) of every action."""
        return self.linear(self.torso(obs))


class NStepQ(Agent):
    """Q-learning on the n-step returns of rollouts, with a rate of exploration that differs between sessions.

    Args:
        obs_space: Space of one observation.
        action_space: A Discrete.
        torso: Makes the torso.
        gamma: Discount.
        epsilons: Final rates of random actions; the sessions take them in turn, by rank.  (The paper draws them; few
            sessions could then all draw the same.)
        anneal: Share of the frame budget, on the global clock, in which the rate goes from 1 to its final value.
        target_every: Frames on the global clock between two copies of theta into the target network, which all sessions
            share.  Each session copies when it first sees that a period is over.

    Raises:
        ValueError: The action space is not a Discrete, or a setting is out of range.
    """

    deterministic = True

    def __init__(
        self,
        obs_space: Box,
        action_space: Box | Discrete,
        torso: Torso,
        gamma: float = 0.99,
        epsilons: Sequence[float] = (0.1, 0.01, 0.5),
        anneal: float = 0.05,
        target_every: int = 40_000,
    ) -> None:
        if not isinstance(action_space, Discrete):
            raise ValueError(
                f"algo=nstep_q needs discrete actions, and this env has {action_space}; use algo=a3c or another env"
            )
        if not isinstance(epsilons, Sequence) or isinstance(epsilons, str) or not epsilons:
            raise ValueError(f"algo.agent.epsilons={epsilons} must be a list of one rate of exploration or more")
        self.actions = int(action_space.n)
        self.q = QNetwork(obs_space, self.actions, torso)
        self.target = Target(self.q)
        self.nets = nn.ModuleDict({"q": self.q})
        self.targets = [self.target]
        self.target_part = slice(0, flat.size(self.nets))
        self.gamma = check.fraction("algo.agent.gamma", gamma)
        self.epsilons = [check.fraction("algo.agent.epsilons", epsilon) for epsilon in epsilons]
        self.anneal = check.positive("algo.agent.anneal", check.fraction("algo.agent.anneal", anneal))
        self.target_every = check.count("algo.agent.target_every", target_every)
        self._final = self.epsilons[0]
        self._period: int | None = None  # on the global clock, of the last copy; unknown before the first update

    def bind(self, weights: flat.Vector, grad: flat.Vector, target: Tensor | None = None) -> None:
        """Bind the network to ``weights``, and the target network to the shared copy."""
        super().bind(weights, grad, target)
        self.target.bind(weights, target)

    def start(self, num_envs: int, rank: int = 0) -> None:
        """Take the session's rate of exploration; who only plays has the final one of the session that it names."""
        self._final = self.epsilons[rank % len(self.epsilons)]

    def on_update(self, frames: int) -> None:
        """Copy theta into the target network when a period is over."""
        period = frames // self.target_every
        if self._period is not None and period > self._period:
            self.target.move(1.0)
        self._period = period
        self.target.follow()  # others may have copied

    def state_dict(self) -> dict[str, Tensor]:
        """Return when the last copy was made; the copy itself is shared, like theta."""
        return {"period": torch.tensor(-1 if self._period is None else self._period)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over such a state."""
        period = int(state["period"])
        self._period = None if period < 0 else period
        self.target.follow()

    def epsilon(self, progress: float) -> float:
        """Return the session's share of random actions."""
        return Linear(self._final)(progress / self.anneal)

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False, progress: float = 1.0) -> Tensor:
        """Return the best actions, or with probability epsilon random ones."""
        best = self.q(obs).argmax(-1)
        if deterministic:
            return best
        random = torch.randint(self.actions, best.shape, device=best.device)
        return torch.where(torch.rand(best.shape, device=best.device) < self.epsilon(progress), random, best)

    def loss(self, batch: RolloutBatch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the squared error of Q on the n-step returns of a rollout."""
        q = self.q(batch.obs[:-1].flatten(0, 1)).gather(1, batch.action.view(-1, 1)).squeeze(1)
        with torch.no_grad():
            # Only where the rollout or an episode ends is there a bootstrap: max_a Q(s', a; target).
            ends = self.target.network(torch.cat([batch.obs[-1], batch.final_obs])).amax(-1)
            v_next = torch.zeros_like(batch.reward)
            v_next[-1] = ends[: v_next.shape[1]]
            v_next.view(-1).index_copy_(0, batch.final_index, ends[v_next.shape[1] :])
            zero = torch.zeros_like(v_next)
            target = gae(batch.reward, zero, v_next, batch.terminated, batch.done, self.gamma, 1.0).flatten()
        losses = {
            # J = E[(R_t - Q(s_t, a_t))^2]
            "q": (target - q).square().mean()
        }
        return losses, {"train/q": q.detach().mean(), "train/epsilon": torch.tensor(self.epsilon(progress))}
