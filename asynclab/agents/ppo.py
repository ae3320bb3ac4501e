"""Proximal policy optimisation (Schulman et al., 2017).  T: horizon, B: environments, N: T B.

Distributed (mode ``synced``) it is DPPO (Heess et al., 2017): every session pushes each of its minibatches' gradients.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asynclab import check, layout
from asynclab.agents.actor_critic import ActorCritic, standardize
from asynclab.memory import RolloutBatch
from asynclab.schedules import Constant, Schedule


class PPOBatch(NamedTuple):
    """Some of a rollout's steps: single ones as [1, n], or with an LSTM whole environments' as [T, n].

    Attributes:
        obs: [T, n, ...].
        action: [T, n] int64 or [T, n, A] float32.
        done: [T, n] bool.
        log_prob: [T, n] log pi_old(a|s).
        value: [T, n] V_old(s).
        advantage: [T, n].
        state: [2, n, H] what an LSTM remembered before the first of them; empty without one.
    """

    obs: Tensor
    action: Tensor
    done: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    state: Tensor


class PPO(ActorCritic):
    """Several epochs of minibatches on each rollout, with a clipped ratio of probabilities.

    pi_old and V_old are those of the weights with which the first minibatch is computed.  In ``off`` and ``synced``
    these are the weights that acted; in ``shared`` other sessions have moved them during the rollout.  Computing them
    from the rollout costs one more forward pass for ``epochs`` of them, and memories need not have them.

    Args:
        epochs: Times that each rollout is used.
        minibatch_size: Steps of an update; with an LSTM rounded down to whole environments, at least one.
        clip: Bound on how far the ratio's gain counts beyond 1.
        clip_schedule: Factor on ``clip`` by progress on the global clock.
        clip_value: Bound the values' change in the same way; in units of the value, which the reward's scale sets.
        settings: Of ``ActorCritic``.
    """

    def __init__(
        self,
        *args: Any,
        epochs: int = 4,
        minibatch_size: int = 256,
        clip: float = 0.2,
        clip_schedule: Schedule = Constant(),
        clip_value: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.epochs = check.count("algo.agent.epochs", epochs)
        self.minibatch_size = check.count("algo.agent.minibatch_size", minibatch_size)
        self.clip = check.positive("algo.agent.clip", clip)
        self.clip_schedule = check.schedule("algo.agent.clip_schedule", clip_schedule)
        self.clip_value = check.flag("algo.agent.clip_value", clip_value)

    def minibatches(self, batch: RolloutBatch) -> Iterator[PPOBatch]:
        """Yield the rollout in minibatches, several times, each time in another order."""
        whole = self._whole(self._take_state(batch))
        count, size = whole.done.shape[1], self.minibatch_size
        if self.lstm is not None:
            size = max(1, size // len(whole.done))
        for _ in range(self.epochs):
            parts = torch.randperm(count).to(self.device).split(size)
            if self.lstm is None and size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
                parts = (*parts[:-2], torch.cat(parts[-2:]))  # a single step's advantage could not be standardised
            for index in parts:
                yield PPOBatch(*(layout.take(column, 1, index) for column in whole))

    @torch.no_grad()
    def _whole(self, batch: RolloutBatch) -> PPOBatch:
        """Return the rollout as one minibatch."""
        policy, value, advantage = self._evaluate(batch)
        log_prob = policy.log_prob(batch.action.flatten(0, 1))
        log_prob, value, advantage = (x.view_as(batch.reward) for x in (log_prob, value, advantage))
        whole = PPOBatch(batch.obs[:-1], batch.action, batch.done, log_prob, value, advantage, batch.state)
        if self.lstm is not None:
            return whole
        obs, action, done, log_prob, value, advantage, _ = (x.flatten(0, 1)[None] for x in whole)
        return PPOBatch(obs, action, done, log_prob, value, advantage, state=value.new_empty(2, value.numel(), 0))

    def loss(self, batch: PPOBatch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses of actor, critic and entropy on a minibatch."""
        policy, v, _ = self._forward(batch.obs, batch.done, batch.state)
        v_old, advantage = batch.value.flatten(), batch.advantage.flatten()
        target = advantage + v_old
        if self.normalize_advantage:
            advantage = standardize(advantage)
        log_ratio = policy.log_prob(batch.action.flatten(0, 1)) - batch.log_prob.flatten()
        ratio = log_ratio.exp()
        eps = self.clip * self.clip_schedule(progress)
        error = (target - v).square()
        if self.clip_value:
            error = torch.maximum(error, (target - v_old - (v - v_old).clamp(-eps, eps)).square())
        entropy = policy.entropy().mean()
        losses = {
            # L_CLIP = E[min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)]   (Schulman et al., 2017, eq. 7)
            "policy": -torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - eps, 1 + eps)).mean(),
            "value": self.value_coef * error.mean(),
            "entropy": -self.entropy_coef * self.entropy_schedule(progress) * entropy,
        }
        with torch.no_grad():
            metrics = {
                "train/kl": (ratio - 1 - log_ratio).mean(),  # an estimate of KL(pi_old, pi) that is never negative
                "train/clip_fraction": ((ratio - 1).abs() > eps).float().mean(),
                "train/entropy": entropy.detach(),
                "train/value": v.detach().mean(),
            }
        return losses, metrics
