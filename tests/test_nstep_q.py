"""Asynchronous n-step Q-learning."""

import pytest
import torch
from batches import BOX, OBS, B, T, bound, gradient, rollout
from conftest import TORSO
from gymnasium.spaces import Discrete

from asynclab import flat
from asynclab.agents import NStepQ
from asynclab.distributed import Off, Synced
from asynclab.flat import Vector


def test_the_loss_is_algorithm_s2():
    torch.manual_seed(0)
    agent = NStepQ(OBS, Discrete(3), TORSO, gamma=0.9)
    weights, _, _ = bound(agent)
    weights += 0.1  # so that network and target differ
    batch = rollout(Discrete(3))
    losses, _ = agent.loss(batch, 0.0)
    expected = 0.0
    q, ahead = agent.q(batch.obs[:-1].flatten(0, 1)).view(T, B, 3), agent.lagging(batch.obs[-1])
    for b in range(B):
        ret = ahead[b].max()
        for t in reversed(range(T)):
            if batch.done[t, b]:
                ret = 0.0 if batch.terminated[t, b] else agent.lagging(batch.final_obs)[0].max()
            ret = batch.reward[t, b] + 0.9 * ret
            expected += (ret - q[t, b, batch.action[t, b]]) ** 2 / (T * B)
    torch.testing.assert_close(losses["q"], expected)


@pytest.mark.parametrize("target_every", [100, None])
def test_lambda_returns_step_by_step(target_every):
    torch.manual_seed(0)
    agent = NStepQ(OBS, Discrete(3), TORSO, gamma=0.9, lam=0.7, target_every=target_every)
    weights, _, _ = bound(agent)
    weights += 0.1
    batch = rollout(Discrete(3))
    losses, _ = agent.loss(batch, 0.0)
    expected = 0.0
    q = agent.q(batch.obs[:-1].flatten(0, 1)).view(T, B, 3)
    best = agent.lagging(batch.obs.flatten(0, 1)).view(T + 1, B, 3).amax(2).detach()
    for b in range(B):
        ret = best[T, b]
        for t in reversed(range(T)):
            ahead = 0.7 * ret + 0.3 * best[t + 1, b]
            if batch.done[t, b]:
                ahead = 0.0 if batch.terminated[t, b] else agent.lagging(batch.final_obs)[0].max().detach()
            ret = batch.reward[t, b] + 0.9 * ahead
            expected += (ret - q[t, b, batch.action[t, b]]) ** 2 / (T * B)
    torch.testing.assert_close(losses["q"], expected)


def test_a_lambda_of_almost_one_is_almost_the_n_step_return():
    torch.manual_seed(0)
    agent = NStepQ(OBS, Discrete(3), TORSO)
    bound(agent)
    first = agent.loss(rollout(Discrete(3)), 0.0)[0]["q"]
    agent.lam = 1 - 1e-6
    torch.testing.assert_close(agent.loss(rollout(Discrete(3)), 0.0)[0]["q"], first)


def test_without_a_target_network_nothing_lags_and_no_gradient_flows_through_the_returns():
    torch.manual_seed(0)
    agent = NStepQ(OBS, Discrete(3), TORSO, lam=0.7, target_every=None)
    assert (agent.targets, agent.target_part, agent.lagging) == ((), None, agent.q)
    batch = rollout(Discrete(3))
    whole = gradient(agent, batch)
    agent.minibatch_size = T * B
    assert not torch.equal(whole, torch.zeros_like(whole))
    torch.testing.assert_close(gradient(agent, next(agent.minibatches(batch))), whole)
    agent.on_update(1_000, 1)
    agent.load_state_dict(agent.state_dict())


@pytest.mark.parametrize("target_every", [100, None])
def test_minibatches_use_every_step_once_an_epoch_with_the_returns_of_the_first_weights(target_every):
    torch.manual_seed(0)
    agent = NStepQ(OBS, Discrete(3), TORSO, lam=0.7, epochs=2, minibatch_size=10, target_every=target_every)
    weights, _, _ = bound(agent)
    batch = rollout(Discrete(3))
    values = agent.q(batch.obs[:-1].flatten(0, 1))
    returns = agent._returns(batch, values).detach()
    expected = sorted(zip(batch.obs[:-1, :, 0].flatten().tolist(), returns.tolist(), strict=True))
    seen = []
    for minibatch in agent.minibatches(batch):
        seen += zip(minibatch.obs[:, 0].tolist(), minibatch.target.tolist(), strict=True)
        weights += 0.1
    assert [seen[:24] != seen[24:], len(seen)] == [True, 48]
    for epoch in (seen[:24], seen[24:]):
        torch.testing.assert_close(torch.tensor(sorted(epoch)), torch.tensor(expected))


def test_the_target_starts_as_theta_and_is_copied_once_a_period():
    agent = NStepQ(OBS, Discrete(3), TORSO, target_every=100)
    weights = torch.randn(flat.size(agent.nets))
    shared = weights[agent.target_part].clone()
    agent.bind(Vector(weights), Vector(torch.zeros_like(weights)), shared)
    first = weights.clone()
    seen = []
    for frames in (90, 99, 101, 199, 350, 399, 400):
        weights += 1.0
        agent.on_update(frames, 1)
        seen.append(float((shared - first).mean().round()))
    assert seen == [0, 0, 3, 3, 5, 5, 7]
    assert torch.equal(flat.flatten(agent.lagging), shared)


