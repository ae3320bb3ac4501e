"""n-step double Q-learning from replay, as in Gorila (Nair et al., 2015) and Ape-X (Horgan et al., 2018).

Here every session acts, remembers and learns, as in Gorila; there is no server, and no transition has priority.
N: batch, B: environments, A: actions.
"""

from collections.abc import Sequence

import torch
from gymnasium.spaces import Box
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss

from asynclab import check
from asynclab.agents.histogram import Histogram
from asynclab.agents.q_learning import QLearning
from asynclab.memory import ActionSpace, ReplayBatch
from asynclab.nets import Torso


class DQN(QLearning):
    """Q-learning on replayed transitions of n steps, which the memory makes, discounts and all.

    The environments of all sessions take ``epsilons`` in turn, so that even one session explores at several rates, as
    the many actors of Ape-X do.

    Args:
        obs_space: Of ``QLearning``, as are ``gamma`` and what follows.
        action_space: A Discrete.
        torso: Makes the torso.
        double: Let the network choose the best next action and the target network value it (van Hasselt et al., 2016);
            else the target network does both.
        dueling: Whether Q is made of V and advantages.
        huber: Bound the gradient of each error to 1 (Mnih et al., 2015); else it is the error itself.
        bins: Learn each value as a histogram of so many bins, by classification (``Histogram``); None: by its error.
        value_range: Of those values, from minus this to this.
        gamma: Discount; the memory's must be the same.
        epsilons: Final rates of random actions.
        anneal: Share of the frame budget in which they are reached.
        target_every: Frames on the global clock between two copies into the target network.
        temperature: Of the softmax of Q from which actions are drawn that are not random; it falls to 0.
    """

    name = "dqn"

    def __init__(
        self,
        obs_space: Box,
        action_space: ActionSpace,
        torso: Torso,
        double: bool = True,
        dueling: bool = False,
        huber: bool = True,
        bins: int | None = None,
        value_range: float = 10.0,
        gamma: float = 0.99,
        epsilons: Sequence[float] = (0.05, 0.02, 0.01, 0.005),
        anneal: float = 0.02,
        target_every: int = 8_000,
        temperature: float = 0.0,
    ) -> None:
        check.count("algo.agent.target_every", target_every)
        self.double = check.flag("algo.agent.double", double)
        self.huber = check.flag("algo.agent.huber", huber)
        self.histogram = None if bins is None else Histogram(bins, value_range)
        more = (epsilons, anneal, target_every, temperature, self.histogram)
        super().__init__(obs_space, action_space, torso, dueling, gamma, *more)

    def start(self, num_envs: int, rank: int = 0) -> None:
        """Take the environments' rates of exploration."""
        self._final = [self.epsilons[(rank * num_envs + b) % len(self.epsilons)] for b in range(num_envs)]

    def loss(self, batch: ReplayBatch, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss of Q on the double Q-learning targets of replayed transitions."""
        with torch.no_grad():
            q_next = self.lagging(batch.next_obs)
            best = (self.q(batch.next_obs) if self.double else q_next).argmax(-1, keepdim=True)
            # y = r_1 + ... + gamma^(k-1) r_k + gamma^k Q(s_k, argmax_a Q(s_k, a); target)
            target = batch.reward + self.gamma * batch.discount * q_next.gather(1, best).squeeze(1)
        scores = self.q.scores(batch.obs)
        taken = scores[torch.arange(len(scores), device=scores.device), batch.action]
        if self.histogram is None:
            q = taken.squeeze(-1)
            # J = E[1/2 (y - Q(s, a))^2], or linear beyond an error of 1
            loss = huber_loss(q, target) if self.huber else 0.5 * mse_loss(q, target)
        else:
            q = self.histogram.mean(taken)
            # J = E[cross entropy of Q(s, a)'s histogram with that of y]
            loss = self.histogram.loss(taken, target)
        return {"q": loss}, {"train/q": q.detach().mean(), "train/epsilon": self.epsilon(progress).mean()}
