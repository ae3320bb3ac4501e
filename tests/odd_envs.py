"""Small environments that gymnasium allows: with odd infos, odd ends, and processes of their own.

``env=gym env.id=odd_envs:NAME-v0`` with this folder on PYTHONPATH.  But where it says otherwise, an episode is 20 steps
of reward 1.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]


class Twenty(gym.Env):
    def __init__(self, render_mode=None, steps=20):
        self.observation_space, self.action_space = Box(-1, 1, (3,), np.float32), Discrete(2)
        self.render_mode, self.steps = render_mode, steps

    def obs(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def info(self):
        return {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.obs(), self.info()

    def step(self, action):
        self.t += 1
        return self.obs(), 1.0, self.t >= self.steps, False, self.info()


# Infos that training does not need


class GrowingArray(Twenty):
    def info(self):
        return {"path": np.zeros((self.t + 1, 2))}

    def step(self, action):  # of random length, or all environments grow alike
        obs, reward, ended, truncated, info = super().step(action)
        return obs, reward, ended or self.np_random.random() < 0.05, truncated, info


class SometimesNone(Twenty):
    def info(self):
        return {"goal": None if self.t % 2 else 3.0}


class OtherType(Twenty):
    def info(self):
        return {"what": [1, "two", {"three": 3}][self.t % 3]}


class OwnEpisode(Twenty):
    def info(self):
        return {"episode": 3, "_episode": "mine"}


class OwnFinal(Twenty):
    def info(self):
        return {"final_obs": "mine", "final_info": 3, "_final_obs": None}


class KeysThatAreNoText(Twenty):
    def info(self):
        return {(1, 2): np.ones(2), 3: object()}


class RaggedLists(Twenty):
    def info(self):
        return {"agents": [[1], [2, 3]], "nested": {"deep": {"more": np.zeros(self.t)}}}


# Lives


class Both(Twenty):
    """Terminated and truncated in the same step: a termination."""

    def step(self, action):
        obs, reward, ended, _, info = super().step(action)
        return obs, reward, ended, ended, info


class OneStep(Twenty):
    """Episodes of one step."""

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, True, truncated, info


class NumpyFlags(Twenty):
    """Rewards and flags are numpy's."""

    def step(self, action):
        obs, reward, ended, truncated, info = super().step(action)
        return obs, np.float64(reward), np.bool_(ended), np.bool_(truncated), info


class WholeRewards(Twenty):
    def step(self, action):
        obs, _, ended, truncated, info = super().step(action)
        return obs, 1, ended, truncated, info


class Endless(Twenty):
    """No episode ever ends."""

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated, info


# Processes of an environment's own


class Helper(Twenty):
    """A process that is started with every episode and told to end at the next one, and obeys."""

    helper = None

    def reset(self, **settings):
        self.end()
        self.start()
        return super().reset(**settings)

    def start(self):
        raise NotImplementedError

    def end(self):
        if self.helper:
            self.helper.terminate()
            self.helper.join(10)
            assert not self.helper.is_alive(), "the helper does not obey SIGTERM"

    def close(self):
        self.end()
        self.helper = None


class ForkHelper(Helper):
    method = "fork"

    def start(self):
        context = multiprocessing.get_context(self.method)
        self.helper = context.Process(target=time.sleep, args=(1000,), daemon=True)
        self.helper.start()


class SpawnHelper(ForkHelper):
    method = "spawn"


class ServedHelper(ForkHelper):
    method = "forkserver"


class HastyHelper(ForkHelper):
    """It is told to end while it begins."""

    def start(self):
        super().start()
        os.kill(self.helper.pid, signal.SIGTERM)


class NotDaemon(ForkHelper):
    def start(self):
        self.helper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
        self.helper.start()


class Forgotten(ForkHelper):
    """One daemon that nobody ends."""

    def end(self):
        pass

    def start(self):
        if self.helper is None:
            super().start()

    def close(self):
        pass


def _ignore():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


class Stubborn(Forgotten):
    """One daemon that nobody ends and that does not want to."""

    def start(self):
        if self.helper is None:
            self.helper = multiprocessing.get_context("fork").Process(target=_ignore, daemon=True)
            self.helper.start()


class Program(Helper):
    """A program."""

    def start(self):
        self.helper = subprocess.Popen(SLEEP)

    def end(self):
        if self.helper:
            self.helper.terminate()
            self.helper.wait(10)


class PlainFork(Helper):
    """By ``os.fork``."""

    def start(self):
        self.helper = os.fork()
        if not self.helper:
            time.sleep(1000)
            os._exit(0)

    def end(self):
        if self.helper:
            os.kill(self.helper, signal.SIGTERM)
            deadline = time.monotonic() + 10
            while os.waitpid(self.helper, os.WNOHANG) == (0, 0):
                assert time.monotonic() < deadline, "the helper does not obey SIGTERM"
                time.sleep(0.01)


class Worker(Helper):
    """Every step is taken by a process, through a pipe."""

    def start(self):
        self.pipe, other = multiprocessing.Pipe()
        self.helper = multiprocessing.get_context("fork").Process(target=_serve, args=(other,), daemon=True)
        self.helper.start()

    def step(self, action):
        obs, _, ended, truncated, info = super().step(action)
        self.pipe.send(1.0)
        return obs, self.pipe.recv(), ended, truncated, info


def _serve(pipe):
    while True:
        pipe.send(pipe.recv())


class Hanging(Forgotten):
    """It hangs in its 30th step, with a process."""

    steps_taken = 0

    def step(self, action):
        self.steps_taken += 1
        if self.steps_taken == 30:
            time.sleep(1000)
        return super().step(action)


class EveryHelper(Twenty):
    """In every episode another one of these."""

    kinds = (ForkHelper, SpawnHelper, ServedHelper, HastyHelper, NotDaemon, Program, PlainFork, Worker, Forgotten)
    inner, count = None, 0

    def reset(self, *, seed=None, options=None):
        self.close()
        self.inner = self.kinds[self.count % len(self.kinds)]()
        self.count += 1
        return self.inner.reset(seed=seed)

    def step(self, action):
        return self.inner.step(action)

    def close(self):
        if self.inner:
            self.inner.close()


for name, kind in list(globals().items()):
    if isinstance(kind, type) and issubclass(kind, Twenty):
        gym.register(f"{name}-v0", kind)
gym.register("CutAtTwenty-v0", Endless, max_episode_steps=20)
