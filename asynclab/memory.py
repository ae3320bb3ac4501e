"""What a session remembers, and when it learns from it.  T: horizon, B: environments, N: batch.

On- against off-policy lives here: ``Rollout`` hands out its last T steps once, ``Replay`` samples from everything
that it holds.  Both keep each observation once: row t + 1 is the successor of row t, and where an episode was
truncated in between, its true last observation lies on the side.

Where environments normalise observations or scale rewards, a rollout has what was acted on, and a replay what the
environments gave: its oldest steps would otherwise be in units of a moment at which little had been seen, and the
first rewards of Humanoid be worth 80 times the others.
"""

import json
from collections.abc import Iterator, Mapping
from math import ceil
from typing import NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray
from torch import Tensor

from asynclab import check, layout
from asynclab.envs import Envs, Raw, Step

ActionSpace = Box | Discrete | MultiDiscrete  # as agents have it: discrete from 0, a Box of one dimension
SEGMENTS = 64  # in which a full replay is saved


class RolloutBatch(NamedTuple):
    """T consecutive steps of B environments.

    Attributes:
        obs: [T + 1, B, ...] the observations acted on, and the one to act on next.
        action: [T, B] int64, [T, B, A] int64 or [T, B, A] float32.
        reward: [T, B] float32.
        terminated: [T, B] bool.
        done: [T, B] bool; the next row belongs to another episode.
        final_index: [K] int64 places t * B + b of truncated steps.
        final_obs: [K, ...] their true successors.
        state: [2, B, H] what a recurrent policy remembered before the first step, filled in by the agent; else empty.
        log_prob: [T, B] log mu(a|s) of the policy that acted, likewise; nan where it is not known.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    done: Tensor
    final_index: Tensor
    final_obs: Tensor
    state: Tensor = torch.empty(2, 0, 0)
    log_prob: Tensor = torch.empty(0, 0)


class ReplayBatch(NamedTuple):
    """N transitions of k steps each: n of them, or fewer where an episode or the memory ends.

    Attributes:
        obs: [N, ...] the observations acted on.
        action: [N] int64, [N, A] int64 or [N, A] float32.
        reward: [N] float32, the k steps' rewards, discounted.
        next_obs: [N, ...] the true observations after the k steps.
        terminated: [N] bool; the episode terminated with the last of them.
        discount: [N] float32, by which the value of ``next_obs`` counts less than one step after ``obs``: gamma^(k-1),
            0 where terminated.  The agent multiplies it by its own gamma.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    discount: Tensor


class Memory(Protocol):
    """The contract between the session, which adds steps, and the learner, which is fed batches."""

    @property
    def frames_per_batch(self) -> float:
        """Return how many frames of the session there are to a batch, once it learns."""

    def min_frame(self, sessions: int) -> int:
        """Return how many frames all sessions together need before each of them has had a batch."""

    def nbytes(self) -> int:
        """Return the bytes that are allocated."""

    def attach(self, envs: Envs) -> None:
        """Take note of whose steps will come; called before ``reset``."""

    def reset(self, obs: NDArray) -> None:
        """Take the first observations [B, ...]."""

    def cut(self, obs: NDArray) -> None:
        """Take the first observations [B, ...] of new episodes; those before were truncated where they were."""

    def is_between_batches(self) -> bool:
        """Return whether the next step is the first one of a batch; False where batches are drawn from all steps."""
        return False

    def refill(self, frames: int) -> int:
        """Let batches wait, as what was remembered is lost, until there is enough again to learn from.

        Args:
            frames: That the session had stepped.

        Returns:
            How many transitions that takes: none where only what is complete is handed out.
        """
        return 0

    def state_dict(self) -> dict[str, NDArray]:
        """Return what it holds, as arrays that are valid until the next ``add``; of a replay, all but the segments."""

    def load_state_dict(self, state: Mapping[str, NDArray]) -> None:
        """Take over such a state, of a memory of the same size."""

    def add(self, action: NDArray, step: Step) -> None:
        """Take what acting on the last observations gave."""

    def batches(self, total_frames: int) -> Iterator[NamedTuple]:
        """Yield the batches that are due after this step; ``total_frames`` is the global clock.

        Who stops in between may save the state, and ask for the others after it is loaded.
        """


