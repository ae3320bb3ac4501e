import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from batches import BOX, OBS, B, T, bound, replayed, rollout
from conftest import TORSO
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution
from torch.nn.functional import conv2d, layer_norm

from asynclab import flat, layout, nets, precision
from asynclab.agents import A3C, PPO, SAC, NStepQ, make_sac
from asynclab.agents.distributions import SquashedNormal
from asynclab.envs import make_envs
from asynclab.flat import Vector
from asynclab.nets import ConvTorso, MLPTorso, auto_torso
from asynclab.schedules import Linear


def steps(envs):
    """Return the observations after one more step without torque."""
    return envs.step(np.zeros((envs.num_envs, *envs.action_space.shape), np.float32)).obs.copy()


def heads(agent, obs):
    """Return pi and V of a policy without memory, for observations [N, ...]."""
    return agent.policy(agent.actor_torso(obs)), agent.value(agent.critic_torso(obs)).squeeze(-1)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("action_space", [Discrete(3), BOX], ids=["discrete", "continuous"])
def test_a3c_loss_is_the_papers(action_space, shared):
    torch.manual_seed(0)
    agent = A3C(OBS, action_space, TORSO, shared=shared, gamma=0.9, lam=0.8, value_coef=0.5, entropy_coef=0.01)
    batch = rollout(action_space)
    losses, _ = agent.loss(batch, 0.0)
    # written again by hand, step by step
    policy_loss = value_loss = entropy = 0.0
    policy, v = heads(agent, batch.obs[:-1].flatten(0, 1))
    _, v_end = heads(agent, batch.obs[-1])
    _, v_cut = heads(agent, batch.final_obs)
    v = v.view(T, B)
    log_prob = policy.log_prob(batch.action.flatten(0, 1)).view(T, B)
    for b in range(B):
        trace = 0.0
        for t in reversed(range(T)):
            v_next = v_end[b] if t == T - 1 else v[t + 1, b]
            if batch.done[t, b]:
                trace = 0.0
                v_next = 0.0 if batch.terminated[t, b] else v_cut[0]
            trace = batch.reward[t, b] + 0.9 * v_next - v[t, b] + 0.9 * 0.8 * trace
            policy_loss -= trace.detach() * log_prob[t, b] / (T * B)
            value_loss += 0.5 * ((trace + v[t, b]).detach() - v[t, b]) ** 2 / (T * B)
    entropy = policy.entropy().mean()
    torch.testing.assert_close(losses["policy"], policy_loss)
    torch.testing.assert_close(losses["value"], value_loss)
    torch.testing.assert_close(losses["entropy"], -0.01 * entropy)


def test_a3c_entropy_follows_the_clock():
    agent = A3C(OBS, Discrete(3), TORSO, entropy_schedule=Linear(final=0.5))
    start, end = (agent.loss(rollout(Discrete(3)), progress)[0]["entropy"] for progress in (0.0, 1.0))
    torch.testing.assert_close(end, start / 2)


def test_a3c_separate_networks_have_a_gradient_of_their_own():
    agent = A3C(OBS, Discrete(3), TORSO, shared=False)
    parts = flat.slices(agent.nets)
    _, grad, _ = bound(agent)
    losses, _ = agent.loss(rollout(Discrete(3)), 0.0)
    losses["value"].backward(retain_graph=True)
    assert list(parts) == ["actor", "critic"]
    assert grad[parts["actor"]].abs().max() == 0 < grad[parts["critic"]].abs().max()


def test_sac_losses_reach_only_their_networks():
    agent = SAC(OBS, BOX, TORSO)
    parts = flat.slices(agent.nets)
    _, grad, _ = bound(agent)
    owners = {"critic": {"q1", "q2"}, "actor": {"actor"}, "temperature": {"temperature"}}
    for name, owned in owners.items():
        grad.zero_()
        agent.loss(replayed(), 0.0)[0][name].backward()
        assert {network for network, part in parts.items() if grad[part].abs().max() > 0} == owned


