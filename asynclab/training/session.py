"""One process: act -> step -> remember -> learn, as a generator of Records.  B: environments."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from asynclab.agents import Agent
from asynclab.distributed import Mode, Store
from asynclab.envs import Envs
from asynclab.memory import Memory
from asynclab.processes.control import Control
from asynclab.storage import snapshot
from asynclab.training import generators
from asynclab.training.instruments import Instruments
from asynclab.training.learner import Rules
from asynclab.training.profile import Profile
from asynclab.training.segments import MemoryFiles

Life = tuple[int, int]  # how often the trial has been resumed, and the session restarted since


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
        metrics: Means over the updates since the last record, and how much memory the process has.
        profile: Seconds since the last record by phase; empty unless asked for.
        staleness: How often each staleness of a gradient occurred since the last record.
    """

    rank: int
    frames: int
    updates: int
    episodes: list[Return]
    metrics: dict[str, float]
    profile: dict[str, float]
    staleness: Mapping[int, int] = {}


class Saved(NamedTuple):
    """A session has saved its state and stands still.

    Attributes:
        rank: Of the session.
        number: Of the snapshot.
        files: What it wrote, with sizes and checksums; None if it could not.
        error: Why it could not.
    """

    rank: int
    number: int
    files: dict[str, snapshot.File] | None
    error: str = ""


class Start(NamedTuple):
    """Where a trial begins.

    Attributes:
        checkpoint: Folder of the checkpoint that it goes on from.
        files: Names of those in it that are its own.
        resumes: How often it has been resumed.
    """

    checkpoint: Path | None = None
    files: frozenset[str] = frozenset()
    resumes: int = 0


