"""Advantage actor-critic (Mnih et al., 2016).  T: horizon, B: environments, A: numbers of an action.

A3C is this in mode ``synced`` with several sessions; A2C is this in mode ``off``.
"""

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.distributions import Distribution

from asynclab.agents.base import Agent
from asynclab.distributions import categorical, diagonal_normal
from asynclab.memory import RolloutBatch
from asynclab.nets import Torso, linear
from asynclab.precision import Precision
from asynclab.returns import gae
from asynclab.schedules import Constant, Schedule


class ActorCritic(nn.Module):
    """A policy head and a value head, on one torso or on two."""

    def __init__(self, obs_space: Box, action_space: Box | Discrete, torso: Torso, actor: bool, critic: bool) -> None:
        super().__init__()
        self.torso = torso(obs_space)
        discrete = isinstance(action_space, Discrete)
        self.policy, self.value, self.log_std = None, None, None
        if actor:
            self.policy = linear(self.torso.features, int(action_space.n if discrete else action_space.shape[0]), 0.01)
            self.log_std = None if discrete else nn.Parameter(torch.zeros(action_space.shape))
        if critic:
            self.value = linear(self.torso.features, 1, 1.0)


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
        precision: Of the torso's arithmetic; weights, heads and losses are float32.
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
        precision: str = "fp32",
    ) -> None:
        if shared:
            nets = {"actor_critic": ActorCritic(obs_space, action_space, torso, actor=True, critic=True)}
        else:
            nets = {
                "actor": ActorCritic(obs_space, action_space, torso, actor=True, critic=False),
                "critic": ActorCritic(obs_space, action_space, torso, actor=False, critic=True),
            }
        self.nets = nn.ModuleDict(nets)
        self.actor, *rest = self.nets.values()
        self.critic = rest[0] if rest else self.actor
        self.discrete = isinstance(action_space, Discrete)
        self.gamma = gamma
        self.lam = lam
        self.value_coef = value_coef
        self.entropy_coef = entropy_coef
        self.entropy_schedule = entropy_schedule
        self.normalize_advantage = normalize_advantage
        self.precision = Precision(precision)

    def _features(self, net: ActorCritic, obs: Tensor) -> Tensor:
        with self.precision.autocast(self.device):
            features = net.torso(obs)
        return features.float()

    def _policy(self, features: Tensor) -> Distribution:
        out = self.actor.policy(features)
        return categorical(out) if self.discrete else diagonal_normal(out, self.actor.log_std)

    def _forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """Return pi(.|s) and V(s) [N] for observations [N, ...]."""
        features = self._features(self.actor, obs)
        critic_features = features if self.critic is self.actor else self._features(self.critic, obs)
        return self._policy(features), self.critic.value(critic_features).squeeze(-1)

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False) -> Tensor:
        """Sample actions, or return the likeliest ones."""
        policy = self._policy(self._features(self.actor, obs))
        return policy.mode if deterministic else policy.sample()

    @torch.no_grad()
    def _v_next(self, batch: RolloutBatch, value: Tensor) -> Tensor:
        """Return V of the true successors [T, B]: the next row's, the last row's own, a cut episode's final one."""
        successors = torch.cat([batch.obs[-1], batch.final_obs])
        extra = self.critic.value(self._features(self.critic, successors)).squeeze(-1)
        v_next = torch.cat([value[1:], extra[None, : value.shape[1]]])
        return v_next.flatten().index_copy_(0, batch.final_index, extra[value.shape[1] :]).view_as(value)

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
