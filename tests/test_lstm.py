"""The recurrent policy: what it remembers while it acts is what it remembers when it learns."""

import pytest
import torch
from batches import OBS, B, T, bound, rollout
from conftest import TORSO
from gymnasium.spaces import Discrete

from asynclab.agents import A3C, PPO
from asynclab.agents.actor_critic import forget
from asynclab.envs import Envs, make_envs
from asynclab.memory import Rollout
from asynclab.nets import LSTM
from asynclab.profile import Profile
from asynclab.storage.segments import MemoryFiles
from asynclab.training.state import Start, resume, save


def test_the_cell_is_torchs():
    torch.manual_seed(0)
    lstm, torchs = LSTM(3, 4), torch.nn.LSTM(3, 4)
    torchs.load_state_dict({f"{name}_l0": value for name, value in lstm.cell.state_dict().items()})
    x, state = torch.randn(5, 2, 3), torch.zeros(2, 2, 4)
    expected, _ = torchs(x)
    for t in range(5):
        state = lstm(x[t], state)
        torch.testing.assert_close(state[0], expected[t])


def test_the_policy_that_learns_is_the_one_that_acted():
    """Two rollouts of CartPole with many ends of episodes: recomputed log-probabilities are those of the actions."""
    torch.manual_seed(0)
    envs = make_envs("CartPole-v1", 3)
    agent = PPO(envs.obs_space, envs.action_space, TORSO, lstm=8, minibatch_size=10**6, epochs=1)
    bound(agent)
    agent.policy.linear.weight.data.mul_(100)  # so that memory matters
    memory = Rollout(envs.obs_space, envs.action_space, 3, horizon=40)
    obs = envs.reset([0, 1, 2])
    agent.start(3)
    memory.reset(obs)
    acted, rollouts, ends = [], 0, 0
    for _ in range(80):
        action = agent.act(torch.from_numpy(obs))
        acted.append(agent.policy(agent._state[0]).log_prob(action).detach())
        step = envs.step(action.numpy())
        agent.on_step(torch.from_numpy(step.done))
        memory.add(action.numpy(), step)
        ends += step.done.sum()
        obs = step.obs
        for batch in memory.batches(0):
            [part] = agent.minibatches(batch)
            order = [int((batch.obs[0] == first).all(1).nonzero()[0]) for first in part.obs[0]]
            torch.testing.assert_close(part.log_prob, torch.stack(acted[-40:])[:, order], rtol=1e-4, atol=1e-5)
            rollouts += 1
    assert rollouts == 2
    assert ends > 4


def test_an_ended_episode_is_forgotten_and_the_others_are_not():
    agent = A3C(OBS, Discrete(3), TORSO, lstm=7)
    bound(agent)
    agent.act(torch.randn(B, 5))
    before = agent._state.clone()
    agent.on_step(torch.tensor([False, True, False, False]))
    assert agent._state[:, 1].abs().max() == 0 < before[:, 1].abs().max()
    assert torch.equal(agent._state[:, [0, 2, 3]], before[:, [0, 2, 3]])


