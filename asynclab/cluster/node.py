"""A node: the sessions of one machine, as in a run of its own, and the exchange of what they learn with the server."""

import dataclasses
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from asynclab.cluster.exchange import Exchanges, GoneError, Replica, View
from asynclab.distributed import Cluster, Network, Store
from asynclab.envs.normalize import Moments
from asynclab.processes.control import Control, Orders, Report
from asynclab.processes.launch import Failure, SessionError, launch
from asynclab.storage import snapshot
from asynclab.training.messages import Saved
from asynclab.training.session import Session
from asynclab.training.state import Start

LOOK = 0.005  # seconds between two looks whether an exchange is due
LISTEN = 0.25  # that a poll waits for something to tell
PATIENCE = 60.0  # seconds in which the server must answer
RETRY = 0.2  # seconds until it is asked again

State = dict[str, Any]


class Plan(NamedTuple):
    """What every node gets.

    Attributes:
        session: What its sessions do.
        network: What they train.
        make_optimizer: Called with one parameter group per network.
        max_frame: Budget of all nodes.
        lr_schedule: Factor on the learning rate by progress.
        moments: Numbers of a sample of what the environments normalise by, by name.
        num_envs: Of a session.
        num_threads: Of a session.
        resumes: How often the trial has been resumed.
    """

    session: Session
    network: Network
    make_optimizer: Callable[..., torch.optim.Optimizer]
    max_frame: int
    lr_schedule: Callable[[float], float]
    moments: Mapping[str, int]
    num_envs: int
    num_threads: int
    resumes: int

    @property
    def mode(self) -> Cluster:
        """The mode of the run."""
        assert isinstance(self.session.mode, Cluster)
        return self.session.mode


class Begin(NamedTuple):
    """What a node begins with.

    Attributes:
        node: Its number.
        life: How often it has been started before.
        restarts: Of its sessions.
        state: What the store of another node was, but for theta, counters and moments.
        files: Of the checkpoint that its sessions go on from, by name; empty for none.
    """

    node: int
    life: int
    restarts: list[int]
    state: State
    files: Mapping[str, bytes]


class Parcel(NamedTuple):
    """What a node's sessions have saved of a moment in which they stood still, after an exchange.

    Attributes:
        saved: By whom.
        files: By name.
        state: Of the store, but for theta, counters and moments; None if nobody wants it.
    """

    saved: list[Saved]
    files: dict[str, bytes]
    state: State | None


class News(NamedTuple):
    """What a node has to tell.

    Attributes:
        now: When that was, on its machine's monotonic clock.
        events: Of its sessions and their processes, exchanges, parcels.
        report: What is known of its sessions.
        has_ended: Whether all its sessions have.
        error: Why it has failed for good; None if it has not.
    """

    now: float
    events: list[Any]
    report: Report
    has_ended: bool
    error: str | None


