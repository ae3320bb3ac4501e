"""A server and its replicas: changes add up exactly, once each, and no frame is given out twice."""

import queue
import sys
import threading
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asynclab.cluster import machines
from asynclab.cluster.exchange import GoneError, Replica, Server, View, newest
from asynclab.cluster.node import Node
from asynclab.distributed import Cluster, Network, Store
from asynclab.distributed.exchange import Outer
from asynclab.envs.normalize import Moments
from asynclab.optim import GlobalAdam
from asynclab.schedules import Constant
from asynclab.simulation.clock import Clock


def make_store(writers=2, max_frame=1_000):
    network = Network(torch.zeros(3), {"net": slice(0, 3)})
    return Store(network, GlobalAdam, max_frame, Constant(), writers, moments={"obs": Moments(1, writers)})


def make_view(nodes=2, sessions=1):
    counts = np.zeros((3, nodes * sessions), dtype=np.int64)
    moments = {"obs": np.zeros((nodes * sessions, 3))}
    return View(np.zeros(3, np.float32), None, 0, (0,) * nodes, counts, moments, (0,) * nodes, (0,) * nodes)


def make(outer=Outer(), nodes=2, max_frame=1_000, sessions=1):
    """Return a server and a replica for each node."""
    server = Server(outer, max_frame, 2, make_view(nodes, sessions))
    replicas = [Replica(make_store(sessions + 1, max_frame), server.join(node, 0), 1, 2) for node in range(nodes)]
    return server, replicas


def learn(replica, *change):
    """Let the node's session have moved theta by an update."""
    replica.store.theta += torch.tensor(change)
    replica.store.updates[0] += 1


def exchange(server, replica, whole=True):
    replica.take(server.exchange(replica.change(whole)))


def test_the_changes_of_two_nodes_add_up_to_known_numbers():
    server, (a, b) = make()
    learn(a, 1.0, 2.0, 0.5)
    learn(b, 0.25, -4.0, 0.0)
    exchange(server, a)
    exchange(server, b)
    assert server.theta.tolist() == b.store.theta.tolist() == [1.25, -2.0, 0.5]
    assert a.store.theta.tolist() == [1.0, 2.0, 0.5]  # of b it has not heard yet
    exchange(server, a)
    assert a.store.theta.tolist() == [1.25, -2.0, 0.5]
    assert b.found().staleness == {1: 1}  # a's update, of which it had not known
    assert (a.store.total_updates(), b.store.total_updates()) == (2, 2)


def test_with_one_node_server_and_node_are_equal_after_every_exchange():
    server, (node,) = make(nodes=1)
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        learn(node, *torch.randn(3, generator=rng).tolist())
        exchange(server, node)
        np.testing.assert_allclose(node.store.theta.numpy(), server.theta, rtol=0, atol=5e-7)


def test_momentum_is_nesterovs():
    server, (node,) = make(Outer(lr=0.5, momentum=0.5), nodes=1)
    learn(node, 1.0, 0.0, 0.0)
    exchange(server, node)  # b = 1, theta = 0.5 (1 + 0.5 x 1)
    assert node.store.theta.tolist() == [0.75, 0.0, 0.0]
    learn(node, 1.0, 0.0, 0.0)
    exchange(server, node)  # b = 0.5 + 1, theta = 0.75 + 0.5 (1 + 0.5 x 1.5)
    assert server.theta.tolist() == node.store.theta.tolist() == [1.625, 0.0, 0.0]


def test_what_sessions_learn_during_an_exchange_stays():
    server, (a, b) = make()
    learn(a, 1.0, 0.0, 0.0)
    exchange(server, a)
    learn(b, 0.0, 1.0, 0.0)
    reply = server.exchange(b.change())
    learn(b, 0.0, 0.0, 1.0)
    b.take(reply)
    assert b.store.theta.tolist() == [1.0, 1.0, 1.0]
    exchange(server, b)
    assert server.theta.tolist() == [1.0, 1.0, 1.0]


def test_a_change_that_is_not_counted_yet_is_not_lost():
    server, (a, b) = make()
    learn(a, 1.0, 0.0, 0.0)
    exchange(server, a)
    b.store.theta += torch.tensor([0.0, 1.0, 0.0])  # a session is in the middle of a push
    exchange(server, b)
    assert b.store.theta.tolist() == [1.0, 1.0, 0.0]
    b.store.updates[0] += 1
    exchange(server, b)
    assert server.theta.tolist() == [1.0, 1.0, 0.0]


def test_a_change_is_applied_once_however_often_it_is_sent():
    server, (a, _) = make()
    learn(a, 1.0, 0.0, 0.0)
    server.exchange(a.change())  # the reply is lost
    learn(a, 1.0, 0.0, 0.0)
    exchange(server, a)
    assert server.theta.tolist() == [1.0, 0.0, 0.0]
    exchange(server, a)
    assert server.theta.tolist() == a.store.theta.tolist() == [2.0, 0.0, 0.0]


