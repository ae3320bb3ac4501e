"""Nodes that exchange in virtual time: nothing is lost, what it costs is what links allow, and it can be repeated."""

import json
import re
from collections import Counter

import pytest
import torch
from runs import stop_after

from asynclab.cluster.exchange import Exchanges
from asynclab.distributed import Simulated
from asynclab.distributed.exchange import Outer
from asynclab.distributed.timing import Constant, Lognormal
from asynclab.run.trial import TrialError
from asynclab.schedules import Linear
from asynclab.simulation.nodes import Nodes
from asynclab.simulation.simulator import NODES, simulate
from asynclab.storage import checkpoint, snapshot
from asynclab.training.messages import Record
from asynclab.training.state import Start

pytestmark = pytest.mark.medium

NEAR = Constant(exchange=0.0)  # a server that costs nothing
FULL = Lognormal(latency=0.01, bandwidth=5e4)  # the server's link never rests
FAR = Lognormal(latency=0.01, bandwidth=1e6, exchange=0.001)


def run(trial):
    """Simulate a trial to the end of its budget; return what was told."""
    told = []
    for event in simulate(trial.session, trial.stores[0], trial.control, trial.clock):
        told.append(event)
        if trial.stores[0].is_complete():
            trial.control.finish(trial.mode.grace)
    return told


def exchanges(told):
    """Return what exchanges have cost, by node."""
    found = {}
    for event in told:
        if isinstance(event, Exchanges):
            found[event.node] = found.get(event.node, Exchanges(event.node)).plus(event)
    return found


def stopped(make, turns, folder):
    """Return a trial that ran to its end, one that was asked to end after so many turns, and what that one saved."""
    whole, first = make(), make()
    run(whole)
    stop_after(first, turns)
    with pytest.raises(TrialError, match="asked to end"):
        first.run()
    return whole, first, checkpoint.load(folder)


def hold_that_it_goes_on(make, found, whole):
    """Hold that a trial which goes on from a checkpoint ends as the one that was never stopped."""
    second = make(checkpoint=found)
    second.run()
    assert torch.equal(second.stores[0].theta, whole.stores[0].theta)
    assert second.stores[0].updates.tolist() == whole.stores[0].updates.tolist()
    assert second.clock() == whole.clock()


def test_one_node_whose_server_costs_nothing_learns_what_sessions_of_one_network_learn(make_trial):
    alone = make_trial("a3c", mode=Simulated(2), max_frame=2_000)
    run(alone)
    trial = make_trial("a3c", mode=Simulated(2, nodes=1, exchange_every=1, timing=NEAR), max_frame=2_000)
    told = run(trial)
    torch.testing.assert_close(trial.stores[0].theta, alone.stores[0].theta, atol=1e-4, rtol=0)
    assert trial.stores[0].updates.tolist() == alone.stores[0].updates.tolist()
    assert exchanges(told)[0].staleness == {0: 100}


def test_the_store_ends_with_an_optimizer_and_a_target_that_were_trained(make_trial):
    trial = make_trial("dqn", mode=Simulated(2, "shared", FAR, nodes=2), max_frame=600)
    (store,) = trial.stores
    begun = store.target.clone()
    trial.run()
    steps = {float(state["step"]) for state in store.optimizer.state.values()}
    assert steps == {float(store.updates[0])}
    assert store.updates[0] > 100
    assert not torch.equal(store.target, begun)
    assert (store.theta - store.target).abs().max() < 0.1
    assert json.loads((trial.folder / "summary.json").read_text())["step_error"] == [None]


@pytest.mark.parametrize(
    ("algo", "placement"),
    [("a3c", "synced"), pytest.param("sac", "shared", marks=pytest.mark.slow), ("ppo_normalized", "synced")],
)
def test_every_frame_and_every_update_of_all_nodes_is_known_in_the_end(make_trial, algo, placement):
    trial = make_trial(algo, mode=Simulated(4, placement, FAR, nodes=2), max_frame=1_200)
    told = run(trial)
    (store,) = trial.stores
    assert store.frames.sum() == 1_200
    last = {event.rank: event for event in told if isinstance(event, Record)}
    assert [last[rank].frames for rank in range(4)] == store.frames.tolist()
    assert [last[rank].updates for rank in range(4)] == store.updates.tolist()
    assert min(store.frames) > 0
    stale = sum((Counter(found.staleness) for found in exchanges(told).values()), Counter())
    assert max(stale) > 0
    if store.moments:
        assert store.moments["obs"].slots[:, 0].sum() >= 1_200


