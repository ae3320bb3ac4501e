"""Soft actor-critic with learned temperature (Haarnoja et al., 2018b), also for discrete actions (Christodoulou, 2019).

N: batch, A: numbers of a continuous action, or how many discrete ones there are.  Equations are numbered as in
arXiv 1812.05905.
"""

import copy
from collections.abc import Mapping
from math import log, prod
from typing import Any

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from asynclab import check, flat
from asynclab.agents.base import Agent
from asynclab.agents.distributions import SquashedNormal, categorical
from asynclab.agents.target import Target
from asynclab.memory import ActionSpace, ReplayBatch
from asynclab.nets import Torso, TorsoModule, bind, linear

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
# Of the critics' last layers: on raw observations as large as Humanoid's a gain of 1 would begin with |Q| of 8 to 13.
Q_GAIN = 0.1

Pair = tuple[Tensor, Tensor]


class Head(nn.Module):
    """A torso and a dense layer on it.

    Continuous: the actor's [N, 2 A] mean and log standard deviation, a critic's [N, 1] Q.  Discrete: logits [N, A], and
    Q [N, A] of every action.
    """

    def __init__(self, torso: TorsoModule, outputs: int, gain: float) -> None:
        super().__init__()
        self.torso: TorsoModule = torso
        self.linear = linear(torso.features, outputs, gain)

    def forward(self, encoded: Tensor, action: Tensor | None = None) -> Tensor:
        """Return [N, outputs] for observations as the torso has encoded them."""
        return self.linear(self.torso.join(encoded, action))


Heads = tuple[Head, Head, Head]  # of the actor and of both critics


class Critics(nn.Module):
    """Q1 and Q2.  Observations are encoded once for all the actions that they are asked about."""

    def __init__(self, q1: Head, q2: Head) -> None:
        super().__init__()
        self.q1 = q1
        self.q2 = q2

    def encode(self, obs: Tensor) -> Pair:
        """Return what of each critic depends on the observation alone."""
        return self.q1.torso.encode(obs), self.q2.torso.encode(obs)

    def forward(self, encoded: Pair, action: Tensor | None = None) -> Pair:
        """Return Q1(s, a) and Q2(s, a), each [N], or [N, A] of all discrete actions."""
        q1, q2 = self.q1(encoded[0], action), self.q2(encoded[1], action)
        return (q1, q2) if action is None else (q1.squeeze(-1), q2.squeeze(-1))


