"""Vector environments with true successors.  B: environments.

Nothing above this file knows that gymnasium resets an environment inside ``step``.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics, TransformAction, TransformReward
from numpy.typing import NDArray

from asynclab import check, layout


class Episode(NamedTuple):
    """One finished episode: its environment, undiscounted sum of raw, unclipped rewards, and length in frames."""

    env: int
    ret: float
    length: int


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
    """

    obs: NDArray[Any]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_obs: dict[int, NDArray[Any]]
    episodes: list[Episode]


class Envs:
    """B copies of one environment, stepped together.  Make it with ``make_envs``.

    Attributes:
        obs_space: Space of one observation: uint8, or float32 for everything else.
        action_space: Space of one action as the agent gives it: Discrete, or a Box that is [-1, 1] if bounded.
        num_envs: B.

    Args:
        env: Resets in the same step; ends with the agent's actions.
        atari: Whether it is ale-py's, which takes seeds in another form than gymnasium's.
    """

    def __init__(self, env: VectorEnv, atari: bool) -> None:
        self._env = env
        self._atari = atari
        self.num_envs = env.num_envs
        space = env.single_observation_space
        assert isinstance(space, Box)
        dtype: Any = np.uint8 if space.dtype == np.uint8 else np.float32
        self.obs_space = Box(space.low.astype(dtype), space.high.astype(dtype), space.shape, dtype)
        self._obs = layout.zeros((env.num_envs,), self.obs_space)
        assert isinstance(env.single_action_space, (Box, Discrete))
        self.action_space = env.single_action_space

    def reset(self, seeds: list[int]) -> NDArray[Any]:
        """Start B episodes and return their first observations [B, ...], valid until the first step.

        Args:
            seeds: One seed per environment.
        """
        assert len(seeds) == self.num_envs
        packed: Any = np.asarray(seeds) if self._atari else seeds
        obs, _ = self._env.reset(seed=packed)
        layout.copy_to(self._obs, obs)
        return self._obs

    def step(self, action: NDArray[Any]) -> Step:
        """Step every environment; those whose episode ends start a new one.

        Args:
            action: [B] int64 or [B, A] float32.
        """
        obs, reward, terminated, truncated, info = self._env.step(action)
        layout.copy_to(self._obs, obs)
        truncated = truncated & ~terminated
        final_obs = {int(b): info["final_obs"][b].astype(self._obs.dtype) for b in np.flatnonzero(truncated)}
        episodes = []
        if (ended := info.get("_episode")) is not None:
            returns, lengths = info["episode"]["r"], info["episode"]["l"]
            episodes = [Episode(int(b), float(returns[b]), int(lengths[b])) for b in np.flatnonzero(ended)]
        return Step(self._obs, reward.astype(np.float32), terminated.copy(), truncated, final_obs, episodes)

    def close(self) -> None:
        """Free the emulators."""
        self._env.close()


def make_envs(id: str, num_envs: int, clip_reward: bool = False, **kwargs: Any) -> Envs:
    """Make B copies of a registered environment: natively vectorised for Atari, gymnasium's SyncVectorEnv otherwise.

    Args:
        id: Gymnasium id, e.g. ``ALE/Pong-v5``.
        num_envs: B.
        clip_reward: Train on the sign of the reward, as usual for Atari (Mnih et al., 2015); episode returns stay raw.
        kwargs: For the environment's own constructor.

    Raises:
        ValueError: The id is unknown, the environment cannot be made, or its actions are of an unsupported kind.
    """
    check.count("env.num_envs", num_envs)
    atari = id.startswith("ALE/")
    if atari:
        import ale_py

        gym.register_envs(ale_py)
        # The emulator would clip the reward before anybody could count it, and use every core.
        kwargs = {"reward_clipping": False, "num_threads": 1, "autoreset_mode": AutoresetMode.SAME_STEP} | kwargs
    else:
        kwargs |= {
            "vectorization_mode": "sync",
            "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False},
            "wrappers": [_box_observation],
        }
    try:
        env = gym.make_vec(id, num_envs=num_envs, **kwargs)
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
    env = RecordEpisodeStatistics(env)
    if clip_reward:
        env = TransformReward(env, np.sign)
    if isinstance(space, Box) and space.is_bounded():
        env = _unit_actions(env, space)
    return Envs(env, atari)


def _box_observation(env: gym.Env) -> gym.Env:
    """Make the observation one array; images get their channels first, as torch has them."""
    space = env.observation_space
    if not isinstance(space, Box):
        return gym.wrappers.FlattenObservation(env)
    if space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[-1] in (1, 3, 4):
        low, high = np.moveaxis(space.low, -1, 0), np.moveaxis(space.high, -1, 0)
        channels_first = Box(low, high, dtype=np.uint8)
        return gym.wrappers.TransformObservation(env, lambda obs: np.moveaxis(obs, -1, 0), channels_first)
    return env


def _unit_actions(env: VectorEnv, space: Box) -> VectorEnv:
    """Let the agent act in [-1, 1] (clipped to it), rescaled to the environment's bounds."""
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    unit = Box(-1.0, 1.0, space.shape, np.float32)
    return TransformAction(env, lambda action: middle + half * np.clip(action, -1.0, 1.0), single_action_space=unit)