def test_a3c_loss_is_the_papers_with_a_memory():
    torch.manual_seed(0)
    agent = A3C(OBS, Discrete(3), TORSO, lstm=7, gamma=0.9, lam=0.8)
    bound(agent)
    agent._first_state = torch.randn(2, B, 7)
    agent._state = torch.randn(2, B, 7)
    batch = next(agent.minibatches(rollout(Discrete(3))))
    assert torch.equal(agent._first_state, agent._state)  # where the next rollout begins
    losses, _ = agent.loss(batch, 0.0)
    policy_loss = value_loss = 0.0
    for b in range(B):  # one environment at a time, step by step
        state, states, v, log_prob = batch.state[:, b : b + 1], [], [], []
        for t in range(T):
            state = agent.lstm(agent.actor_torso(batch.obs[t, b][None]), state)
            states.append(state)
            v.append(agent.value(state[0]).squeeze())
            log_prob.append(agent.policy(state[0]).log_prob(batch.action[t, b]).squeeze())
            if batch.done[t, b]:
                state = torch.zeros_like(state)
        v_end = agent.value(agent.lstm(agent.actor_torso(batch.obs[T, b][None]), state)[0]).squeeze()
        v_cut = agent.value(agent.lstm(agent.actor_torso(batch.final_obs), states[3])[0]).squeeze()
        trace = 0.0
        for t in reversed(range(T)):
            v_next = v_end if t == T - 1 else v[t + 1]
            if batch.done[t, b]:
                trace = 0.0
                v_next = 0.0 if batch.terminated[t, b] else v_cut
            trace = (batch.reward[t, b] + 0.9 * v_next - v[t] + 0.9 * 0.8 * trace).detach()
            policy_loss -= trace * log_prob[t] / (T * B)
            value_loss += 0.5 * ((trace + v[t]).detach() - v[t]) ** 2 / (T * B)
    torch.testing.assert_close(losses["policy"], policy_loss)
    torch.testing.assert_close(losses["value"], value_loss)


@pytest.mark.parametrize("agent_class", [A3C, PPO])
def test_gradients_reach_back_to_the_first_step_of_an_episode_and_not_beyond(agent_class):
    agent = agent_class(OBS, Discrete(3), TORSO, lstm=7)
    bound(agent)
    obs = torch.randn(T, B, 5, requires_grad=True)
    _, value, _ = agent._forward(obs, rollout(Discrete(3)).done, torch.zeros(2, B, 7))
    value.view(T, B)[-1].sum().backward()
    reached = obs.grad.abs().sum(-1) > 0
    assert reached[:, 0].all()
    assert reached[:, 1].tolist() == [False, False, False, True, True, True]  # done at 2


def test_the_memory_is_saved():
    agent, other = (A3C(OBS, Discrete(3), TORSO, lstm=7) for _ in range(2))
    bound(agent), bound(other)
    agent.act(torch.randn(B, 5))
    agent.begin_batch()
    agent.act(torch.randn(B, 5))
    other.load_state_dict(agent.state_dict())
    assert torch.equal(other._state, agent._state)
    assert torch.equal(other._first_state, agent._first_state)
    assert not torch.equal(agent._state, agent._first_state)
    assert agent._first_state.abs().max() > 0


def test_what_is_not_finite_is_forgotten_too():
    assert forget(torch.full((2, 1, 3), torch.nan), torch.tensor([True])).tolist() == [[[0.0] * 3]] * 2


@pytest.mark.parametrize(("steps", "with_memory"), [(10, True), (13, True), (13, False)])
@pytest.mark.parametrize("going_on", [True, False])
def test_a_resumed_session_remembers_the_episodes_that_go_on_and_no_others(
    make_trial, tmp_path, monkeypatch, steps, with_memory, going_on
):
    trial = make_trial("lstm")  # rollouts of 10 steps
    first = trial.session.set_up(0, trial.stores[0], Profile(False))
    obs = first.obs
    for _ in range(steps):
        action = first.learner.act(obs)
        step = first.envs.step(action)
        first.memory.add(action, step)
        first.learner.agent.on_step(torch.from_numpy(step.done))
        obs = step.obs
        for batch in first.memory.batches(0):
            list(first.learner.learn(batch))
    files = save(first, tmp_path, 0, MemoryFiles(tmp_path, 0) if with_memory else None, {})
    if not going_on:
        monkeypatch.setattr(Envs, "retrace", lambda *_: None)
    parts = trial.session.set_up(0, trial.stores[0], Profile(False))
    resume(parts, Start(tmp_path, frozenset(files)), 0, MemoryFiles(tmp_path, 0))
    agent, before = parts.learner.agent, first.learner.agent
    assert before._state.abs().max() > 0 < before._first_state.abs().max()
    assert torch.equal(agent._state, before._state if going_on else torch.zeros_like(before._state))
    if steps == 13 and with_memory:  # in the middle of a rollout
        assert torch.equal(agent._first_state, before._first_state)
    else:
        assert torch.equal(agent._first_state, agent._state)
