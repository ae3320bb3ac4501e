"""Asynchronous n-step Q-learning."""

import pytest
import torch
from batches import BOX, OBS, B, T, bound, rollout
from conftest import TORSO
from gymnasium.spaces import Discrete

from asynclab import flat
from asynclab.agents import NStepQ
from asynclab.flat import Vector


def test_the_loss_is_algorithm_s2():
    torch.manual_seed(0)
    agent = NStepQ(OBS, Discrete(3), TORSO, gamma=0.9)
    weights, _, _ = bound(agent)
    weights += 0.1  # so that network and target differ
    batch = rollout(Discrete(3))
    losses, _ = agent.loss(batch, 0.0)
    expected = 0.0
    q, ahead = agent.q(batch.obs[:-1].flatten(0, 1)).view(T, B, 3), agent.target.network(batch.obs[-1])
    for b in range(B):
        ret = ahead[b].max()
        for t in reversed(range(T)):
            if batch.done[t, b]:
                ret = 0.0 if batch.terminated[t, b] else agent.target.network(batch.final_obs)[0].max()
            ret = batch.reward[t, b] + 0.9 * ret
            expected += (ret - q[t, b, batch.action[t, b]]) ** 2 / (T * B)
    torch.testing.assert_close(losses["q"], expected)


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
    assert torch.equal(flat.flatten(agent.target.network), shared)


def test_a_session_that_starts_late_does_not_copy():
    agent = NStepQ(OBS, Discrete(3), TORSO, target_every=100)
    weights, _, _ = bound(agent)
    before = flat.flatten(agent.target.network)
    weights += 1.0
    agent.on_update(1_234, 1)
    assert torch.equal(flat.flatten(agent.target.network), before)


def test_all_sessions_see_a_copy():
    weights = torch.randn(flat.size(NStepQ(OBS, Discrete(3), TORSO).nets))
    shared, agents = weights.clone(), [NStepQ(OBS, Discrete(3), TORSO, target_every=100) for _ in range(2)]
    for agent in agents:
        agent.bind(Vector(weights), Vector(torch.zeros_like(weights)), shared)
        agent.on_update(0, 1)
    weights += 1.0
    agents[0].on_update(100, 1)
    assert torch.equal(flat.flatten(agents[1].target.network), weights)


def test_sessions_explore_at_different_rates_on_the_global_clock():
    agent = NStepQ(OBS, Discrete(3), TORSO, epsilons=[0.1, 0.01, 0.5], anneal=0.5)
    rates = []
    for rank in range(4):
        agent.start(1, rank)
        rates.append([round(float(agent.epsilon(progress)), 3) for progress in (0.0, 0.25, 0.5, 1.0)])
    assert rates == [[1, 0.55, 0.1, 0.1], [1, 0.505, 0.01, 0.01], [1, 0.75, 0.5, 0.5], [1, 0.55, 0.1, 0.1]]


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
        (Discrete(3), {"epsilons": [1.5]}, "algo.agent.epsilons=1.5 must be a number from 0 to 1"),
        (Discrete(3), {"target_every": 0}, "algo.agent.target_every=0 must be a whole number of 1 or more"),
        (Discrete(3), {"anneal": 0.0}, "algo.agent.anneal=0.0 must be a number above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(space, setting, message):
    with pytest.raises(ValueError, match=message):
        NStepQ(OBS, space, TORSO, **setting)
