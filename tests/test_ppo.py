"""PPO: its loss, its minibatches, and that it is A3C as long as nothing is clipped."""

import pytest
import torch
from batches import BOX, OBS, B, T, bound, gradient, rollout
from conftest import TORSO
from gymnasium.spaces import Discrete

from asynclab.agents import A3C, PPO
from asynclab.agents.ppo import PPOBatch
from asynclab.schedules import Linear


def whole(agent, batch):
    return next(agent.minibatches(batch))


@pytest.mark.parametrize("lstm", [0, 7])
@pytest.mark.parametrize("action_space", [Discrete(3), BOX], ids=["discrete", "continuous"])
def test_before_the_first_step_the_gradient_is_a3cs(action_space, lstm):
    settings = {"lstm": lstm, "gamma": 0.9, "lam": 0.8, "normalize_advantage": True}
    torch.manual_seed(0)
    a3c = A3C(OBS, action_space, TORSO, **settings)
    torch.manual_seed(0)
    ppo = PPO(OBS, action_space, TORSO, minibatch_size=T * B, **settings)
    bound(a3c), bound(ppo)
    batch = next(a3c.minibatches(rollout(action_space)))
    torch.testing.assert_close(gradient(ppo, whole(ppo, rollout(action_space))), gradient(a3c, batch))


def test_the_loss_is_the_papers():
    agent = PPO(OBS, Discrete(3), TORSO, clip=0.2, value_coef=0.5, normalize_advantage=False)
    obs = torch.randn(1, 4, 5)
    policy, v, _ = agent._forward(obs, torch.zeros(1, 4, dtype=torch.bool), torch.zeros(2, 4, 0))
    action = torch.tensor([[0, 1, 2, 0]])
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    log_prob = policy.log_prob(action[0]).detach() - ratio.log()
    v_old = v.detach() - torch.tensor([1.0, -1.0, 0.1, 0.0])
    none = torch.zeros(1, 4, dtype=torch.bool)
    batch = PPOBatch(obs, action, none, log_prob[None], v_old[None], advantage[None], torch.zeros(2, 4, 0))
    losses, metrics = agent.loss(batch, 0.0)
    # a gain counts up to 1.2 or down to 0.8 times the advantage, a loss counts in full
    torch.testing.assert_close(losses["policy"], -torch.tensor([1.2, -1.5, 0.5, -0.8]).mean())
    clipped = v_old + torch.tensor([0.2, -0.2, 0.1, 0.0])
    target = v_old + advantage
    error = torch.maximum((target - v) ** 2, (target - clipped) ** 2)
    torch.testing.assert_close(losses["value"], 0.5 * error.mean())
    torch.testing.assert_close(metrics["train/clip_fraction"], torch.tensor(1.0))
    agent.clip_value = False
    torch.testing.assert_close(agent.loss(batch, 0.0)[0]["value"], 0.5 * ((target - v) ** 2).mean())


def test_clip_follows_the_clock():
    agent = PPO(OBS, Discrete(3), TORSO, clip=0.2, clip_schedule=Linear(0.0), minibatch_size=T * B)
    bound(agent)
    batch = whole(agent, rollout(Discrete(3)))
    batch = batch._replace(log_prob=batch.log_prob - 0.1)  # ratios of 1.105
    fractions = [float(agent.loss(batch, progress)[1]["train/clip_fraction"]) for progress in (0.0, 0.9)]
    assert fractions == [0.0, 1.0]


def test_every_epoch_has_every_step_once_in_another_order():
    agent = PPO(OBS, Discrete(3), TORSO, epochs=3, minibatch_size=10)
    bound(agent)
    batch = rollout(Discrete(3))
    parts = [part.obs[0] for part in agent.minibatches(batch)]
    assert [len(part) for part in parts] == [10, 10, 4] * 3
    epochs = [torch.cat(parts[i : i + 3]) for i in (0, 3, 6)]
    expected = batch.obs[:-1].flatten(0, 1)
    for obs in epochs:
        assert torch.equal(obs[obs[:, 0].argsort()], expected[expected[:, 0].argsort()])
    assert not torch.equal(epochs[0], epochs[1])


def test_no_minibatch_is_a_single_step_unless_all_are():
    agent = PPO(OBS, Discrete(3), TORSO, epochs=2, minibatch_size=23)
    bound(agent)
    assert [part.obs.shape[1] for part in agent.minibatches(rollout(Discrete(3)))] == [24] * 2
    agent.minibatch_size = 1
    assert [part.obs.shape[1] for part in agent.minibatches(rollout(Discrete(3)))] == [1] * 48


def test_with_an_lstm_minibatches_are_whole_environments():
    agent = PPO(OBS, Discrete(3), TORSO, lstm=7, epochs=1, minibatch_size=2 * T + 1)
    bound(agent)
    batch = rollout(Discrete(3))
    parts = list(agent.minibatches(batch))
    assert [part.obs.shape for part in parts] == [(T, 2, 5)] * 2
    obs = torch.cat([part.obs for part in parts], 1)
    assert torch.equal(obs[:, obs[0, :, 0].argsort()], batch.obs[:-1, batch.obs[0, :, 0].argsort()])


def test_a_minibatch_of_one_step_is_finite():
    agent = PPO(OBS, Discrete(3), TORSO, minibatch_size=1)
    bound(agent)
    losses, _ = agent.loss(whole(agent, rollout(Discrete(3))), 0.0)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "algo.agent.epochs=0 must be a whole number of 1 or more"),
        ({"minibatch_size": 1.5}, r"algo.agent.minibatch_size=1.5 must be a whole number"),
        ({"clip": 0.0}, "algo.agent.clip=0.0 must be a number above 0"),
        ({"lstm": 4, "shared": False}, "algo.agent.lstm=4 needs one torso .* set algo.agent.shared=true"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        PPO(OBS, Discrete(3), TORSO, **setting)
