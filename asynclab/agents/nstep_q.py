"""Asynchronous n-step Q-learning (Mnih et al., 2016, algorithm S2).  T: horizon, B: environments, A: actions."""

from collections.abc import Sequence

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from asynclab.agents.q_learning import QLearning
from asynclab.memory import RolloutBatch
from asynclab.nets import Torso
from asynclab.returns import gae


class NStepQ(QLearning):
    """Q-learning on the n-step returns of rollouts, with a rate of exploration that differs between sessions.

    The sessions take ``epsilons`` in turn, by rank.  (The paper draws them; few sessions could then all draw the same.)

    Args:
        obs_space: Of ``QLearning``, as are the others.
        action_space: A Discrete.
        torso: Makes the torso.
        dueling: Whether Q is made of V and advantages.
        gamma: Discount.
        epsilons: Final rates of random actions.
        anneal: Share of the frame budget in which they are reached.
        target_every: Frames on the global clock between two copies into the target network.
    """

    name = "nstep_q"

    def __init__(
        self,
        obs_space: Box,
        action_space: Box | Discrete,
        torso: Torso,
        dueling: bool = False,
        gamma: float = 0.99,
        epsilons: Sequence[float] = (0.1, 0.01, 0.5),
        anneal: float = 0.05,
        target_every: int = 40_000,
    ) -> None:
        super().__init__(obs_space, action_space, torso, dueling, gamma, epsilons, anneal, target_every)

    def start(self, num_envs: int, rank: int = 0) -> None:
        """Take the session's rate of exploration."""
        self._final = [self.epsilons[rank % len(self.epsilons)]]

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
        return losses, {"train/q": q.detach().mean(), "train/epsilon": self.epsilon(progress).mean()}
