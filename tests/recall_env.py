"""A task for memory.  Used as ``env.id=recall_env:Recall-v0`` with this folder on the Python path."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

LENGTH = 8


class Recall(gym.Env):
    """Shows a cue in the first step only, and asks for it in the last: without memory the mean return is 0.

    Observations: cue (-1 or 1, else 0), whether this is the last step.  Reward in the last step: 1 or -1.
    """

    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.cue = 0, int(self.np_random.integers(2))
        return np.array([2 * self.cue - 1, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        done = self.t == LENGTH
        reward = (1.0 if action == self.cue else -1.0) if done else 0.0
        return np.array([0, self.t == LENGTH - 1], np.float32), reward, done, False, {}


gym.register("Recall-v0", Recall)
