"""The driver's side of a cluster: starts server and nodes, watches them, and tells the parent what sessions tell.

To the parent this is what ``processes.launch`` is on one machine: an iterator of events.
"""

import logging
import math
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asynclab.cluster import machines
from asynclab.cluster.exchange import Exchanges, Server, View, newest
from asynclab.cluster.node import Begin, News, Node, Parcel, Plan
from asynclab.distributed import Store
from asynclab.processes.control import Control
from asynclab.processes.launch import MAX_DELAY, Failure, SessionError
from asynclab.storage import snapshot
from asynclab.text import count
from asynclab.training.messages import Record, Saved
from asynclab.training.state import Start

log = logging.getLogger(__name__)

TICK = 0.2  # seconds between two looks
REPORT = 10.0  # in which nodes tell what a new server is to know
WAITING = 10.0  # after which people are told that a node has not begun
FIRST_LOSSES = 3  # of a node before it has ever stepped, after which it is given up


def launch(plan: Plan, store: Store, control: Control, start: Start) -> Generator[Any]:
    """Run all sessions on the cluster to their end and yield what ``processes.launch`` yields, and ``Exchanges``.

    Args:
        plan: What nodes get.
        store: Of the parent, which is kept up to date: all but the optimizer's state, which snapshots bring.
        control: Of the parent.
        start: Where the trial begins.

    Raises:
        SessionError: A session or a node failed for good.
    """
    if control.ending():  # asked for before there is anything to end
        return
    with machines.joined(plan.mode, store.theta.nbytes):
        fleet = _Fleet(plan, store, control, start)
        try:
            yield from fleet.events()
        finally:
            fleet.kill()
    if fleet.failed:
        raise SessionError(fleet.failed[0])


@dataclass
class _Member:
    """A node, as the driver sees it.

    Attributes:
        node: Its number.
        actor: Its handle; None while there is none.
        life: How often it has been started before.
        due: When it is to be started.
        asked: When Ray was asked for it last; inf when people have been told that it waits.
        pending: What it is asked at the moment; None for nothing.
        silent: Seconds in which it has not answered.
        begun: Whether it has ever answered in this life.
        losses: In a row, without a step between them.
        shift: Seconds from its machine's clock to ours.
        has_ended: Whether its sessions have.
    """

    node: int
    actor: Any = None
    life: int = 0
    due: float = 0.0
    asked: float = math.inf
    pending: Any = None
    silent: float = 0.0
    begun: bool = False
    losses: int = 0
    shift: float = math.inf
    has_ended: bool = False


