"""What A3C and PPO share: a policy and a value on one torso or two, with or without a memory.

T: horizon, B: environments, N: T B, F: features, H: cells, A: numbers of an action.
"""

from collections.abc import Mapping

import torch
from gymnasium.spaces import Box, MultiDiscrete, flatdim
from torch import Tensor, nn
from torch.distributions import Distribution

from asynclab import check
from asynclab.agents.base import Agent
from asynclab.agents.distributions import categorical, diagonal_normal, multi_categorical
from asynclab.agents.returns import gae, successors
from asynclab.memory import ActionSpace, RolloutBatch
from asynclab.nets import LSTM, Torso, linear
from asynclab.schedules import Constant, Schedule


class PolicyHead(nn.Module):
    """Features [N, F] -> pi(.|s); the numbers of an action are independent.

    Continuous ones have a standard deviation that does not depend on s; ``log_std_init`` is its logarithm at first.
    """

    def __init__(self, features: int, action_space: ActionSpace, log_std_init: float) -> None:
        super().__init__()
        outputs = flatdim(action_space)  # of a discrete number one for each value
        self.sizes = action_space.nvec.tolist() if isinstance(action_space, MultiDiscrete) else None
        self.linear = linear(features, outputs, gain=0.01)
        self.log_std = (
            nn.Parameter(torch.full((outputs,), float(log_std_init))) if isinstance(action_space, Box) else None
        )

    def forward(self, features: Tensor) -> Distribution:
        """Return the distribution of actions [N] or [N, A]."""
        out = self.linear(features)
        if self.sizes is not None:
            return multi_categorical(out, self.sizes)
        return categorical(out) if self.log_std is None else diagonal_normal(out, self.log_std)


