"""Vector environments with true successors.  B: environments.

Nothing above this file knows that gymnasium resets an environment inside ``step``.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import FlattenObservation, RecordEpisodeStatistics, TransformAction, TransformReward
from numpy.typing import NDArray


class Episode(NamedTuple):
    """One finished episode: its undiscounted sum of raw, unclipped rewards, and its length in frames."""

    ret: float
    length: int


class Step(NamedTuple):
    """What one step of B environments gives.

    Attributes:
        obs: [B, ...] what to act on next; after an episode's end the first observation of the next one.
        reward: [B] float32 for training, clipped if the environment was made so.
        terminated: [B] bool; the true successor is a terminal state.
        truncated: [B] bool; the episode was cut short; its true successor is in ``final_obs``.  Never with terminated.
        final_obs: Environment's index -> its episode's last observation, for the truncated ones.
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
    """

    def __init__(self, env: VectorEnv) -> None:
        self._env = env
        self.num_envs = env.num_envs
        space, action = env.single_observation_space, env.single_action_space
        assert isinstance(space, Box) and isinstance(action, (Box, Discrete))
        self._dtype = np.dtype(np.uint8) if space.dtype == np.uint8 else np.dtype(np.float32)
        self.obs_space = Box(space.low, space.high, space.shape, self._dtype.type)
        self.action_space = action

    def reset(self, seeds: list[int]) -> NDArray[Any]:
        """Start B episodes and return their first observations [B, ...].

        Args:
            seeds: One seed per environment.
        """
        assert len(seeds) == self.num_envs
        native = self._env.metadata.get("asynclab_seeds") == "array"
        obs, _ = self._env.reset(seed=np.asarray(seeds, np.int64) if native else list(seeds))
        return obs.astype(self._dtype)

    def step(self, action: NDArray[Any]) -> Step:
        """Step every environment; those whose episode ends start a new one.

        Args:
            action: [B] int64 or [B, A] float32.
        """
        obs, reward, terminated, truncated, info = self._env.step(action)
        truncated = truncated & ~terminated
        final_obs = {int(b): info["final_obs"][b].astype(self._dtype) for b in np.flatnonzero(truncated)}
        episodes = []
        if (ended := info.get("_episode")) is not None:
            returns, lengths = info["episode"]["r"][ended], info["episode"]["l"][ended]
            episodes = [Episode(float(r), int(n)) for r, n in zip(returns, lengths, strict=True)]
        return Step(
            obs.astype(self._dtype, copy=False), reward.astype(np.float32), terminated, truncated, final_obs, episodes
        )

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
        ValueError: The id is unknown, or the environment's spaces are not ones that agents here can use.
    """
    atari = id.startswith("ALE/")
    if atari:
        import ale_py

        gym.register_envs(ale_py)
        # The emulator would clip the reward before anybody could count it, and use every core.
        kwargs = {"reward_clipping": False, "num_threads": 1, "autoreset_mode": AutoresetMode.SAME_STEP} | kwargs
    else:
        kwargs["vectorization_mode"] = "sync"
        kwargs["vector_kwargs"] = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}
    try:
        env = gym.make_vec(id, num_envs=num_envs, **kwargs)
    except gym.error.UnregisteredEnv as error:
        raise ValueError(f"env.id={id} is not a registered environment: {error} Set env.id to one that is.") from None
    except (gym.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"env.id={id} cannot be made: {error}") from error
    env.metadata["asynclab_seeds"] = "array" if atari else "list"
    if not isinstance(env.single_action_space, (Box, Discrete)):
        raise ValueError(f"env.id={id} has actions {env.single_action_space}; only Discrete and Box are supported")
    if not isinstance(env.single_observation_space, Box):
        env = FlattenObservation(env)
    env = RecordEpisodeStatistics(env)
    if clip_reward:
        env = TransformReward(env, np.sign)
    if isinstance(env.single_action_space, Box) and env.single_action_space.is_bounded():
        env = _unit_actions(env, env.single_action_space)
    elif isinstance(env.single_action_space, Discrete) and env.single_action_space.start != 0:
        raise ValueError(f"env.id={id} counts actions from {env.single_action_space.start}; only 0 is supported")
    return Envs(env)


def _unit_actions(env: VectorEnv, space: Box) -> VectorEnv:
    """Let the agent act in [-1, 1] (clipped to it), rescaled to the environment's bounds."""
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    unit = Box(-1.0, 1.0, space.shape, np.float32)
    return TransformAction(env, lambda action: middle + half * np.clip(action, -1.0, 1.0), single_action_space=unit)
