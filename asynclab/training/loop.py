"""The heart of a session: act -> step -> remember -> learn.  B: environments."""

from dataclasses import dataclass

import torch
from numpy.typing import NDArray

from asynclab.envs import Envs, Step
from asynclab.memory import Memory
from asynclab.training.instruments import Instruments
from asynclab.training.learner import Turns


@dataclass
class Loop:
    """What a session consists of, and what it does again and again.

    Attributes:
        envs: B environments.
        learner: With the agent.
        memory: What is learned from.
        obs: [B, ...] what to act on next.
        seeds: Of the environments' first episodes.
    """

    envs: Envs
    learner: Instruments
    memory: Memory
    obs: NDArray
    seeds: list[int]

    def step(self) -> Step:
        """Act on what was seen last, and remember what came of it."""
        action = self.learner.act(self.obs)
        with self.learner.profile.phase("env"):
            step = self.envs.step(action)
        with self.learner.profile.phase("remember"):
            self.memory.add(action, step)
        self.obs = step.obs
        self.learner.agent.on_step(torch.from_numpy(step.done))
        return step

    def learn(self) -> Turns:
        """Learn from every batch that is due, after what is left of the last one; may be left after each update."""
        yield from self.learner.go_on()
        batches = self.memory.batches(self.learner.store.total_frames())
        for batch in self.learner.profile.each("sample", batches):
            yield from self.learner.learn(batch)