def test_a_server_that_died_is_replaced_by_the_newest_and_no_change_is_lost_or_doubled():
    server, (a, b) = make()
    mirror = server.look(-1)._replace(theta=server.theta.copy())
    learn(b, 0.0, 1.0, 0.0)
    server.exchange(b.change())  # it is applied, and the reply is lost
    learn(a, 1.0, 0.0, 0.0)
    exchange(server, a)
    server = Server(Outer(), 1_000, 2, newest(mirror, {0: a.report(), 1: b.report()}))
    assert server.theta.tolist() == [1.0, 1.0, 0.0]
    exchange(server, b)  # the same change again
    assert server.theta.tolist() == b.store.theta.tolist() == [1.0, 1.0, 0.0]
    assert server.counts[1].tolist() == [1, 1]


def test_a_node_that_was_given_up_is_refused_and_its_lease_is_given_back():
    server, (a, _) = make(max_frame=100)
    assert a.store.claim(0, 2)
    a.store.frames[0] += 2
    exchange(server, a)
    granted = server.granted[0]
    welcome = server.join(0, 1)
    assert welcome.counts[0].tolist() == [2]
    assert server.granted[0] <= granted
    with pytest.raises(GoneError, match="node 0 was given up"):
        server.exchange(a.change())
    again = Replica(make_store(max_frame=100), welcome, 1, 2)
    assert (int(again.store.frames[0]), again.store.unclaimed()) == (2, server.granted[0] - 2)


def test_a_node_keeps_what_it_was_granted_if_it_joins_before_the_server_hears_that_it_was_lost():
    server, _ = make(max_frame=100)
    server.join(0, 1)
    granted = server.granted[0]
    server.leave(0, 1)
    assert server.granted[0] == granted > 0


def test_what_a_node_had_leased_that_never_comes_back_is_stepped_by_the_others():
    server, (a, b) = make(max_frame=100)
    a.store.claim(0, 2)
    a.store.frames[0] += 2
    exchange(server, a)
    assert server.granted[0] > 2
    server.leave(0, 1)
    assert server.granted[0] == 2
    with pytest.raises(GoneError, match="node 0 was given up"):
        server.exchange(a.change())
    while b.store.claim(0, 2):
        b.store.frames[0] += 2
        exchange(server, b)
    assert server.counts[0].tolist() == [2, 98]


@pytest.mark.parametrize(("nodes", "max_frame", "total"), [(1, 1_000, 1_000), (3, 1_001, 1_002), (7, 50, 50)])
def test_the_budget_is_met_exactly(nodes, max_frame, total):
    server, replicas = make(nodes=nodes, max_frame=max_frame)
    steps = -1
    while steps:
        steps = 0
        for replica in replicas:
            while replica.store.claim(0, 2):
                replica.store.frames[0] += 2
                steps += 1
            exchange(server, replica)
    assert server.counts[0].sum() == total
    assert all(replica.store.total_frames() == total for replica in replicas[-1:])


def test_between_two_exchanges_a_node_tells_its_counters_and_theta_stays_where_it_is():
    clock = Clock()
    server = Server(Outer(), 1_000, 2, make_view())
    a, b = (Replica(make_store(), server.join(node, 0), 3, 2, clock) for node in range(2))
    learn(b, 0.0, 0.0, 1.0)
    b.take(server.exchange(b.change(whole=True)))
    learn(a, 1.0, 0.0, 0.0)
    a.store.claim(0, 2)
    a.store.frames[0] += 2
    assert not a.is_due()
    clock.now = 1.0
    assert a.is_due()  # for the counters
    exchange(server, a, whole=False)
    assert server.counts[:, 0].tolist() == [2, 0, 0]  # of updates only what theta has
    assert server.theta.tolist() == [0.0, 0.0, 1.0]
    assert a.store.theta.tolist() == [1.0, 0.0, 0.0]
    assert a.store.total_updates() == 1  # of b's its theta does not have
    found = a.found()
    assert (found.times, found.seconds) == (0, 0.0)
    assert 0 < found.nbytes < 200
    learn(a, 1.0, 0.0, 0.0)
    assert not a.is_due()
    learn(a, 1.0, 0.0, 0.0)
    assert a.is_due()
    exchange(server, a, whole=False)
    assert server.theta.tolist() == a.store.theta.tolist() == [3.0, 0.0, 1.0]
    assert server.counts[1].tolist() == [3, 1]
    assert a.found().staleness == {1: 1}


def test_a_server_that_died_between_two_exchanges_is_replaced_and_no_change_is_lost():
    server, (a, b) = make()
    mirror = server.look(-1)._replace(theta=server.theta.copy())
    learn(a, 1.0, 0.0, 0.0)
    exchange(server, a)
    b.every = 2
    learn(b, 0.0, 1.0, 0.0)
    exchange(server, b, whole=False)  # its counters: it hears of a change that it does not have
    server = Server(Outer(), 1_000, 2, newest(mirror, {0: a.report(), 1: b.report()}))
    learn(b, 0.0, 1.0, 0.0)
    exchange(server, b, whole=False)
    assert server.theta.tolist() == b.store.theta.tolist() == [1.0, 2.0, 0.0]


