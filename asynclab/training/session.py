"""One process: a loop that trains, and what the parent asks in between."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from asynclab.agents import Agent
from asynclab.distributed import Mode, Store
from asynclab.envs import Envs, Episode
from asynclab.memory import Memory
from asynclab.processes.control import Control
from asynclab.storage import snapshot
from asynclab.training.instruments import Instruments
from asynclab.training.learner import Rules
from asynclab.training.loop import Loop
from asynclab.training.messages import Complaint, Record, Return, Saved
from asynclab.training.profile import Profile
from asynclab.training.seeds import Life, Seeds
from asynclab.training.segments import MemoryFiles
from asynclab.training.state import Start, resume, save

Events = Iterator[Record | Saved | Complaint]


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

    def run(self, rank: int, store: Store, control: Control, start: Start = Start()) -> Events:
        """Train ``store`` until the parent asks for the last snapshot; rest while the budget is used up.

        Args:
            rank: Of the session.
            store: What it trains.
            control: Asked for what the parent wants.
            start: Where the trial begins.
        """
        memory_files = MemoryFiles(self.folder, rank)
        loop = self._begin(rank, store, control.restarts(rank), start, memory_files)
        slot, num_envs, resting, has_caught_up = self.mode.slot(rank), loop.envs.num_envs, False, False
        report = Report(rank, loop.learner, self.log_every)
        with closing(loop.envs):
            _stand_still(control, rank, control.asked())
            handled = control.join(rank)
            while True:
                control.beat(rank)
                if (number := control.asked()) > handled:
                    yield report.record()
                    control.beat(rank, slow=True)
                    yield _save(loop, rank, number, self.folder, memory_files if self.save_memory else None)
                    handled = number
                    _stand_still(control, rank, number)
                    if control.is_last(number):
                        return
                elif not has_caught_up:
                    _learn(loop, rank, control)  # what was due when the state was saved
                    has_caught_up = True
                elif store.claim(slot, num_envs):
                    resting = False
                    report.add(loop.step().episodes, num_envs)
                    if loop.envs.complaint:
                        yield Complaint(rank, loop.envs.complaint)
                        loop.envs.complaint = ""
                    _learn(loop, rank, control)
                    if report.is_due():
                        yield report.record()
                elif not resting:
                    resting = True
                    yield report.record()
                else:  # until the end, or until a session dies and what it claimed is given back
                    time.sleep(0.01)

    def set_up(self, rank: int, store: Store, profile: Profile, life: Life = (0, 0)) -> Loop:
        """Return a session's loop, at the beginning of episodes of its own.

        Args:
            rank: Of the session.
            store: What it trains.
            profile: Told where the time of updates goes.
            life: Of the session; each has random numbers of its own.
        """
        envs = self.make_envs()
        try:
            return self._set_up(envs, rank, store, profile, life)
        except BaseException:
            envs.close()  # or processes that step them would be left
            raise

    def _set_up(self, envs: Envs, rank: int, store: Store, profile: Profile, life: Life) -> Loop:
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
        return Loop(envs, learner, memory, obs, env_seeds)

    def _begin(self, rank: int, store: Store, restarts: int, start: Start, memory_files: MemoryFiles) -> Loop:
        """Return a loop that begins, goes on from a checkpoint, or takes the place of one that died."""
        profile = Profile(self.profile)
        loop = self.set_up(rank, store, profile, (start.resumes, restarts))
        try:
            if restarts:
                if memory_files.load(loop.memory):
                    loop.memory.cut(loop.obs)
                loop.memory.refill(int(store.frames[self.mode.slot(rank)]))
            elif start.checkpoint is not None:
                resume(loop, start, rank, memory_files)
        except BaseException:
            loop.envs.close()
            raise
        profile.start()
        return loop


class Report:
    """Collects what there is to tell of a session.

    Args:
        rank: Of the session.
        learner: Whose counters and metrics they are.
        every: Seconds between two records; the first step is reported at once, as the session then runs.
    """

    def __init__(self, rank: int, learner: Instruments, every: float) -> None:
        self._rank = rank
        self._learner = learner
        self._every = every
        self._frames = int(learner.store.frames[learner.slot])
        self._episodes: list[Return] = []
        self._next = time.monotonic()
        self._process = psutil.Process()

    def add(self, episodes: list[Episode], frames: int) -> None:
        """Count so many frames, with which these episodes ended."""
        store = self._learner.store
        self._frames += frames
        store.frames[self._learner.slot] = self._frames
        total = store.total_frames() if episodes else 0
        # each at a time of its own, so that their order is known
        self._episodes += [Return(self._frames, total, time.monotonic(), e.ret, e.length) for e in episodes]

    def is_due(self) -> bool:
        """Return whether it is time for a record."""
        return time.monotonic() >= self._next

    def record(self) -> Record:
        """Return what has happened since the last one."""
        self._next = time.monotonic() + self._every
        ended, self._episodes = self._episodes, []
        learner = self._learner
        metrics = learner.metrics() | {"perf/memory_mib": self._process.memory_info().rss / 2**20}
        updates = int(learner.store.updates[learner.slot])
        return Record(self._rank, self._frames, updates, ended, metrics, learner.profile.seconds(), learner.staleness())


def _learn(loop: Loop, rank: int, control: Control) -> None:
    """Make the updates that are due, but for those for which an end leaves no time."""
    for _ in loop.learn():
        control.beat(rank)
        if control.is_late():
            return


def _stand_still(control: Control, rank: int, number: int) -> None:
    """Wait until a snapshot is over."""
    while not control.is_released(number):
        control.beat(rank)
        time.sleep(0.002)


def _save(loop: Loop, rank: int, number: int, folder: Path, memory_files: MemoryFiles | None) -> Saved:
    try:
        return Saved(rank, number, save(loop, snapshot.partial(folder, number), rank, memory_files))
    except OSError as error:
        return Saved(rank, number, None, str(error))
