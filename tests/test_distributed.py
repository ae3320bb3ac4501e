import multiprocessing as mp
import os
import time
from functools import partial

import pytest
import torch
from conftest import items
from runs import (
    claim_all,
    die_in_rank_2,
    die_in_the_middle_of_a_message,
    diverge,
    fail_in_rank_1,
    fail_twice,
    hang_once,
    leave,
    leave_a_thread,
    many_items,
    minimise,
    push_much,
    raise_soon,
    take,
    threads,
)

from asynclab.distributed import Network, Off, Shared, Store, Synced
from asynclab.distributed.lock import ProcessLock
from asynclab.optim import GlobalAdam
from asynclab.processes import launch as launching
from asynclab.processes.control import Control
from asynclab.processes.launch import Failure, SessionError, launch
from asynclab.schedules import Constant

SGD = partial(torch.optim.SGD, lr=1.0)


def make_store(theta, optimizer=SGD, writers=1):
    return Store(Network(theta, {"all": slice(0, len(theta))}), optimizer, 1_000, Constant(), writers)


def test_push_applies_only_this_gradient():
    store, mode = make_store(torch.zeros(3)), Synced(1)
    mode.push(torch.tensor([1.0, 2.0, 3.0]), store)
    after_first = store.theta.clone()
    mode.push(torch.tensor([10.0, 0.0, -1.0]), store)
    assert torch.equal(after_first, torch.tensor([-1.0, -2.0, -3.0]))
    assert torch.equal(store.theta - after_first, torch.tensor([-10.0, 0.0, 1.0]))


def test_synced_sees_a_peers_write_only_after_pull():
    store, mode = make_store(torch.zeros(3)), Synced(2)
    weights = mode.weights(store, "cpu")
    store.apply(torch.ones(3))
    assert torch.equal(weights.full, torch.zeros(3))
    mode.pull(weights, store)
    assert torch.equal(weights.full, -torch.ones(3))


def test_shared_sees_a_peers_write_at_once():
    store, mode = make_store(torch.zeros(3)), Shared(2)
    weights = mode.weights(store, "cpu")
    process = mp.get_context("forkserver").Process(target=store.apply, args=(torch.ones(3),))
    process.start()
    process.join(60)
    assert torch.equal(weights.full, -torch.ones(3))


@pytest.mark.parametrize("mode", [Off, Synced, Shared])
def test_bf16_weights_are_rounded_once_per_pull_but_follow_theta_in_shared(mode):
    store, mode = make_store(torch.full((3,), 1.0 + 2**-10)), mode(1)
    weights = mode.weights(store, "cpu", bf16=True)
    assert torch.equal(weights.low, torch.ones(3))
    store.apply(torch.ones(3))
    mode.follow(weights)
    assert torch.equal(weights.low.float(), torch.full((3,), 2.0**-10) if isinstance(mode, Shared) else torch.ones(3))
    mode.pull(weights, store)
    mode.follow(weights)
    assert torch.equal(weights.low.float(), torch.full((3,), 2.0**-10))


def test_off_gives_every_session_a_store():
    assert [(Off(3).store_index(rank), Off(3).slot(rank)) for rank in range(3)] == [(0, 0), (1, 0), (2, 0)]
    assert [(Shared(3).store_index(rank), Shared(3).slot(rank)) for rank in range(3)] == [(0, 0), (0, 1), (0, 2)]
    assert (Off(3).num_stores, Off(3).writers) == (3, 1)
    assert (Synced(3).num_stores, Synced(3).writers) == (1, 3)


@pytest.mark.parametrize("max_session", [0, -1, 1.5, "two", True])
def test_a_mode_refuses_a_wrong_number_of_sessions(max_session):
    with pytest.raises(ValueError, match=r"distributed\.max_session=.* whole number of 1 or more"):
        Synced(max_session)


def test_four_processes_minimise_a_quadratic_through_one_store():
    target = torch.linspace(-2, 2, 50)
    store = make_store(torch.zeros(50), partial(GlobalAdam, lr=0.02), writers=4)
    ranks = items([partial(minimise, store, target, rank) for rank in range(4)])
    assert sorted(ranks) == [0, 1, 2, 3]
    assert store.updates.tolist() == [300] * 4
    torch.testing.assert_close(store.theta, target, rtol=0, atol=0.02)


def test_a_raising_session_stops_all_with_its_rank_and_traceback():
    start = time.monotonic()
    with pytest.raises(
        SessionError, match=r"(?s)session 1 raised; the trial was stopped.*RuntimeError: a bug in this worker"
    ):
        list(launch([partial(fail_in_rank_1, rank) for rank in range(3)], 1))
    assert time.monotonic() - start < 60
    assert not mp.active_children()


def test_a_killed_session_is_noticed():
    with pytest.raises(SessionError, match="session 2 was killed by SIGKILL; the trial was stopped"):
        list(launch([partial(die_in_rank_2, rank) for rank in range(3)], 1))


def test_a_session_killed_in_the_middle_of_a_message_does_not_hang_the_parent():
    for _ in range(3):
        with pytest.raises(SessionError, match="session 1 was killed by SIGKILL; the trial was stopped"):
            list(launch([partial(die_in_the_middle_of_a_message, rank) for rank in range(2)], 1))


def test_a_session_that_leaves_without_a_word_is_no_success():
    with pytest.raises(SessionError, match=r"session [01] exited with code 0"):
        list(launch([partial(leave, rank) for rank in range(2)], 1))


def test_no_item_is_lost_and_each_session_keeps_its_order():
    found = items([partial(many_items, rank) for rank in range(3)])
    for rank in range(3):
        assert [i for r, i in found if r == rank] == list(range(2_000))