class Deaf(Node):
    """A node, but for its sessions, whose server does not answer the first times."""

    def __init__(self, replica, server, times):
        self.replica, self.times = replica, times
        self._server, self._exchanging = server, threading.Lock()
        self._saved, self._out, self._wants_state = {}, queue.SimpleQueue(), False

    def _ask(self, method, change):
        self.times -= 1
        return None if self.times >= 0 else self._server.exchange(change)


def test_what_sessions_hand_in_the_server_knows_although_it_has_not_answered_what_was_sent_before():
    server, (a, _) = make()
    node = Deaf(a, server, times=2)
    learn(a, 1.0, 0.0, 0.0)
    assert not node._exchange()
    learn(a, 1.0, 0.0, 0.0)
    node._deliver()
    assert server.theta.tolist() == [2.0, 0.0, 0.0]
    assert server.counts[1].tolist() == [2, 0]


@pytest.mark.parametrize(("nodes", "seconds"), [(2, 1.0), (100, 1.0), (1_000, 10.0)])
def test_many_nodes_tell_their_counters_more_rarely(nodes, seconds):
    clock = Clock()
    replica = Replica(make_store(), Server(Outer(), 10**6, 2, make_view(nodes)).join(0, 0), 1, 2, clock)
    clock.now = 0.99 * seconds
    assert not replica.is_due()
    clock.now = seconds
    assert replica.is_due()


def test_moments_of_all_nodes_add_up():
    server, (a, b) = make()
    a.store.moments["obs"].add(0, np.array([[1.0], [2.0]]))
    b.store.moments["obs"].add(0, np.array([[6.0]]))
    for replica in (a, b, a):
        exchange(server, replica)
    for replica in (a, b):
        mean, var = replica.store.moments["obs"].mean_var()
        assert (mean[0], var[0]) == (3.0, pytest.approx(14 / 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lock": "update"}, "distributed.lock=update needs memory that all sessions share"),
        ({"diagnostics": True}, "distributed.diagnostics=true needs memory"),
        ({"record": True}, "distributed.record=true needs memory"),
        ({"exchange_every": 0}, "distributed.exchange_every=0 must be a whole number of 1 or more"),
        ({"max_session": 1, "nodes": 2}, "cannot be spread evenly over 2 nodes; set it to 2, or"),
        ({"max_session": 1_000}, "needs 1 x 1000 cores (1000 sessions on each node), and this machine has"),
        ({"placement": "elsewhere"}, "distributed.placement=elsewhere is unknown"),
        ({"elastic": True, "nodes": 2}, "distributed.elastic=true waits for machines, and nothing says for how many"),
        ({"elastic": True, "nodes": 2, "max_session": 2}, "none can join a Ray that is started here"),
        ({"address": "local"}, "distributed.address=local must be auto, <host>:<port> with a port from 1 to 65535"),
        ({"address": "10.0.0.1"}, "distributed.address=10.0.0.1 must be auto, <host>:<port>"),
        ({"address": "10.0.0.1:99999"}, "distributed.address=10.0.0.1:99999 must be auto, <host>:<port>"),
        ({"address": "ray://10.0.0.1:10001"}, "distributed.address=ray://10.0.0.1:10001 must be auto, <host>:<port>"),
        ({"address": 5}, "distributed.address=5 must be auto, <host>:<port>"),
        ({"outer": 1.0}, "distributed.outer=1.0 must have lr and momentum"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        Cluster(**settings)


def test_without_ray_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it is an error
    monkeypatch.setattr(machines, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs Ray, which is not installed: pip install 'asynclab\[cluster\]'"):
        machines.check(Cluster(1))
    machines.leave()  # as every command does at its end


def test_a_ray_that_is_somebody_elses_is_left_alone(monkeypatch):
    ended = []
    ray = SimpleNamespace(__spec__=object(), is_initialized=lambda: True, shutdown=lambda: ended.append(True))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(machines, "_connected", False)
    for address in (None, "auto"):
        with pytest.raises(ValueError, match=r"this process is connected already; call ray\.shutdown\(\) before"):
            machines.check(Cluster(1, address=address))
    machines.leave()
    assert not ended
    monkeypatch.setattr(machines, "_connected", True)
    machines.leave()
    assert ended


def test_sessions_are_spread_over_machines():
    mode = Cluster(4, nodes=2, address="auto")
    mode.settle([2, 2])
    assert (mode.sessions, [mode.label(rank) for rank in range(4)]) == (2, ["0:0", "0:1", "1:0", "1:1"])
    with pytest.raises(ValueError, match="needs 2 x 2 cores"):
        mode.settle([3])
    elastic = Cluster(4, nodes=2, address="auto", elastic=True)
    elastic.settle([2])
    assert elastic.max_session == 4
    for cores, nodes, sessions in (([4, 8], 2, 8), ([2, 16], 2, 16), ([0, 8, 8], 2, 16), ([3], 1, 3), ([0], 1, 1)):
        every = Cluster(address="auto")
        with suppress(ValueError) if sum(cores) == 0 else nullcontext():  # nothing fits
            every.settle(cores)
        assert (every.nodes, every.max_session) == (nodes, sessions)