def test_what_two_nodes_learn_from_is_each_others_too(make_trial, monkeypatch):
    trial = make_trial("a3c", mode=Simulated(2, nodes=2, exchange_every=1, timing=FAR), max_frame=2_000)
    made = []
    settle = Nodes.settle
    monkeypatch.setattr(Nodes, "settle", lambda self: (settle(self), made.append(self)))
    run(trial)
    (nodes,) = made
    server, last = trial.stores[0].theta, nodes.nodes[-1].replica.store.theta
    torch.testing.assert_close(last, server, atol=1e-5, rtol=0)  # it was the last one to hear of the server
    assert nodes.nodes[0].replica.store.total_updates() >= 0.9 * trial.stores[0].total_updates()


def test_an_exchange_takes_what_latency_links_and_server_allow(make_trial):
    timing = Constant(latency=0.25, bandwidth=1e4, exchange=0.5)
    trial = make_trial("a3c", mode=Simulated(1, nodes=1, exchange_every=3, timing=timing), max_frame=2_000)
    found = exchanges(run(trial))[0]
    # the last one is of what was left, after the end, in no time
    seconds = (found.times - 1) * (2 * 0.25 + 0.5) + found.nbytes / 1e4
    assert found.seconds == pytest.approx(seconds, rel=0.05)
    assert found.nbytes > (found.times - 1) * 2 * 4 * trial.stores[0].theta.numel() * 0.9


def test_changes_are_exchanged_every_so_many_updates_however_long_these_take(make_trial):
    timing = Constant(step=0.1)  # ten steps and an update a second
    trial = make_trial("a3c", mode=Simulated(2, nodes=2, exchange_every=10, timing=timing), max_frame=2_000)
    found = exchanges(run(trial))
    assert trial.stores[0].updates.tolist() == [50, 50]
    assert [found[node].times for node in range(2)] == [6, 6]  # the last one is of what was left, which is nothing
    change = 2 * 4 * trial.stores[0].theta.numel()
    assert found[0].nbytes < 6.5 * change  # counters and leases are small


def test_changes_of_many_nodes_wait_for_the_servers_link(make_trial):
    mean = []
    for nodes in (1, 8):
        timing = Constant(bandwidth=2e5)
        trial = make_trial("a3c", mode=Simulated(nodes, nodes=nodes, exchange_every=1, timing=timing), max_frame=4_000)
        found = exchanges(run(trial)).values()
        mean.append(sum(one.seconds for one in found) / sum(one.times for one in found))
    assert mean[1] > 3 * mean[0]


def test_what_exchanges_cost_is_in_the_metrics_and_in_the_summary(make_trial, tmp_path):
    trial = make_trial("a3c", mode=Simulated(2, nodes=2, exchange_every=2, timing=FAR), max_frame=600)
    trial.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        line["metrics"] for line in lines if line["kind"] == "trial" and "cluster/exchange_ms" in line["metrics"]
    ]
    assert metrics[-1]["cluster/exchanges_per_second"] > 0
    assert metrics[-1]["cluster/mb_per_second"] > 0
    assert metrics[-1]["cluster/exchange_ms"] > 20  # twice the latency
    assert metrics[-1]["cluster/staleness_mean"] > 0
    found = json.loads((tmp_path / "summary.json").read_text())["exchanges"]
    assert [node["node"] for node in found] == [0, 1]
    assert all(node["count"] >= 7 and node["bytes"] > 0 and node["staleness"]["max"] > 0 for node in found)


def test_the_outer_step_is_the_servers(make_trial):
    thetas = []
    for outer in (Outer(), Outer(0.7, 0.9)):
        trial = make_trial("a3c", mode=Simulated(2, nodes=2, timing=NEAR, outer=outer), max_frame=1_000)
        run(trial)
        thetas.append(trial.stores[0].theta)
    assert trial.stores[0].velocity.abs().max() > 0
    assert not torch.equal(*thetas)


def test_it_is_repeated_to_the_bit(make_trial):
    thetas = []
    for seed in (0, 0, 1):
        trial = make_trial("a3c", mode=Simulated(4, nodes=2, timing=FAR), max_frame=1_000, seed=seed)
        run(trial)
        thetas.append(trial.stores[0].theta)
    assert torch.equal(thetas[0], thetas[1])
    assert not torch.equal(thetas[0], thetas[2])


@pytest.mark.parametrize(
    ("algo", "placement", "max_frame", "turns"),
    [*[("a3c", "synced", 600, turns) for turns in (100, 150, 151)], ("sac", "shared", 300, 300),
     ("ppo_normalized", "synced", 300, 100)],
)  # fmt: skip
def test_a_stopped_simulation_goes_on_as_if_it_had_not(make_trial, tmp_path, algo, placement, max_frame, turns):
    def make(**settings):
        mode = Simulated(4, placement, FULL, nodes=2, exchange_every=2, outer=Outer(0.7, 0.9))
        return make_trial(algo, mode=mode, max_frame=max_frame, **settings)

    whole, first, found = stopped(make, turns, tmp_path)
    assert first.stores[0].total_frames() < max_frame
    hold_that_it_goes_on(make, found, whole)


