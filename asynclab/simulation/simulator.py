"""Sessions that share a network, in one process and in virtual time (``distributed=simulated``).

Whatever a session computes it computes at once, and what comes of it comes when its time has passed: meanwhile others
have their turns.  Whose turn it is depends on virtual time alone, so a run is the same to the bit whatever the machine
does.  What sessions in processes of their own would not share is changed with every turn: torch's random numbers.
"""

import heapq
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from asynclab.distributed import Simulated, Store
from asynclab.processes.control import Control
from asynclab.processes.launch import FatalError
from asynclab.simulation.clock import Clock
from asynclab.training.learner import Turn
from asynclab.training.messages import Saved
from asynclab.training.seeds import Seeds
from asynclab.training.session import Events, Session, Worker
from asynclab.training.state import Start


def simulate(session: Session, store: Store, control: Control, clock: Clock, start: Start = Start()) -> Generator[Any]:
    """Train ``store`` with all sessions until the parent asks for the last snapshot; yield their messages.

    Args:
        session: What every session gets.
        store: What they train.
        control: Asked for what the parent wants.
        clock: Of the sessions and of the trial, which is moved here.
        start: Where the trial begins.
    """
    with ExitStack() as stack:
        actors: list[Timed] = []
        for rank in range(control.sessions):
            if control.ending():  # many sessions take a while
                return
            with torch.random.fork_rng(devices=[]):
                actors.append(Timed(session.begin(rank, store.for_session(), start=start), session, clock))
            stack.callback(actors[-1].worker.loop.envs.close)
        for rank in range(control.sessions):
            control.join(rank)
        yield from _Play(actors, store, control, clock).events()


class Actor:
    """A session that has begun and is not alone in its process.

    Attributes:
        worker: The session.
        turn: Its last one.

    Args:
        worker: Torch's random numbers are its own now.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.turn = Turn.FREE
        self._turns = worker.turns()
        self._torch = torch.get_rng_state()

    def advance(self, turn: Turn) -> None:
        """Go on until it has had such a turn."""
        with self.random():
            self.turn = next(had for had in self._turns if had is turn)

    @contextmanager
    def random(self) -> Iterator[None]:
        """Let torch draw the session's random numbers."""
        torch.set_rng_state(self._torch)
        yield
        self._torch = torch.get_rng_state()


class Timed(Actor):
    """A session in virtual time.

    Attributes:
        due: Virtual seconds at which it has its next turn; None while the budget is used up.

    Args:
        worker: The session.
        session: What every session gets.
        clock: Of the trial.
    """

    def __init__(self, worker: Worker, session: Session, clock: Clock) -> None:
        super().__init__(worker)
        assert isinstance(session.mode, Simulated)
        timing, sessions = session.mode.timing, session.mode.max_session
        nbytes = 4 * worker.loop.learner.grad.full.numel()
        self.due: float | None = clock.now
        self._timing, self._slowness = timing, timing.slowness(worker.rank, sessions)
        self._transfer = timing.transfer(worker.rank, sessions, nbytes)
        self._rng = np.random.default_rng(Seeds(session.seed, worker.rank).timing)
        if saved := worker.saved:
            self.due = clock.now if saved["due"] is None else saved["due"]  # there may be more budget now
            self._rng.bit_generator.state = saved["rng"]
            worker.loop.learner.load_state_dict(saved["learner"])
            worker.report.load_state_dict(saved["report"])

    def go_on(self) -> Events:
        """Have a turn: go on until others may have theirs; yield what there is to tell."""
        assert self.due is not None
        self.turn = Turn.FREE
        while self.turn in (Turn.FREE, Turn.PUSH):  # takes no time
            with self.random():
                self.turn = next(self._turns)
            yield from self.worker.messages(self.turn)
        self.due = None if self.turn is Turn.REST else self.due + self._seconds()

    def _seconds(self) -> float:
        """Return how long it takes what the session has done, or is about to push."""
        if self.turn is Turn.STEP:
            return self._slowness * self._timing.of_step(self._rng)
        own = self._timing.of_gradient if self.turn is Turn.GRADIENT else self._timing.of_pull
        return self._slowness * own(self._rng) + self._transfer

    def save(self, number: int) -> Saved:
        """Save for a snapshot, besides what others save, what these need not, as with them nothing is under way."""
        worker = self.worker
        with self.random():
            state = {
                "due": self.due,
                "rng": self._rng.bit_generator.state,
                "obs": torch.from_numpy(worker.loop.obs.copy()),
                "learner": worker.loop.learner.state_dict(),
                "report": worker.report.state_dict(),
            }
            return worker.save(number, state)


class _Play:
    """All sessions, and whose turn it is."""

    def __init__(self, actors: list[Timed], store: Store, control: Control, clock: Clock) -> None:
        self.actors = actors
        self.store = store
        self.control = control
        self.clock = clock
        self.queue = [(actor.due, rank) for rank, actor in enumerate(actors) if actor.due is not None]
        heapq.heapify(self.queue)

    def events(self) -> Iterator[Any]:
        """Yield what the sessions have to tell, and None now and then for the parent, until the last snapshot."""
        handled = 0
        while True:
            number = self.control.asked()
            if number > handled and not self._is_to_finish():
                yield from self._save(number)
                handled = number
                if self.control.is_last(number):
                    return
            if self.queue:
                yield from self._turn()
            else:
                yield None

    def _turn(self) -> Iterator[Any]:
        """Let the session whose time has come first go on."""
        due, rank = heapq.heappop(self.queue)
        self.clock.now = max(self.clock.now, due)
        actor = self.actors[rank]
        try:
            yield from actor.go_on()
        except Exception as error:
            raise FatalError(f"session {rank}: {error}") from error
        if actor.due is not None:
            heapq.heappush(self.queue, (actor.due, rank))
        if rank == 0:  # the parent looks; when must not depend on the machine, or what it decides would
            yield None

    def _is_to_finish(self) -> bool:
        """Return whether the run is over but for the updates that are due, and nobody waits for its end."""
        return bool(self.queue) and self.store.is_complete() and self.control.ending() and not self.control.is_late()

    def _save(self, number: int) -> Events:
        """Save all sessions; they stand still anyway."""
        for actor in self.actors:
            if self.control.is_last(number):  # else what is told, and when, would depend on when snapshots are made
                yield actor.worker.report.record()
            yield actor.save(number)