def test_sac_loss_is_the_papers():
    torch.manual_seed(0)
    agent = SAC(OBS, BOX, TORSO, gamma=0.9, init_alpha=0.3)
    weights, _, _ = bound(agent)
    weights[agent._critics_part] += 0.1  # so that critics and targets differ
    batch = replayed()
    torch.manual_seed(7)
    losses, _ = agent.loss(batch, 0.0)
    torch.manual_seed(7)
    a_next, log_prob_next = agent._pi(batch.next_obs).rsample()
    a, log_prob = agent._pi(batch.obs).rsample()
    target_1, target_2 = agent.target.network(agent.target.network.encode(batch.next_obs), a_next)
    y = batch.reward + 0.9 * ~batch.terminated * (torch.min(target_1, target_2) - 0.3 * log_prob_next)
    q1, q2 = agent.critics(agent.critics.encode(batch.obs), batch.action)
    torch.testing.assert_close(losses["critic"], 0.5 * ((q1 - y) ** 2).mean() + 0.5 * ((q2 - y) ** 2).mean())
    min_q = torch.min(*agent.critics(agent.critics.encode(batch.obs), a))
    torch.testing.assert_close(losses["actor"], (0.3 * log_prob - min_q).mean())
    log_alpha = torch.tensor(0.3).log()
    torch.testing.assert_close(losses["temperature"], -log_alpha * (log_prob.detach() - 2).mean())


def test_sac_targets_start_as_the_pulled_critics_and_follow_slowly():
    agent = SAC(OBS, BOX, TORSO, polyak=0.1)
    discarded = [p.clone() for p in agent.target.network.parameters()]
    weights = torch.randn(flat.size(agent.nets))  # what the store holds, not what the agent was built with
    agent.bind(Vector(weights), Vector(torch.zeros_like(weights)))
    critics, targets = list(agent.critics.parameters()), list(agent.target.network.parameters())
    assert all(torch.equal(p, q) for p, q in zip(critics, targets, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(discarded, targets, strict=True))
    before = copy.deepcopy(targets)
    weights += 1.0
    agent.on_update(0, 1)
    for p, q in zip(before, targets, strict=True):
        torch.testing.assert_close(q, p + 0.1)


def test_sac_targets_of_its_own_follow_the_updates_of_others_too():
    agent = SAC(OBS, BOX, TORSO, polyak=0.1)
    weights, _, _ = bound(agent)
    before = agent.target.weights.clone()
    weights += 1.0
    agent.on_update(0, 3)
    torch.testing.assert_close(agent.target.weights, before + 1 - 0.9**3)


def test_sac_begins_with_small_values_on_humanoids_observations():
    """A gain of 1 in the last layer began with |Q| of 8 to 13, nearly the same for every action."""
    envs = make_envs("Humanoid-v5", 4)
    obs = torch.from_numpy(np.concatenate([envs.reset([1, 2, 3, 4]), *(steps(envs) for _ in range(20))]))
    envs.close()
    assert obs.norm(dim=1).mean() > 100
    torch.manual_seed(0)
    agent = SAC(envs.obs_space, envs.action_space, partial(MLPTorso, hidden=[256, 256]))
    with torch.no_grad():
        q1, q2 = agent.critics(agent.critics.encode(obs), torch.rand(len(obs), 17) * 2 - 1)
    assert q1.abs().mean() < 2
    assert q2.abs().mean() < 2


def test_sac_refuses_unbounded_actions():
    with pytest.raises(ValueError, match=r"algo=sac needs bounded continuous or discrete actions.*use algo=a3c"):
        make_sac(OBS, Box(-np.inf, np.inf, (2,), np.float32), TORSO)


def test_squashed_normal_has_torchs_log_prob():
    torch.manual_seed(0)
    mean, log_std = torch.randn(100, 3), torch.randn(100, 3) / 2
    action, log_prob = SquashedNormal(mean, log_std).rsample()
    reference = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), TanhTransform())
    inside = action.abs().amax(1) < 0.99  # where atanh still gives u back
    torch.testing.assert_close(log_prob[inside], reference.log_prob(action)[inside], rtol=1e-3, atol=1e-3)


def test_squashed_normal_is_finite_at_the_edge():
    action, log_prob = SquashedNormal(torch.full((4, 2), 40.0), torch.full((4, 2), 2.0)).rsample()
    assert torch.isfinite(action).all()
    assert torch.isfinite(log_prob).all()


def test_acting_deterministically_repeats_and_sampling_does_not():
    for agent in (A3C(OBS, BOX, TORSO), SAC(OBS, BOX, TORSO)):
        obs = torch.randn(3, 5)
        assert torch.equal(agent.act(obs, deterministic=True), agent.act(obs, deterministic=True))
        assert not torch.equal(agent.act(obs), agent.act(obs))
        assert agent.act(obs).shape == (3, 2)


def test_sac_and_q_learning_are_judged_by_their_best_actions_and_actor_critics_by_sampled_ones():
    agents = A3C(OBS, BOX, TORSO), PPO(OBS, BOX, TORSO), *(make_sac(OBS, space, TORSO) for space in (BOX, Discrete(3)))
    assert [agent.deterministic for agent in agents] == [False, False, True, True]
    assert NStepQ(OBS, Discrete(3), TORSO).deterministic


