"""Advantage actor-critic (Mnih et al., 2016).  T: horizon, B: environments, A: numbers of an action.

A3C is this in mode ``synced`` with several sessions; A2C is this in mode ``off``.
"""

from math import prod

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.distributions import Distribution

from asynclab import check
from asynclab.agents.base import Agent
from asynclab.distributions import categorical, diagonal_normal
from asynclab.memory import RolloutBatch
from asynclab.nets import Torso, linear
from asynclab.returns import gae
from asynclab.schedules import Constant, Schedule


class PolicyHead(nn.Module):
    """Features [N, F] -> pi(.|s); continuous actions have a standard deviation that does not depend on s."""

    def __init__(self, features: int, action_space: Box | Discrete) -> None:
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        actions = int(action_space.n) if isinstance(action_space, Discrete) else prod(action_space.shape)
        self.linear = linear(features, actions, gain=0.01)
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(actions))

    def forward(self, features: Tensor) -> Distribution:
        """Return the distribution of actions [N] or [N, A]."""
        out = self.linear(features)
        return categorical(out) if self.log_std is None else diagonal_normal(out, self.log_std)


class A3C(Agent):
    """Actor-critic with generalised advantages, for discrete and continuous actions.

    Args:
        obs_space: Space of one observation.
        action_space: Space of one action.
        torso: Makes the torso.
        shared: One torso for actor and critic, or one for each.
        gamma: Discount.
        lam: GAE's lambda; 1 gives the n-step returns of the A3C paper.
        value_coef: Weight of the squared value error.
        entropy_coef: Weight of the policy's entropy.
        entropy_schedule: Factor on ``entropy_coef`` by progress on the global clock.
        normalize_advantage: Standardise the advantages of each batch.
    """

    def __init__(
        self,
        obs_space: Box,
        action_space: Box | Discrete,
        torso: Torso,
        shared: bool = True,
        gamma: float = 0.99,
        lam: float = 0.95,
        value_coef: float = 0.5,
        entropy_coef: float = 0.01,
        entropy_schedule: Schedule = Constant(),
        normalize_advantage: bool = False,
    ) -> None:
        torsos = [torso(obs_space) for _ in range(1 if shared else 2)]
        self.actor_torso, self.critic_torso = torsos[0], torsos[-1]
        self.policy = PolicyHead(self.actor_torso.features, action_space)
        self.value = linear(self.critic_torso.features, 1, gain=1.0)
        if shared:
            nets = {"actor_critic": nn.ModuleList([torsos[0], self.policy, self.value])}
        else:
            nets = {
                "actor": nn.ModuleList([self.actor_torso, self.policy]),
                "critic": nn.ModuleList([self.critic_torso, self.value]),
            }
        self.nets = nn.ModuleDict(nets)
        self.gamma = check.fraction("algo.agent.gamma", gamma)
        self.lam = check.fraction("algo.agent.lam", lam)
        self.value_coef = check.number("algo.agent.value_coef", value_coef)
        self.entropy_coef = check.number("algo.agent.entropy_coef", entropy_coef)
        self.entropy_schedule = entropy_schedule
        self.normalize_advantage = normalize_advantage

    def _forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """Return pi(.|s) and V(s) [N] for observations [N, ...]."""
        actor = critic = self.actor_torso(obs)
        if self.critic_torso is not self.actor_torso:
            critic = self.critic_torso(obs)
        return self.policy(actor), self.value(critic).squeeze(-1)

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False) -> Tensor:
        """Sample actions, or return the likeliest ones."""
        policy = self.policy(self.actor_torso(obs))
        return policy.mode if deterministic else policy.sample()

    @torch.no_grad()
    def _v_next(self, batch: RolloutBatch, value: Tensor) -> Tensor:
        """Return V of the true successors [T, B]: the next row's, the last row's own, a cut episode's final one."""
        successors = torch.cat([batch.obs[-1], batch.final_obs])
        v = self.value(self.critic_torso(successors)).squeeze(-1)
        v_last, v_final = v[: value.shape[1]], v[value.shape[1] :]
        v_next = torch.cat([value[1:], v_last[None]])
        return v_next.flatten().index_copy_(0, batch.final_index, v_final).view_as(value)

    def loss(self, batch: RolloutBatch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses of actor, critic and entropy on a rollout."""
        policy, value = self._forward(batch.obs[:-1].flatten(0, 1))
        v = value.detach().view_as(batch.reward)
        v_next = self._v_next(batch, v)
        advantage = gae(batch.reward, v, v_next, batch.terminated, batch.done, self.gamma, self.lam).flatten()
        target = advantage + v.flatten()
        if self.normalize_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        entropy = policy.entropy().mean()
        losses = {
            # J_pi = -E[A log pi(a|s)],  J_V = E[(R - V(s))^2],  J_H = -E[H(pi(.|s))]   (Mnih et al., 2016, section 4)
            "policy": -(advantage * policy.log_prob(batch.action.flatten(0, 1))).mean(),
            "value": self.value_coef * (target - value).square().mean(),
            "entropy": -self.entropy_coef * self.entropy_schedule(progress) * entropy,
        }
        return losses, {"train/entropy": entropy.detach(), "train/value": v.mean()}