class Parts(NamedTuple):
    """What a session consists of.

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

    def save(self, folder: Path, rank: int, memory_files: MemoryFiles | None) -> dict[str, snapshot.File]:
        """Write everything that theta and the counters do not hold; return the files by name."""
        name = f"session_{rank:02d}.pt"
        state = {
            "agent": self.learner.agent.state_dict(),
            "envs": self.envs.state_dict(),
            "optimizer": self.learner.store.own_state_dict(),
            **generators.state(self.learner.agent.device),
        }
        files = {name: snapshot.write_tensors(folder / name, state)}
        return files | (memory_files.save(self.memory, folder) if memory_files else {})

    def resume(self, start: Start, rank: int, memory_files: MemoryFiles) -> "Parts":
        """Return the parts as they were when saved, as far as the checkpoint has them.

        The environments go on where they were if they can, else with new episodes.  A memory that was not saved fills
        anew before it is used.
        """
        assert start.checkpoint is not None
        name, frames = f"session_{rank:02d}.pt", int(self.learner.store.frames[self.learner.slot])
        if name not in start.files:  # the session was not alive at that moment
            self.memory.refill(frames)
            return self
        state = snapshot.read_tensors(start.checkpoint / name)
        self.learner.agent.load_state_dict(state["agent"])
        self.learner.store.load_own_state_dict(state["optimizer"])
        going_on = self.envs.retrace(state["envs"])
        obs = self.envs.reset(self.seeds) if going_on is None else going_on
        if going_on is None:
            self.learner.agent.on_step(torch.ones(self.envs.num_envs, dtype=torch.bool))
        if not memory_files.load(self.memory, start.checkpoint, start.files):
            self.memory.reset(obs)
            self.memory.refill(frames)
        elif going_on is None:
            self.memory.cut(obs)
        if self.memory.is_between_batches():
            self.learner.agent.begin_batch()
        generators.restore(self.learner.agent.device, state)
        return self._replace(obs=obs)


@dataclass(frozen=True)
class Session:
    """What every process gets; with its rank and store it trains until it is told to end.

    Attributes:
        make_envs: () -> Envs.
        make_agent: (obs_space, action_space) -> Agent.
        make_memory: (obs_space, action_space, num_envs, seed) -> Memory.
        mode: Where the weights lie.
        rules: How they learn.
        devices: Of the sessions' weights, taken in turn by rank.
        seed: Of the trial.
        log_every: Seconds between two records.
        profile: Report where the time goes.
        folder: Where checkpoints are.
        save_memory: Whether checkpoints have the memory, too.
    """

    make_envs: Callable[[], Envs]
    make_agent: Callable[..., Agent]
    make_memory: Callable[..., Memory]
    mode: Mode
    rules: Rules
    devices: list[str]
    seed: int
    log_every: float
    profile: bool
    folder: Path
    save_memory: bool

    def set_up(self, rank: int, store: Store, profile: Profile, life: Life = (0, 0)) -> Parts:
        """Return a session's parts, at the beginning of episodes of its own.

        Args:
            rank: Of the session.
            store: What it trains.
            profile: Told where the time of updates goes.
            life: Of the session; each has random numbers of its own.
        """
        envs = self.make_envs()
        envs.attach(store.moments, self.mode.slot(rank))
        seeds = Seeds(self.seed, rank, life)
        env_seeds = seeds.envs(envs.num_envs)
        agent = self.make_agent(envs.obs_space, envs.action_space)
        memory = self.make_memory(envs.obs_space, envs.action_space, envs.num_envs, seeds.memory)
        device = self.devices[rank % len(self.devices)]
        learner = Instruments(profile, agent, self.mode, store, self.mode.slot(rank), device, self.rules)
        torch.manual_seed(seeds.torch)  # not before: building networks that the pull overwrites also draws numbers
        obs = envs.reset(env_seeds)
        memory.attach(envs)
        memory.reset(obs)
        agent.start(envs.num_envs, rank)
        return Parts(envs, learner, memory, obs, env_seeds)

    def run(self, rank: int, store: Store, control: Control, start: Start = Start()) -> Iterator[Record | Saved]:
        """Train ``store`` until the parent asks for the last snapshot; rest while the budget is used up.

        Args:
            rank: Of the session.
            store: What it trains.
            control: Asked for what the parent wants.
            start: Where the trial begins.
        """
        slot = self.mode.slot(rank)
        profile = Profile(self.profile)
        restarts = control.restarts(rank)
        parts = self.set_up(rank, store, profile, (start.resumes, restarts))
        frames = int(store.frames[slot])
        memory_files = MemoryFiles(self.folder, rank)
        if restarts:
            if memory_files.load(parts.memory):
                parts.memory.cut(parts.obs)
            parts.memory.refill(frames)
        elif start.checkpoint is not None:
            parts = parts.resume(start, rank, memory_files)
        envs, learner, memory, obs, _ = parts
        process = psutil.Process()
        episodes: list[Return] = []
        resting = False
        next_record = time.monotonic()  # the first step is reported at once: the session runs

        def record() -> Record:
            nonlocal next_record, episodes
            next_record = time.monotonic() + self.log_every
            ended, episodes = episodes, []
            metrics = learner.metrics() | {"perf/memory_mib": process.memory_info().rss / 2**20}
            updates = int(store.updates[slot])
            return Record(rank, frames, updates, ended, metrics, profile.seconds(), learner.staleness())

        def learn() -> None:
            for batch in profile.each("sample", memory.batches(store.total_frames())):
                for _ in learner.learn(batch):
                    control.beat(rank)
                    if control.is_late():
                        return

        profile.start()
        with closing(envs):
            _stand_still(control, rank, control.asked())
            handled = control.join(rank)
            has_caught_up = False
            while True:
                control.beat(rank)
                if (number := control.asked()) > handled:
                    yield record()
                    control.beat(rank, slow=True)
                    yield self._save(rank, number, parts, memory_files if self.save_memory else None)
                    handled = number
                    _stand_still(control, rank, number)
                    if control.is_last(number):
                        return
                    continue
                if not has_caught_up:
                    learn()  # what was due when the state was saved
                    has_caught_up = True
                    continue
                if not store.claim(slot, envs.num_envs):
                    if resting:  # until the end, or until a session dies and what it claimed is given back
                        time.sleep(0.01)
                    else:
                        resting = True
                        yield record()
                    continue
                resting = False
                action = learner.act(obs)
                with profile.phase("env"):
                    step = envs.step(action)
                with profile.phase("remember"):
                    memory.add(action, step)
                frames += envs.num_envs
                store.frames[slot] = frames
                obs = step.obs
                learner.agent.on_step(torch.from_numpy(step.done))
                total_frames = store.total_frames()
                episodes += [Return(frames, total_frames, time.monotonic(), e.ret, e.length) for e in step.episodes]
                learn()
                if time.monotonic() >= next_record:
                    yield record()

    def _save(self, rank: int, number: int, parts: Parts, memory_files: MemoryFiles | None) -> Saved:
        try:
            return Saved(rank, number, parts.save(snapshot.partial(self.folder, number), rank, memory_files))
        except OSError as error:
            return Saved(rank, number, None, str(error))


def _stand_still(control: Control, rank: int, number: int) -> None:
    """Wait until a snapshot is over."""
    while not control.is_released(number):
        control.beat(rank)
        time.sleep(0.002)


class Seeds:
    """Distinct, reproducible random streams for every session and environment of a trial.

    Args:
        seed: Of the trial, below 2**32: a larger one takes two words of entropy, and may be another's with its rank.
        rank: Of the session.
        life: Of the session: what begins again must not repeat the same episodes.
    """

    def __init__(self, seed: int, rank: int, life: Life = (0, 0)) -> None:
        again = list(life) if any(life) else []
        streams = np.random.SeedSequence([seed, rank, *again]).spawn(3)
        self.weights, self.torch, self.memory = (int(s.generate_state(1)[0]) for s in streams)
        self._rank = rank
        self._first_env = int(np.random.SeedSequence([seed, *again]).generate_state(1)[0])

    def envs(self, num_envs: int) -> list[int]:
        """Return one seed per environment, in 0..2^31-1: consecutive over the ranks, so no two can be equal."""
        return [(self._first_env + self._rank * num_envs + i) % 2**31 for i in range(num_envs)]
