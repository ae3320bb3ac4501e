"""Environments that come as vectors of their own, from the ``vector_entry_point`` of what is registered."""

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

EMULATOR = "ale_py.env:AtariEnv"
ATARI = "ale_py.vector_env:AtariVectorEnv"


class ResetDone(VectorWrapper):
    """Resets those environments whose episode has ended, in the same step, where nobody else does."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}

    def step(self, actions: Any) -> Any:
        """Step, and reset what has ended; ``info["final_obs"]`` has [B, ...] of before."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        done = np.logical_or(terminated, truncated)
        if done.any():
            final = np.array(obs)
            obs, _ = self.env.reset(options={"reset_mask": done})
            info = {**info, "final_obs": final}
        return obs, reward, terminated, truncated, info


def make(spec: EnvSpec, num_envs: int, **kwargs: Any) -> VectorEnv:
    """Make a vector that resets in the same step.

    Args:
        spec: Of what is registered.
        num_envs: B.
        kwargs: For the vector's constructor.

    Raises:
        ValueError: There is none, or it resets only in the next step.
    """
    if spec.vector_entry_point == ATARI:
        # The emulator would clip the reward before anybody could count it, and use every core.
        ours = {"reward_clipping": False, "num_threads": min(num_envs, torch.get_num_threads())}
        return gym.make_vec(spec.id, num_envs=num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **(ours | kwargs))
    if spec.vector_entry_point is None:
        raise ValueError("it has no vector_entry_point; set env.make.vectorization_mode to sync or async")
    entry: Any = spec.vector_entry_point
    if "autoreset_mode" in inspect.signature(load_env_creator(entry) if isinstance(entry, str) else entry).parameters:
        kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP} | kwargs
    env = gym.make_vec(spec.id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)
    mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    if mode == AutoresetMode.SAME_STEP:
        return env
    if mode == AutoresetMode.DISABLED:
        return ResetDone(env)
    env.close()
    raise ValueError(
        "its vector resets in the step after an episode's end, which would be learned from as if it were one; set"
        " env.make.vectorization_mode to sync or async, or let the vector take autoreset_mode"
    )
