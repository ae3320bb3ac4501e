"""Advantage actor-critic (Mnih et al., 2016).  T: horizon, B: environments, N: steps of all environments in a rollout.

A3C is this in mode ``synced`` with several sessions; A2C is this in mode ``off``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from asynclab import check
from asynclab.agents.actor_critic import ActorCritic, standardize
from asynclab.agents.returns import vtrace
from asynclab.memory import RolloutBatch


class A3C(ActorCritic):
    """One update for each rollout.

    Args:
        args: Of ``ActorCritic``.
        vtrace: Weigh what the critic and the policy learn by how likely the policy that learns takes the actions that
            were taken (Espeholt et al., 2018): of use where it is not the one that acted, in mode ``shared``.
        settings: Of ``ActorCritic``.
    """

    def __init__(self, *args: Any, vtrace: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.vtrace = check.flag("algo.agent.vtrace", vtrace)
        self._log_probs: list[Tensor] = []  # [B] of what was acted, by the policy that acted

    def start(self, num_envs: int, rank: int = 0) -> None:
        """Begin B episodes."""
        super().start(num_envs, rank)
        self._log_probs = []

    def _remember(self, policy: Distribution, action: Tensor) -> None:
        if self.vtrace and self.nets.training:  # nobody takes it away where nothing is learned
            self._log_probs.append(policy.log_prob(action))

    def minibatches(self, batch: RolloutBatch) -> Iterator[RolloutBatch]:
        """Yield the rollout."""
        whole = self._take_state(batch)
        if not self.vtrace:
            yield whole
            return
        acted, self._log_probs = self._log_probs[-len(batch.reward) :], []
        log_prob = torch.full_like(batch.reward, torch.nan)  # of a session that has died is not known how it acted
        if acted:
            log_prob[-len(acted) :] = torch.stack(acted)
        yield whole._replace(log_prob=log_prob)

    def _advantage(self, batch: RolloutBatch, policy: Distribution, value: Tensor, v_next: Tensor) -> Tensor:
        if not self.vtrace:
            return super()._advantage(batch, policy, value, v_next)
        log_prob = policy.log_prob(batch.action.flatten(0, 1)).detach().view_as(batch.reward)
        ratio = (log_prob - batch.log_prob).exp().nan_to_num(nan=1.0)
        return vtrace(batch.reward, value, v_next, batch.terminated, batch.done, ratio, self.gamma, self.lam)

    def loss(self, batch: RolloutBatch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses of actor, critic and entropy on a rollout."""
        policy, value, advantage = self._evaluate(batch)
        v = value.detach()
        target = advantage + v
        if self.normalize_advantage:
            advantage = standardize(advantage)
        entropy = policy.entropy().mean()
        losses = {
            # J_pi = -E[A log pi(a|s)],  J_V = E[(R - V(s))^2],  J_H = -E[H(pi(.|s))]   (Mnih et al., 2016, section 4)
            "policy": -(advantage * policy.log_prob(batch.action.flatten(0, 1))).mean(),
            "value": self.value_coef * (target - value).square().mean(),
            "entropy": -self.entropy_coef * self.entropy_schedule(progress) * entropy,
        }
        return losses, {"train/entropy": entropy.detach(), "train/value": v.mean()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return besides how likely the actions of the rollout so far were."""
        log_probs = {"log_probs": torch.stack(self._log_probs)} if self._log_probs else {}
        return super().state_dict() | log_probs

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over such a state."""
        super().load_state_dict(state)
        self._log_probs = list(state["log_probs"].to(self.device)) if "log_probs" in state else []
