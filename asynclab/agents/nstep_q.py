"""Asynchronous n-step Q-learning (Mnih et al., 2016, algorithm S2), and as PQN (Gallici et al., 2024).

T: horizon, B: environments, N: T B, A: actions.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from gymnasium.spaces import Box
from torch import Tensor

from asynclab import check, layout
from asynclab.agents.q_learning import QLearning
from asynclab.agents.returns import gae, successors
from asynclab.memory import ActionSpace, RolloutBatch
from asynclab.nets import Torso


class QBatch(NamedTuple):
    """Some of a rollout's steps: obs [n, ...], action [n] and their returns [n]."""

    obs: Tensor
    action: Tensor
    target: Tensor


class NStepQ(QLearning):
    """Q-learning on the n-step returns of rollouts, with a rate of exploration that differs between sessions.

    The sessions take ``epsilons`` in turn, by rank.  (The paper draws them; few sessions could then all draw the same.)

    With ``lam``, without a target network and with layer normalisation in the torso it is PQN (Gallici et al., 2024).

    Args:
        obs_space: Of ``QLearning``, as are the others but ``lam``, ``epochs`` and ``minibatch_size``.
        action_space: A Discrete.
        torso: Makes the torso.
        dueling: Whether Q is made of V and advantages.
        gamma: Discount.
        lam: Weight of longer returns, Q(lambda) of Peng & Williams (1996); 1 gives the n-step returns of the paper.
        epochs: Times that each rollout is used.
        minibatch_size: Steps of an update; None for the whole rollout.
        epsilons: Final rates of random actions.
        anneal: Share of the frame budget in which they are reached.
        target_every: Frames on the global clock between two copies into the target network; None for none.
        temperature: Of the softmax of Q from which actions are drawn that are not random; it falls to 0.
    """

    name = "nstep_q"
    advantages = staticmethod(gae)

    def __init__(
        self,
        obs_space: Box,
        action_space: ActionSpace,
        torso: Torso,
        dueling: bool = False,
        gamma: float = 0.99,
        lam: float = 1.0,
        epochs: int = 1,
        minibatch_size: int | None = None,
        epsilons: Sequence[float] = (0.1, 0.01, 0.5),
        anneal: float = 0.05,
        target_every: int | None = 40_000,
        temperature: float = 0.0,
    ) -> None:
        super().__init__(obs_space, action_space, torso, dueling, gamma, epsilons, anneal, target_every, temperature)
        self.lam = check.fraction("algo.agent.lam", lam)
        self.epochs = check.count("algo.agent.epochs", epochs)
        if minibatch_size is not None:
            check.count("algo.agent.minibatch_size", minibatch_size)
        self.minibatch_size = minibatch_size

    def start(self, num_envs: int, rank: int = 0) -> None:
        """Take the session's rate of exploration; who only plays has the final one of session 0."""
        self._final = [self.epsilons[rank % len(self.epsilons)]]

    def minibatches(self, batch: RolloutBatch) -> Iterator[RolloutBatch | QBatch]:
        """Yield the rollout; or, if it is to be used in parts or several times, minibatches with its returns."""
        if self.minibatch_size is None and self.epochs == 1:
            yield batch
            return
        obs = batch.obs[:-1].flatten(0, 1)
        with torch.no_grad():
            target = self._returns(batch)
        whole = QBatch(obs, batch.action.flatten(), target)
        for _ in range(self.epochs):
            for index in torch.randperm(len(target)).to(self.device).split(self.minibatch_size or len(target)):
                yield QBatch(*(layout.take(column, 0, index) for column in whole))

    def loss(self, batch: RolloutBatch | QBatch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the squared error of Q on the returns of a rollout, or of a minibatch."""
        if "target" in batch._fields:
            obs, action, target = cast(QBatch, batch)
            values = self.q(obs)
        else:
            batch = cast(RolloutBatch, batch)
            action = batch.action
            values = self.q(batch.obs[:-1].flatten(0, 1))
            with torch.no_grad():
                target = self._returns(batch, values)
        q = values.gather(1, action.view(-1, 1)).squeeze(1)
        losses = {
            # J = E[(R_t - Q(s_t, a_t))^2]
            "q": (target - q).square().mean()
        }
        return losses, {"train/q": q.detach().mean(), "train/epsilon": self.epsilon(progress).mean()}

    def _returns(self, batch: RolloutBatch, q: Tensor | None = None) -> Tensor:
        """Return the lambda-returns [N] of a rollout's steps.

        R_t = r_t + gamma (lam R_{t+1} + (1 - lam) max_a Q(s_{t+1}, a)), in which the first R after the rollout or its
        episode is max_a Q, too.

        Args:
            batch: A rollout.
            q: [N, A] of its observations, by the network itself, if they are known.
        """
        ends = self.lagging(torch.cat([batch.obs[-1], batch.final_obs])).amax(-1)
        value = torch.zeros_like(batch.reward)
        if self.lam < 1:
            if q is None or self.lagging is not self.q:
                q = self.lagging(batch.obs[:-1].flatten(0, 1))
            value = q.amax(-1).view_as(batch.reward)
        # With lam = 1 only the value where the rollout or an episode ends is not multiplied by zero.
        v_next = successors(value, ends, batch.final_index)
        advantage = self.advantages(batch.reward, value, v_next, batch.terminated, batch.done, self.gamma, self.lam)
        return (advantage + value).flatten()
