"""Vector environments with true successors.  B: environments.

Nothing above this file knows that gymnasium resets an environment inside ``step``.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.typing import NDArray

from asynclab import layout
from asynclab.adapters.actions import Actions
from asynclab.adapters.plain import Boxed, Convert
from asynclab.adapters.retrace import Traced
from asynclab.envs.normalize import Moments

CLIP = 10.0  # normalised observations and scaled rewards are at most so large
EPSILON = 1e-8  # added to variances


class Episode(NamedTuple):
    """One finished episode: its environment, undiscounted sum of raw, unclipped rewards, and length in frames."""

    env: int
    ret: float
    length: int


class Raw(NamedTuple):
    """What of a step is normalised or scaled, before it is: as in ``Step``."""

    obs: NDArray[Any]
    reward: NDArray[np.float32]
    final_obs: dict[int, NDArray[Any]]


class Step(NamedTuple):
    """What one step of B environments gives.

    Attributes:
        obs: [B, ...] what to act on next; after an episode's end the first observation of the next one.  Valid until
            the next step: it is the same array every time.
        reward: [B] float32 for training, clipped if the environment was made so.  It is nan where the reward, or an
            observation before or after the step, was not finite: no update learns from such a step.
        terminated: [B] bool; the true successor is a terminal state, or a life was lost that counts as an episode.
        truncated: [B] bool; the episode was cut short, and its true successor is in ``final_obs``.
            An environment is never both.
        final_obs: Index b of each truncated environment -> the last observation of its episode.
        episodes: Episodes that ended in this step.
        raw: The same before it was normalised and scaled; None where nothing is.
    """

    obs: NDArray[Any]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_obs: dict[int, NDArray[Any]]
    episodes: list[Episode]
    raw: Raw | None = None

    @property
    def done(self) -> NDArray[np.bool_]:
        """[B] bool; what is acted on next belongs to another episode."""
        return self.terminated | self.truncated


class Vector(NamedTuple):
    """B copies of one environment, as ``make_envs`` makes them.

    Attributes:
        id: Of gymnasium.
        env: Resets in the same step, and counts episodes.
        obs_space: Space of one observation as the agent sees it.
        actions: What becomes of the agent's actions.
        convert: Makes [..., C, H, W] of the observations of ``env``; None if they are what the agent sees.
        pack: Makes of B seeds what ``env`` takes.
        wrappers: What the configuration puts around each environment.
    """

    id: str
    env: RecordEpisodeStatistics
    obs_space: Box
    actions: Actions
    convert: Convert | None = None
    pack: Callable[[list[int]], Any] = list
    wrappers: Sequence[Callable[[gym.Env], gym.Env]] = ()


class Shaping(NamedTuple):
    """What training gets in place of what the environments give; episode returns stay raw.

    Attributes:
        clip_reward: Train on the sign of the reward.
        episodic_life: Let every life be an episode for training; what is counted are whole games.
        normalize_obs: Give observations a mean of 0 and a variance of 1, over all that has been seen.
        scale_reward: Discount of the returns by whose standard deviation rewards are divided; None to leave them.
    """

    clip_reward: bool = False
    episodic_life: bool = False
    normalize_obs: bool = False
    scale_reward: float | None = None


class Envs:
    """B copies of one environment, stepped together.  Make it with ``make_envs``.

    Attributes:
        id: Of gymnasium.
        obs_space: Space of one observation: uint8, or float32 for everything else.
        action_space: Space of one action as the agent gives it (``Actions``).
        plain_action_space: Of the environment itself.
        num_envs: B.
        complaint: What was first seen that is not finite; whoever tells of it makes it empty.
        raw: [B, ...] the present observations before they are normalised; the same array every time.
        actions: What becomes of the agent's actions.
        moments: How many numbers there are to each estimate of mean and variance that it needs, by name.

    Args:
        vector: The environments.
        shaping: What training gets of them.
    """

    def __init__(self, vector: Vector, shaping: Shaping = Shaping()) -> None:
        env, space = vector.env, vector.obs_space
        self.id = vector.id
        self._vector = vector
        self._env = env
        self.actions = vector.actions
        self.plain_action_space = env.single_action_space
        self.action_space = vector.actions.space
        self._clip_reward = shaping.clip_reward
        self._lives = np.zeros(env.num_envs) if shaping.episodic_life else None
        self.num_envs = env.num_envs
        dtype: Any = np.uint8 if space.dtype == np.uint8 else np.float32
        self.obs_space = layout.bounded(space, space.low, space.high, dtype)
        self.raw = self._obs = layout.zeros((env.num_envs,), self.obs_space)
        self._discounted = np.zeros(env.num_envs)  # return of each environment so far, as ``scale_reward`` has it
        self._scale_reward = shaping.scale_reward
        self.moments = {}
        if shaping.normalize_obs:
            if dtype == np.uint8:
                shown = "images" if layout.is_image(self.obs_space) else "bytes, which are scaled by their space"
                raise ValueError(
                    f"env.make.normalize_obs=true is for vectors of floats, and this env shows {shown}; set it to false"
                )
            self.moments["obs"] = int(np.prod(space.shape))
            self._obs = np.zeros_like(self.raw)
            self.obs_space = layout.bounded(space, -CLIP, CLIP, dtype)
        if shaping.scale_reward is not None:
            self.moments["return"] = 1
        self.attach({name: Moments(size) for name, size in self.moments.items()}, 0)
        self.complaint = ""
        self._has_complained = False
        self._steps = 0
        # the same numbers as ``raw``, in a row; of bytes and of what is empty there is nothing to check
        self._numbers = self.raw.reshape(-1) if dtype == np.float32 else np.zeros(0, np.float32)
        self._has_unknown = False
        self._unknown = np.zeros(env.num_envs, np.bool_)  # whose present observation was not finite

    def attach(self, moments: Mapping[str, Moments], slot: int | None) -> None:
        """Use these estimates; to be called before the first reset.

        Args:
            moments: By name, of the sizes in ``self.moments``.
            slot: Where to add what is seen; None to leave the estimates as they are.
        """
        self._moments = moments
        self._slot = slot

    def reset(self, seeds: list[int]) -> NDArray[Any]:
        """Start B episodes and return their first observations [B, ...], valid until the first step.

        Args:
            seeds: One seed per environment.
        """
        assert len(seeds) == self.num_envs
        try:
            obs, info = self._env.reset(seed=self._vector.pack(seeds))
            self._take(obs)
        except Exception as error:
            error.add_note(f"raised by env.id={self.id} in reset, or on what it returned")
            raise
        if self._lives is not None:
            self._lives = info["lives"].copy()
        self._unknown, self._has_unknown = np.zeros(self.num_envs, np.bool_), False
        if not isfinite(np.vdot(self._numbers, self._numbers)):
            self._mend({})
        self._discounted[:] = 0
        return self._normalized()  # not counted: a session that goes on where it was resets, too

    def _take(self, obs: Any) -> None:
        layout.copy_to(self.raw, self._converted(obs))

    def _converted(self, obs: Any) -> Any:
        return obs if self._vector.convert is None else self._vector.convert(obs)

    def step(self, action: NDArray[Any]) -> Step:
        """Step every environment; those whose episode ends start a new one.

        Args:
            action: [B] int64, [B, A] int64 or [B, A] float32; not modified.
        """
        self._steps += 1
        try:
            obs, reward, terminated, truncated, info = self._env.step(self.actions(action))
            self._take(obs)
        except Exception as error:
            error.add_note(f"raised by env.id={self.id} in step {self._steps}, or on what it returned")
            raise
        truncated = truncated & ~terminated
        self._add("obs", self.raw)
        dtype = self.obs_space.dtype
        final = {int(b): self._converted(info["final_obs"][b]).astype(dtype) for b in np.flatnonzero(truncated)}
        reward = self._checked(reward, final)
        obs = self._normalized()
        if self._lives is not None:
            terminated = terminated | (info["lives"] < self._lives) & ~truncated
            self._lives = info["lives"].copy()
        final_obs = {b: self.normalize(x) for b, x in final.items()}
        raw = Raw(self.raw, reward.astype(np.float32), final) if self.moments else None
        self._discount(reward, terminated | truncated)
        episodes = []
        if (ended := info.get("_episode")) is not None:
            returns, lengths = info["episode"]["r"], info["episode"]["l"]
            episodes = [Episode(int(b), float(returns[b]), int(lengths[b])) for b in np.flatnonzero(ended)]
        return Step(obs, self.scale(reward), terminated.copy(), truncated, final_obs, episodes, raw)

    def _checked(self, reward: NDArray[Any], final: dict[int, NDArray[Any]]) -> NDArray[Any]:
        """Return the rewards [B] to learn from, nan where something is not finite, and put 0 into such observations.

        Two products tell whether all is well, for less than a microsecond.
        """
        squares = np.vdot(reward, reward) + np.vdot(self._numbers, self._numbers)
        if not (isfinite(squares) and all(isfinite(np.vdot(x, x)) for x in final.values())) or self._has_unknown:
            unknown = self._unknown
            bad = ~np.isfinite(reward)
            for b in map(int, np.flatnonzero(bad)):
                self._complain(b, f"the reward {reward[b]}")
            reward = np.where(bad | unknown | self._mend(final), np.nan, reward)
        return np.sign(reward) if self._clip_reward else reward

    def _mend(self, final: dict[int, NDArray[Any]]) -> NDArray[np.bool_]:
        """Put 0 where observations are not finite; return [B] whose were not, the present or a cut episode's last."""
        self._unknown = ~np.isfinite(self.raw).reshape(self.num_envs, -1).all(1)
        self._has_unknown = bool(self._unknown.any())
        bad = self._unknown.copy()
        present = {int(b): self.raw[b] for b in np.flatnonzero(bad)}
        for b, obs in [*final.items(), *present.items()]:
            wrong = ~np.isfinite(obs)
            if wrong.any():
                bad[b] = True
                place = int(np.flatnonzero(wrong)[0])
                self._complain(b, f"an observation with {obs.flat[place]} (number {place} of {obs.size})")
                obs[wrong] = 0
        return bad

    def _complain(self, b: int, what: str) -> None:
        """Tell of the first thing that is not finite."""
        if not self._has_complained:
            self._has_complained = True
            self.complaint = (
                f"environment {b} of env.id={self.id} gave {what} in step {self._steps}; updates that learn from such"
                " steps are dropped"
            )

    def _add(self, name: str, samples: NDArray[Any]) -> None:
        if name in self._moments and self._slot is not None:
            self._moments[name].add(self._slot, samples.reshape(self.num_envs, -1))

    def _discount(self, reward: NDArray[Any], done: NDArray[np.bool_]) -> None:
        """Take rewards [B] into account, by the discounted returns of the episodes so far."""
        if self._scale_reward is not None:
            self._discounted = self._scale_reward * self._discounted + reward
            self._add("return", self._discounted)
            self._discounted[done | ~np.isfinite(self._discounted)] = 0

    def _normalized(self) -> NDArray[Any]:
        """Return the present observations [B, ...] as the agent sees them."""
        if "obs" in self._moments:
            self._obs[...] = self.normalize(self.raw)
        return self._obs

    def normalize(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Return raw observations [..., *shape] as the agent sees them now: with mean 0 and variance 1, if so made."""
        if "obs" not in self._moments:
            return obs
        mean, var = self.mean_var()
        return np.clip((obs - mean) / np.sqrt(var + EPSILON), -CLIP, CLIP).astype(obs.dtype)

    def mean_var(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and variance [*shape] by which observations are normalised, if so made."""
        mean, var = (x.reshape(self.obs_space.shape) for x in self._moments["obs"].mean_var())
        return mean, var

    def scale(self, reward: NDArray[Any]) -> NDArray[np.float32]:
        """Return raw rewards [...] as the agent is paid now.

        If so made, that is in units of the standard deviation of the discounted return (Engstrom et al., 2020).
        """
        if "return" in self._moments:
            _, var = self._moments["return"].mean_var()
            reward = np.clip(reward / np.sqrt(var + EPSILON), -CLIP, CLIP)
        return reward.astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return how the present episodes came about: tensors and plain Python only.

        Empty where environments are not stepped one by one in this process: they do not show their state.
        """
        if not self._traced():
            return {}
        episodes = [traced.state_dict() for traced in self._traced()]
        statistics = [(float(r), int(n)) for r, n in zip(*self.so_far(), strict=True)]
        obs, discounted = (torch.from_numpy(x.copy()) for x in (self.raw, self._discounted))
        state = {"episodes": episodes, "obs": obs, "discounted": discounted, "statistics": statistics}
        return state if self._lives is None else state | {"lives": self._lives.tolist()}

    def retrace(self, state: Mapping[str, Any]) -> NDArray[Any] | None:
        """Bring every environment to where it was by taking its episode's actions again, and return the observations.

        Args:
            state: As ``state_dict`` returns it.

        Returns:
            None if that was not possible: the environments do not depend on their seeds and actions alone, or do not
            show their state.  They must be reset then.
        """
        if not state or len(state["episodes"]) != self.num_envs or not self._traced():
            return None
        self._env.reset(seed=0)
        seen = [traced.retrace(episode) for traced, episode in zip(self._traced(), state["episodes"], strict=True)]
        if any(obs is None for obs in seen):
            return None
        layout.copy_to(self.raw, np.stack(seen).astype(self.raw.dtype))
        if not np.array_equal(self.raw, state["obs"].numpy(), equal_nan=self.raw.dtype != np.uint8):
            return None
        self._discounted[:] = state["discounted"].numpy()
        if self._lives is not None:
            self._lives = np.array(state["lives"])
        returns, lengths = self.so_far()
        for b, (ret, length) in enumerate(state["statistics"]):
            returns[b], lengths[b] = ret, length
        return self._normalized()

    def wrap(self, env: gym.Env) -> gym.Env:
        """Return an environment of ``gymnasium.make`` with the configuration's wrappers."""
        for wrapper in self._vector.wrappers:
            env = wrapper(env)
        return env

    def observe(self, obs: Any) -> NDArray[Any]:
        """Return what the agent sees [1, ...] of one observation as the plain environment gives it.

        Args:
            obs: Of ``wrap``; for Atari the stack of frames [4, 84, 84] that gymnasium's own wrappers give.

        Raises:
            ValueError: It is not of the environment's observation space, or not finite.
        """
        boxed: Any = self._traced()[0].env if self._traced() else None
        convert = boxed.func if isinstance(boxed, Boxed) else self._vector.convert
        if convert is not None:
            try:
                obs = convert(obs)
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                space = self._env.single_observation_space if boxed is None else boxed.env.observation_space
                raise ValueError(f"the observation does not fit {space}: {error!r}") from error
        array = np.asarray(obs)
        if array.shape != self.obs_space.shape or (array.dtype != np.uint8 and self.obs_space.dtype == np.uint8):
            wrap = ""
            if self._vector.pack is np.asarray:
                wrap = "; use gymnasium's AtariPreprocessing and FrameStackObservation (help(Policy.act))"
            raise ValueError(
                f"an observation of shape {array.shape} and type {array.dtype} was given to an agent that was trained"
                f" on shape {self.obs_space.shape} and type {self.obs_space.dtype}{wrap}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"the observation is not finite: {array}")
        ours = layout.zeros((1,), self.obs_space)
        layout.copy_to(ours, self.normalize(array.astype(ours.dtype)[None]))
        return ours

    def _traced(self) -> list[Traced]:
        """Return the environments; none if they are not stepped one by one in this process."""
        vector: Any = self._env.unwrapped
        return list(vector.envs) if isinstance(vector, SyncVectorEnv) else []  # type: ignore[arg-type]

    def so_far(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the raw returns and the lengths of the present episodes, each [B]."""
        return self._env.episode_returns, self._env.episode_lengths

    def close(self) -> None:
        """Free the emulators."""
        self._env.close()
