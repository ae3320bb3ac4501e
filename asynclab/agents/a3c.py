"""Advantage actor-critic (Mnih et al., 2016).  N: steps of all environments in a rollout.

A3C is this in mode ``synced`` with several sessions; A2C is this in mode ``off``.
"""

from collections.abc import Iterator

from torch import Tensor

from asynclab.agents.actor_critic import ActorCritic, standardize
from asynclab.memory import RolloutBatch


class A3C(ActorCritic):
    """One update for each rollout."""

    def minibatches(self, batch: RolloutBatch) -> Iterator[RolloutBatch]:
        """Yield the rollout."""
        yield self._take_state(batch)

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
