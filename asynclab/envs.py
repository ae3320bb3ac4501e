"""Vector environments with true successors.  B: environments.

Nothing above this file knows that gymnasium resets an environment inside ``step``.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, flatten, flatten_space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics, TransformAction, TransformReward
from numpy.typing import NDArray

from asynclab import check, layout, video
from asynclab.moments import Moments

CLIP = 10.0  # normalised observations and scaled rewards are at most so large
EPSILON = 1e-8  # added to variances
OURS = {  # arguments of gymnasium's vectors that are decided here, and what users do instead
    "vectorization_mode": "leave it out: every session steps its environments in turn, and more of them step at a time"
    " with distributed.max_session",
    "vector_kwargs": "leave it out",
    "wrappers": "leave it out",
    "autoreset_mode": "leave it out",
    "reward_clipping": "leave it out and set env.make.clip_reward=true, which leaves episode returns raw",
}


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
        reward: [B] float32 for training, clipped if the environment was made so.
        terminated: [B] bool; the true successor is a terminal state.
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


class Envs:
    """B copies of one environment, stepped together.  Make it with ``make_envs``.

    Attributes:
        obs_space: Space of one observation: uint8, or float32 for everything else.
        action_space: Space of one action as the agent gives it: Discrete, or a Box that is [-1, 1] if bounded.
        num_envs: B.
        raw: [B, ...] the present observations before they are normalised; the same array every time.
        moments: How many numbers there are to each estimate of mean and variance that it needs, by name.

    Args:
        env: Resets in the same step; ends with the agent's actions.
        statistics: The wrapper in it that counts episodes.
        atari: Whether it is ale-py's, which takes seeds in another form than gymnasium's.
        normalize_obs: Give observations a mean of 0 and a variance of 1, over all that has been seen.
        scale_reward: Discount of the returns by whose standard deviation rewards are divided; None to leave them.
    """

    def __init__(
        self,
        env: VectorEnv,
        statistics: RecordEpisodeStatistics,
        atari: bool,
        normalize_obs: bool = False,
        scale_reward: float | None = None,
    ) -> None:
        self._env = env
        self._statistics = statistics
        self._atari = atari
        self.num_envs = env.num_envs
        space = env.single_observation_space
        assert isinstance(space, Box)
        dtype: Any = np.uint8 if space.dtype == np.uint8 else np.float32
        self.obs_space = Box(space.low.astype(dtype), space.high.astype(dtype), space.shape, dtype)
        self.raw = self._obs = layout.zeros((env.num_envs,), self.obs_space)
        self._discounted = np.zeros(env.num_envs)  # return of each environment so far, as ``scale_reward`` has it
        self._scale_reward = scale_reward
        self.moments = {}
        if normalize_obs:
            if layout.is_image(self.obs_space):
                raise ValueError(
                    "env.make.normalize_obs=true is for vectors, and this env shows images; set it to false"
                )
            self.moments["obs"] = int(np.prod(space.shape))
            self._obs = np.zeros_like(self.raw)
            self.obs_space = Box(-CLIP, CLIP, space.shape, dtype)
        if scale_reward is not None:
            self.moments["return"] = 1
        self.attach({name: Moments(size) for name, size in self.moments.items()}, 0)
        assert isinstance(env.single_action_space, (Box, Discrete))
        self.action_space = env.single_action_space

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
        packed: Any = np.asarray(seeds) if self._atari else seeds
        obs, _ = self._env.reset(seed=packed)
        layout.copy_to(self.raw, obs)
        self._discounted[:] = 0
        return self._normalized()  # not counted: a session that goes on where it was resets, too

    def step(self, action: NDArray[Any]) -> Step:
        """Step every environment; those whose episode ends start a new one.

        Args:
            action: [B] int64 or [B, A] float32.
        """
        obs, reward, terminated, truncated, info = self._env.step(action)
        layout.copy_to(self.raw, obs)
        truncated = truncated & ~terminated
        self._add("obs", self.raw)
        obs = self._normalized()
        final = {int(b): info["final_obs"][b].astype(obs.dtype) for b in np.flatnonzero(truncated)}
        final_obs = {b: self.normalize(x) for b, x in final.items()}
        raw = Raw(self.raw, reward.astype(np.float32), final) if self.moments else None
        self._discount(reward, terminated | truncated)
        episodes = []
        if (ended := info.get("_episode")) is not None:
            returns, lengths = info["episode"]["r"], info["episode"]["l"]
            episodes = [Episode(int(b), float(returns[b]), int(lengths[b])) for b in np.flatnonzero(ended)]
        return Step(obs, self.scale(reward), terminated.copy(), truncated, final_obs, episodes, raw)

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
        mean, var = (x.reshape(self.obs_space.shape) for x in self._moments["obs"].mean_var())
        return np.clip((obs - mean) / np.sqrt(var + EPSILON), -CLIP, CLIP).astype(obs.dtype)

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

        Empty for Atari: ale-py's vector environment does not show its emulators.
        """
        if self._atari:
            return {}
        episodes = [traced.state_dict() for traced in self._traced()]
        statistics = [(float(r), int(n)) for r, n in zip(*self._so_far(), strict=True)]
        obs, discounted = (torch.from_numpy(x.copy()) for x in (self.raw, self._discounted))
        return {"episodes": episodes, "obs": obs, "discounted": discounted, "statistics": statistics}

    def retrace(self, state: Mapping[str, Any]) -> NDArray[Any] | None:
        """Bring every environment to where it was by taking its episode's actions again, and return the observations.

        Args:
            state: As ``state_dict`` returns it.

        Returns:
            None if that was not possible: the environments do not depend on their seeds and actions alone, or do not
            show their state.  They must be reset then.
        """
        if not state or len(state["episodes"]) != self.num_envs:
            return None
        self._env.reset(seed=0)
        seen = [traced.retrace(episode) for traced, episode in zip(self._traced(), state["episodes"], strict=True)]
        if any(obs is None for obs in seen):
            return None
        layout.copy_to(self.raw, np.stack(seen).astype(self.raw.dtype))
        if not np.array_equal(self.raw, state["obs"].numpy(), equal_nan=self.raw.dtype != np.uint8):
            return None
        self._discounted[:] = state["discounted"].numpy()
        returns, lengths = self._so_far()
        for b, (ret, length) in enumerate(state["statistics"]):
            returns[b], lengths[b] = ret, length
        return self._normalized()

    def observe(self, obs: Any) -> NDArray[Any]:
        """Return what the agent sees [1, ...] of one observation as the plain environment gives it.

        Args:
            obs: Of ``gymnasium.make``; for Atari the stack of frames [4, 84, 84] that gymnasium's own wrappers give.

        Raises:
            ValueError: It is not of the environment's observation space.
        """
        boxed = None if self._atari else self._traced()[0].env
        if isinstance(boxed, Boxed):
            try:
                obs = boxed.observation(obs)
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise ValueError(f"the observation does not fit {boxed.env.observation_space}: {error!r}") from error
        array = np.asarray(obs)
        if array.shape != self.obs_space.shape or (array.dtype != np.uint8 and self.obs_space.dtype == np.uint8):
            wrap = ""
            if self._atari:
                wrap = "; use gymnasium's AtariPreprocessing and FrameStackObservation (help(Policy.act))"
            raise ValueError(
                f"an observation of shape {array.shape} and type {array.dtype} was given to an agent that was trained"
                f" on shape {self.obs_space.shape} and type {self.obs_space.dtype}{wrap}"
            )
        ours = layout.zeros((1,), self.obs_space)
        layout.copy_to(ours, self.normalize(array.astype(ours.dtype)[None]))
        return ours

    def perform(self, action: NDArray[Any]) -> Any:
        """Return one action of the agent, [] int64 or [A] float32, as the plain environment takes it."""
        vector: Any = self._env.unwrapped
        space = vector.single_action_space
        if isinstance(space, Discrete):
            return int(action)
        if space.is_bounded():
            action = _from_unit(space)(action)
        return np.clip(action.astype(space.dtype), space.low, space.high)  # rescaling can round beyond the bounds

    def so_far(self, env: int) -> tuple[float, int]:
        """Return the raw return and the length of an environment's present episode."""
        returns, lengths = self._so_far()
        return float(returns[env]), int(lengths[env])

    def _traced(self) -> list["Traced"]:
        vector: Any = self._env.unwrapped
        return list(vector.envs)

    def _so_far(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the returns and the lengths of the present episodes, each [B]."""
        return self._statistics.episode_returns, self._statistics.episode_lengths

    def close(self) -> None:
        """Free the emulators."""
        self._env.close()


def make_envs(
    id: str,
    num_envs: int,
    clip_reward: bool = False,
    normalize_obs: bool = False,
    scale_reward: float | None = None,
    record: Path | None = None,
    **kwargs: Any,
) -> Envs:
    """Make B copies of a registered environment: natively vectorised for Atari, gymnasium's SyncVectorEnv otherwise.

    Args:
        id: Gymnasium id, e.g. ``ALE/Pong-v5``.
        num_envs: B.
        clip_reward: Train on the sign of the reward, as usual for Atari (Mnih et al., 2015); episode returns stay raw.
        normalize_obs: Give observations a mean of 0 and a variance of 1, over all that the sessions have seen.
        scale_reward: Discount of the returns by whose standard deviation rewards are divided, as usual for PPO on
            MuJoCo; None to leave them.  Episode returns stay raw.
        record: Folder for videos (``video.make``), which must not be there yet; None for none.  B must be 1.
        kwargs: For the environment's own constructor.

    Raises:
        ValueError: The id is unknown, the environment cannot be made or recorded, or its actions are of an unsupported
            kind.
    """
    check.count("env.num_envs", num_envs)
    check.flag("env.make.clip_reward", clip_reward)
    check.flag("env.make.normalize_obs", normalize_obs)
    if scale_reward is not None:
        check.fraction("env.make.scale_reward", scale_reward)
    _refuse_ours(kwargs)
    atari = id.startswith("ALE/")
    if atari:
        import ale_py

        gym.register_envs(ale_py)
        # The emulator would clip the reward before anybody could count it, and use every core.
        kwargs = {"reward_clipping": False, "num_threads": 1, "autoreset_mode": AutoresetMode.SAME_STEP} | kwargs
    elif record is None:
        kwargs |= {
            "vectorization_mode": "sync",
            "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False},
            "wrappers": [_box_observation, Traced],
        }
    try:
        if record is None:
            env = gym.make_vec(id, num_envs=num_envs, **kwargs)
        else:
            assert num_envs == 1, "a video shows one environment"
            env, atari = video.make(id, record, lambda env: Traced(_box_observation(env)), **kwargs), False
    except gym.error.UnregisteredEnv as error:
        raise ValueError(f"env.id={id} is not a registered environment ({error}); set env.id to one that is") from error
    except (gym.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"env.id={id} cannot be made ({error}); install what it needs or mend env.make") from error
    space = env.single_action_space
    usable = space.start == 0 if isinstance(space, Discrete) else isinstance(space, Box) and len(space.shape) == 1
    if not usable:
        raise ValueError(
            f"env.id={id} has actions {space}; choose one with Discrete actions from 0 or a one-dimensional Box"
        )
    env = statistics = RecordEpisodeStatistics(env)
    if clip_reward:
        env = TransformReward(env, np.sign)
    if isinstance(space, Box) and space.is_bounded():
        env = _unit_actions(env, space)
    return Envs(env, statistics, atari, normalize_obs, scale_reward)


def _refuse_ours(kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for what gymnasium would take for its vector, which is made here and nowhere else."""
    for name, instead in OURS.items():
        if name in kwargs:
            raise ValueError(f"env.make.{name}={kwargs[name]} is no setting of an environment; {instead}")


def spaces(envs: Envs) -> str:
    """Return which of ``conf/spaces`` the environments have: ``pixels``, ``discrete`` or ``continuous``."""
    if layout.is_image(envs.obs_space):
        return "pixels"
    return "discrete" if isinstance(envs.action_space, Discrete) else "continuous"


class Traced(gym.Wrapper):
    """Remembers how its present episode came about: the state of its random numbers, and the actions since.

    Its infos are empty: nobody here needs what an environment tells, of whatever type or size, and vectors of gymnasium
    would gather it.
    """

    LIMIT = 50_000  # actions; a longer episode is not remembered

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._seed: int | None = None
        self._rng: Mapping[str, Any] | None = None  # before the episode's reset; None if the seed says it
        self._known = True  # whether the random numbers are of a kind that we can keep
        self._actions: list[NDArray[Any]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        if seed is None:
            try:
                self._rng = self.unwrapped.np_random.bit_generator.state
                json.dumps(self._rng)
            except (AttributeError, TypeError):  # not numpy's default generator
                self._known = False
        else:
            self._seed, self._rng = seed, None
        self._actions = []
        obs, _ = self.env.reset(seed=seed, options=options)
        return obs, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        if len(self._actions) <= self.LIMIT:
            self._actions.append(np.array(action))
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return obs, reward, terminated, truncated, {}

    def state_dict(self) -> dict[str, Any]:
        """Return what ``retrace`` needs; empty if it is not known."""
        if not self._known or len(self._actions) > self.LIMIT:
            return {}
        actions = torch.from_numpy(np.array(self._actions)) if self._actions else None
        return {"seed": self._seed, "rng": self._rng, "actions": actions}

    def retrace(self, state: Mapping[str, Any]) -> Any:
        """Repeat the episode and return its last observation; None if that is not possible."""
        if not state:
            return None
        obs, _ = self.reset(seed=state["seed"])
        if state["rng"] is not None:
            self.unwrapped.np_random.bit_generator.state = state["rng"]
            obs, _ = self.reset()
        actions = [] if state["actions"] is None else list(state["actions"].numpy())
        for action in actions:
            obs, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                return None
        return obs


class Boxed(gym.wrappers.TransformObservation):
    """Makes the observation one array; images get their channels first, as torch has them."""


def _box_observation(env: gym.Env) -> gym.Env:
    space = env.observation_space
    if not isinstance(space, Box):
        return Boxed(env, partial(flatten, space), flatten_space(space))
    if space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[-1] in (1, 3, 4):
        low, high = np.moveaxis(space.low, -1, 0), np.moveaxis(space.high, -1, 0)
        return Boxed(env, lambda obs: np.moveaxis(obs, -1, 0), Box(low, high, dtype=np.uint8))
    return env


def _unit_actions(env: VectorEnv, space: Box) -> VectorEnv:
    """Let the agent act in [-1, 1] (clipped to it), rescaled to the environment's bounds."""
    unit = Box(-1.0, 1.0, space.shape, np.float32)
    return TransformAction(env, _from_unit(space), single_action_space=unit)


def _from_unit(space: Box) -> Callable[[NDArray[Any]], NDArray[Any]]:
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    return lambda action: middle + half * np.clip(action, -1.0, 1.0)
