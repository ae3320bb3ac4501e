import multiprocessing as mp
import os
import signal
import time
from functools import partial

import pytest
import torch

from asynclab.distributed import Off, SessionError, Shared, Store, Synced, launch
from asynclab.optim import GlobalAdam
from asynclab.schedules import Constant

SGD = partial(torch.optim.SGD, lr=1.0)


def make_store(theta, optimizer=SGD, writers=1):
    return Store(theta, {"all": slice(0, len(theta))}, optimizer, 1_000, Constant(), writers)


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


def minimise(store, target, rank):
    for _ in range(300):
        store.apply(2 * (store.theta - target))
        store.updates[rank] += 1
    yield rank


def test_four_processes_minimise_a_quadratic_through_one_store():
    target = torch.linspace(-2, 2, 50)
    store = make_store(torch.zeros(50), partial(GlobalAdam, lr=0.02), writers=4)
    ranks = list(launch([partial(minimise, store, target, rank) for rank in range(4)], 1))
    assert sorted(ranks) == [0, 1, 2, 3]
    assert store.updates.tolist() == [300] * 4
    torch.testing.assert_close(store.theta, target, rtol=0, atol=0.02)


def fail_in_rank_1(rank):
    yield rank
    if rank == 1:
        raise RuntimeError("a bug in this worker")
    time.sleep(120)


def test_a_raising_session_stops_all_with_its_rank_and_traceback():
    start = time.monotonic()
    with pytest.raises(
        SessionError, match=r"(?s)session 1 raised; all were stopped.*RuntimeError: a bug in this worker"
    ):
        list(launch([partial(fail_in_rank_1, rank) for rank in range(3)], 1))
    assert time.monotonic() - start < 60
    assert not mp.active_children()


def die_in_rank_2(rank):
    yield rank
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(120)


def test_a_killed_session_is_noticed():
    with pytest.raises(SessionError, match="session 2 was killed by SIGKILL; all were stopped"):
        list(launch([partial(die_in_rank_2, rank) for rank in range(3)], 1))


def die_in_the_middle_of_a_message(rank):
    yield rank
    if rank == 1:
        yield b"x" * 50_000_000  # far more than a pipe holds
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(120)


def test_a_session_killed_in_the_middle_of_a_message_does_not_hang_the_parent():
    for _ in range(3):
        with pytest.raises(SessionError, match="session 1 was killed by SIGKILL; all were stopped"):
            list(launch([partial(die_in_the_middle_of_a_message, rank) for rank in range(2)], 1))


def leave(rank):
    yield rank
    os._exit(0)


def test_a_session_that_leaves_without_a_word_is_no_success():
    with pytest.raises(SessionError, match=r"session [01] exited with code 0"):
        list(launch([partial(leave, rank) for rank in range(2)], 1))


def many_items(rank):
    yield from ((rank, i) for i in range(2_000))


def test_no_item_is_lost_and_each_session_keeps_its_order():
    items = list(launch([partial(many_items, rank) for rank in range(3)], 1))
    for rank in range(3):
        assert [i for r, i in items if r == rank] == list(range(2_000))


def threads():
    yield torch.get_num_threads()


def test_every_session_has_its_share_of_threads():
    assert list(launch([threads] * 2, 1)) == [1, 1]
