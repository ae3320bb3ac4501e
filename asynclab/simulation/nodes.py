"""Nodes that exchange their changes with a server in virtual time.  N: nodes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from asynclab.cluster.exchange import RETRY, Change, Exchanges, Replica, Reply, Server, View, packed, size, unpacked
from asynclab.distributed import Simulated, Store
from asynclab.simulation.clock import Clock

COUNTERS = 0.0015  # seconds of a server for a message without theta, at most: what Ray itself takes for one
TELL = 1.0  # virtual seconds between two reports of what exchanges have cost


class Link:
    """What takes one message, or one piece of work, after the other.

    Args:
        free: When it has no more to do.
    """

    def __init__(self, free: float) -> None:
        self.free = free

    def until(self, now: float, seconds: float) -> float:
        """Return when that is done which comes now and takes so many seconds."""
        self.free = max(now, self.free) + seconds
        return self.free


@dataclass
class Node:
    """A group of sessions with a network of its own.

    Attributes:
        replica: That network, and what is known of the server's.
        due: When its exchange goes on, or it looks whether one is due; None for neither.
        change: On its way to the server; None for none.
        reply: On its way back; None for none.
        began: When the change was sent.
    """

    replica: Replica
    due: float | None = None
    change: Change | None = None
    reply: Reply | None = None
    began: float = 0.0


class Nodes:
    """A server, and nodes in as many machines.

    A change goes through the server's link, in which those of all nodes stand in a queue, is taken in, and answered
    through the other direction of that link.  Sessions go on meanwhile.

    Args:
        mode: How many there are, and how far away.
        store: Of all sessions: theta as the server has it, and everybody's counters.
        step: Frames of one step of a session.
        clock: Virtual time.
    """

    def __init__(self, mode: Simulated, store: Store, step: int, clock: Clock) -> None:
        assert mode.nodes is not None
        self.mode = mode
        self.store = store
        self.clock = clock
        self.server = Server(mode.outer, store.max_frame, step, View.of(store, mode.nodes))
        self.inbound, self.work, self.outbound = (Link(clock.now) for _ in range(3))
        self.nodes = [
            Node(
                Replica(
                    store.replica(mode.sessions + 1), self.server.join(node, 0), mode.exchange_every, step, clock
                )
            )
            for node in range(mode.nodes)
        ]  # fmt: skip
        self._told = [clock.now] * mode.nodes

    def store_of(self, rank: int) -> Store:
        """Return what a session trains."""
        return self.nodes[rank // self.mode.sessions].replica.store

    def has_frames(self, number: int) -> bool:
        """Return whether a node's sessions may step."""
        return self.nodes[number].replica.store.unclaimed() > 0

    def look(self, number: int) -> float | None:
        """Begin a node's exchange if one is due; return when its next event is, None for as it was."""
        node, now = self.nodes[number], self.clock.now
        if node.change is not None or not node.replica.is_due():
            return None
        node.change, node.began = node.replica.change(), now
        arrival = self.inbound.until(now + self.mode.timing.latency, size(node.change) / self.mode.timing.bandwidth)
        seconds = self.mode.timing.exchange
        node.due = self.work.until(arrival, seconds if node.change.version is not None else min(seconds, COUNTERS))
        return node.due

    def rest(self, number: int) -> float | None:
        """Take note that all sessions of a node rest; return when it asks for more frames, None for as it was."""
        node = self.nodes[number]
        if node.change is not None or self.store.is_complete():
            return None
        node.due = self.clock.now + RETRY
        return node.due

    def go_on(self, number: int) -> bool:
        """Let happen what is due of a node; return whether it has heard of the server."""
        node, now = self.nodes[number], self.clock.now
        node.due = None
        if node.change is None:
            return False
        if node.reply is None:
            node.reply = self._serve(node.change)
            seconds = size(node.reply) / self.mode.timing.bandwidth
            node.due = self.outbound.until(now, seconds) + self.mode.timing.latency
            return False
        node.replica.take(node.reply, now - node.began)
        node.change = node.reply = None
        return True

    def found(self, number: int) -> Iterator[Exchanges]:
        """Yield what a node's exchanges have cost, if that has not been told for a while."""
        if self.clock.now - self._told[number] >= TELL:
            yield self.tell(number)

    def tell(self, number: int) -> Exchanges:
        """Return what a node's exchanges have cost since this was told last."""
        self._told[number] = self.clock.now
        return self.nodes[number].replica.found()

    def settle(self) -> None:
        """Let the server know of all that nodes have done, in no time."""
        for node in self.nodes:
            if node.change is not None:
                node.replica.take(node.reply or self._serve(node.change))
                node.change = node.reply = node.due = None
            node.replica.take(self._serve(node.replica.change(whole=True)))

    def count(self, number: int) -> None:
        """Let the store of all sessions know what a node's have done, before the server does."""
        rows, own = self.mode.ranks(number), self.nodes[number].replica.store
        span = slice(rows.start, rows.stop)
        for name in ("frames", "updates", "dropped"):
            getattr(self.store, name)[span] = getattr(own, name)[:-1]

    def show(self) -> None:
        """Let the store of all sessions have the optimizer and the target of one node, as the server has neither.

        They are what another number of nodes begins with.
        """
        shown, own = self.store, self.nodes[0].replica.store
        for group, group_there in zip(shown.optimizer.param_groups, own.optimizer.param_groups, strict=True):
            state = own.optimizer.state[group_there["params"][0]]
            for role, value in shown.optimizer.state[group["params"][0]].items():
                value.copy_(state[role])
        if shown.target is not None and own.target is not None:
            shown.target.copy_(own.target)

    def _serve(self, change: Change) -> Reply:
        reply = self.server.exchange(change)
        view = self.server.look(-1)
        if change.delta is not None:
            self.store.theta.copy_(torch.from_numpy(view.theta))
            if view.velocity is not None:
                self.store.velocity = torch.from_numpy(view.velocity)
        for name, slots in view.moments.items():
            self.store.moments[name].slots.copy_(torch.from_numpy(slots))
        return reply

    def state_dict(self) -> dict[str, Any]:
        """Return all that the store does not hold: tensors and plain Python only."""
        return {
            "server": self.server.state_dict(),
            "links": [link.free for link in (self.inbound, self.work, self.outbound)],
            "told": self._told,
            "nodes": [
                {
                    "store": node.replica.store.state_dict(),
                    "replica": node.replica.state_dict(),
                    "due": node.due,
                    "is_sent": node.change is not None,
                    "reply": None if node.reply is None else packed(node.reply),
                    "began": node.began,
                }
                for node in self.nodes
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state, of as many nodes."""
        self.server.load_state_dict(state["server"])
        for link, free in zip((self.inbound, self.work, self.outbound), state["links"], strict=True):
            link.free = free
        self._told = state["told"]
        for node, saved in zip(self.nodes, state["nodes"], strict=True):
            node.replica.store.load_state_dict(saved["store"])
            node.replica.load_state_dict(saved["replica"])
            node.change = node.replica.change() if saved["is_sent"] else None
            node.reply = None if saved["reply"] is None else unpacked(Reply, saved["reply"])
            node.due, node.began = saved["due"], saved["began"]
