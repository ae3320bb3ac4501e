import multiprocessing as mp
from functools import partial

import pytest
import torch
from conftest import items
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from asynclab.distributed import Network, Store
from asynclab.flat import Vector
from asynclab.optim import GlobalAdam, GlobalRMSprop
from asynclab.schedules import Constant, Linear

NETWORKS = {"actor": slice(0, 30), "q1": slice(30, 70)}


def make_store(optimizer, **kwargs):
    theta = torch.linspace(-1, 1, 70)
    return Store(Network(theta, NETWORKS), partial(optimizer, **kwargs), 1_000, Constant())


@pytest.mark.parametrize(
    ("ours", "torchs", "kwargs"),
    [
        (GlobalAdam, torch.optim.Adam, {"lr": 1e-2, "eps": 1e-5}),
        (GlobalAdam, torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
        (partial(GlobalRMSprop, initial=0.0), torch.optim.RMSprop, {"lr": 1e-2, "alpha": 0.9, "eps": 0.1}),
        (
            partial(GlobalRMSprop, initial=0.0), torch.optim.RMSprop,
            {"lr": 1e-2, "alpha": 0.99, "eps": 1e-5, "momentum": 0.9, "weight_decay": 0.1},
        ),
    ],
)  # fmt: skip
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


def step_sizes(updates, gradient, **kwargs):
    """Return by how much each of some equal gradients moves a weight, in learning rates."""
    store, sizes = make_store(GlobalRMSprop, lr=1.0, **kwargs), []
    for _ in range(updates):
        before = store.theta[0].clone()
        store.apply(torch.full((70,), gradient))
        sizes.append(round(float(before - store.theta[0]), 3))
    return sizes


def test_rmsprop_steps_by_the_learning_rate_from_the_first_update_on():
    assert step_sizes(20, 1e-3) == [0.99] * 20  # eps is a hundredth of this gradient
    torchs, tensorflows = step_sizes(20, 1e-3, initial=0.0), step_sizes(20, 1e-3, initial=1.0)
    assert (torchs[0], torchs[9], torchs[19]) == (9.091, 3.133, 2.29)
    assert tensorflows == [0.001] * 20
    assert step_sizes(20, 1.0, initial=1.0) == [1.0] * 20


def test_rmsprop_without_a_first_value_has_adams_correction_of_the_bias():
    store, g = make_store(GlobalRMSprop, lr=0.1, alpha=0.9, momentum=0.5), torch.Generator().manual_seed(0)
    theta, average, momentum = torch.linspace(-1, 1, 70), torch.zeros(70), torch.zeros(70)
    for t in range(1, 51):
        grad = torch.randn(70, generator=g)
        store.apply(grad)
        average = 0.9 * average + 0.1 * grad**2
        momentum = 0.5 * momentum + grad / ((average / (1 - 0.9**t)).sqrt() + 1e-5)
        theta = theta - 0.1 * momentum
    torch.testing.assert_close(store.theta, theta, rtol=1e-5, atol=1e-5)


def test_rmsprop_goes_on_from_a_checkpoint_of_an_older_version():
    old, new = make_store(GlobalRMSprop, lr=0.1, initial=0.0), make_store(GlobalRMSprop, lr=0.1)
    for _ in range(2_000):
        old.apply(torch.ones(70))
    state = old.state_dict()
    for roles in state["optimizer"]["state"].values():
        roles["step"] = roles["step"].float()
    new.load_state_dict(state)
    for store in (old, new):
        store.apply(torch.full((70,), 0.1))
    assert torch.equal(old.theta, new.theta)  # by then the two ways are the same
    assert new.optimizer.state_dict()["state"][0]["step"] == 2_001


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial": -1.0}, r"algo\.optimizer\.initial=-1\.0 must be a number of 0 or more"),
        ({"initial": "torch"}, r"algo\.optimizer\.initial=torch must be a number"),
        ({"alpha": 1.0}, r"algo\.optimizer\.alpha=1\.0 must be a number from 0 to below 1"),
        ({"alpha": 99}, r"algo\.optimizer\.alpha=99 must be a number from 0 to below 1"),
    ],
)
def test_rmsprop_refuses_what_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        make_store(GlobalRMSprop, **settings)


def test_weight_decay_is_per_network():
    store = make_store(GlobalAdam, lr=0.1, weight_decay={"q1": 1.0})
    before = store.theta.clone()
    store.apply(torch.zeros(70))
    assert torch.equal(store.theta[NETWORKS["actor"]], before[NETWORKS["actor"]])
    assert (store.theta[NETWORKS["q1"]] != before[NETWORKS["q1"]]).all()