def test_the_torso_fits_the_observation():
    settings = {"conv": [[8, 4, 2]], "hidden": [16]}
    assert isinstance(auto_torso(Box(0, 255, (3, 20, 20), np.uint8), **settings), ConvTorso)
    assert isinstance(auto_torso(OBS, **settings), MLPTorso)


def test_images_are_scaled_to_one():
    torso = ConvTorso(Box(0, 255, (4, 84, 84), np.uint8), conv=[[32, 8, 4], [64, 4, 2], [32, 3, 1]], hidden=[512])
    pixels = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    conv = torso.conv[0]
    scaled = conv2d(pixels.float() / 255, conv.weight, conv.bias, 4)
    torch.testing.assert_close(conv(pixels.float()), scaled, rtol=1e-4, atol=1e-5)
    assert torso(pixels).shape == (2, 512)


def test_observation_and_action_meet_in_one_layer():
    torch.manual_seed(0)
    torso = MLPTorso(OBS, 2, hidden=[16, 8])
    first, action = torso.dense.first, torso.dense.action
    joint = torch.cat([first.weight, action.weight], 1)
    torch.testing.assert_close(joint.T @ joint, 2 * torch.eye(7))  # orthogonal as a whole, gain sqrt(2)
    s, a = torch.randn(3, 5), torch.randn(3, 2)
    expected = torso.dense.rest(torch.relu(torch.cat([s, a], 1) @ joint.T + first.bias))
    torch.testing.assert_close(torso(s, a), expected)
    torch.testing.assert_close(torso.join(torso.encode(s), a), expected)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["dense", "images"])
def test_layer_norm_makes_a_torso_blind_to_the_scale_of_what_it_sees(kind, bf16):
    torch.manual_seed(0)
    if kind == "dense":
        torso, obs = MLPTorso(OBS, hidden=[16, 8], layer_norm=True), torch.randn(3, 5)
    else:
        space = Box(0, 255, (4, 84, 84), np.uint8)
        torso = ConvTorso(space, conv=[[8, 8, 4], [16, 4, 2]], hidden=[16], layer_norm=True)
        obs = torch.randint(40, (3, 4, 84, 84), dtype=torch.uint8)
    scaled = torso(obs * 6)
    if bf16:
        torso.bfloat16()
    tolerance = {"rtol": 0.05, "atol": 0.05} if bf16 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(torso(obs), scaled, **tolerance)
    assert scaled.std() > 0.1


def test_layer_norm_normalises_every_layer_before_its_relu():
    torch.manual_seed(0)
    torso = MLPTorso(OBS, 2, hidden=[16, 8], layer_norm=True)
    first, second = torso.dense.first, torso.dense.rest[0]
    s, a = torch.randn(3, 5), torch.randn(3, 2)
    x = torch.relu(layer_norm(first(s) + torso.dense.action(a), (16,)))
    torch.testing.assert_close(torso(s, a), torch.relu(layer_norm(second(x), (8,))))


@pytest.mark.parametrize("agent_class", [A3C, SAC])
def test_bf16_gradients_agree_with_fp32(agent_class):
    grads = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        agent = agent_class(OBS, BOX, TORSO)
        _, grad, gather = bound(agent, bf16)
        torch.manual_seed(1)
        losses, _ = agent.loss(rollout(BOX) if agent_class is A3C else replayed(), 0.0)
        sum(losses.values()).backward()
        gather()
        grads.append(grad)
    for part in flat.slices(agent.nets).values():
        assert torch.cosine_similarity(grads[0][part], grads[1][part], dim=0) > 0.99
    assert not torch.equal(*grads)


def test_bf16_gradients_of_the_pong_network_agree_with_fp32():
    space = Box(0, 255, (4, 84, 84), np.uint8)
    torso = partial(ConvTorso, conv=[[32, 8, 4], [64, 4, 2], [32, 3, 1]], hidden=[512])
    pixels = torch.randint(256, (T + 1, B, 4, 84, 84), dtype=torch.uint8)
    batch = rollout(Discrete(3))._replace(obs=pixels, final_obs=pixels[0, :1])
    grads = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        agent = A3C(space, Discrete(3), torso)
        _, grad, gather = bound(agent, bf16)
        sum(agent.loss(batch, 0.0)[0].values()).backward()
        gather()
        grads.append(grad)
    assert torch.cosine_similarity(*grads, dim=0) > 0.99
    assert abs(grads[0].norm() / grads[1].norm() - 1) < 0.02


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 5), (6, 7, 4, 8, 9)])
def test_taking_a_part_leaves_images_as_they_lie_in_memory(shape):
    x = torch.randint(0, 255, shape, dtype=torch.uint8)
    if len(shape) == 5:
        x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    index = torch.tensor([3, 0, 3])
    for dim, expected in ((0, x[index]), (1, x[:, index])):
        part = layout.take(x, dim, index)
        assert torch.equal(part, expected)
        assert len(shape) < 5 or part.stride()[2:] == x.stride()[2:]