@pytest.mark.parametrize("nodes", [None, 1, 2])
def test_other_nodes_go_on_with_all_that_those_before_had_learned(make_trial, tmp_path, nodes):
    first = make_trial("a3c", mode=Simulated(4, nodes=4, exchange_every=1_000, timing=FULL), max_frame=2_000)
    begun = first.stores[0].theta.clone()
    stop_after(first, 200)
    with pytest.raises(TrialError, match="asked to end"):
        first.run()
    found = checkpoint.load(tmp_path)
    learned = [node["store"]["theta"] - begun for node in snapshot.read_tensors(found.path / NODES)["nodes"]]
    assert all(change.abs().max() > 0 for change in learned)
    second = make_trial("a3c", mode=Simulated(4, nodes=nodes), max_frame=2_000, checkpoint=found)
    (store,) = second.stores
    frames = store.total_frames()
    second.control.finish()
    start = Start(found.path, frozenset(found.manifest["files"]), 1)
    list(simulate(second.session, store, second.control, second.clock, start))
    torch.testing.assert_close(store.theta, begun + sum(learned))
    assert store.total_frames() == frames


@pytest.mark.parametrize(
    ("timing", "waits"), [(Constant(bandwidth=2e5, exchange=0.0), "link"), (Constant(exchange=0.02), "server")]
)
def test_messages_that_wait_when_a_simulation_is_stopped_hold_others_up_when_it_goes_on(
    make_trial, tmp_path, timing, waits
):
    def make(**settings):
        return make_trial("a3c", mode=Simulated(6, nodes=6, exchange_every=1, timing=timing), max_frame=400, **settings)

    whole, first, found = stopped(make, 200, tmp_path)
    inbound, work, _ = snapshot.read_tensors(found.path / NODES)["links"]
    assert {"link": inbound, "server": work}[waits] > first.clock() + 0.02  # several messages
    hold_that_it_goes_on(make, found, whole)


@pytest.mark.parametrize("turns", [573, 582, 591])
def test_a_node_that_waits_for_frames_when_a_simulation_is_stopped_goes_on_waiting(make_trial, tmp_path, turns):
    timing = Constant(slow=0.67, slowdown=10, latency=0.001, bandwidth=2e6)

    def make(**settings):
        return make_trial("a3c", mode=Simulated(3, nodes=3, exchange_every=1, timing=timing), max_frame=400, **settings)

    whole, first, found = stopped(make, turns, tmp_path)
    node, *_ = snapshot.read_tensors(found.path / NODES)["nodes"]
    assert (node["due"] > first.clock(), node["is_sent"]) == (True, False)
    hold_that_it_goes_on(make, found, whole)


@pytest.mark.parametrize("turns", [340, 347, 355])
def test_a_session_that_rests_while_others_of_its_node_work_goes_on_resting(make_trial, tmp_path, turns):
    timing = Lognormal(gradient=0.5, step=0.01, spread=1.0)

    def make(**settings):
        trial = make_trial("a3c", mode=Simulated(6, nodes=2, timing=timing), max_frame=400, **settings)
        trial.stores[0].lr_schedule = Linear()  # so that when a node hears of others counts
        return trial

    whole, first, found = stopped(make, turns, tmp_path)
    assert first.clock() < whole.clock()
    hold_that_it_goes_on(make, found, whole)


def test_what_all_links_have_yet_to_do_is_part_of_the_state(make_trial):
    trial = make_trial("a3c", mode=Simulated(2, nodes=2))
    nodes, again = (Nodes(trial.mode, trial.stores[0], 2, trial.clock) for _ in range(2))
    nodes.inbound.free, nodes.work.free, nodes.outbound.free = 1.0, 2.0, 3.0
    again.load_state_dict(nodes.state_dict())
    assert (again.inbound.free, again.work.free, again.outbound.free) == (1.0, 2.0, 3.0)


def test_more_nodes_than_fit_into_memory_are_refused_before_they_are_made(train):
    settings = ["algo=a3c", "env=pong", "distributed=simulated", "distributed.max_session=10_000"]
    done = train(*settings, "distributed.nodes=10_000", folder=False)
    assert done.returncode == 1
    assert re.search(
        r"networks of 10,000 nodes about \d+\.\d\d GB .* are available; lower distributed.nodes", done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Simulated(8, nodes=3), "8 sessions cannot be spread evenly over 3 nodes; set it to 6 or 9"),
        (lambda: Simulated(2, nodes=0), "distributed.nodes=0"),
        (lambda: Simulated(4, nodes=2, exchange_every=0), "distributed.exchange_every=0"),
        (lambda: Simulated(4, nodes=2, outer="sum"), "distributed.outer=sum must have lr and momentum"),
        (
            lambda: Simulated(4, nodes=2, timing=Constant(machines=2)),
            "distributed.timing.machines=2 is for one network",
        ),
        (lambda: Constant(exchange=-1.0), "distributed.timing.exchange=-1.0 must be a number of 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
