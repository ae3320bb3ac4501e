"""n-step double Q-learning from replay."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from batches import BOX, OBS, bound, replayed
from conftest import TORSO
from gymnasium.spaces import Box, Discrete

from asynclab import flat
from asynclab.agents import DQN, NStepQ
from asynclab.agents.histogram import Histogram
from asynclab.envs import Step
from asynclab.memory import Replay
from asynclab.nets import MLPTorso

ACTIONS = Discrete(3)
NO = np.zeros(1, bool)
YES = np.ones(1, bool)


def chain(n_step, gamma=0.5, capacity=100):
    """Return a memory of one environment that has seen nothing; states are numbers."""
    space = Box(-np.inf, np.inf, (1,), np.float32)
    memory = Replay(space, ACTIONS, 1, capacity=capacity, batch_size=400, n_step=n_step, gamma=gamma)
    memory.reset(np.zeros((1, 1), np.float32))
    return memory


def walk(memory, *steps):
    """Add steps of a reward, a next state, and an end: "t" for a termination, a true last state for a truncation."""
    for reward, state, *end in steps:
        final = {0: np.full(1, end[0], np.float32)} if end and end != ["t"] else {}
        terminated, truncated = (YES if end == ["t"] else NO), (YES if final else NO)
        obs = np.full((1, 1), state, np.float32)
        memory.add(np.zeros(1, np.int64), Step(obs, np.full(1, reward, np.float32), terminated, truncated, final, []))


def handed_out(memory):
    """Return reward, next state, termination and discount by state; all that is held is drawn, and each alike."""
    batch = memory.sample()
    found = {}
    for obs, reward, next_obs, terminated, discount in zip(
        batch.obs, batch.reward, batch.next_obs, batch.terminated, batch.discount, strict=True
    ):
        facts = (float(reward), float(next_obs), bool(terminated), float(discount))
        assert found.setdefault(float(obs), facts) == facts
    return found


def test_returns_of_three_steps_by_hand():
    memory = chain(3)
    # 0 -1-> 1 -2-> 2 -4-> 3 -8-> terminal; 10 -16-> 11 -32-> 12, cut short there; 20 -64-> 21 -128-> 22
    walk(memory, (1, 1), (2, 2), (4, 3), (8, 10, "t"), (16, 11), (32, 20, 12), (64, 21), (128, 22))
    assert handed_out(memory) == {
        0: (1 + 2 / 2 + 4 / 4, 3, False, 0.25),
        1: (2 + 4 / 2 + 8 / 4, 10, True, 0.0),
        2: (4 + 8 / 2, 10, True, 0.0),
        3: (8, 10, True, 0.0),
        10: (16 + 32 / 2, 12, False, 0.5),
        11: (32, 12, False, 1.0),
        20: (64 + 128 / 2, 22, False, 0.5),  # the newest have as many steps as there are
        21: (128, 22, False, 1.0),
    }
    walk(memory, (256, 23))
    assert handed_out(memory)[20] == (64 + 128 / 2 + 256 / 4, 23, False, 0.25)


def test_one_step_is_what_it_was():
    memory = chain(1, gamma=None)
    walk(memory, (1, 1), (2, 10, "t"), (4, 11), (8, 20, 12))
    assert handed_out(memory) == {
        0: (1, 1, False, 1.0),
        1: (2, 10, True, 0.0),
        10: (4, 11, False, 1.0),
        11: (8, 12, False, 1.0),
    }


@pytest.mark.parametrize("steps", range(4, 20))
def test_returns_do_not_run_from_the_newest_into_the_oldest(steps):
    memory = chain(3, gamma=1.0, capacity=6)
    walk(memory, *((1, t + 1) for t in range(steps)))
    found = handed_out(memory)
    held = range(max(0, steps - 6), steps)
    assert found == {t: (min(3, steps - t), min(t + 3, steps), False, 1.0) for t in held}


def test_a_reward_of_the_next_episode_may_be_anything():
    memory = chain(3)
    walk(memory, (1, 10, "t"), (np.inf, 11), (2, 12))
    assert handed_out(memory)[0] == (1, 10, True, 0.0)


def test_the_newest_is_in_every_batch_with_what_is_known_of_it():
    memory = chain(5)
    walk(memory, *((1, t + 1) for t in range(50)))
    batch = memory.sample()
    assert (batch.obs[-1].item(), batch.reward[-1].item(), batch.next_obs[-1].item()) == (49, 1, 50)


@pytest.mark.parametrize("huber", [True, False])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dueling", [True, False])
def test_the_loss_is_the_papers(double, dueling, huber):
    torch.manual_seed(0)
    agent = DQN(OBS, ACTIONS, TORSO, double=double, dueling=dueling, huber=huber, gamma=0.7)
    weights, _, _ = bound(agent)
    weights += 0.1 * torch.randn_like(weights)  # so that network and target differ
    batch = replayed(ACTIONS, discount=0.7**2)
    losses, _ = agent.loss(batch, 0.0)
    q, q_next, lagging = (net(obs) for net, obs in ((agent.q, batch.obs), (agent.q, batch.next_obs),
                                                    (agent.lagging, batch.next_obs)))  # fmt: skip
    assert (q_next.argmax(1) != lagging.argmax(1)).any()
    expected = 0.0
    for i in range(32):
        best = (q_next if double else lagging)[i].argmax()
        y = batch.reward[i] + (0.0 if batch.terminated[i] else 0.7**3 * lagging[i, best])
        error = (y - q[i, batch.action[i]]).abs()
        expected += (0.5 * error**2 if error < 1 or not huber else error - 0.5) / 32
    torch.testing.assert_close(losses["q"], expected)


def test_the_dueling_network_is_a_value_and_advantages_of_mean_zero():
    torch.manual_seed(0)
    agent = DQN(OBS, ACTIONS, TORSO, dueling=True)
    obs = torch.randn(7, 5)
    v, a = agent.q.hidden(agent.q.torso(obs)).relu().chunk(2, 1)
    advantage = agent.q.advantage(a)
    torch.testing.assert_close(agent.q(obs).mean(1), agent.q.value(v).squeeze(1))
    torch.testing.assert_close(agent.q(obs) - agent.q(obs)[:, :1], advantage - advantage[:, :1])


def test_a_value_becomes_a_gaussian_in_bins_by_hand():
    histogram = Histogram(5, 2.5)  # bins of width 1 around -2, -1, 0, 1, 2
    below = [math.erf((edge - 0.3) / (0.75 * math.sqrt(2))) for edge in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)]
    expected = [(right - left) / (below[5] - below[0]) for left, right in pairwise(below)]
    found = histogram.project(torch.tensor([0.3, 9.0, 2.5]))
    torch.testing.assert_close(found[0], torch.tensor(expected))
    torch.testing.assert_close(found[1], found[2])  # what is beyond the range is taken for its end
    torch.testing.assert_close(histogram.mean(torch.tensor([0.0, 0, math.log(2), 0, math.log(3)])), torch.tensor(0.5))
    logits = torch.tensor([[0.0, 0, math.log(2), 0, math.log(3)]])
    chosen = torch.tensor([1 / 8, 1 / 8, 2 / 8, 1 / 8, 3 / 8]).log()
    torch.testing.assert_close(histogram.loss(logits, torch.tensor([0.3])), -(torch.tensor(expected) * chosen).sum())


@pytest.mark.parametrize("value", [-7.3, -0.01, 0.0, 0.004, 2.0, 7.9])
def test_the_mean_of_a_values_histogram_is_the_value(value):
    histogram = Histogram(51, 10.0)
    assert histogram.mean(histogram.project(torch.tensor(value)).log()) == pytest.approx(value, abs=2e-3)


@pytest.mark.parametrize("dueling", [True, False])
def test_with_bins_the_loss_is_that_of_the_taken_actions_histogram(dueling):
    torch.manual_seed(0)
    agent = DQN(OBS, ACTIONS, TORSO, dueling=dueling, gamma=0.7, bins=21, value_range=4.0)
    weights, _, _ = bound(agent)
    weights += 0.1 * torch.randn_like(weights)
    batch = replayed(ACTIONS, discount=0.7**2)
    losses, metrics = agent.loss(batch, 0.0)
    expected, values = 0.0, 0.0
    for i in range(32):
        best = agent.q(batch.next_obs)[i].argmax()
        y = batch.reward[i] + (0.0 if batch.terminated[i] else 0.7**3 * agent.lagging(batch.next_obs)[i, best])
        chances = agent.q.scores(batch.obs)[i, batch.action[i]].log_softmax(-1)
        expected -= (Histogram(21, 4.0).project(y) * chances).sum() / 32
        values += (chances.exp() * (torch.arange(21) - 10) * 8 / 21).sum() / 32
    torch.testing.assert_close(losses["q"], expected.detach())
    torch.testing.assert_close(metrics["train/q"], values.detach())


def test_gradients_reach_the_network_only():
    agent = DQN(OBS, ACTIONS, TORSO)
    _, grad, gather = bound(agent)
    agent.loss(replayed(ACTIONS), 0.0)[0]["q"].backward()
    gather()
    assert grad.abs().max() > 0
    assert all(p.grad is None for p in agent.lagging.parameters())


@pytest.mark.parametrize("bins", [None, 51])
def test_it_finds_the_values_of_a_chain(bins):
    """Four states in a row; action 1 goes on, 0 goes back to the first, and the end of the row pays 1."""
    torch.manual_seed(0)
    space = Box(0, 1, (4,), np.float32)
    kind = {"bins": bins, "value_range": 2.0}
    agent = DQN(space, Discrete(2), lambda space: MLPTorso(space, hidden=[32]), gamma=0.8, target_every=20, **kind)
    weights, grad, _ = bound(agent)
    memory = Replay(space, Discrete(2), 1, capacity=4_000, batch_size=64, n_step=3, gamma=0.8, combined=False)
    rng, eye, state = np.random.default_rng(0), np.eye(4, dtype=np.float32), 0
    memory.reset(eye[[state]])
    for _ in range(4_000):
        action = rng.integers(2, size=1)
        end = bool(action[0] and state == 3)
        state = state + 1 if action[0] and not end else 0
        memory.add(action, Step(eye[[state]], np.full(1, end, np.float32), np.array([end]), NO, {}, []))
    optimizer = torch.optim.Adam([weights], lr=3e-3)
    for update in range(1_500):
        grad.zero_()
        agent.loss(memory.sample(), 0.0)[0]["q"].backward()
        weights.grad = grad
        optimizer.step()
        agent.on_update(update, 1)
    best = [0.0] * 4  # the value of each state when actions are best from the third on

    def q(state, action, steps=3):
        if action and state == 3:
            return 1.0
        after = state + 1 if action else 0
        return 0.8 * (best[after] if steps == 1 else (q(after, 0, steps - 1) + q(after, 1, steps - 1)) / 2)

    for _ in range(100):
        best = [max(q(state, 0), q(state, 1)) for state in range(4)]
    expected = torch.tensor([[q(state, action) for action in (0, 1)] for state in range(4)])
    torch.testing.assert_close(agent.q(torch.eye(4)), expected, atol=0.05, rtol=0)


def test_environments_of_all_sessions_take_the_rates_in_turn():
    agent = DQN(OBS, ACTIONS, TORSO, epsilons=[0.1, 0.01, 0.5], anneal=0.5)
    rates = []
    for rank in range(2):
        agent.start(4, rank)
        rates.append([[round(e, 3) for e in agent.epsilon(progress).tolist()] for progress in (0.0, 0.25, 1.0)])
    assert rates[0] == [[1, 1, 1, 1], [0.55, 0.505, 0.75, 0.55], [0.1, 0.01, 0.5, 0.1]]
    assert rates[1][2] == [0.01, 0.5, 0.1, 0.01]


def test_each_environment_explores_at_its_own_rate():
    torch.manual_seed(0)
    agent = DQN(OBS, Discrete(4), TORSO, epsilons=[0.0, 0.8])
    bound(agent)
    agent.start(2)
    obs = torch.randn(1, 5).expand(2, 5)
    best = agent.act(obs, deterministic=True)
    other = torch.stack([agent.act(obs) != best for _ in range(5_000)]).float().mean(0)
    assert other[0] == 0
    assert 0.57 < other[1] < 0.63  # one random action in four is the best one


def test_both_forms_of_q_learning_have_the_same_network():
    torch.manual_seed(0)
    first = flat.flatten(DQN(OBS, ACTIONS, TORSO).nets)
    torch.manual_seed(0)
    assert torch.equal(first, flat.flatten(NStepQ(OBS, ACTIONS, TORSO).nets))


@pytest.mark.parametrize(
    ("space", "setting", "message"),
    [
        (BOX, {}, "algo=dqn needs discrete actions"),
        (ACTIONS, {"double": "yes"}, "algo.agent.double=yes must be true or false"),
        (ACTIONS, {"dueling": 1}, "algo.agent.dueling=1 must be true or false"),
        (ACTIONS, {"huber": 2.0}, "algo.agent.huber=2.0 must be true or false"),
        (ACTIONS, {"bins": 0}, "algo.agent.bins=0 must be a whole number of 1 or more"),
        (ACTIONS, {"bins": 1}, "algo.agent.bins=1 must be at least 2, or null to learn values by their errors"),
        (ACTIONS, {"bins": 5, "value_range": 0}, "algo.agent.value_range=0 must be"),
        (ACTIONS, {"target_every": None}, "algo.agent.target_every=None must be a whole number of 1 or more"),
        (ACTIONS, {"epsilons": []}, r"algo.agent.epsilons=\[\] must be a list of one rate of exploration or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(space, setting, message):
    with pytest.raises(ValueError, match=message):
        DQN(OBS, space, TORSO, **setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_step": 0}, "algo.memory.n_step=0 must be a whole number of 1 or more"),
        ({"n_step": 2.5}, "algo.memory.n_step=2.5 must be a whole number of 1 or more"),
        ({"n_step": 3, "gamma": None}, "algo.memory.n_step=3 needs algo.memory.gamma, the agent's discount"),
        ({"n_step": 3, "gamma": 1.5}, "algo.memory.gamma=1.5 must be a number from 0 to 1"),
    ],
)
def test_memories_that_cannot_work_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        chain(**setting)


def test_exploration_that_is_over_before_anything_is_learned_is_told(make_trial, caplog):
    make_trial("dqn", anneal=0.05, max_frame=2_000)
    assert "random actions become rare within the first 100 frames (algo.agent.anneal=0.05), before" in caplog.text
    caplog.clear()
    make_trial("dqn", anneal=0.06, max_frame=2_000)
    make_trial("nstep_q", anneal=0.001, max_frame=2_000)
    assert "random actions" not in caplog.text
