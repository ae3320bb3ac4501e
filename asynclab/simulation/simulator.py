"""Sessions that share a network, in one process and in virtual time (``distributed=simulated``).

Whatever a session computes it computes at once, and what comes of it comes when its time has passed: meanwhile others
have their turns, and so do nodes that exchange what they have learned (``simulation.nodes``).  Whose turn it is depends
on virtual time alone, so a run is the same to the bit whatever the machine does.  What sessions in processes of their
own would not share is changed with every turn: torch's random numbers.
"""

import heapq
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch

from asynclab.distributed import Simulated, Store
from asynclab.processes.control import Control
from asynclab.processes.launch import FatalError
from asynclab.simulation.clock import Clock
from asynclab.simulation.nodes import Nodes
from asynclab.storage import snapshot
from asynclab.training.learner import Turn
from asynclab.training.messages import Saved
from asynclab.training.seeds import Seeds
from asynclab.training.session import Events, Session, Worker
from asynclab.training.state import Start

NODES = "nodes.pt"  # in a checkpoint: what nodes have besides their sessions


def simulate(session: Session, store: Store, control: Control, clock: Clock, start: Start = Start()) -> Generator[Any]:
    """Train ``store`` with all sessions until the parent asks for the last snapshot; yield their messages.

    Args:
        session: What every session gets.
        store: What they train.
        control: Asked for what the parent wants.
        clock: Of the sessions and of the trial, which is moved here.
        start: Where the trial begins.
    """
    nodes = _make_nodes(session, store, clock, start)
    with ExitStack() as stack:
        actors: list[Timed] = []
        for rank in range(control.sessions):
            if control.ending():  # many sessions take a while
                return
            trained = store if nodes is None else nodes.store_of(rank)
            with torch.random.fork_rng(devices=[]):
                actors.append(Timed(session.begin(rank, trained.for_session(), start=start), session, clock))
            stack.callback(actors[-1].worker.loop.envs.close)
        for rank in range(control.sessions):
            control.join(rank)
        yield from _Play(actors, store, control, clock, nodes).events()


def _make_nodes(session: Session, store: Store, clock: Clock, start: Start) -> Nodes | None:
    """Return the nodes, as they were; None if all sessions have one network.

    If there were others, all that these had learned is in the store.
    """
    assert isinstance(session.mode, Simulated)
    state = None
    if start.checkpoint is not None and NODES in start.files:
        state = snapshot.read_tensors(start.checkpoint / NODES)
    if session.mode.nodes is None and state is None:
        return None
    with closing(session.make_envs()) as envs:
        step = envs.num_envs
    if state is not None and (number := len(state["nodes"])) != session.mode.nodes:
        others = copy(session.mode)
        others.nodes = number
        before = Nodes(others, store, step, clock)
        before.load_state_dict(state)
        before.settle()
        state = None
    if session.mode.nodes is None:
        return None
    nodes = Nodes(session.mode, store, step, clock)
    if state is not None:
        nodes.load_state_dict(state)
    return nodes


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
        due: Virtual seconds at which it has its next turn; None while there is nothing that it may step.
        mode: Of the trial.
        folder: Where its checkpoints are.

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
        self.mode, self.folder = session.mode, session.folder
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
    """All sessions and nodes, and whose turn it is: those of nodes have the numbers after the sessions'."""

    def __init__(
        self, actors: list[Timed], store: Store, control: Control, clock: Clock, nodes: Nodes | None = None
    ) -> None:
        self.actors = actors
        self.store = store
        self.control = control
        self.clock = clock
        self.nodes = nodes
        self.mode = actors[0].mode
        self.queue: list[tuple[float, int]] = []
        for number, node in enumerate(nodes.nodes if nodes else ()):
            mine = [actors[rank] for rank in self.mode.ranks(number)]
            dues = [node.due, *(actor.worker.saved.get("due") for actor in mine)]
            if node.change is not None or any(due is not None for due in dues):
                for actor in mine:  # those that rest do so until their node has been told of more frames
                    actor.due = actor.worker.saved.get("due", actor.due)
        for number, waiting in enumerate([*actors, *(nodes.nodes if nodes else ())]):
            self._wait(waiting.due, number)

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

    def _wait(self, due: float | None, number: int) -> None:
        if due is not None:
            heapq.heappush(self.queue, (due, number))

    def _turn(self) -> Iterator[Any]:
        """Let whose time has come first go on."""
        due, number = heapq.heappop(self.queue)
        if number >= len(self.actors):
            yield from self._exchange(due, number - len(self.actors))
            return
        self.clock.now = max(self.clock.now, due)
        actor = self.actors[number]
        try:
            yield from actor.go_on()
        except Exception as error:
            raise FatalError(f"session {self.mode.label(number)}: {error}") from error
        self._wait(actor.due, number)
        if self.nodes is not None:
            node = number // self.mode.sessions
            self.nodes.count(node)
            self._look(node)
        if number == 0:  # the parent looks; when must not depend on the machine, or what it decides would
            yield None

    def _exchange(self, due: float, node: int) -> Iterator[Any]:
        """Let a node's exchange go on, and its sessions with the frames that it has been given."""
        assert self.nodes is not None
        if self.nodes.nodes[node].due != due:  # it had something better to do
            return
        self.clock.now = max(self.clock.now, due)
        if self.nodes.go_on(node):
            yield from self.nodes.found(node)
            if self.nodes.has_frames(node):
                for rank in self.mode.ranks(node):
                    if self.actors[rank].due is None:
                        self.actors[rank].due = self.clock.now
                        self._wait(self.clock.now, rank)
        self._wait(self.nodes.nodes[node].due, len(self.actors) + node)
        self._look(node)
        yield None

    def _look(self, node: int) -> None:
        """See to a node's next exchange."""
        assert self.nodes is not None
        due = self.nodes.look(node)
        if due is None and all(self.actors[rank].due is None for rank in self.mode.ranks(node)):
            due = self.nodes.rest(node)
        self._wait(due, len(self.actors) + node)

    def _is_to_finish(self) -> bool:
        """Return whether the run is over but for the updates that are due, and nobody waits for its end."""
        return bool(self.queue) and self.store.is_complete() and self.control.ending() and not self.control.is_late()

    def _save(self, number: int) -> Events:
        """Save all sessions; they stand still anyway."""
        is_last = self.control.is_last(number)
        if self.nodes is not None:
            self.nodes.show()
        if self.nodes is not None and is_last:
            if self.store.is_complete():
                self.nodes.settle()
            yield from map(self.nodes.tell, range(self.mode.nodes or 0))
        for actor in self.actors:
            if is_last:  # else what is told, and when, would depend on when snapshots are made
                yield actor.worker.report.record()
            saved = actor.save(number)
            if self.nodes is not None and actor is self.actors[0] and saved.files is not None:
                saved = self._add_nodes(saved)
            yield saved

    def _add_nodes(self, saved: Saved) -> Saved:
        """Save the nodes beside a session."""
        assert self.nodes is not None
        assert saved.files is not None
        path = snapshot.partial(self.actors[0].folder, saved.number) / NODES
        try:
            return saved._replace(files=saved.files | {NODES: snapshot.write_tensors(path, self.nodes.state_dict())})
        except OSError as error:
            return saved._replace(files=None, error=str(error))