class Node:
    """An actor: one thread runs the sessions, one exchanges, and the fleet polls.

    Args:
        plan: What every node gets.
        begin: What this one begins with.
        server: Handle of the server.
    """

    def __init__(self, plan: Plan, begin: Begin, server: Any) -> None:
        # or every session would import Ray's main module, and with it Ray
        vars(sys.modules["__main__"]).pop("__file__", None)
        self.plan = plan
        self.begin = begin
        self.ranks = plan.mode.ranks(begin.node)
        mode = plan.mode
        self.control = Control(mode.max_session, mode.max_restarts + begin.life, mode.hang_after)
        for rank, restarts in zip(self.ranks, begin.restarts, strict=True):
            self.control.begin(rank, restarts)
        self.replica: Replica | None = None
        self._server = server
        self._wants_state = False
        self._exchanging = threading.Lock()
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._saved: dict[int, Saved] = {}  # by rank: of the last snapshot, and not yet told
        self._ended = threading.Event()
        self._error: str | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="asynclab_node_"))
        threading.Thread(target=self._live, daemon=True).start()

    # What the fleet asks

    def poll(self, server: Any, orders: Orders, wants_state: bool) -> News:
        """Obey, and return what there is to tell; wait a moment for it.

        Args:
            server: Handle of the server, which may be another one by now.
            orders: Of the parent.
            wants_state: Whether parcels are to have the store's state.
        """
        self._server, self._wants_state = server, wants_state
        self.control.obey(orders)
        had_ended, events = self._ended.is_set(), []
        with suppress(queue.Empty):
            events.append(self._out.get(timeout=LISTEN))
            while True:
                events.append(self._out.get_nowait())
        return News(time.monotonic(), events, self.control.report(), had_ended, self._error)

    def report(self) -> View | None:
        """Return what a new server is to know; None if no session has stepped, as no server has let them.

        Raises:
            TimeoutError: The old one is still waited for.
        """
        if self.replica is None:
            return None
        if not self._exchanging.acquire(timeout=PATIENCE / 10):
            raise TimeoutError
        try:
            return self.replica.report()
        finally:
            self._exchanging.release()

    def close(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self._folder, ignore_errors=True)

    # The sessions

    def _live(self) -> None:
        """Run the sessions to their end."""
        try:
            store = self._make_store()
            self.replica = self._join(store)
            threading.Thread(target=self._exchange_when_due, daemon=True).start()
            runs = self._runs(store)
            with closing(launch(runs, self.plan.num_threads, self.control, self.ranks.start)) as events:
                for event in events:
                    self._take(event, store)
        except SessionError as error:
            self._error = str(error)
        except Exception:
            self._error = f"failed\n{traceback.format_exc()}"
        try:
            if self.replica is not None:
                self._deliver()  # what sessions that are left have done since the last exchange
                self._out.put(self._found())
        except Exception:
            self._error = self._error or f"failed\n{traceback.format_exc()}"
        finally:
            self._ended.set()

    def _make_store(self) -> Store:
        plan, writers = self.plan, self.plan.mode.sessions + 1
        moments = {name: Moments(size, writers) for name, size in plan.moments.items()}
        store = Store(
            plan.network, plan.make_optimizer, plan.max_frame, plan.lr_schedule, writers, moments=moments
        )  # fmt: skip
        store.load_state_dict(store.state_dict() | self.begin.state)
        return store

    def _runs(self, store: Store) -> list[Callable[[], Any]]:
        session = dataclasses.replace(self.plan.session, folder=self._folder)
        start = Start(resumes=self.plan.resumes)
        if self.begin.files:
            for name, content in self.begin.files.items():
                (self._folder / name).write_bytes(content)
            start = Start(self._folder, frozenset(self.begin.files), self.plan.resumes)
        return [partial(session.run, rank, store, self.control, start) for rank in self.ranks]

    def _take(self, event: Any, store: Store) -> None:
        match event:
            case Saved(rank=rank):
                self._saved[rank] = event
            case Failure(rank=rank):
                store.give_back(self.plan.mode.slot(rank))
                self._out.put(event)
            case None:
                pass
            case _:
                self._out.put(event)
        saved = {rank for rank, saved in self._saved.items() if saved.number == self.control.asked()}
        if saved and self.control.running() <= saved:
            self._deliver()

    def _deliver(self) -> None:
        """Hand in what the sessions have saved, when the server knows all that they had done by then."""
        while not self._exchange(whole=True):
            time.sleep(RETRY)
        files = {}
        for saved in self._saved.values():
            for name in saved.files or ():
                files[name] = (snapshot.partial(self._folder, saved.number) / name).read_bytes()
        assert self.replica is not None
        state = None
        if self._wants_state:
            state = {key: self.replica.store.state_dict()[key] for key in ("optimizer", "target")}
        self._out.put(Parcel(list(self._saved.values()), files, state))
        numbers = {saved.number for saved in self._saved.values()}
        self._saved = {}
        for number in numbers:  # of a later one sessions may be writing already
            shutil.rmtree(snapshot.partial(self._folder, number), ignore_errors=True)

    # The server

    def _join(self, store: Store) -> Replica:
        plan, (node, life, *_) = self.plan, self.begin
        while (welcome := self._ask("join", node, life)) is None:
            time.sleep(RETRY)
        return Replica(store, welcome, plan.mode.exchange_every, plan.num_envs)

    def _exchange_when_due(self) -> None:
        """Exchange until the process ends."""
        assert self.replica is not None
        told = time.monotonic()
        while not self._ended.is_set():
            if self.replica.is_due() and not self._exchange():
                time.sleep(RETRY)
            time.sleep(LOOK)
            if time.monotonic() - told >= 1.0:
                told = time.monotonic()
                self._out.put(self._found())

    def _exchange(self, whole: bool = False) -> bool:
        """Return whether the server has answered.

        Args:
            whole: Let it know all that the sessions have done by now: an answer to what was sent before does not do.
        """
        assert self.replica is not None
        with self._exchanging:
            began, was_waiting = time.monotonic(), self.replica.is_waiting()
            reply = self._ask("exchange", self.replica.change(whole))
            if reply is not None:
                self.replica.take(reply, time.monotonic() - began)
        return reply is not None and not (whole and was_waiting)

    def _found(self) -> Exchanges:
        assert self.replica is not None
        with self._exchanging:
            return self.replica.found()

    def _ask(self, method: str, *what: Any) -> Any:
        """Return the server's answer; None if there is none, because it is another one by now or too late."""
        import ray

        try:
            return ray.get(getattr(self._server, method).remote(*what), timeout=PATIENCE)
        except GoneError:
            os._exit(1)  # the sessions die with us
        except ray.exceptions.RayTaskError:
            self._error = f"failed\n{traceback.format_exc()}"
            self._ended.set()
            raise
        except ray.exceptions.RayError:
            return None
