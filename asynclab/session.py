"""One process: act -> step -> remember -> learn, as a generator of Records.  B: environments."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from asynclab.agents import Agent
from asynclab.distributed import Mode, Store
from asynclab.envs import Envs
from asynclab.learner import Learner
from asynclab.memory import Memory
from asynclab.precision import Precision
from asynclab.profile import Profile


class Return(NamedTuple):
    """A finished episode.

    Attributes:
        frame: Frames of the session at its end.
        total_frame: Frames of the trial at its end.
        seconds: When it ended, on the machine's monotonic clock.
        ret: Sum of raw rewards.
        length: In frames.
    """

    frame: int
    total_frame: int
    seconds: float
    ret: float
    length: int


class Record(NamedTuple):
    """What a session reports since its last report.

    Attributes:
        rank: Of the session.
        frames: Of this session, since its start.
        updates: Of this session, since its start.
        episodes: Those that ended.
        metrics: Means over the updates since the last record.
        profile: Seconds since the last record by phase; empty unless asked for.
    """

    rank: int
    frames: int
    updates: int
    episodes: list[Return]
    metrics: dict[str, float]
    profile: dict[str, float]


@dataclass(frozen=True)
class Session:
    """Everything that a session needs but its rank and store: resolved and picklable, the same for all ranks.

    Attributes:
        make_envs: () -> Envs.
        make_agent: (obs_space, action_space) -> Agent.
        make_memory: (obs_space, action_space, num_envs, seed) -> Memory.
        mode: Placement of the weights.
        max_grad_norm: Bound on each network's gradient norm, None for none.
        precision: Of the torsos' arithmetic.
        devices: Torch devices, dealt out to the sessions in turn.
        seed: Of the trial.
        log_every: Seconds between two records.
        profile: Report where the time goes.
    """

    make_envs: Callable[[], Envs]
    make_agent: Callable[..., Agent]
    make_memory: Callable[..., Memory]
    mode: Mode
    max_grad_norm: float | None
    precision: Precision
    devices: list[str]
    seed: int
    log_every: float
    profile: bool

    def set_up(self, rank: int, store: Store, profile: Profile) -> tuple[Envs, Learner, Memory, NDArray]:
        """Return a session's environments, learner, memory and first observations [B, ...]."""
        seeds = Seeds(self.seed, rank)
        envs = self.make_envs()
        agent = self.make_agent(envs.obs_space, envs.action_space)
        memory = self.make_memory(envs.obs_space, envs.action_space, envs.num_envs, seeds.memory)
        device = self.devices[rank % len(self.devices)]
        learner = Learner(
            agent, self.mode, store, self.mode.slot(rank), device, self.max_grad_norm, self.precision, profile
        )
        torch.manual_seed(seeds.torch)  # not before: building networks that the pull overwrites also draws numbers
        obs = envs.reset(seeds.envs(envs.num_envs))
        memory.reset(obs)
        return envs, learner, memory, obs

    def run(self, rank: int, store: Store) -> Iterator[Record]:
        """Train ``store`` until its clock shows that the budget is used up."""
        slot = self.mode.slot(rank)
        profile = Profile(self.profile)
        envs, learner, memory, obs = self.set_up(rank, store, profile)
        episodes: list[Return] = []
        frames = 0
        next_record = time.monotonic()  # the first step is reported at once: the session runs
        profile.start()
        while (total_frames := store.total_frames()) < store.max_frame:
            action = learner.act(obs)
            with profile.phase("env"):
                step = envs.step(action)
            with profile.phase("remember"):
                memory.add(action, step)
            frames += envs.num_envs
            store.frames[slot] = frames
            obs = step.obs
            total_frames += envs.num_envs
            episodes += [Return(frames, total_frames, time.monotonic(), e.ret, e.length) for e in step.episodes]
            for batch in profile.each("sample", memory.batches(total_frames)):
                learner.update(batch)
            if (now := time.monotonic()) >= next_record:
                next_record = now + self.log_every
                yield Record(rank, frames, int(store.updates[slot]), episodes, learner.metrics(), profile.seconds())
                episodes = []
        envs.close()
        yield Record(rank, frames, int(store.updates[slot]), episodes, learner.metrics(), profile.seconds())


class Seeds:
    """Distinct, reproducible random streams for every session and environment of a trial.

    Args:
        seed: Of the trial.
        rank: Of the session.
    """

    def __init__(self, seed: int, rank: int) -> None:
        streams = np.random.SeedSequence([seed, rank]).spawn(3)
        self.weights, self.torch, self.memory = (int(s.generate_state(1)[0]) for s in streams)
        self._rank = rank
        self._first_env = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def envs(self, num_envs: int) -> list[int]:
        """Return one seed per environment, in 0..2^31-1: consecutive over the ranks, so no two can be equal."""
        return [(self._first_env + self._rank * num_envs + i) % 2**31 for i in range(num_envs)]