class _Fleet:
    """Server and nodes."""

    def __init__(self, plan: Plan, store: Store, control: Control, start: Start) -> None:
        self.plan = plan
        self.store = store
        self.control = control
        self.start = start
        self.failed: list[str] = []
        self.members = [_Member(node) for node in range(plan.mode.nodes)]
        self.view = View.of(store, plan.mode.nodes)
        self._make_server = ray.remote(num_cpus=0, max_restarts=0)(Server)
        self._make_node = ray.remote(max_restarts=0, scheduling_strategy="SPREAD")(Node)
        self.server = self._start_server()
        self._looking: Any = None  # at the server
        self._unanswered = 0.0  # seconds
        self._is_heard = False  # it has answered; to begin may take much longer
        self._held: list[Any] = []  # events that are told when the store is up to date
        self._covered = 0  # how many of them it is up to date for at the next look
        self._next_look = 0.0
        self._looked = time.monotonic()

    def events(self) -> Iterator[Any]:
        """Start the nodes and yield what happens until none is left."""
        while not all(member.has_ended for member in self.members) or self._held:
            self._start_due()
            ready = self._wait()
            # time in which we did not run ourselves, such as between Ctrl-Z and fg, says nothing about the nodes
            passed, self._looked = min(time.monotonic() - self._looked, 2 * TICK), time.monotonic()
            for member in self.members:
                if member.pending in ready:
                    yield from self._hear(member)
                else:
                    yield from self._watch(member, passed)
            yield from self._look(ready, passed)
            yield None

    def kill(self) -> None:
        """End all actors, and what they have started."""
        actors = [member.actor for member in self.members if member.actor is not None]
        closing = [actor.close.remote() for actor in actors]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=1.0)
        for actor in [*actors, self.server]:
            ray.kill(actor)

    def _wait(self) -> list[Any]:
        """Return the answers that are there, after a moment if there are none."""
        refs = [ref for ref in (self._looking, *(member.pending for member in self.members)) if ref is not None]
        if not refs:
            time.sleep(TICK)
            return []
        ready, _ = ray.wait(refs, num_returns=1, timeout=TICK)
        if ready:  # all that are: of many nodes the last ones must not wait for the first
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return ready

    # Nodes

    def _start_due(self) -> None:
        now = time.monotonic()
        for member in self.members:
            if member.actor is None and not member.has_ended and member.due <= now:
                if self.control.ending():
                    member.has_ended = True
                    self._held.append(None)  # another look at the server
                    continue
                ranks = self.plan.mode.ranks(member.node)
                restarts = [self.control.restarts(rank) for rank in ranks]
                begin = Begin(member.node, member.life, restarts, self._state(), self._files(member))
                cores = self.plan.mode.sessions * self.plan.num_threads
                member.actor = self._make_node.options(num_cpus=cores).remote(self.plan, begin, self.server)
                member.begun, member.shift = False, math.inf  # perhaps on another machine
                member.asked = now
                self._ask(member)

    def _ask(self, member: _Member) -> None:
        alive = [other.node for other in self.members if other.begun and other.actor is not None]
        is_first = member.node == min(alive, default=member.node)
        member.pending = member.actor.poll.remote(self.server, self.control.orders(), is_first)
        member.silent = 0.0

    def _hear(self, member: _Member) -> Iterator[Any]:
        """Take what a node tells, and ask it again."""
        ref, member.pending = member.pending, None
        try:
            news: News = ray.get(ref)
        except RayTaskError as error:
            self._give_up(member, f"failed\n{error}")
            return
        except RayError as error:
            if "creation task" in str(error):  # a mistake, such as a module that is missing there, and no accident
                self._give_up(member, f"could not begin\n{error}")
                return
            yield from self._lose(member, _in_words(error))
            return
        now = time.monotonic()
        member.begun, member.shift = True, min(member.shift, now - news.now)
        self.control.hear(news.report, self.plan.mode.ranks(member.node))
        for event in news.events:
            yield from self._take(member, event)
        if news.has_ended:
            member.has_ended = True
            self._held.append(None)
            if news.error:
                self._give_up(member, news.error)
        else:
            self._ask(member)

    def _take(self, member: _Member, event: Any) -> Iterator[Any]:
        match event:
            case Parcel(saved=saved, files=files, state=state):
                if state is not None:
                    self.store.load_state_dict(self.store.state_dict() | state)
                self._held += [self._write(one, files) for one in saved]
            case Record():
                member.losses = 0
                episodes = [e._replace(seconds=e.seconds + member.shift) for e in event.episodes]
                yield event._replace(episodes=episodes)
            case Failure(rank=rank, restarts=restarts):
                self.control.begin(rank, restarts)
                yield event
            case Exchanges(nbytes=0):
                pass
            case _:
                yield event

    def _write(self, saved: Saved, files: dict[str, bytes]) -> Saved:
        """Keep what a session has saved with the checkpoint that is being collected."""
        folder = snapshot.partial(self.plan.session.folder, saved.number)
        try:
            written = {
                name: snapshot.write(folder / name, lambda file, name=name: file.write(files[name]))  # type: ignore[misc]
                for name in saved.files or ()
            }
        except OSError as error:
            return saved._replace(files=None, error=str(error))
        return saved if saved.files is None else saved._replace(files=written)

    def _watch(self, member: _Member, passed: float) -> Iterator[Any]:
        """Give up a node that has not said anything for too long, or does not end."""
        if member.actor is None or member.has_ended:
            return
        if self.control.ending() and not member.begun:  # it has found no place, or not come as far as to step
            ray.kill(member.actor)
            member.actor, member.pending, member.has_ended = None, None, True
            self._held.append(None)
            return
        if not member.begun and time.monotonic() - member.asked >= WAITING:
            member.asked = math.inf
            log.warning(
                "node %d has not begun: no machine has %s free, or its processes are slow to start (ray status)",
                member.node, count(self.plan.mode.sessions * self.plan.num_threads, "core"),
            )  # fmt: skip
        member.silent += passed * member.begun
        if time.monotonic() >= self.control.deadline + 10 * TICK:
            yield from self._lose(member, "did not end in time and was killed")
        elif member.silent >= self.plan.mode.hang_after:
            yield from self._lose(member, f"said nothing for {self.plan.mode.hang_after:.0f} s and was killed")

    def _lose(self, member: _Member, cause: str) -> Iterator[Any]:
        """Let the sessions of a node that is gone start again, on any machine, with the server's theta."""
        ray.kill(member.actor)
        member.actor = member.pending = None
        member.losses += 1
        member.life += 1
        self.server.leave.remote(member.node, member.life)
        ranks = self.plan.mode.ranks(member.node)
        self.control.lose(ranks)
        if self.control.ending():
            member.has_ended = True
            self._held.append(None)
        elif member.losses >= FIRST_LOSSES:
            self._give_up(member, f"{cause}, {member.losses} times before it had stepped")
        delay = None if member.has_ended else min(2.0 ** (member.losses - 1), MAX_DELAY)
        member.due = time.monotonic() + (delay or 0.0)
        for rank in ranks:
            if delay is not None:
                self.control.count_restart(rank)
            yield Failure(rank, f"was lost with node {member.node}, which {cause}", None, "",
                          self.control.restarts(rank), delay)  # fmt: skip

    def _give_up(self, member: _Member, error: str) -> None:
        """Let all end, as a node has failed for good."""
        member.has_ended = True
        self._held.append(None)
        if self.control.ending():
            log.error("node %d failed, too: %s", member.node, error)
        else:
            self.failed.append(f"node {member.node}: {error}")
            self.control.finish()

    def _state(self) -> dict[str, Any]:
        state = self.store.state_dict()
        return {key: state[key] for key in ("optimizer", "target")}

    def _files(self, member: _Member) -> dict[str, bytes]:
        """Return what a node's sessions go on from, if they have never begun."""
        ranks = self.plan.mode.ranks(member.node)
        if self.start.checkpoint is None or any(self.control.restarts(rank) for rank in ranks):
            return {}
        names = [f"session_{rank:02d}.pt" for rank in ranks]
        return {name: (self.start.checkpoint / name).read_bytes() for name in names if name in self.start.files}

    # The server

    def _start_server(self) -> Any:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        make = self._make_server.options(scheduling_strategy=here)
        return make.remote(self.plan.mode.outer, self.plan.max_frame, self.plan.num_envs, self.view)

    def _look(self, ready: list[Any], passed: float) -> Iterator[Any]:
        """Keep the store up to date, and tell what has waited for that; replace a server that does not answer."""
        self._unanswered += passed
        if self._looking is not None and self._looking in ready:
            ref, self._looking, self._unanswered, self._is_heard = self._looking, None, 0.0, True
            try:
                self._mirror(ray.get(ref))
            except RayTaskError:
                raise
            except RayError as error:
                yield from self._replace_server(_in_words(error))
            else:
                told, self._held = self._held[: self._covered], self._held[self._covered :]
                yield from (event for event in told if event is not None)
        elif self._looking is not None and self._unanswered >= self._patience():
            self._looking = None
            yield from self._replace_server(f"said nothing for {self._patience():.0f} s and was killed")
        if self._looking is None and (self._held or time.monotonic() >= self._next_look):
            self._covered, self._next_look = len(self._held), time.monotonic() + TICK
            self._looking, self._unanswered = self.server.look.remote(self.view.version), 0.0

    def _mirror(self, view: View) -> None:
        view.copy_to(self.store)
        self.view = (
            view if view.theta is not None else view._replace(theta=self.view.theta, velocity=self.view.velocity)
        )

    def _patience(self) -> float:
        """Return after how many seconds without an answer the server counts as hung."""
        return self.plan.mode.hang_after * (1 if self._is_heard else 10)

    def _replace_server(self, cause: str) -> Iterator[Any]:
        """Start another server with the newest of what is known, and nodes again of which nothing is."""
        ray.kill(self.server)  # one that only could not be reached would take changes, which nobody else knew of
        members = [member for member in self.members if member.actor is not None and not member.has_ended]
        asked = {member.actor.report.remote(): member.node for member in self.members if member.actor and member.begun}
        ready, _ = ray.wait([*asked], num_returns=len(asked), timeout=REPORT) if asked else ([], [])
        reports: dict[int, View | None] = {}
        for ref in ready:
            with suppress(RayError):  # lost, too
                reports[asked[ref]] = ray.get(ref)
        self._mirror(newest(self.view, {node: report for node, report in reports.items() if report is not None}))
        self.server, self._is_heard = self._start_server(), False
        log.warning(
            "the server %s; another one goes on with its weights after exchange %d", cause, self.view.version
        )  # fmt: skip
        # what the old one had granted a node last the new one does not know, unless the node has told: it is refused
        for member in members:
            if not member.begun or reports.get(member.node, self.view) is None:
                ray.kill(member.actor)
                member.actor, member.pending, member.due = None, None, time.monotonic()
                member.life += 1
            elif member.node not in reports:
                yield from self._lose(member, "could not say what it had done when the server was lost")
        for member in self.members:  # the old one may not have heard
            if self.view.lives[member.node] < member.life:
                self.server.leave.remote(member.node, member.life)


def _in_words(error: Exception) -> str:
    """Return what became of an actor."""
    text = str(error)
    if "node has died" in text or "node was terminated" in text:
        return "lost its machine"
    return "was killed, or cannot be reached"