class Rows(Memory):
    """A memory of steps in rows, with the last observations of truncated episodes on the side.

    Args:
        obs_space: Space of one observation.
        action_space: Space of one action.
        num_envs: B.
        steps: Rows of what was done.
        rows: Rows of observations.
    """

    def __init__(self, obs_space: Box, action_space: ActionSpace, num_envs: int, steps: int, rows: int) -> None:
        shape = (steps, num_envs)
        self._final: dict[tuple[int, int], NDArray] = {}
        self._obs = layout.zeros((rows, num_envs), obs_space)
        self._action = np.zeros((*shape, *(action_space.shape or ())), action_space.dtype)
        self._reward = np.zeros(shape, np.float32)
        self._terminated = np.zeros(shape, np.bool_)
        self._truncated = np.zeros(shape, np.bool_)

    def nbytes(self) -> int:
        """Return the bytes that are allocated, without the few truncated episodes' last observations."""
        return sum(getattr(self, f"_{name}").nbytes for name in _COLUMNS)

    def _put(self, row: int, action: NDArray, step: Step, given: Step | Raw) -> None:
        """Write a step into a row, and with ``given`` what of it may be normalised."""
        self._action[row] = action
        self._reward[row] = given.reward
        self._terminated[row] = step.terminated
        self._truncated[row] = step.truncated
        self._obs[(row + 1) % len(self._obs)] = given.obs
        self._final.update({(row, b): obs for b, obs in given.final_obs.items()})

    def _cut(self, row: int) -> None:
        """Let the episodes that would go on after a row be truncated there."""
        for b in np.flatnonzero(~(self._terminated[row] | self._truncated[row])):
            self._final[row, int(b)] = self._obs[(row + 1) % len(self._obs), b].copy()
            self._truncated[row, b] = True


class Rollout(Rows):
    """The last ``horizon`` steps, handed out once when complete.

    Args:
        obs_space: Space of one observation.
        action_space: Space of one action.
        num_envs: B.
        seed: Unused; nothing is random here.
        horizon: T, steps of each environment between two updates.
    """

    def __init__(
        self, obs_space: Box, action_space: ActionSpace, num_envs: int, seed: int = 0, *, horizon: int
    ) -> None:
        self.horizon = check.count("algo.memory.horizon", horizon)
        super().__init__(obs_space, action_space, num_envs, horizon, horizon + 1)
        self._t = 0
        self._is_handed_out = False

    @property
    def frames_per_batch(self) -> float:
        """Return the size of a rollout."""
        return self._reward.size

    def min_frame(self, sessions: int) -> int:
        """Return one rollout of each session."""
        return sessions * self._reward.size

    def attach(self, envs: Envs) -> None:
        """Do nothing: what was acted on is handed out as it was."""

    def reset(self, obs: NDArray) -> None:
        """Take the first observations [B, ...]."""
        self._obs[0] = obs
        self._t, self._is_handed_out = 0, False
        self._final.clear()

    def cut(self, obs: NDArray) -> None:
        """Take the first observations [B, ...] of new episodes; those before were truncated where they were."""
        self._begin()
        if self._t:
            self._cut(self._t - 1)
        self._obs[self._t] = obs

    def is_between_batches(self) -> bool:
        """Return whether the next step is the first one of a rollout."""
        return self._t == 0 or self._is_handed_out

    def state_dict(self) -> dict[str, NDArray]:
        """Return the steps so far, of a rollout that has been handed out none."""
        # the batch that was handed out is a view of these arrays: they stay as they are
        first, t, final = (self._t, 0, {}) if self._is_handed_out else (0, self._t, self._final)
        arrays = {name: getattr(self, f"_{name}")[:t] for name in _COLUMNS}
        return arrays | {"obs": self._obs[first : first + t + 1]} | _pack(final, self._obs)

    def load_state_dict(self, state: Mapping[str, NDArray]) -> None:
        """Take over such a state."""
        if "done" in state:  # of an older version
            state = {**state, "truncated": state["done"] & ~state["terminated"]}
        self._t, self._is_handed_out = len(state["reward"]), False
        for name in _COLUMNS:
            getattr(self, f"_{name}")[: len(state[name])] = state[name]
        self._final = _unpack(state)

    def _begin(self) -> None:
        """Begin the next rollout with the last one's last observation, if that one was handed out."""
        if self._t == self.horizon:
            self._obs[0] = self._obs[-1]
            self._t = 0
            self._is_handed_out = False
            self._final.clear()

    def add(self, action: NDArray, step: Step) -> None:
        """Take what acting on the last observations gave."""
        self._begin()
        self._put(self._t, action, step, step)
        self._t += 1

    def batches(self, total_frames: int) -> Iterator[RolloutBatch]:
        """Yield the rollout if it is complete.  The batch is a view: use it before the next ``add``."""
        if self._t < self.horizon:
            return
        self._is_handed_out = True
        num_envs = self._reward.shape[1]
        index = [t * num_envs + b for t, b in self._final]
        final = np.stack(list(self._final.values())) if self._final else self._obs[0, :0]
        done = self._terminated | self._truncated
        arrays = (self._obs, self._action, self._reward, self._terminated, done)
        tensors = [torch.from_numpy(a) for a in (*arrays, np.array(index, np.int64), final)]
        yield RolloutBatch(*tensors)


