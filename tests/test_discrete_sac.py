"""SAC with discrete actions, and what its sessions share."""

import math

import pytest
import torch
from batches import BOX, OBS, bound, replayed
from conftest import TORSO
from gymnasium.spaces import Discrete
from test_learner import learner_of, some_batches

from asynclab import flat
from asynclab.agents import SAC, DiscreteSAC, make_sac
from asynclab.distributed import Synced
from asynclab.flat import Vector

ACTIONS = Discrete(3)


def test_the_actions_choose_the_algorithm():
    assert type(make_sac(OBS, ACTIONS, TORSO)) is DiscreteSAC
    assert type(make_sac(OBS, BOX, TORSO)) is SAC


def test_the_loss_is_the_papers():
    torch.manual_seed(0)
    agent = make_sac(OBS, ACTIONS, TORSO, gamma=0.9, init_alpha=0.3, target_entropy=0.5)
    weights, _, _ = bound(agent)
    weights[agent._critics_part] += 0.1  # so that critics and targets differ
    batch = replayed(ACTIONS)
    losses, metrics = agent.loss(batch, 0.0)
    critic = actor = entropy = 0.0
    pi, pi_next = (agent._logits(obs).softmax(-1) for obs in (batch.obs, batch.next_obs))
    q = torch.stack(agent.critics(agent.critics.encode(batch.obs)))
    q_next = torch.stack(agent.target.network(agent.target.network.encode(batch.next_obs))).amin(0)
    for i in range(32):  # one transition and one action at a time
        v = sum(pi_next[i, a] * (q_next[i, a] - 0.3 * pi_next[i, a].log()) for a in range(3))
        y = (batch.reward[i] + 0.9 * (not batch.terminated[i]) * v).detach()
        critic += 0.5 * sum((q[k, i, batch.action[i]] - y) ** 2 for k in (0, 1)) / 32
        actor -= sum(pi[i, a] * (q[:, i, a].min().detach() - 0.3 * pi[i, a].log()) for a in range(3)) / 32
        entropy -= sum(pi[i, a] * pi[i, a].log() for a in range(3)) / 32
    torch.testing.assert_close(losses["critic"], critic)
    torch.testing.assert_close(losses["actor"], actor)
    torch.testing.assert_close(metrics["train/entropy"], entropy.detach())
    # the temperature rises where there is less entropy than half of the largest
    expected = -math.log(0.3) * (0.5 * math.log(3) - entropy.detach())
    torch.testing.assert_close(losses["temperature"], expected)


def test_losses_reach_only_their_networks():
    agent = make_sac(OBS, ACTIONS, TORSO)
    parts = flat.slices(agent.nets)
    _, grad, _ = bound(agent)
    owners = {"critic": {"q1", "q2"}, "actor": {"actor"}, "temperature": {"temperature"}}
    for name, owned in owners.items():
        grad.zero_()
        agent.loss(replayed(ACTIONS), 0.0)[0][name].backward()
        assert {network for network, part in parts.items() if grad[part].abs().max() > 0} == owned


def test_the_target_entropy_is_a_share_of_the_largest():
    assert make_sac(OBS, ACTIONS, TORSO).target_entropy == pytest.approx(0.98 * math.log(3))
    with pytest.raises(ValueError, match=r"algo.agent.target_entropy=1.5 must be a number from 0 to 1"):
        make_sac(OBS, ACTIONS, TORSO, target_entropy=1.5)
    assert make_sac(OBS, BOX, TORSO).target_entropy == -2.0


def update(agent, grad, space):
    grad.zero_()
    for p in agent.own:
        p.grad = None
    sum(agent.loss(replayed(space), 0.0)[0].values()).backward()
    agent.on_update(0, 1)


def test_diagnostics_leave_the_gradient_of_a_temperature_of_its_own(make_trial):
    temperatures = []
    for diagnostics in (False, True):
        mode = Synced(1, diagnostics=diagnostics)
        trial = make_trial("discrete_sac", mode=mode, shared_temperature=False, temperature_lr=0.01)
        learner, other = learner_of(trial), learner_of(trial)
        batch, second = some_batches(trial, 2)
        list(other.update(second))  # so that a fresh gradient is another one
        torch.manual_seed(0)
        list(learner.update(batch))
        temperatures.append(float(learner.agent.temperature.log_alpha.grad))
    assert temperatures[0] == temperatures[1] != 0


@pytest.mark.parametrize("space", [ACTIONS, BOX], ids=["discrete", "continuous"])
def test_a_temperature_of_its_own_is_no_part_of_theta_and_learns_as_the_shared_one(space):
    agents = []
    for shared in (True, False):
        torch.manual_seed(0)
        agent = make_sac(OBS, space, TORSO, shared_temperature=shared, temperature_lr=0.01)
        assert ("temperature" in agent.nets) is shared
        weights, grad, _ = bound(agent)
        theta = torch.nn.Parameter(weights)
        adam = torch.optim.Adam([theta], lr=0.01)
        for _ in range(3):
            torch.manual_seed(1)
            update(agent, grad, space)
            if shared:
                part = flat.slices(agent.nets)["temperature"]
                theta.grad = torch.zeros_like(grad)
                theta.grad[part] = grad[part]
                with torch.no_grad():
                    adam.step()
        agents.append(agent)
    first, second = (float(agent.temperature.log_alpha.detach()) for agent in agents)
    assert first == pytest.approx(second, rel=1e-3)
    assert first != 0.0


def test_shared_targets_are_moved_by_every_session_and_others_by_their_own_alone():
    shared, own = (make_sac(OBS, ACTIONS, TORSO, polyak=0.5, shared_targets=s) for s in (True, False))
    assert own.target_part is None
    weights = flat.flatten(shared.nets)
    target = weights[shared.target_part].clone()
    second = make_sac(OBS, ACTIONS, TORSO, polyak=0.5, shared_targets=True)
    for agent in (shared, second):
        agent.bind(Vector(weights), Vector(torch.zeros_like(weights)), target)
    own.bind(Vector(weights), Vector(torch.zeros_like(weights)))
    before = target.clone()
    weights += 1.0
    for agent in (shared, second, own):
        agent.on_update(0, 1)
    torch.testing.assert_close(target, before + 0.75)
    torch.testing.assert_close(flat.flatten(second.target.network), target)
    torch.testing.assert_close(flat.flatten(own.target.network), before + 0.5)


def test_what_is_a_sessions_own_is_saved():
    settings = {"shared_temperature": False, "temperature_lr": 0.01}
    agent, other = (make_sac(OBS, ACTIONS, TORSO, **settings) for _ in range(2))
    _, grad, _ = bound(agent)
    bound(other)
    update(agent, grad, ACTIONS)
    other.load_state_dict(agent.state_dict())
    assert other.temperature.log_alpha == agent.temperature.log_alpha != 0
    assert torch.equal(flat.flatten(other.target.network), flat.flatten(agent.target.network))
    assert other._temperature_optimizer.state_dict()["state"][0]["step"] == 1
