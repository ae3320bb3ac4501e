"""What machines tell each other: a server's theta, and replicas of it that are trained and exchange their changes.

A replica sends by how much its theta has changed since it last heard of the server's, and adds what it is told of the
others' changes to its own, so its sessions never stop.  In between it only tells its counters and asks for frames.
A cluster and the simulator use the same.
P: parameters, N: nodes, W: sessions of all nodes, K: sessions of one, C: counters (frames, updates, dropped).
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asynclab.distributed import Store
from asynclab.distributed.exchange import Outer
from asynclab.moments import merge

IDLE = 1.0  # seconds without a word after which a node tells its counters
MANY = 100  # nodes; more do so more rarely, as a server answers some 600 messages a second
RETRY = 0.1  # seconds between two requests for frames while there are none
LEAST = 8  # steps of every session that a lease is meant to last for

_SERVERS = ("version", "applied", "granted", "lives", "counts", "moments")  # state, as attributes
_REPLICAS = ("_usual", "_number", "_last", "_next", "version", "applied", "granted")

Moments = dict[str, NDArray[np.float64]]
Message = TypeVar("Message")


class Change(NamedTuple):
    """What a node sends.

    Attributes:
        node: Whose it is.
        life: Of the node: how often it had been started before.
        number: Of the change; it grows from life to life.
        version: Of the server's theta that the node has heard of last; None if it only tells its counters and asks for
            frames, and theta is not exchanged.
        delta: [P] by how much its theta has changed since; None if not.
        counts: [C, K] of its sessions: of updates those that the server's theta has with this change.
        moments: By name: what its sessions have seen, [K, 1 + 2 D].
        want: Frames that it asks for.
    """

    node: int
    life: int
    number: int
    version: int | None
    delta: NDArray | None
    counts: NDArray
    moments: Moments
    want: int


class Reply(NamedTuple):
    """What a node is told.

    Attributes:
        theta: [P] of the server; None if the node knows it, or has not asked for it.
        version: How many changes there have been.
        applied: [N] number of every node's last one.
        counts: [C] of all others' sessions.
        moments: What all others have seen, by name: [1 + 2 D].
        granted: Frames that the node may have stepped at all.
    """

    theta: NDArray | None
    version: int
    applied: tuple[int, ...]
    counts: NDArray
    moments: Moments
    granted: int


class Welcome(NamedTuple):
    """What a node begins with.

    Attributes:
        node: Its number.
        life: How often it had been started before.
        reply: What the server knows.
        counts: [C, K] of its sessions, which may have run before.
        moments: What they have seen, by name: [K, 1 + 2 D].
    """

    node: int
    life: int
    reply: Reply
    counts: NDArray
    moments: Moments


class View(NamedTuple):
    """What a server knows, and all that another one needs to take its place.

    Attributes:
        theta: [P]; None if whoever asks knows this version.
        velocity: [P] of the outer optimizer; None without momentum.
        version: How many changes there have been.
        applied: [N] number of every node's last one.
        counts: [C, W] of all sessions.
        moments: What they have seen, by name: [W, 1 + 2 D].
        granted: [N] frames that every node may have stepped at all.
        lives: [N] how often every node had been started before.
    """

    theta: Any
    velocity: NDArray | None
    version: int
    applied: tuple[int, ...]
    counts: NDArray
    moments: Moments
    granted: tuple[int, ...]
    lives: tuple[int, ...]

    @classmethod
    def of(cls, store: Store, nodes: int) -> "View":
        """Return what a server begins with whose nodes have not begun."""
        counts = torch.stack([store.frames, store.updates, store.dropped]).numpy()
        moments = {name: moments.slots.numpy().copy() for name, moments in store.moments.items()}
        velocity = None if store.velocity is None else store.velocity.numpy().copy()
        granted = tuple(map(int, counts[0].reshape(nodes, -1).sum(1)))
        return cls(store.theta.numpy().copy(), velocity, 0, (0,) * nodes, counts, moments, granted, (0,) * nodes)

    def copy_to(self, store: Store) -> None:
        """Let a store of all sessions be as the server is; theta stays where the view has none."""
        if self.theta is not None:
            store.theta.copy_(torch.from_numpy(np.array(self.theta)))
        if self.velocity is not None:
            store.velocity = torch.from_numpy(np.array(self.velocity))
        for slots, counts in zip((store.frames, store.updates, store.dropped), self.counts, strict=True):
            slots.copy_(torch.from_numpy(np.array(counts)))
        for name, slots in self.moments.items():
            store.moments[name].slots.copy_(torch.from_numpy(np.array(slots)))


class GoneError(RuntimeError):
    """A node was given up, and another one has its place."""


class Server:
    """Keeps theta, the outer optimizer, the counters and the budget of frames.

    Args:
        outer: Applies changes.
        max_frame: Budget of all nodes.
        step: Frames of one step of a session, in which the budget is given out.
        view: What it begins with.
    """

    def __init__(self, outer: Outer, max_frame: int, step: int, view: View) -> None:
        self.outer = outer
        self.step = step
        self.theta = np.array(view.theta)
        self.velocity = None
        if outer.momentum:
            self.velocity = np.zeros_like(self.theta) if view.velocity is None else np.array(view.velocity)
        self.version = view.version
        self.applied, self.granted, self.lives = list(view.applied), list(view.granted), list(view.lives)
        self.counts = np.array(view.counts)
        self.moments = {name: np.array(slots) for name, slots in view.moments.items()}
        self.sessions = self.counts.shape[1] // len(self.lives)  # K
        stepped = int(self.counts[0].sum())
        self.total = stepped + -(-max(0, max_frame - stepped) // step) * step  # rounded up to whole steps

    def join(self, node: int, life: int) -> Welcome:
        """Let a node begin, and whoever had its place before end; what that one had not used is given back.

        Raises:
            GoneError: Another one has the place already.
        """
        self._check(node, life)
        self.lives[node], self.applied[node] = life, life << 32
        rows = self._rows(node)
        self.granted[node] = int(self.counts[0, rows].sum())
        self._grant(node, 2 * LEAST * self.sessions * self.step)
        own = {name: slots[rows].copy() for name, slots in self.moments.items()}
        return Welcome(node, life, self._reply(node, -1), self.counts[:, rows].copy(), own)

    def leave(self, node: int, life: int) -> None:
        """Give back what a node that was lost had not used; only this life of it, or a later one, has its place now.

        Nothing happens if one of them has it already: it may have joined before this was heard.
        """
        if life > self.lives[node]:
            self.lives[node], self.applied[node] = life, life << 32
            self.granted[node] = int(self.counts[0, self._rows(node)].sum())

    def exchange(self, change: Change) -> Reply:
        """Take a node's change into account, once however often it is sent; return what it is to know.

        Raises:
            GoneError: Another one has the node's place.
        """
        self._check(change.node, change.life)
        if change.number > self.applied[change.node]:
            rows = self._rows(change.node)
            self.applied[change.node] = change.number
            self.counts[:, rows] = change.counts
            for name, slots in change.moments.items():
                self.moments[name][rows] = slots
            if change.delta is not None:
                self.outer.step(self.theta, change.delta, self.velocity)
                self.version += 1
            self._grant(change.node, change.want)
        return self._reply(change.node, change.version)

    def look(self, version: int) -> View:
        """Return everything, but theta and velocity if this is the version."""
        known = version == self.version
        return View(
            None if known else self.theta, None if known else self.velocity, self.version, tuple(self.applied),
            self.counts, self.moments, tuple(self.granted), tuple(self.lives),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return all but theta and velocity: tensors and plain Python only."""
        return {name: _with_tensors(getattr(self, name)) for name in _SERVERS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        for name in _SERVERS:
            setattr(self, name, _with_arrays(state[name]))

    def _check(self, node: int, life: int) -> None:
        if life < self.lives[node]:
            raise GoneError(f"node {node} was given up and has been started again")

    def _rows(self, node: int) -> slice:
        return slice(node * self.sessions, (node + 1) * self.sessions)

    def _grant(self, node: int, want: int) -> None:
        """Give out frames: as many as are asked for, but no more than half of a node's share of what is left."""
        left = self.total - sum(self.granted)
        share = max(self.sessions, left // (2 * len(self.granted)) // self.step) * self.step
        steps = -(-max(0, want) // self.step)
        self.granted[node] += min(steps * self.step, share, left)

    def _reply(self, node: int, version: int | None) -> Reply:
        rows = self._rows(node)
        others = {}
        for name, slots in self.moments.items():
            others[name] = merge(np.delete(slots, rows, axis=0))
        return Reply(
            None if version in (None, self.version) else self.theta.copy(), self.version, tuple(self.applied),
            np.delete(self.counts, rows, axis=1).sum(1), others, self.granted[node],
        )  # fmt: skip


def newest(view: View, reports: Mapping[int, View]) -> View:
    """Return with what a server is to take the place of one that has died.

    Args:
        view: What that one told of itself last, with its theta then.
        reports: What nodes know, by number: theta of their last exchange, and themselves.
    """
    best = max([view, *reports.values()], key=lambda known: known.version)
    counts, moments = view.counts.copy(), {name: slots.copy() for name, slots in view.moments.items()}
    granted, lives = list(view.granted), list(view.lives)
    sessions = counts.shape[1] // len(lives)
    for node, report in reports.items():
        rows = slice(node * sessions, (node + 1) * sessions)
        counts[:, rows] = np.maximum(counts[:, rows], report.counts)  # neither knows all: a reply may have been lost
        for name, slots in report.moments.items():
            moments[name][rows] = slots
        granted[node], lives[node] = report.granted[0], report.lives[0]
    return View(best.theta, view.velocity, best.version, best.applied, counts, moments, tuple(granted), tuple(lives))


class Exchanges(NamedTuple):
    """What a node's exchanges have cost.

    Attributes:
        node: Its number.
        times: How many there were, of changes.
        seconds: That they took, together.
        nbytes: That were sent both ways, also of counters only.
        staleness: How often a change was how many updates of other nodes old.
    """

    node: int
    times: int = 0
    seconds: float = 0.0
    nbytes: int = 0
    staleness: Mapping[int, int] = {}

    def plus(self, other: "Exchanges") -> "Exchanges":
        """Return what these and others of the node have cost together."""
        staleness = Counter(self.staleness) + Counter(other.staleness)
        seconds, nbytes = self.seconds + other.seconds, self.nbytes + other.nbytes
        return Exchanges(self.node, self.times + other.times, seconds, nbytes, staleness)


class Replica:
    """A node's store as a copy of the server's theta; its last writer stands for all other nodes.

    Args:
        store: Of K + 1 writers.
        welcome: What the server has told the node.
        every: Updates of the node between two exchanges.
        step: Frames of one step of a session.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, store: Store, welcome: Welcome, every: int, step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store = store
        self.node, self.life = welcome.node, welcome.life
        self.every = every
        self._idle = IDLE * max(1.0, len(welcome.reply.applied) / MANY)
        self._clock = clock
        self._least = self._usual = LEAST * welcome.counts.shape[1] * step  # frames between two exchanges
        self._number = welcome.life << 32
        self._sent: tuple[Change, NDArray] | None = None  # without a reply yet, and theta as the server then has it
        self._last = self._next = clock()  # exchange, and request for frames
        self._found, self._staleness = Exchanges(self.node), Counter[int]()
        self._counts = welcome.counts  # at the last exchange
        self.base = np.array(welcome.reply.theta)
        store.theta.copy_(torch.from_numpy(self.base))
        store.take_over(torch.from_numpy(welcome.counts))
        for name, slots in welcome.moments.items():
            store.moments[name].slots[:-1] = torch.from_numpy(slots)
        self._hear(welcome.reply)

    def is_due(self) -> bool:
        """Return whether it is time to tell the server something: changes, or because frames or news run out."""
        now = self._clock()
        is_low = self.store.unclaimed() < self._usual // 2 and now >= self._next
        return self.is_waiting() or is_low or now - self._last >= self._idle or self._has_learned(self.every)

    def is_waiting(self) -> bool:
        """Return whether something has been sent, and there is no reply to it yet."""
        return self._sent is not None

    def change(self, whole: bool = False) -> Change:
        """Return what is to be sent: the same again as long as there is no reply to it.

        Args:
            whole: Send changes although it is not time for them.
        """
        if self._sent is None:
            counts, theta, version, delta = self._own_counts(), self.base, None, None
            if whole or self._has_learned(self.every):
                version = self.version
                if self._has_learned():
                    theta = self.store.theta.numpy().copy()
                    delta = theta - self.base
            else:
                counts[1] = self._counts[1]
            # one message right after another says little
            self._usual = max(int(counts[0].sum() - self._counts[0].sum()), self._usual // 2, self._least)
            self._number += 1
            moments = {name: moments.slots[:-1].numpy().copy() for name, moments in self.store.moments.items()}
            want = 2 * self._usual - self.store.unclaimed()
            self._sent = Change(self.node, self.life, self._number, version, delta, counts, moments, want), theta
        return self._sent[0]

    def take(self, reply: Reply, seconds: float = 0.0) -> None:
        """Add to theta by how much the server's differs from what was sent.

        Args:
            reply: To the last change.
            seconds: How long the exchange took.
        """
        assert self._sent is not None
        change, sent = self._sent
        if reply.theta is not None:
            theta = self.store.theta.numpy()
            theta += reply.theta - sent  # what sessions have done meanwhile stays
            self.base = np.array(reply.theta)
        if change.delta is not None:
            self._staleness[int(reply.counts[1]) - int(self.store.updates[-1])] += 1
        self._counts, self._sent, self._last = change.counts, None, self._clock()
        self._next = self._last + RETRY * (reply.granted == self.granted)
        has_theta = change.version is not None
        self._hear(reply, has_theta)
        _, times, before, nbytes, _ = self._found
        nbytes += size(change) + size(reply)
        self._found = Exchanges(self.node, times + has_theta, before + seconds * has_theta, nbytes)

    def report(self) -> View:
        """Return what this node knows, for a new server."""
        moments = {name: moments.slots[:-1].numpy() for name, moments in self.store.moments.items()}
        granted, lives, counts = (self.granted,), (self.life,), self._own_counts()
        counts[1] = self._counts[1]
        return View(self.base, None, self.version, self.applied, counts, moments, granted, lives)

    def found(self) -> Exchanges:
        """Return what exchanges have cost since the last call."""
        found = self._found._replace(staleness=dict(self._staleness))
        self._found, self._staleness = Exchanges(self.node), Counter()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what would be lost if the node were left now, besides its store: tensors and plain Python only."""
        sent = None if self._sent is None else [packed(self._sent[0]), torch.from_numpy(self._sent[1].copy())]
        return {
            "base": torch.from_numpy(self.base.copy()),
            "sent": sent,
            "counts": torch.from_numpy(self._counts.copy()),
            "found": list(self._found[:4]),
            "staleness": sorted(self._staleness.items()),
            **{name: getattr(self, name) for name in _REPLICAS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state; the store has taken over its own."""
        self.base, self._counts = state["base"].numpy(), state["counts"].numpy()
        self._sent = None
        if state["sent"] is not None:
            self._sent = unpacked(Change, state["sent"][0]), state["sent"][1].numpy()
        self._found, self._staleness = Exchanges(*state["found"]), Counter(dict(state["staleness"]))
        for name in _REPLICAS:
            setattr(self, name, state[name])
        self.store.lease(self.granted)

    def _has_learned(self, updates: int = 1) -> bool:
        """Return whether there have been so many updates since the last change."""
        return int(self.store.updates[:-1].sum() - self._counts[1].sum()) >= updates

    def _own_counts(self) -> NDArray:
        store = self.store
        return torch.stack([store.frames, store.updates, store.dropped])[:, :-1].numpy().copy()

    def _hear(self, reply: Reply, has_theta: bool = True) -> None:
        """Take note of the other nodes' counters, after their changes: updates that are counted are in theta."""
        store = self.store
        frames, updates, dropped = map(int, reply.counts)
        store.frames[-1], store.dropped[-1] = frames, dropped
        if has_theta:
            store.updates[-1] = updates
            self.version, self.applied = reply.version, reply.applied
        for name, row in reply.moments.items():
            store.moments[name].slots[-1] = torch.from_numpy(np.array(row))
        self.granted = reply.granted
        store.lease(reply.granted)


def packed(message: NamedTuple) -> list[Any]:
    """Return a message as tensors and plain Python."""
    return [_with_tensors(part) for part in message]


def unpacked(kind: Callable[..., Message], parts: Sequence[Any]) -> Message:
    """Return the message that was ``packed``."""
    return kind(*(_with_arrays(part) for part in parts))


def size(message: Change | Reply) -> int:
    """Return the bytes of a message's arrays, which is nearly all of it."""
    arrays = [part for part in message if isinstance(part, np.ndarray)] + list(message.moments.values())
    return sum(array.nbytes for array in arrays)


def _with_tensors(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _with_tensors(value) for name, value in part.items()}
    if isinstance(part, np.ndarray):
        return torch.from_numpy(part.copy())
    return part


def _with_arrays(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _with_arrays(value) for name, value in part.items()}
    if isinstance(part, Tensor):
        return part.numpy()
    return part
