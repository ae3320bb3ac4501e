import multiprocessing as mp
from functools import partial

import pytest
import torch
from conftest import items
from torch import nn

from asynclab.distributed import Store
from asynclab.optim import GlobalAdam, GlobalRMSprop
from asynclab.schedules import Constant, Linear

NETWORKS = {"actor": slice(0, 30), "q1": slice(30, 70)}


def make_store(optimizer, **kwargs):
    theta = torch.linspace(-1, 1, 70)
    return Store(theta, NETWORKS, partial(optimizer, **kwargs), 1_000, Constant())


@pytest.mark.parametrize(
    ("ours", "torchs", "kwargs"),
    [
        (GlobalAdam, torch.optim.Adam, {"lr": 1e-2, "eps": 1e-5}),
        (GlobalAdam, torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
        (GlobalRMSprop, torch.optim.RMSprop, {"lr": 1e-2, "alpha": 0.9, "eps": 0.1}),
        (GlobalRMSprop, torch.optim.RMSprop, {"lr": 1e-2, "alpha": 0.99, "eps": 1e-5, "momentum": 0.9}),
    ],
)
def test_global_optimizers_equal_torch_over_100_steps(ours, torchs, kwargs):
    store = make_store(ours, **kwargs)
    p = nn.Parameter(torch.linspace(-1, 1, 70))
    reference = torchs([p], **kwargs)
    g = torch.Generator().manual_seed(0)
    for _ in range(100):
        grad = torch.randn(70, generator=g)
        before = grad.clone()
        store.apply(grad)
        assert torch.equal(grad, before)
        p.grad = grad
        reference.step()
    torch.testing.assert_close(store.theta, p.detach(), rtol=1e-5, atol=1e-6)


def test_weight_decay_is_per_network():
    store = make_store(GlobalAdam, lr=0.1, weight_decay={"q1": 1.0})
    before = store.theta.clone()
    store.apply(torch.zeros(70))
    assert torch.equal(store.theta[NETWORKS["actor"]], before[NETWORKS["actor"]])
    assert (store.theta[NETWORKS["q1"]] != before[NETWORKS["q1"]]).all()


def test_a_number_decays_networks_but_not_a_lone_scalar():
    optimizer = partial(GlobalAdam, lr=0.1, weight_decay=1.0)
    store = Store(torch.ones(3), {"q1": slice(0, 2), "temperature": slice(2, 3)}, optimizer, 1_000, Constant())
    store.apply(torch.zeros(3))
    assert (store.theta[:2] < 1).all()
    assert store.theta[2] == 1


def test_weight_decay_of_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"weight_decay names \['critic'\].*\['actor', 'q1'\]"):
        make_store(GlobalAdam, weight_decay={"critic": 1.0})


@pytest.mark.parametrize("optimizer", [GlobalAdam, partial(GlobalRMSprop, momentum=0.9)])
def test_all_state_is_in_shared_memory_before_the_first_step(optimizer):
    store = make_store(optimizer)
    state = [tensor for values in store.optimizer.state.values() for tensor in values.values()]
    assert len(state) == 6
    assert all(tensor.is_shared() for tensor in state)


def push_once(store):
    store.apply(torch.ones(70))


@pytest.mark.parametrize(("optimizer", "moment"), [(GlobalAdam, "exp_avg"), (GlobalRMSprop, "square_avg")])
def test_another_process_changes_the_state_seen_here(optimizer, moment):
    store = make_store(optimizer)
    process = mp.get_context("forkserver").Process(target=push_once, args=(store,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    for values in store.optimizer.state.values():
        assert values["step"] == 1
        assert (values[moment] > 0).all()


def push_and_tell(store, pushes):
    for _ in range(pushes):
        store.apply(torch.ones(70))
    (values, _) = store.optimizer.state.values()
    yield float(values["step"]), float(values["square_avg"][0])


def test_statistics_that_are_not_shared_are_each_sessions_own():
    told = {}
    for shared in (True, False):
        store = make_store(GlobalRMSprop, alpha=0.5, shared=shared)
        before = store.theta.clone()
        told[shared] = sorted(items([partial(push_and_tell, store, pushes) for pushes in (1, 3)]))
        assert not torch.equal(store.theta, before)  # theta is everybody's in any case
        assert store.is_global
        (values, _) = store.optimizer.state.values()
        assert values["step"] == (4 if shared else 0)
        assert store.step_error() == (4 if shared else None)  # nobody has counted these updates
    assert told[True][-1][0] == 4
    assert told[False] == [(1, 0.5), (3, 0.875)]


def test_statistics_of_ones_own_are_saved_apart():
    store, other = (make_store(GlobalRMSprop, shared=False) for _ in range(2))
    store.apply(torch.ones(70))
    other.load_own_state_dict(store.own_state_dict())
    for mine, theirs in zip(store.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert all(torch.equal(mine[role], theirs[role]) for role in mine)
        assert mine["step"] == 1
    assert make_store(GlobalRMSprop).own_state_dict() == {}


def test_the_learning_rate_follows_the_global_clock_of_all_writers():
    store = Store(torch.zeros(1), {"a": slice(0, 1)}, partial(torch.optim.SGD, lr=1.0), 1_000, Linear(), writers=4)
    store.frames[:] = torch.tensor([200, 200, 50, 50])
    assert store.lr() == pytest.approx(0.5)
    store.apply(torch.ones(1))
    assert store.theta.item() == pytest.approx(-0.5)
    store.frames[0] = 700
    store.apply(torch.ones(1))
    assert store.theta.item() == pytest.approx(-0.5)