@pytest.mark.parametrize("optimizer", [GlobalAdam, GlobalRMSprop])
@pytest.mark.parametrize(("algo", "spared"), [("lstm", 6), ("ppo_normalized", 7), ("sac", 10), ("nstep_q", 3)])
def test_a_number_decays_matrices_and_no_bias_log_std_or_temperature(make_trial, optimizer, algo, spared):
    trial = make_trial(algo, optimizer=partial(optimizer, weight_decay=0.1))
    (store,), envs = trial.stores, trial.session.make_envs()
    agent = trial.session.make_agent(envs.obs_space, envs.action_space)
    store.theta.fill_(1.0)
    grad = torch.zeros_like(store.theta)
    store.apply(grad)
    assert not grad.any()
    agent.bind(Vector(store.theta), Vector(grad))
    kept = {name: bool((p == 1).all()) for name, p in agent.nets.named_parameters()}
    assert kept == {name: p.dim() < 2 for name, p in agent.nets.named_parameters()}
    assert all((p < 1).all() for name, p in agent.nets.named_parameters() if not kept[name])
    assert sum(kept.values()) == spared


def test_weight_decay_of_what_has_no_matrices_is_refused(make_trial):
    with pytest.raises(ValueError, match=r"weight_decay names \['temperature'\], which has no matrices to decay"):
        make_trial("sac", optimizer=partial(GlobalAdam, weight_decay={"temperature": 0.1}))


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


class _After(TorchDispatchMode):
    """Looks at the state after every operator."""

    def __init__(self, states):
        super().__init__()
        self.states, self.seen = states, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen.append([values["square_avg"].clone() for values in self.states])
        return result


def test_no_other_session_can_read_an_average_of_rmsprop_that_is_half_written():
    store = make_store(GlobalRMSprop)
    states = list(store.optimizer.state.values())
    for gradient in (0.5, 2.0):  # from 0 on, and in general
        before = [values["square_avg"].clone() for values in states]
        with _After(states) as after:
            store.apply(torch.full((70,), gradient))
        now = [values["square_avg"] for values in states]
        assert len(after.seen) > 10
        for seen in after.seen:
            for average, old, new in zip(seen, before, now, strict=True):
                assert torch.equal(average, old) or torch.equal(average, new)


def test_statistics_that_are_not_shared_are_each_sessions_own():
    told = {}
    for shared in (True, False):
        store = make_store(GlobalRMSprop, alpha=0.5, initial=0.0, shared=shared)
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


def test_statistics_of_ones_own_begin_without_a_first_value_in_every_process():
    store = make_store(GlobalRMSprop, shared=False)
    told = sorted(items([partial(push_and_tell, store, pushes) for pushes in (1, 2)]))
    assert told == [(1, pytest.approx(0.01)), (2, pytest.approx(0.0199))]


@pytest.mark.parametrize("optimizer", [GlobalAdam, GlobalRMSprop])
def test_steps_are_counted_beyond_2_to_the_24(optimizer):
    store = make_store(optimizer)
    for values in store.optimizer.state.values():
        values["step"].fill_(2**24 - 1)
    store.updates[0] = 2**24 - 1
    for _ in range(3):
        store.apply(torch.ones(70))
        store.updates[0] += 1
    assert store.step_error() == 0
    again = make_store(optimizer)
    again.load_state_dict(store.state_dict())
    assert again.step_error() == 0


def test_a_count_that_got_stuck_says_nothing():
    store = make_store(torch.optim.Adam, lr=0.1)
    store.apply(torch.ones(70))
    assert store.step_error() == 1
    store.updates[0] = 2**24 + 1
    assert store.step_error() is None

    store = make_store(GlobalAdam)
    store.updates[0] = 20_000_000
    state = store.state_dict()
    for roles in state["optimizer"]["state"].values():
        roles["step"] = torch.tensor(2.0**24)  # as older versions counted
    store.load_state_dict(state)
    assert store.step_error() == 0


def test_the_learning_rate_follows_the_global_clock_of_all_writers():
    store = Store(
        Network(torch.zeros(1), {"a": slice(0, 1)}), partial(torch.optim.SGD, lr=1.0), 1_000, Linear(), writers=4
    )
    store.frames[:] = torch.tensor([200, 200, 50, 50])
    assert store.lr() == pytest.approx(0.5)
    store.apply(torch.ones(1))
    assert store.theta.item() == pytest.approx(-0.5)
    store.frames[0] = 700
    store.apply(torch.ones(1))
    assert store.theta.item() == pytest.approx(-0.5)
