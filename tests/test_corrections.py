"""Corrections for staleness: their formulas by hand, where they are applied, and that nothing changes without them."""

import math
from functools import partial

import pytest
import torch
from conftest import TORSO
from test_distributed import make_store
from test_learner import learner_of, some_batches
from test_returns import GAMMA, LAM, rollout

from asynclab.agents import A3C
from asynclab.agents.returns import gae, vtrace
from asynclab.distributed import Off, Shared, Simulated, Synced
from asynclab.distributed.timing import Lognormal
from asynclab.training.learner import Turn


def pushed(mode, **push):
    """Return by how much SGD with rate 1 lowers a theta of [0.5, -1] for a gradient of [1, 2]."""
    store = make_store(torch.tensor([0.5, -1.0]))
    grad = torch.tensor([1.0, 2.0])
    mode.push(grad, store, **push)
    assert torch.equal(grad, torch.tensor([1.0, 2.0]))
    return (torch.tensor([0.5, -1.0]) - store.theta).tolist()


@pytest.mark.parametrize(("staleness", "factor"), [(0, 1.0), (1, 1.0), (2, 0.5), (5, 0.2)])
def test_the_learning_rate_is_divided_by_the_staleness(staleness, factor):
    assert pushed(Synced(2, staleness_lr=True), staleness=staleness) == pytest.approx([factor, 2 * factor])
    assert pushed(Synced(2), staleness=staleness) == [1.0, 2.0]


def test_a_gradient_is_compensated_for_how_far_theta_has_moved():
    # g + 0.04 g g (theta - pulled): 1 + 0.04 * 1 * (0.5 - 0) and 2 + 0.04 * 4 * (-1 - 1)
    pulled = torch.tensor([0.0, 1.0])
    assert pushed(Synced(2, compensate=0.04), staleness=1, pulled=pulled) == pytest.approx([1.02, 1.68])
    assert pushed(Synced(2), staleness=1, pulled=pulled) == [1.0, 2.0]


@pytest.mark.parametrize("make", [Synced, Shared, partial(Simulated, placement="shared")])
def test_a_push_knows_from_which_weights_its_gradient_is_and_how_old_they_are(make_trial, make):
    trial = make_trial(mode=make(2, compensate=0.04))
    batch, other = some_batches(trial, 2)
    ours, theirs = learner_of(trial), learner_of(trial)
    theta, told = trial.stores[0].theta, []
    for _ in range(2):
        list(theirs.update(other))
    before = theta.clone()
    turns = ours.update(batch)
    assert next(turns) is Turn.GRADIENT
    for _ in range(3):
        list(theirs.update(other))
    trial.mode.push = lambda grad, store, staleness, pulled: told.append((staleness, pulled.clone()))
    list(turns)
    ((staleness, pulled),) = told
    is_live = trial.mode.is_live
    assert staleness == (3 if is_live else 5)
    assert torch.equal(pulled, before) == is_live  # a private copy is from before the first two
    assert not torch.equal(pulled, theta)


@pytest.mark.parametrize("settings", [{"staleness_lr": True}, {"compensate": 0.04}])
def test_what_is_never_stale_is_never_corrected(make_trial, settings):
    thetas = []
    for mode in (Off(1), Synced(1, **settings), Simulated(1, timing=Lognormal(), **settings)):
        trial = make_trial(mode=mode)
        learner = learner_of(trial)
        for batch in some_batches(trial, 4):
            list(learner.update(batch))
        thetas.append(trial.stores[0].theta)
    assert torch.equal(thetas[0], thetas[1])
    assert torch.equal(thetas[0], thetas[2])


def test_vtrace_is_gae_where_the_policy_that_learns_has_acted():
    steps = rollout()
    torch.testing.assert_close(vtrace(*steps, torch.ones_like(steps[0]), GAMMA, LAM), gae(*steps, GAMMA, LAM))


def test_vtrace_by_hand():
    # one environment, three steps, gamma 0.5, lambda 1; ratios 2, 0.5 and 0.25, of which the first counts as 1
    column = lambda *values: torch.tensor(values)[:, None]  # noqa: E731
    never = torch.zeros(3, 1, dtype=torch.bool)
    steps = (column(1.0, 2.0, 4.0), column(1.0, 1.0, 2.0), column(1.0, 2.0, 2.0), never, never)
    found = vtrace(*steps, column(2.0, 0.5, 0.25), 0.5, 1.0).flatten().tolist()
    # delta: 1 + 0.5 - 1 = 0.5, 2 + 1 - 1 = 2, 4 + 1 - 2 = 3
    third = 0.25 * 3
    second = 0.5 * (2 + 0.5 * third)
    assert found == pytest.approx([1.0 * (0.5 + 0.5 * second), second, third])


def test_vtrace_weighs_by_the_policies_of_the_moments_when_was_acted_and_learned(make_trial):
    trial = make_trial(mode=Shared(1), vtrace=True)
    loop = trial.session.begin(0, trial.stores[0]).loop
    agent = loop.learner.agent
    for _ in range(10):
        loop.step()
    (batch,) = loop.memory.batches(0)
    (minibatch,) = agent.minibatches(batch)
    policy, _, advantage = agent._evaluate(minibatch)
    assert torch.equal(policy.log_prob(batch.action.flatten()).view(10, 2), minibatch.log_prob)
    agent.vtrace = False
    torch.testing.assert_close(advantage, agent._evaluate(batch)[2])  # not stale yet
    agent.vtrace = True
    with torch.no_grad():
        trial.stores[0].theta.add_(0.3 * torch.randn(len(trial.stores[0].theta)))
    now = agent._evaluate(minibatch)[0].log_prob(batch.action.flatten()).view(10, 2)
    assert (now - minibatch.log_prob).abs().max() > 0.05
    stale = agent._evaluate(minibatch)[2]
    agent.vtrace = False
    assert not torch.allclose(stale, agent._evaluate(batch)[2], atol=1e-3)
    loop.envs.close()


def test_a_player_remembers_nothing_for_vtrace(make_trial):
    trial = make_trial(mode=Shared(1), vtrace=True)
    agent = A3C(trial.probe.envs.obs_space, trial.probe.envs.action_space, TORSO, vtrace=True)
    agent.nets.eval()
    agent.start(1)
    agent.act(torch.zeros(1, 4))
    assert agent.state_dict() == {}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Synced(1, compensate=-0.1), "distributed.compensate=-0.1 must be a number of 0 or more"),
        (lambda: Synced(1, compensate=math.nan), "distributed.compensate=nan must be a number"),
        (lambda: Synced(1, staleness_lr="yes"), "distributed.staleness_lr=yes must be true or false"),
    ],
)
def test_corrections_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