class Replay(Rows):
    """Combined experience replay (Zhang & Sutton, 2017): a ring of transitions, sampled uniformly, newest included.

    Float observations are kept in float32: half precision overflows on Humanoid's forces.

    Args:
        obs_space: Space of one observation.
        action_space: Space of one action.
        num_envs: B.
        seed: Seed of the sampling.
        capacity: Transitions kept by each session, rounded down to a multiple of B.
        batch_size: N.
        start: No batch before the global clock shows this many frames.
        updates_per_frame: Batches per transition.
        combined: Put one transition of the newest step into every batch, another one each time.
        n_step: n, steps of a transition (Sutton, 1988).  It ends earlier where its episode does, and the newest ones
            end with what has been seen so far: nothing that is held is left out.
        gamma: The agent's discount; needed for n > 1.
    """

    def __init__(
        self,
        obs_space: Box,
        action_space: ActionSpace,
        num_envs: int,
        seed: int = 0,
        *,
        capacity: int,
        batch_size: int,
        start: int = 0,
        updates_per_frame: float = 1.0,
        combined: bool = True,
        n_step: int = 1,
        gamma: float | None = None,
    ) -> None:
        if check.count("algo.memory.capacity", capacity) < num_envs:
            raise ValueError(f"algo.memory.capacity={capacity} must be at least env.num_envs={num_envs}")
        self.batch_size = check.count("algo.memory.batch_size", batch_size)
        self.start = int(check.number("algo.memory.start", start))
        self.combined = check.flag("algo.memory.combined", combined)
        self.n_step = check.count("algo.memory.n_step", n_step)
        if gamma is not None:
            check.fraction("algo.memory.gamma", gamma)
        elif n_step > 1:
            raise ValueError(f"algo.memory.n_step={n_step} needs algo.memory.gamma, the agent's discount")
        self.gamma = 1.0 if gamma is None else gamma
        self._powers = (self.gamma ** np.arange(n_step)).astype(np.float32)  # of gamma
        self._num_envs = num_envs
        self._updates_per_step = check.positive("algo.memory.updates_per_frame", updates_per_frame) * num_envs
        self._due = 0.0
        self._turn = 0  # the environment whose newest transition the next batch has
        self._rng = np.random.default_rng(seed)
        self._rows = capacity // num_envs
        self._segment = -(-self._rows // SEGMENTS)  # rows
        self._head = 0  # row of the observation that is acted on next; it has no transition yet
        self._laps = 0  # how often it was filled
        self._least = 0  # transitions that it must hold before the first batch
        self._envs: Envs | None = None  # that normalise or scale
        super().__init__(obs_space, action_space, num_envs, self._rows + 1, self._rows + 1)

    @property
    def frames_per_batch(self) -> float:
        """Return the inverse of the updates per frame."""
        return self._num_envs / self._updates_per_step

    def min_frame(self, sessions: int) -> int:
        """Return the warm-up and as many more steps of each session as it takes to its first update."""
        return self.start + sessions * self._num_envs * ceil(1 / self._updates_per_step)

    def __len__(self) -> int:
        """Return the number of transitions held."""
        return (self._rows if self._laps else self._head) * self._num_envs

    def attach(self, envs: Envs) -> None:
        """Keep what these environments give as it is, and normalise and scale what is sampled, by their moments then.

        Without, what is handed out is what was given.
        """
        self._envs = envs if envs.moments else None

    def reset(self, obs: NDArray) -> None:
        """Take the first observations [B, ...]."""
        self._obs[self._head] = obs if self._envs is None else self._envs.raw

    def cut(self, obs: NDArray) -> None:
        """Take the first observations [B, ...] of new episodes; those before were truncated where they were."""
        if self._laps or self._head:
            self._cut((self._head - 1) % (self._rows + 1))
        self.reset(obs)

    def refill(self, frames: int) -> int:
        """Let batches wait until this memory holds ``start`` transitions, or a tenth of what it held if that is more.

        The first few are much alike, and updates go on at their rate.  That is caution: on Hopper, trained for 40,000
        frames, waiting for more than ``start`` only cost time (docs/results.md).

        Args:
            frames: That the session had stepped.

        Returns:
            How many transitions it waits for.
        """
        held = min(frames, self._rows * self._num_envs)
        self._least = min(held, max(self.start, held // 10))
        return self._least

    def _held(self) -> range:
        """Return the numbers of the rows that have transitions, counted from the first one ever."""
        end = self._laps * (self._rows + 1) + self._head
        return range(end - len(self) // self._num_envs, end)

    def segments(self) -> range:
        """Return the numbers of the segments that it holds rows of.  All but the last one are complete."""
        held = self._held()
        return range(held.start // self._segment, -(-held.stop // self._segment))

    def segment(self, number: int) -> dict[str, NDArray]:
        """Return the rows that it holds of a segment."""
        held = self._held()
        rows = range(max(held.start, number * self._segment), min(held.stop, (number + 1) * self._segment))
        at = np.array(rows) % (self._rows + 1)
        final = {(rows[t], int(b)): self._final[int(at[t]), int(b)] for t, b in np.argwhere(self._truncated[at])}
        arrays = {name: getattr(self, f"_{name}")[at] for name in _COLUMNS}
        return arrays | {"first": np.array(rows.start)} | _pack(final, self._obs)

    def load_segment(self, state: Mapping[str, NDArray]) -> None:
        """Take over those rows of a segment that the rest of the state says are held."""
        held, first = self._held(), int(state["first"])
        rows = np.arange(first, first + len(state["reward"]))
        mine = (rows >= held.start) & (rows < held.stop)
        for name in _COLUMNS:
            getattr(self, f"_{name}")[rows[mine] % (self._rows + 1)] = state[name][mine]
        final = _unpack(state)
        self._final |= {(row % (self._rows + 1), b): obs for (row, b), obs in final.items() if row in held}

    def state_dict(self) -> dict[str, NDArray]:
        """Return all but the segments: the observations that are acted on next, and the state of the sampling."""
        numbers = {name: getattr(self, f"_{name}") for name in _NUMBERS}
        text = json.dumps({"rng": self._rng.bit_generator.state, "numbers": numbers})
        return {"next_obs": self._obs[self._head], "json": np.array(text)}

    def load_state_dict(self, state: Mapping[str, NDArray]) -> None:
        """Take over such a state; its segments are to be loaded next.

        Earlier versions had the rows in it, normalised if anything was; then this memory begins with nothing.
        """
        content = json.loads(str(state["json"]))
        numbers = content["numbers"]
        if "reward" in state:
            numbers["laps"] = int(numbers["full"])
            if self._envs is not None:
                self.reset(self._envs.raw)
                self.refill((numbers["laps"] * self._rows + numbers["head"]) * self._num_envs)
                return
            for name in _COLUMNS:
                getattr(self, f"_{name}")[: len(state[name])] = state[name]
            self._final = _unpack(state)
        for name in _NUMBERS:
            setattr(self, f"_{name}", numbers[name])
        self._rng.bit_generator.state = content["rng"]
        if "reward" not in state:
            self._obs[self._head] = state["next_obs"]

    def add(self, action: NDArray, step: Step) -> None:
        """Take what acting on the last observations gave."""
        row, given = self._head, step if self._envs is None else step.raw
        assert given is not None
        for b in np.flatnonzero(self._truncated[row]):  # what the ring overwrites here takes its side entry along
            del self._final[row, int(b)]
        self._put(row, action, step, given)
        self._head = (row + 1) % (self._rows + 1)
        self._laps += self._head == 0
        self._due += self._updates_per_step

    def batches(self, total_frames: int) -> Iterator[ReplayBatch]:
        """Yield the batches that are due since the last step."""
        if total_frames < self.start or len(self) < self._least:
            self._due = 0.0
            return
        while self._due >= 1.0:
            self._due -= 1.0
            yield self.sample()

    def sample(self) -> ReplayBatch:
        """Draw N transitions with replacement; if ``combined``, the last is the newest of each environment in turn."""
        rows, num_envs = self._rows + 1, self._num_envs
        assert len(self) > 0
        flat = self._rng.integers(len(self), size=self.batch_size)
        # counted back from the head, which itself never is a transition
        age, env = flat // num_envs, flat % num_envs
        if self.combined:
            age[-1], env[-1] = 0, self._turn
            self._turn = (self._turn + 1) % num_envs
        row = (self._head - 1 - age) % rows
        last, reward = self._look_ahead(row, env, age)
        end = ((row + last) % rows, env)
        next_obs = self._obs[(end[0] + 1) % rows, env]
        for i in np.flatnonzero(self._truncated[end]):
            next_obs[i] = self._final[int(end[0][i]), int(env[i])]
        terminated = self._terminated[end]
        discount = self._powers[last] * ~terminated
        at = (row, env)
        obs = self._obs[at]
        if self._envs is not None:
            obs, next_obs = self._envs.normalize(obs), self._envs.normalize(next_obs)
        arrays = (obs, self._action[at], reward, next_obs, terminated, discount)
        return ReplayBatch(*(torch.from_numpy(a) for a in arrays))

    def _look_ahead(self, row: NDArray, env: NDArray, age: NDArray) -> tuple[NDArray, NDArray]:
        """Return which step is the last of each transition [N], from 0, and the discounted sum of rewards [N].

        Args:
            row: [N] of the first steps.
            env: [N].
            age: [N] how many newer steps there are.
        """
        step = np.arange(self.n_step)
        at = ((row[:, None] + step) % (self._rows + 1), env[:, None])
        # what lies beyond the newest step is a whole ring old
        ends = self._terminated[at] | self._truncated[at] | (step >= age[:, None])
        ends[:, -1] = True
        last = ends.argmax(1)
        reward = self._reward[at]
        if self._envs is not None:
            reward = self._envs.scale(reward)
        # chosen, not multiplied by zero: another episode's reward may be anything
        reward = np.where(step <= last[:, None], reward, np.float32(0))
        return last, (self._powers * reward).sum(1)


_COLUMNS = ("obs", "action", "reward", "terminated", "truncated")
_NUMBERS = ("head", "laps", "due", "turn", "least")


def _pack(final: Mapping[tuple[int, int], NDArray], obs: NDArray) -> dict[str, NDArray]:
    """Return the truncated steps' places [K, 2] and last observations [K, ...], which are like those of ``obs``."""
    places = np.array(list(final), np.int64).reshape(-1, 2)
    return {"final_place": places, "final_obs": np.stack(list(final.values())) if final else obs[0, :0]}


def _unpack(state: Mapping[str, NDArray]) -> dict[tuple[int, int], NDArray]:
    return {(int(t), int(b)): obs for (t, b), obs in zip(state["final_place"], state["final_obs"], strict=True)}