@pytest.mark.parametrize("bf16", [False, True])
def test_torsos_return_float32_for_any_layout_of_the_pixels(bf16):
    torso = ConvTorso(Box(0, 255, (4, 84, 84), np.uint8), conv=[[8, 8, 4]], hidden=[16])
    if bf16:
        torso.bfloat16()
    pixels = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    features = torso(pixels)
    assert features.dtype is torch.float32
    assert torch.equal(features, torso(pixels.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("native", [False, True])
def test_auto_is_bf16_for_convolutional_torsos_where_the_processor_has_it(monkeypatch, native):
    monkeypatch.setattr(precision, "has_native_bf16", lambda device: native)
    pixels = Box(0, 255, (3, 20, 20), np.uint8)
    torso = partial(auto_torso, conv=[[8, 4, 2]], hidden=[16])
    for make, actions in (
        (A3C, Discrete(3)),
        (partial(PPO, shared=False), BOX),
        (make_sac, BOX),
        (NStepQ, Discrete(3)),
    ):
        assert [nets.is_convolutional(make(space, actions, torso).nets) for space in (pixels, OBS)] == [True, False]
    chosen = [precision.choose(name, conv, ["cpu"]) for name in ("auto", "fp32", "bf16") for conv in (True, False)]
    assert chosen == ["bf16" if native else "fp32", "fp32", "fp32", "fp32", "bf16", "bf16"]


def test_auto_is_fp32_if_only_some_torsos_are_convolutional_or_there_is_none():
    pixels = ConvTorso(Box(0, 255, (3, 20, 20), np.uint8), conv=[[8, 4, 2]], hidden=[16])
    assert nets.is_convolutional(nn.ModuleList([pixels, nn.Linear(16, 1)]))
    assert not nets.is_convolutional(nn.ModuleList([pixels, TORSO(OBS)]))
    assert not nets.is_convolutional(nn.Linear(16, 1))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision=fp8 is unknown; use one of auto, fp32, bf16"):
        precision.choose("fp8", True, ["cpu"])


@pytest.mark.parametrize(
    ("agent", "setting", "message"),
    [
        (A3C, {"shared": "off"}, "algo.agent.shared=off must be true or false"),
        (A3C, {"normalize_advantage": 1}, "algo.agent.normalize_advantage=1 must be true or false"),
        (A3C, {"entropy_schedule": 0.5}, "algo.agent.entropy_schedule=0.5 must be a schedule; set .*Linear"),
        (A3C, {"entropy_schedule": None}, "algo.agent.entropy_schedule=None must be a schedule"),
        (A3C, {"log_std_init": "small"}, "algo.agent.log_std_init=small must be a number"),
        (PPO, {"clip_value": "no"}, "algo.agent.clip_value=no must be true or false"),
        (PPO, {"clip_schedule": 0.5}, "algo.agent.clip_schedule=0.5 must be a schedule"),
        (SAC, {"shared_temperature": "no"}, "algo.agent.shared_temperature=no must be true or false"),
        (SAC, {"shared_targets": "off"}, "algo.agent.shared_targets=off must be true or false"),
        (SAC, {"target_entropy": "x"}, "algo.agent.target_entropy=x must be a number"),
    ],
)
def test_settings_of_another_kind_are_refused(agent, setting, message):
    with pytest.raises(ValueError, match=message):
        agent(OBS, BOX, TORSO, **setting)


@pytest.mark.parametrize(("agent", "log_std_init"), [(A3C, -2.0), (PPO, -2)])
def test_continuous_actions_begin_as_spread_as_asked(agent, log_std_init):
    torch.manual_seed(0)
    action = agent(OBS, BOX, TORSO, shared=False, log_std_init=log_std_init).act(torch.zeros(10_000, *OBS.shape))
    assert action.std(0).tolist() == pytest.approx([math.exp(-2)] * BOX.shape[0], rel=0.05)