class Temperature(nn.Module):
    """log alpha, a trained scalar."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(initial).log())


class SAC(Agent):
    """SAC for bounded continuous actions.

    Args:
        obs_space: Space of one observation.
        action_space: A Box; the agent acts in [-1, 1].
        torso: Makes the torsos of the actor and of both critics.
        gamma: Discount.
        polyak: Step of the target critics towards the critics after each update.
        init_alpha: First temperature.
        target_entropy: Per action dimension, in nats; None for the paper's -1.
        shared_temperature: One temperature, as a part of theta; else every session learns its own, by Adam without a
            schedule or a bound on the gradient, and a session that has failed begins with ``init_alpha`` again.
        temperature_lr: Learning rate of a temperature of its own.
        shared_targets: One pair of target critics, which every session's updates move; else every session has its own,
            which it moves after its own updates, for those of the others too.

    Raises:
        ValueError: The action space is not a bounded Box.
    """

    deterministic = True

    def __init__(
        self,
        obs_space: Box,
        action_space: ActionSpace,
        torso: Torso,
        gamma: float = 0.99,
        polyak: float = 0.005,
        init_alpha: float = 1.0,
        target_entropy: float | None = None,
        shared_temperature: bool = True,
        temperature_lr: float = 1e-4,
        shared_targets: bool = False,
    ) -> None:
        if target_entropy is not None:
            check.number("algo.agent.target_entropy", target_entropy)
        self.actor, q1, q2 = self._heads(obs_space, action_space, torso, target_entropy)
        self.critics = Critics(q1, q2)
        self.temperature = Temperature(check.positive("algo.agent.init_alpha", init_alpha))
        trained = {"temperature": self.temperature} if shared_temperature else {}
        self.nets = nn.ModuleDict({"actor": self.actor, "q1": q1, "q2": q2, **trained})
        self.shared_temperature = check.flag("algo.agent.shared_temperature", shared_temperature)
        self.own = () if shared_temperature else tuple(self.temperature.parameters())
        self.temperature_lr = check.positive("algo.agent.temperature_lr", temperature_lr)
        # The same weights without gradients, for the actor's loss; and a slowly following copy, for the critics'.
        self.frozen_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.target = Target(self.critics)
        self.targets = [self.target]
        parts = flat.slices(self.nets)
        self._critics_part = slice(parts["q1"].start, parts["q2"].stop)
        self.target_part = self._critics_part if check.flag("algo.agent.shared_targets", shared_targets) else None
        self.gamma = check.fraction("algo.agent.gamma", gamma)
        self.polyak = check.fraction("algo.agent.polyak", polyak)

    def _heads(self, obs_space: Box, action_space: ActionSpace, torso: Torso, target_entropy: float | None) -> Heads:
        """Set the target entropy and return new networks for the actor and both critics."""
        if not isinstance(action_space, Box) or not action_space.is_bounded():
            raise ValueError(
                f"algo=sac needs bounded continuous or discrete actions, and this env has {action_space};"
                " use algo=a3c or another env"
            )
        action_dim = prod(action_space.shape)
        self.target_entropy = (-1.0 if target_entropy is None else target_entropy) * action_dim
        actor = Head(torso(obs_space), 2 * action_dim, gain=0.01)
        q1, q2 = (Head(torso(obs_space, action_dim), 1, Q_GAIN) for _ in range(2))
        return actor, q1, q2

    def bind(self, weights: flat.Vector, grad: flat.Vector, target: Tensor | None = None) -> None:
        """Bind the networks to ``weights``, the frozen critics too; targets of its own start as its critics."""
        super().bind(weights, grad, target)
        critics = weights[self._critics_part]
        bind(self.frozen_critics, critics)
        self.target.bind(critics, target)
        if not self.shared_temperature:
            self.temperature.to(self.device)
            self._temperature_optimizer = torch.optim.Adam(self.temperature.parameters(), lr=self.temperature_lr)

    def on_update(self, frames: int, updates: int) -> None:
        """Move the target critics, target <- (1 - polyak) target + polyak theta, and a temperature of its own.

        Targets of the session's own move once for every update that theta has seen: others' make it move, too, and
        with S sessions the targets would lag S times as far behind.  Shared ones are moved by every session.
        """
        alone = updates == 1 or self.target_part is not None
        self.target.move(self.polyak if alone else 1 - (1 - self.polyak) ** updates)
        if not self.shared_temperature:
            self._temperature_optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what is the session's own: target critics, temperature."""
        state: dict[str, Any] = {}
        if self.target_part is None:
            state["targets"] = self.target.weights.clone()
        if not self.shared_temperature:
            state["log_alpha"] = self.temperature.log_alpha.detach().clone()
            state["temperature_optimizer"] = copy.deepcopy(self._temperature_optimizer.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        if self.target_part is None:
            self.target.weights.copy_(state["targets"])
        self.target.follow()
        if not self.shared_temperature:
            self.temperature.load_state_dict({"log_alpha": state["log_alpha"]})
            self._temperature_optimizer.load_state_dict(state["temperature_optimizer"])

    def _pi(self, obs: Tensor) -> SquashedNormal:
        mean, log_std = self.actor(self.actor.torso.encode(obs)).chunk(2, -1)
        return SquashedNormal(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))

    def _soft_value(self, obs: Tensor, critics: Critics, encoded: Pair, alpha: Tensor) -> Pair:
        """Return V(s) = E_a[min Q(s, a) - alpha log pi(a|s)] [N] (eq. 3, one sample) and log pi(a|s) [N].

        ``encoded`` has the observations as each critic encodes them.
        """
        action, log_prob = self._pi(obs).rsample()
        return torch.minimum(*critics(encoded, action)) - alpha * log_prob, log_prob

    def _q(self, encoded: Pair, action: Tensor) -> Pair:
        """Return Q1 and Q2 [N] of the actions that were taken."""
        return self.critics(encoded, action)

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False, progress: float = 1.0) -> Tensor:
        """Sample actions [N, A] in (-1, 1), or return the mode."""
        pi = self._pi(obs)
        return pi.mode if deterministic else pi.sample()

    def loss(self, batch: ReplayBatch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses of critics, actor and temperature on replayed transitions."""
        log_alpha = self.temperature.log_alpha
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            encoded = self.target.network.encode(batch.next_obs)
            v_next, _ = self._soft_value(batch.next_obs, self.target.network, encoded, alpha)
            target = batch.reward + self.gamma * batch.discount * v_next
        encoded = self.critics.encode(batch.obs)
        q1, q2 = self._q(encoded, batch.action)
        constant = encoded[0].detach(), encoded[1].detach()
        v, log_prob = self._soft_value(batch.obs, self.frozen_critics, constant, alpha)
        losses = {
            # J_Q = E[1/2 (Q(s, a) - (r + gamma V(s')))^2]   (eq. 5)
            "critic": 0.5 * (mse_loss(q1, target) + mse_loss(q2, target)),
            # J_pi = E[alpha log pi(a|s) - min Q(s, a)] = -E[V(s)]   (eq. 9)
            "actor": -v.mean(),
            # J(alpha) = E[-alpha (log pi(a|s) + H)]   (eq. 18), in log alpha as the authors' code has it
            "temperature": -log_alpha * (log_prob.detach().mean() + self.target_entropy),
        }
        return losses, {"train/entropy": -log_prob.detach().mean(), "train/alpha": alpha, "train/q": q1.detach().mean()}


class DiscreteSAC(SAC):
    """SAC for discrete actions, whose expectation over actions is a sum (Christodoulou, 2019).

    Args:
        args: Of ``SAC``.
        settings: Of ``SAC``.  ``target_entropy`` is a share of the largest one, log A; None for the paper's 0.98.
    """

    def _heads(self, obs_space: Box, action_space: ActionSpace, torso: Torso, target_entropy: float | None) -> Heads:
        assert isinstance(action_space, Discrete)
        actions = int(action_space.n)
        share = 0.98 if target_entropy is None else check.fraction("algo.agent.target_entropy", target_entropy)
        self.target_entropy = share * log(actions)
        actor, q1, q2 = (Head(torso(obs_space), actions, gain) for gain in (0.01, Q_GAIN, Q_GAIN))
        return actor, q1, q2

    def _logits(self, obs: Tensor) -> Tensor:
        return self.actor(self.actor.torso.encode(obs))

    def _soft_value(self, obs: Tensor, critics: Critics, encoded: Pair, alpha: Tensor) -> Pair:
        """Return V(s) = sum_a pi(a|s) (min Q(s, a) - alpha log pi(a|s)) [N] and E_a[log pi(a|s)] [N]."""
        log_pi = self._logits(obs).log_softmax(-1)
        pi = log_pi.exp()
        value = (pi * (torch.minimum(*critics(encoded)) - alpha * log_pi)).sum(-1)
        return value, (pi * log_pi).sum(-1)

    def _q(self, encoded: Pair, action: Tensor) -> Pair:
        q1, q2 = (q.gather(1, action[:, None]).squeeze(1) for q in self.critics(encoded))
        return q1, q2

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False, progress: float = 1.0) -> Tensor:
        """Sample actions [N], or return the likeliest ones."""
        pi = categorical(self._logits(obs))
        return pi.mode if deterministic else pi.sample()


def make_sac(obs_space: Box, action_space: ActionSpace, *args: Any, **settings: Any) -> SAC:
    """Return the SAC that fits the actions; the rest is as for ``SAC``."""
    kind = DiscreteSAC if isinstance(action_space, Discrete) else SAC
    return kind(obs_space, action_space, *args, **settings)
