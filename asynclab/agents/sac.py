"""Soft actor-critic with learned temperature (Haarnoja et al., 2018b).  N: batch, A: numbers of an action.

Equations are numbered as in arXiv 1812.05905.
"""

import copy
from collections.abc import Mapping
from math import prod

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from asynclab import check, flat
from asynclab.agents.base import Agent
from asynclab.distributions import SquashedNormal
from asynclab.memory import ReplayBatch
from asynclab.nets import Torso, TorsoModule, bind, linear

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class Head(nn.Module):
    """A torso and a dense layer on it: the actor's [N, 2 A] mean and log standard deviation, a critic's [N, 1] Q."""

    def __init__(self, torso: TorsoModule, outputs: int, gain: float) -> None:
        super().__init__()
        self.torso: TorsoModule = torso
        self.linear = linear(torso.features, outputs, gain)

    def forward(self, encoded: Tensor, action: Tensor | None = None) -> Tensor:
        """Return [N, outputs] for observations as the torso has encoded them."""
        return self.linear(self.torso.join(encoded, action))


class Critics(nn.Module):
    """Q1 and Q2.  Observations are encoded once for all the actions that they are asked about."""

    def __init__(self, q1: Head, q2: Head) -> None:
        super().__init__()
        self.q1 = q1
        self.q2 = q2

    def encode(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what of each critic depends on the observation alone."""
        return self.q1.torso.encode(obs), self.q2.torso.encode(obs)

    def forward(self, encoded: tuple[Tensor, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        """Return Q1(s, a) and Q2(s, a), each [N]."""
        return self.q1(encoded[0], action).squeeze(-1), self.q2(encoded[1], action).squeeze(-1)


class Temperature(nn.Module):
    """log alpha, a trained scalar and part of theta."""

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
        target_entropy: Per action dimension, in nats; the paper's is -1.

    Raises:
        ValueError: The action space is not a bounded Box.
    """

    def __init__(
        self,
        obs_space: Box,
        action_space: Box | Discrete,
        torso: Torso,
        gamma: float = 0.99,
        polyak: float = 0.005,
        init_alpha: float = 1.0,
        target_entropy: float = -1.0,
    ) -> None:
        if not isinstance(action_space, Box) or not action_space.is_bounded():
            raise ValueError(
                f"algo=sac needs bounded continuous actions, and this env has {action_space};"
                " use algo=a3c or another env"
            )
        action_dim = prod(action_space.shape)
        self.actor = Head(torso(obs_space), 2 * action_dim, gain=0.01)
        q1, q2 = (Head(torso(obs_space, action_dim), 1, gain=1.0) for _ in range(2))
        self.critics = Critics(q1, q2)
        self.temperature = Temperature(check.positive("algo.agent.init_alpha", init_alpha))
        self.nets = nn.ModuleDict({"actor": self.actor, "q1": q1, "q2": q2, "temperature": self.temperature})
        # The same weights without gradients, for the actor's loss; and a slowly following copy, for the critics'.
        self.frozen_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        parts = flat.slices(self.nets)
        self._critics_part = slice(parts["q1"].start, parts["q2"].stop)
        self.gamma = check.fraction("algo.agent.gamma", gamma)
        self.polyak = check.fraction("algo.agent.polyak", polyak)
        self.target_entropy = check.number("algo.agent.target_entropy", target_entropy) * action_dim

    def bind(self, weights: flat.Vector, grad: flat.Vector) -> None:
        """Bind the networks to ``weights``, the frozen critics too; the targets start as a copy of its critics."""
        super().bind(weights, grad)
        self._critic_weights = weights[self._critics_part]
        self._target_weights = flat.Vector.make(self._critic_weights.full.clone(), bf16=weights.low is not None)
        bind(self.frozen_critics, self._critic_weights)
        bind(self.target_critics, self._target_weights)

    def on_update(self) -> None:
        """Move the target critics: target <- (1 - polyak) target + polyak theta."""
        self._target_weights.full.lerp_(self._critic_weights.full, self.polyak)
        self._target_weights.round_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the target critics."""
        return {"targets": self._target_weights.full.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the target critics."""
        self._target_weights.full.copy_(state["targets"])
        self._target_weights.round_()

    def _pi(self, obs: Tensor) -> SquashedNormal:
        mean, log_std = self.actor(self.actor.torso.encode(obs)).chunk(2, -1)
        return SquashedNormal(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))

    def _soft_value(
        self, obs: Tensor, critics: Critics, encoded: tuple[Tensor, Tensor], alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return V(s) = E_a[min Q(s, a) - alpha log pi(a|s)] [N] (eq. 3, one sample) and log pi(a|s) [N].

        ``encoded`` has the observations as each critic encodes them.
        """
        action, log_prob = self._pi(obs).rsample()
        return torch.minimum(*critics(encoded, action)) - alpha * log_prob, log_prob

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False) -> Tensor:
        """Sample actions [N, A] in (-1, 1), or return the mode."""
        pi = self._pi(obs)
        return pi.mode if deterministic else pi.sample()

    def loss(self, batch: ReplayBatch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses of critics, actor and temperature on replayed transitions."""
        log_alpha = self.temperature.log_alpha
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            encoded = self.target_critics.encode(batch.next_obs)
            v_next, _ = self._soft_value(batch.next_obs, self.target_critics, encoded, alpha)
            target = batch.reward + self.gamma * ~batch.terminated * v_next
        encoded = self.critics.encode(batch.obs)
        q1, q2 = self.critics(encoded, batch.action)
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
