"""CartPole, made to go wrong.  Used as ``env.id=drill_envs:Crash-v0`` with this folder on the Python path."""

import os
import sys
import time
from pathlib import Path

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

COUNT = os.environ.get("DRILL_COUNT")  # a file to which every step appends one byte, whoever steps


class Counted(CartPoleEnv):
    """Counts its steps outside of asynclab."""

    def step(self, action):
        if COUNT:
            fd = os.open(COUNT, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, b".")
            os.close(fd)
        return super().step(action)


class Gate(Counted):
    """Waits at its 10th step until somebody has made a file."""

    steps = 0

    def step(self, action):
        self.steps += 1
        while self.steps == 10 and not Path(f"{COUNT}.go").exists():
            time.sleep(0.05)
        return super().step(action)


class Crash(CartPoleEnv):
    """Raises at its 500th step."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 500:
            raise RuntimeError("the simulator broke")
        return super().step(action)


class Leave(CartPoleEnv):
    """Ends the process that it is in, at its 500th step."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 500:
            sys.exit(7)
        return super().step(action)


class Broken(CartPoleEnv):
    """Cannot be stepped at all."""

    def step(self, action):
        raise RuntimeError("the simulator is not installed")


class Hang(CartPoleEnv):
    """Stops for ever at its 500th step, in the first life of the first session that gets there."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 500:
            try:
                os.close(os.open(COUNT, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return super().step(action)
            self.wait_for_a_sensor_that_never_answers()
        return super().step(action)

    def wait_for_a_sensor_that_never_answers(self):
        while True:
            time.sleep(1)


class Sluggish(CartPoleEnv):
    """Takes two seconds for every step after its 50th."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps > 50:
            time.sleep(2)
        return super().step(action)


class SometimesNan(CartPoleEnv):
    """Gives a reward of nan at every 100th step."""

    steps = 0

    def step(self, action):
        self.steps += 1
        obs, reward, *rest = super().step(action)
        return obs, float("nan") if self.steps % 100 == 0 else reward, *rest


class Nan(CartPoleEnv):
    """Gives nothing but nan as reward after its 500th step."""

    steps = 0

    def step(self, action):
        self.steps += 1
        obs, reward, *rest = super().step(action)
        return obs, float("nan") if self.steps > 500 else reward, *rest


for env in (Counted, Gate, Crash, Leave, Broken, Hang, Sluggish, SometimesNan, Nan):
    gym.register(f"{env.__name__}-v0", env, max_episode_steps=500)