def test_a_session_that_starts_late_does_not_copy():
    agent = NStepQ(OBS, Discrete(3), TORSO, target_every=100)
    weights, _, _ = bound(agent)
    before = flat.flatten(agent.lagging)
    weights += 1.0
    agent.on_update(1_234, 1)
    assert torch.equal(flat.flatten(agent.lagging), before)


def test_all_sessions_see_a_copy():
    weights = torch.randn(flat.size(NStepQ(OBS, Discrete(3), TORSO).nets))
    shared, agents = weights.clone(), [NStepQ(OBS, Discrete(3), TORSO, target_every=100) for _ in range(2)]
    for agent in agents:
        agent.bind(Vector(weights), Vector(torch.zeros_like(weights)), shared)
        agent.on_update(0, 1)
    weights += 1.0
    agents[0].on_update(100, 1)
    assert torch.equal(flat.flatten(agents[1].lagging), weights)


def test_sessions_explore_at_different_rates_on_the_global_clock():
    agent = NStepQ(OBS, Discrete(3), TORSO, epsilons=[0.1, 0.01, 0.5], anneal=0.5)
    rates = []
    for rank in range(4):
        agent.start(1, rank)
        rates.append([round(float(agent.epsilon(progress)), 3) for progress in (0.0, 0.25, 0.5, 1.0)])
    assert rates == [[1, 0.55, 0.1, 0.1], [1, 0.505, 0.01, 0.01], [1, 0.75, 0.5, 0.5], [1, 0.55, 0.1, 0.1]]


@pytest.mark.parametrize(("mode", "rates"), [(Synced(3), [0.1, 0.01, 0.5]), (Off(3), [0.1, 0.1, 0.1])])
def test_sessions_of_one_network_explore_at_different_rates_and_repeats_at_the_same(make_trial, mode, rates):
    trial = make_trial("nstep_q", mode)
    loops = [trial.session.begin(rank, trial.store_of(rank)).loop for rank in range(3)]
    assert [round(float(loop.learner.agent.epsilon(1.0)), 3) for loop in loops] == rates
    for loop in loops:
        loop.envs.close()


def test_actions_are_drawn_from_a_softmax_of_q_whose_temperature_falls_to_nothing():
    torch.manual_seed(0)
    agent = NStepQ(OBS, Discrete(3), TORSO, epsilons=[0.0], anneal=1e-6, temperature=0.2)
    agent.q.forward = lambda obs: torch.tensor([0.0, 0.1, 0.3]).expand(len(obs), 3)
    obs = torch.zeros(20_000, 5)
    for progress in (0.001, 0.5):  # at 0 all are random
        shares = torch.bincount(agent.act(obs, progress=progress), minlength=3) / len(obs)
        expected = torch.tensor([0.0, 0.1, 0.3]).div(0.2 * (1 - progress)).softmax(0)
        torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)
    assert (agent.act(obs, progress=1.0) == 2).all()
    assert (agent.act(obs, deterministic=True, progress=0.0) == 2).all()


def test_actions_are_random_as_often_as_epsilon_says():
    torch.manual_seed(0)
    agent = NStepQ(OBS, Discrete(4), TORSO, epsilons=[0.4])
    bound(agent)
    obs = torch.randn(1, 5).expand(20_000, 5)
    best = agent.act(obs, deterministic=True)
    assert best.unique().numel() == 1
    assert 0.28 < (agent.act(obs) != best).float().mean() < 0.32  # one random action in four is the best one
    assert 0.73 < (agent.act(obs, progress=0.0) != best).float().mean() < 0.77


@pytest.mark.parametrize(
    ("space", "setting", "message"),
    [
        (BOX, {}, "algo=nstep_q needs discrete actions"),
        (Discrete(3), {"epsilons": []}, r"algo.agent.epsilons=\[\] must be a list of one rate of exploration or more"),
        (Discrete(3), {"epsilons": 0.1}, "algo.agent.epsilons=0.1 must be a list"),
        (Discrete(3), {"temperature": -0.1}, "algo.agent.temperature=-0.1 must be a number of 0 or more"),
        (Discrete(3), {"epsilons": [1.5]}, "algo.agent.epsilons=1.5 must be a number from 0 to 1"),
        (Discrete(3), {"target_every": 0}, "algo.agent.target_every=0 must be a whole number of 1 or more"),
        (Discrete(3), {"lam": 1.5}, "algo.agent.lam=1.5 must be a number from 0 to 1"),
        (Discrete(3), {"epochs": 0}, "algo.agent.epochs=0 must be a whole number of 1 or more"),
        (Discrete(3), {"minibatch_size": 0}, "algo.agent.minibatch_size=0 must be a whole number of 1 or more"),
        (Discrete(3), {"anneal": 0.0}, "algo.agent.anneal=0.0 must be a number above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(space, setting, message):
    with pytest.raises(ValueError, match=message):
        NStepQ(OBS, space, TORSO, **setting)