def test_every_session_has_its_share_of_threads():
    assert items([threads] * 2) == [1, 1]


@pytest.mark.parametrize(("max_frame", "total"), [(20_000, 20_000), (20_001, 20_008)])
def test_the_budget_is_given_out_exactly_however_many_ask(max_frame, total):
    store = Store(Network(torch.zeros(3), {"all": slice(0, 3)}), SGD, max_frame, Constant(), 4)
    items([partial(claim_all, store, rank, 8) for rank in range(4)])
    assert store.total_frames() == total
    assert not store.claim(0, 8)


def test_what_a_dead_writer_claimed_is_given_out_again():
    store = make_store(torch.zeros(3), writers=2)
    store.max_frame = 16
    assert store.claim(0, 8)
    assert store.claim(1, 8)
    assert not store.claim(1, 8)
    store.frames[1] = 8
    store.give_back(0)
    assert store.claim(1, 8)
    assert not store.claim(0, 8)


def test_a_killed_process_leaves_no_lock_behind():
    lock, flag = ProcessLock(), torch.zeros(()).share_memory_()
    process = mp.get_context("forkserver").Process(target=take, args=(lock, flag), daemon=True)
    process.start()
    while not flag:
        time.sleep(0.01)
    process.kill()
    process.join()
    with lock:
        pass


def test_a_session_is_restarted_with_growing_delays():
    control = Control(2, max_restarts=2, restart_delay=0.1)
    events = list(launch([partial(fail_twice, control, rank) for rank in range(2)], 1, control))
    failures = [e for e in events if isinstance(e, Failure)]
    assert [(f.rank, f.exitcode, f.restarts, f.delay) for f in failures] == [(1, -9, 1, 0.1), (1, -9, 2, 0.2)]
    assert [e for e in events if isinstance(e, tuple) and len(e) == 2 and e[0] == 1 and e[1] < 3] == [
        (1, 0),
        (1, 1),
        (1, 2),
    ]


@pytest.mark.parametrize("sessions", [1, 2])
def test_after_too_many_restarts_the_others_are_asked_to_end(sessions):
    control = Control(sessions, max_restarts=2, restart_delay=0.01)
    runs = [partial(raise_soon, control, rank) for rank in range(sessions)]
    with pytest.raises(SessionError, match=r"session 0 raised after 2 restarts; the trial was stopped"):
        list(launch(runs, 1, control))
    assert control.ending()


def test_what_a_restart_would_not_mend_is_not_restarted():
    control = Control(2, max_restarts=5)
    with pytest.raises(SessionError, match=r"raised; the trial was stopped\n(?s:.*)a restart would not help"):
        list(launch([partial(diverge, control, rank) for rank in range(2)], 1, control))
    assert control.restarts(0) == control.restarts(1) == 0


def test_a_hung_session_is_killed_with_its_stacks_and_restarted():
    control = Control(2, max_restarts=1, hang_after=1.0, restart_delay=0.1)
    (failure,) = [e for e in launch([partial(hang_once, control, rank) for rank in range(2)], 1, control)
                  if isinstance(e, Failure)]  # fmt: skip
    assert failure.cause.startswith("hung for 1 s")
    assert "in sleep_on_a_lost_lock" in failure.details


def lost(lock, size, pushes):
    """Let four processes step as often as they can; return the store."""
    network = Network(torch.zeros(size), {"all": slice(0, size)})
    store = Store(network, partial(GlobalAdam, lr=0.1), 1_000, Constant(), 4, lock, diagnostics=True)
    items([partial(push_much, store, rank, pushes) for rank in range(4)])
    assert store.total_updates() == 4 * pushes
    return store


@pytest.mark.parametrize("size", [300, 200_000])
def test_with_a_lock_no_update_is_lost(size):
    store = lost("update", size, 300)
    assert store.lost_updates() == 0.0
    assert store.step_error() == 0.0
    assert store.optimizer.state_dict()["state"][0]["step"] == 1_200


def test_the_meter_counts_every_number_that_a_write_missed():
    store = Store(Network(torch.zeros(100), {"all": slice(0, 100)}), SGD, 1_000, Constant(), 2, diagnostics=True)
    for rank in (0, 1):
        before = store._probe[:25].clone()
        list(push_much(store, rank, 2))
        store._probe[:25] = before + 1  # of the two steps one is written over, in a quarter of the numbers
    assert store.lost_updates() == 0.25 * 0.5


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one core hardly ever two write at the same time")
def test_without_a_lock_the_meter_sees_what_is_lost():
    for _ in range(50):  # on a busy machine four processes may happen to step one after the other
        store = lost("none", 200_000, 300)
        assert store.step_error() <= 0
        if store.lost_updates():
            break
    assert 0 < store.lost_updates() < 1


def test_one_writer_loses_nothing():
    store = Store(Network(torch.zeros(50), {"all": slice(0, 50)}), SGD, 1_000, Constant(), 1, diagnostics=True)
    assert store.lost_updates() is None
    list(push_much(store, 0, 10))
    assert (store.lost_updates(), store.step_error()) == (0.0, None)
    assert make_store(torch.zeros(3)).lost_updates() is None


def test_sessions_that_have_done_all_and_do_not_end_are_waited_for_at_once(monkeypatch):
    waits, close = [], launching._Worker.close

    def watched(self, seconds):
        waits.append(max(0.0, seconds))
        return close(self, seconds)

    monkeypatch.setattr(launching, "ENDS", 1.0)
    monkeypatch.setattr(launching._Worker, "close", watched)
    assert sorted(items([partial(leave_a_thread, rank) for rank in range(3)])) == [0, 1, 2]
    assert len(waits) == 3
    assert sum(waits) < 1.5