class ActorCritic(Agent):
    """Actor-critic with generalised advantages, for discrete and continuous actions.

    Args:
        obs_space: Space of one observation.
        action_space: Space of one action.
        torso: Makes the torso.
        shared: One torso for actor and critic, or one for each.
        lstm: H, cells of an LSTM between the torso and the heads; 0 for none.  Each environment has a state of its own,
            which is forgotten when an episode ends.
        gamma: Discount.
        lam: GAE's lambda; 1 gives the n-step returns of the A3C paper.
        value_coef: Weight of the squared value error.
        entropy_coef: Weight of the policy's entropy.
        entropy_schedule: Factor on ``entropy_coef`` by progress on the global clock.
        normalize_advantage: Standardise the advantages of each batch.
        log_std_init: Logarithm of the standard deviation of continuous actions at first, in units of the action.

    Raises:
        ValueError: A setting is out of range, or ``lstm`` is asked for with separate torsos.
    """

    advantages = staticmethod(gae)

    def __init__(
        self,
        obs_space: Box,
        action_space: ActionSpace,
        torso: Torso,
        shared: bool = True,
        lstm: int = 0,
        gamma: float = 0.99,
        lam: float = 0.95,
        value_coef: float = 0.5,
        entropy_coef: float = 0.01,
        entropy_schedule: Schedule = Constant(),
        normalize_advantage: bool = False,
        log_std_init: float = 0.0,
    ) -> None:
        check.flag("algo.agent.shared", shared)
        torsos = [torso(obs_space) for _ in range(1 if shared else 2)]
        self.actor_torso, self.critic_torso = torsos[0], torsos[-1]
        self.lstm = None
        if check.whole("algo.agent.lstm", lstm):
            if not shared:
                raise ValueError(
                    f"algo.agent.lstm={lstm} needs one torso for actor and critic; set algo.agent.shared=true"
                )
            self.lstm = LSTM(self.actor_torso.features, lstm)
        features = lstm or self.actor_torso.features
        self.policy = PolicyHead(features, action_space, check.number("algo.agent.log_std_init", log_std_init))
        self.value = linear(lstm or self.critic_torso.features, 1, gain=1.0)
        nets = {"actor": [self.actor_torso, self.policy], "critic": [self.critic_torso, self.value]}
        if shared:
            memory = [] if self.lstm is None else [self.lstm]
            nets = {"actor_critic": [self.actor_torso, *memory, self.policy, self.value]}
        self.nets = nn.ModuleDict({name: nn.ModuleList(parts) for name, parts in nets.items()})
        self.gamma = check.fraction("algo.agent.gamma", gamma)
        self.lam = check.fraction("algo.agent.lam", lam)
        self.value_coef = check.not_negative("algo.agent.value_coef", value_coef)
        self.entropy_coef = check.number("algo.agent.entropy_coef", entropy_coef)
        self.entropy_schedule = check.schedule("algo.agent.entropy_schedule", entropy_schedule)
        self.normalize_advantage = check.flag("algo.agent.normalize_advantage", normalize_advantage)
        self._state = self._first_state = torch.zeros(2, 0, lstm)

    def start(self, num_envs: int, rank: int = 0) -> None:
        """Begin B episodes with nothing remembered."""
        cells = self._state.shape[-1]
        self._state = self._first_state = torch.zeros(2, num_envs, cells, device=self.device)

    def begin_batch(self) -> None:
        """Remember with what the LSTM begins the rollout."""
        self._first_state = self._state

    def on_step(self, done: Tensor) -> None:
        """Forget the episodes that have ended."""
        if self.lstm is not None and done.any():
            self._state = forget(self._state, done.to(self.device))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the LSTM remembers of the present episodes, now and at the beginning of the rollout."""
        return {} if self.lstm is None else {"state": self._state.clone(), "first_state": self._first_state.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over such a state."""
        if self.lstm is not None:
            self._state = state["state"].to(self.device)
            self._first_state = state["first_state"].to(self.device)

    @torch.no_grad()
    def act(self, obs: Tensor, deterministic: bool = False, progress: float = 1.0) -> Tensor:
        """Sample actions, or return the likeliest ones."""
        features = self.actor_torso(obs)
        if self.lstm is not None:
            self._state = self.lstm(features, self._state)
            features = self._state[0]
        policy = self.policy(features)
        action = policy.mode if deterministic else policy.sample()
        self._remember(policy, action)
        return action

    def _remember(self, policy: Distribution, action: Tensor) -> None:
        """Take note of the policy that has acted."""

    def _take_state(self, batch: RolloutBatch) -> RolloutBatch:
        """Put the state that the rollout began with into it; the next one begins with the present state."""
        batch = batch._replace(state=self._first_state)
        self.begin_batch()
        return batch

    def _forward(self, obs: Tensor, done: Tensor, state: Tensor) -> tuple[Distribution, Tensor, Tensor]:
        """Return pi(.|s) and V(s) for T steps of B environments, and what the LSTM remembers after each of them.

        Args:
            obs: [T, B, ...].
            done: [T, B] bool; nothing is remembered beyond these steps.
            state: [2, B, H] before the first step.

        Returns:
            pi and V [N] and states [2, N, H], which are empty without an LSTM.
        """
        features = self.actor_torso(obs.flatten(0, 1))
        if self.lstm is not None:
            states = []
            for x, ended in zip(features.unflatten(0, done.shape), done, strict=True):
                state = self.lstm(x, state)
                states.append(state)
                state = forget(state, ended)
            after = torch.stack(states, 1).flatten(1, 2)
            return self.policy(after[0]), self.value(after[0]).squeeze(-1), after
        critic = features
        if self.critic_torso is not self.actor_torso:
            critic = self.critic_torso(obs.flatten(0, 1))
        return self.policy(features), self.value(critic).squeeze(-1), features.new_empty(2, len(features), 0)

    @torch.no_grad()
    def _v_next(self, batch: RolloutBatch, value: Tensor, states: Tensor) -> Tensor:
        """Return V of the true successors [T, B].

        Args:
            batch: A rollout.
            value: [T, B] V of its observations.
            states: [2, N, H] what was remembered after each of them.
        """
        features = self.critic_torso(torch.cat([batch.obs[-1], batch.final_obs]))
        if self.lstm is not None:
            last = forget(states[:, -value.shape[1] :], batch.done[-1])
            features = self.lstm(features, torch.cat([last, states[:, batch.final_index]], 1))[0]
        return successors(value, self.value(features).squeeze(-1), batch.final_index)

    def _evaluate(self, batch: RolloutBatch) -> tuple[Distribution, Tensor, Tensor]:
        """Return pi(.|s) and V(s) [N] of a rollout's steps, and the advantages [N], which have no gradient."""
        policy, value, states = self._forward(batch.obs[:-1], batch.done, batch.state)
        v = value.detach().view_as(batch.reward)
        v_next = self._v_next(batch, v, states.detach())
        return policy, value, self._advantage(batch, policy, v, v_next).flatten()

    def _advantage(self, batch: RolloutBatch, policy: Distribution, value: Tensor, v_next: Tensor) -> Tensor:
        """Return the advantages [T, B]."""
        return self.advantages(batch.reward, value, v_next, batch.terminated, batch.done, self.gamma, self.lam)


def forget(state: Tensor, done: Tensor) -> Tensor:
    """Return the states [2, B, H] of which those whose episode is done [B] are zero."""
    return state.masked_fill(done[:, None], 0.0)  # a product would not forget what is not finite


def standardize(advantage: Tensor) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1; a single one has none."""
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8) if advantage.numel() > 1 else advantage
