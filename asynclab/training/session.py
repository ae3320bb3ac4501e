"""One process: a loop that trains, and what the parent asks in between."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch

from asynclab.agents import Agent
from asynclab.distributed import Mode, Store
from asynclab.distributed.tape import Tape
from asynclab.envs import Envs, Episode
from asynclab.memory import Memory
from asynclab.processes.control import Control
from asynclab.profile import Profile
from asynclab.storage import snapshot
from asynclab.storage.segments import MemoryFiles
from asynclab.training.instruments import Instruments
from asynclab.training.learner import Rules, Turn, Turns
from asynclab.training.loop import Loop
from asynclab.training.messages import Complaint, Record, Return, Saved
from asynclab.training.seeds import Life, Seeds
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
        clock: Returns the time in seconds.
        tape: Records what the sessions see of each other; None if nothing is recorded.
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
    clock: Callable[[], float] = time.monotonic
    tape: Tape | None = None

    def run(self, rank: int, store: Store, control: Control, start: Start = Start()) -> Events:
        """Train ``store`` until the parent asks for the last snapshot; rest while the budget is used up.

        Args:
            rank: Of the session.
            store: What it trains.
            control: Asked for what the parent wants.
            start: Where the trial begins.
        """
        worker = self.begin(rank, store, control.restarts(rank), start)
        with closing(worker.loop.envs):
            _stand_still(control, rank, control.asked())
            handled = control.join(rank)
            for turn in worker.turns(control.is_late):
                if turn in (Turn.FREE, Turn.PULL):
                    control.beat(rank)
                yield from worker.messages(turn)
                while turn is Turn.FREE and (number := control.asked()) > handled:
                    yield worker.report.record()
                    control.beat(rank, slow=True)
                    yield worker.save(number)
                    handled = number
                    _stand_still(control, rank, number)
                    if control.is_last(number):
                        return
                    control.beat(rank)
                if turn is Turn.REST:  # until the end, or until a session dies and what it claimed is given back
                    time.sleep(0.01)

    def begin(self, rank: int, store: Store, restarts: int = 0, start: Start = Start()) -> "Worker":
        """Return a session that begins, goes on from a checkpoint, or takes the place of one that died."""
        memory_files = MemoryFiles(self.folder, rank)
        profile = Profile(self.profile)
        if self.tape is not None:
            store = store.recorded(self.tape.for_session(rank))
        loop = self.set_up(rank, store, profile, (start.resumes, restarts))
        worker = Worker(self, rank, loop, memory_files)
        with ExitStack() as stack:
            stack.enter_context(closing(loop.envs))
            if start.checkpoint is not None and not restarts:
                worker.saved = resume(loop, start, rank, memory_files)
            else:  # it waits for as much as if it had stepped with the others, which may have begun long before
                if restarts and memory_files.load(loop.memory):
                    loop.memory.cut(loop.obs)
                loop.memory.refill(store.total_frames() // self.mode.writers)
            stack.pop_all()
        profile.start()
        return worker

    def set_up(self, rank: int, store: Store, profile: Profile, life: Life = (0, 0)) -> Loop:
        """Return a session's loop, at the beginning of episodes of its own.

        Args:
            rank: Of the session.
            store: What it trains.
            profile: Told where the time of updates goes.
            life: Of the session; each has random numbers of its own.
        """
        slot = self.mode.slot(rank)
        device = self.devices[rank % len(self.devices)]
        seeds = Seeds(self.seed, rank, life)
        with ExitStack() as stack:
            envs = stack.enter_context(closing(self.make_envs()))  # or processes that step them would be left
            envs.attach(store.moments, slot)
            env_seeds = seeds.envs(envs.num_envs)
            agent = self.make_agent(envs.obs_space, envs.action_space)
            memory = self.make_memory(envs.obs_space, envs.action_space, envs.num_envs, seeds.memory)
            learner = Instruments(profile, agent, self.mode, store, slot, device, self.rules)
            torch.manual_seed(seeds.torch)  # not before: building networks that the pull overwrites also draws numbers
            obs = envs.reset(env_seeds)
            memory.attach(envs)
            memory.reset(obs)
            agent.start(envs.num_envs, rank if self.mode.one_store else 0)  # repeats of one run differ by seed
            stack.pop_all()
        return Loop(envs, learner, memory, obs, env_seeds)


class Worker:
    """A session that has begun.

    Attributes:
        rank: Of the session.
        loop: What it does.
        report: What there is to tell of it.
        saved: What ``state_dict`` returned in the run that goes on; empty if that was not saved.

    Args:
        session: What it is one of.
        rank: Of the session.
        loop: What it does.
        memory_files: Writes its memory.
    """

    def __init__(self, session: Session, rank: int, loop: Loop, memory_files: MemoryFiles) -> None:
        self.rank = rank
        self.loop = loop
        self.report = Report(rank, loop.learner, session.log_every, session.clock)
        self.saved: dict[str, Any] = {}
        self._session = session
        self._memory_files = memory_files
        self._is_resting = self._has_stepped = False

    def turns(self, is_late: Callable[[], bool] = lambda: False) -> Turns:
        """Learn from what is due, and step as long as there is budget, again and again; may be left at every turn.

        Args:
            is_late: Whether updates that are due are to be left, after the one that has begun.
        """
        store, slot, num_envs = self.loop.learner.store, self.loop.learner.slot, self.loop.envs.num_envs
        yield Turn.FREE
        yield from self._learn(is_late)  # what was due when the state was saved
        while True:
            yield Turn.FREE
            if store.claim(slot, num_envs):
                self.report.add(self.loop.step().episodes, num_envs)
                yield Turn.STEP
                yield from self._learn(is_late)
            else:
                yield Turn.REST

    def _learn(self, is_late: Callable[[], bool]) -> Turns:
        for turn in self.loop.learn():
            yield turn
            if turn is Turn.PULL and is_late():
                return

    def messages(self, turn: Turn) -> Iterator[Record | Complaint]:
        """Yield what there is to tell at this turn."""
        if turn is Turn.STEP:
            self._is_resting, self._has_stepped = False, True
            if self.loop.envs.complaint:
                yield Complaint(self.rank, self.loop.envs.complaint)
                self.loop.envs.complaint = ""
        elif turn is Turn.FREE and self._has_stepped:
            self._has_stepped = False
            if self.report.is_due():
                yield self.report.record()
        elif turn is Turn.REST and not self._is_resting:
            self._is_resting = True
            yield self.report.record()

    def save(self, number: int, state: Mapping[str, Any] = MappingProxyType({})) -> Saved:
        """Write all that theta and the counters do not hold, and return what was written.

        Args:
            number: Of the snapshot.
            state: What is to be ``saved`` when the run goes on.
        """
        folder, files = self._session.folder, self._memory_files if self._session.save_memory else None
        try:
            return Saved(self.rank, number, save(self.loop, snapshot.partial(folder, number), self.rank, files, state))
        except OSError as error:
            return Saved(self.rank, number, None, str(error))


class Report:
    """Collects what there is to tell of a session.

    Args:
        rank: Of the session.
        learner: Whose counters and metrics they are.
        every: Seconds between two records; the first step is reported at once, as the session then runs.
        clock: Returns the time in seconds.
    """

    def __init__(self, rank: int, learner: Instruments, every: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rank = rank
        self._learner = learner
        self._every = every
        self._frames = int(learner.store.frames[learner.slot])
        self._episodes: list[Return] = []
        self._next = self._clock()
        self._process = psutil.Process()

    def add(self, episodes: list[Episode], frames: int) -> None:
        """Count so many frames, with which these episodes ended."""
        store = self._learner.store
        self._frames += frames
        store.frames[self._learner.slot] = self._frames
        total = store.total_frames() if episodes else 0
        # each at a time of its own, so that their order is known
        self._episodes += [Return(self._frames, total, self._clock(), e.ret, e.length) for e in episodes]

    def state_dict(self) -> dict[str, Any]:
        """Return what has not been told yet."""
        return {"episodes": [list(episode) for episode in self._episodes], "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        self._episodes = [Return(*episode) for episode in state["episodes"]]
        self._next = state["next"]

    def is_due(self) -> bool:
        """Return whether it is time for a record."""
        return self._clock() >= self._next

    def record(self) -> Record:
        """Return what has happened since the last one."""
        self._next = self._clock() + self._every
        ended, self._episodes = self._episodes, []
        learner = self._learner
        metrics = learner.metrics() | {"perf/memory_mib": self._process.memory_info().rss / 2**20}
        updates = int(learner.store.updates[learner.slot])
        return Record(self._rank, self._frames, updates, ended, metrics, learner.profile.seconds(), learner.staleness())


def _stand_still(control: Control, rank: int, number: int) -> None:
    """Wait until a snapshot is over."""
    while not control.is_released(number):
        control.beat(rank)
        time.sleep(0.002)
