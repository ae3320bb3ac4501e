"""Environments: what reaches the agent is what a plain environment, reset by hand, would have given it."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from asynclab.doctor.audit import audit, hands_out_all
from asynclab.envs import make_envs
from asynclab.memory import Replay, Rollout
from asynclab.training.seeds import Seeds


class Countdown(gym.Env):
    """Counts steps; ends after ``seed % 5 + 3`` of them, truncated in odd episodes and terminated in even ones."""

    observation_space = Box(0, 1_000_000, (1,), np.float64)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = seed % 5 + 3 if seed is not None else self.length
        self.episode = 0 if seed is not None else self.episode + 1
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        end = self.t == self.length
        return self._obs(), float(self.t), end and self.episode % 2 == 0, end and self.episode % 2 == 1, {}

    def _obs(self):
        return np.array([1000.0 * self.episode + self.t])


class Picture(gym.Env):
    """One step; shows an image with its channels last, and a reward that is the action."""

    observation_space = Box(0, 255, (40, 44, 3), np.uint8)
    action_space = Box(np.array([-3.0, 0.0]), np.array([1.0, 10.0]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full((40, 44, 3), [1, 2, 3], np.uint8), {}

    def step(self, action):
        return np.full((40, 44, 3), [4, 5, 6], np.uint8), float(action[0] + 100 * action[1]), False, True, {}


gym.register("Countdown-v0", Countdown)
gym.register("Picture-v0", Picture)


def replay_all(envs, steps):
    """Step with random actions, and return the replay's every transition as arrays [steps, B, ...]."""
    replay = Replay(envs.obs_space, envs.action_space, envs.num_envs, capacity=steps * envs.num_envs, batch_size=1)
    rng = np.random.default_rng(0)
    replay.reset(envs.reset(list(range(envs.num_envs))))
    for _ in range(steps):
        action = rng.integers(2, size=envs.num_envs)
        replay.add(action, envs.step(action))
    return replay


def test_successors_are_true_and_truncation_is_told_from_termination():
    replay = replay_all(make_envs("Countdown-v0", 3), 50)
    seen = {0: 0, 1: 0, 2: 0}
    replay.combined, replay.batch_size = False, 4_000
    batch = replay.sample()
    for obs, next_obs, reward, terminated in zip(
        batch.obs, batch.next_obs, batch.reward, batch.terminated, strict=True
    ):
        if not terminated:  # a terminal state's successor is never looked at
            assert next_obs == obs + 1
            assert reward == obs % 1000 + 1
            seen[int(next_obs % 1000 >= 3)] += 1
        else:
            assert obs // 1000 % 2 == 0
            seen[2] += 1
    assert all(seen.values())


def test_rollout_keeps_every_truncated_successor():
    envs = make_envs("Countdown-v0", 3)
    rollout = Rollout(envs.obs_space, envs.action_space, 3, horizon=16)
    rollout.reset(envs.reset([0, 1, 2]))
    found = 0
    for i in range(64):
        rollout.add(np.zeros(3, np.int64), envs.step(np.zeros(3, np.int64)))
        for batch in rollout.batches(0):
            assert (i + 1) % 16 == 0
            truncated = (batch.done & ~batch.terminated).flatten().nonzero().flatten()
            assert set(truncated.tolist()) == set(batch.final_index.tolist())
            found += len(truncated)
            obs = batch.obs[:-1].flatten(0, 1)
            assert (batch.final_obs == obs[batch.final_index] + 1).all()
            follows = batch.obs[1:] == batch.obs[:-1] + 1
            assert (follows.squeeze(-1) == ~batch.done).all()
    assert found > 5


def test_images_come_channels_first_and_actions_are_rescaled():
    envs = make_envs("Picture-v0", 2)
    assert envs.obs_space.shape == (3, 40, 44)
    assert envs.action_space == Box(-1.0, 1.0, (2,), np.float32)
    assert envs.reset([0, 1])[0, :, 0, 0].tolist() == [1, 2, 3]
    step = envs.step(np.array([[-1.0, 0.0], [7.0, 7.0]], np.float32))  # the second is clipped to 1
    assert [e.ret for e in step.episodes] == [-3.0 + 500.0, 1.0 + 1000.0]
    assert step.final_obs[0][:, 0, 0].tolist() == [4, 5, 6]
    assert step.obs[0, :, 0, 0].tolist() == [1, 2, 3]


def test_discrete_observations_become_one_hot():
    envs = make_envs("FrozenLake-v1", 2)
    assert envs.obs_space.shape == (16,)
    assert envs.reset([0, 1]).sum(1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("id", ["Foo-v1", "ALE/Pongo-v5", "ALE/Pong-v99"])
def test_an_unknown_id_is_refused(id):
    with pytest.raises(ValueError, match=f"env.id={id} is not a registered environment"):
        make_envs(id, 1)


def test_returns_are_raw_when_rewards_are_clipped():
    envs = make_envs("ALE/MsPacman-v5", 4, clip_reward=True)
    rng = np.random.default_rng(0)
    envs.reset([0, 1, 2, 3])
    rewards, episodes = np.zeros(4), []
    while len(episodes) < 2:
        step = envs.step(rng.integers(envs.action_space.n, size=4))
        assert set(step.reward) <= {-1.0, 0.0, 1.0}
        rewards += step.reward
        episodes += [(e.ret, rewards[e.env]) for e in step.episodes]
        rewards[[e.env for e in step.episodes]] = 0
    for raw, clipped in episodes:
        assert raw >= 10 * clipped > 0  # a pellet is worth 10 and trains as 1
        assert raw % 10 == 0


def test_pong_is_the_v5_environment():
    envs = make_envs("ALE/Pong-v5", 2)
    assert (envs.obs_space.shape, envs.obs_space.dtype) == ((4, 84, 84), np.uint8)
    assert envs.action_space == Discrete(6)
    spec = gym.spec("ALE/Pong-v5").kwargs
    assert (spec["repeat_action_probability"], spec["frameskip"]) == (0.25, 4)


def test_seeds_of_all_sessions_and_environments_differ():
    seeds = [seed for rank in range(16) for seed in Seeds(0, rank).envs(8)]
    assert len(set(seeds)) == 128
    assert seeds == [seed for rank in range(16) for seed in Seeds(0, rank).envs(8)]
    streams = [(s.weights, s.torch, s.memory) for s in (Seeds(0, rank) for rank in range(16))]
    assert len({x for stream in streams for x in stream}) == 48
    assert not set(seeds) & {seed for rank in range(16) for seed in Seeds(1, rank).envs(8)}


def test_seeds_that_would_share_their_streams_with_others_are_refused(make_trial):
    assert Seeds(2**32 + 1, 0).weights == Seeds(1, 1).weights  # numpy makes two words of it: seed and rank
    with pytest.raises(ValueError, match=r"seed=4294967297 must be below 2\*\*32"):
        make_trial(seed=2**32 + 1)
    make_trial(seed=2**32 - 1)


@pytest.mark.parametrize("id", ["ALE/Pong-v5", "CartPole-v1"])
def test_environments_of_different_seeds_differ_and_equal_seeds_repeat(id):
    def observe(seeds):
        envs = make_envs(id, 2)
        envs.reset(seeds)
        return np.stack([envs.step(np.array([t % 2 + 2 * ("ALE" in id)] * 2)).obs.copy() for t in range(60)])

    first = observe([5, 6])
    assert np.array_equal(first, observe([5, 6]))
    assert not np.array_equal(first[:, 0], first[:, 1])


@pytest.mark.slow
def test_no_transition_crosses_an_episode_in_20000_frames_of_humanoid():
    make_memory = hands_out_all(partial(Replay, capacity=20_000, batch_size=1))
    result = audit(partial(make_envs, id="Humanoid-v5", num_envs=8), 20_000, make_memory)
    assert (result.frames, result.bogus) == (20_000, {})
    assert result.terminated > 500


@pytest.mark.slow
def test_no_transition_crosses_an_episode_in_20000_frames_of_pong():
    result = audit(partial(make_envs, id="ALE/Pong-v5", num_envs=8), 20_000, partial(Rollout, horizon=25))
    assert (result.frames, result.bogus) == (20_000, {})
    assert result.terminated > 10


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "Humanoid-v5"])
@pytest.mark.parametrize("steps", [1, 250])
def test_environments_are_brought_back_to_where_they_were(id, steps):
    envs, other = make_envs(id, 3), make_envs(id, 3)
    rng = np.random.default_rng(0)
    discrete = isinstance(envs.action_space, Discrete)
    actions = [rng.integers(2, size=3) if discrete else rng.uniform(-1, 1, (3, *envs.action_space.shape))
               for _ in range(steps + 250)]  # fmt: skip
    envs.reset([4, 5, 6])
    for action in actions[:steps]:
        obs = envs.step(action).obs
    seen = other.retrace(envs.state_dict())
    assert np.array_equal(seen, obs)
    for action in actions[steps:]:
        a, b = envs.step(action), other.step(action)
        assert np.array_equal(a.obs, b.obs)
        assert np.array_equal(a.reward, b.reward)
        assert a.episodes == b.episodes


class Unseeded(Countdown):
    def reset(self, *, seed=None, options=None):
        self.offset = np.random.default_rng().uniform()
        return super().reset(seed=seed)

    def _obs(self):
        return super()._obs() + self.offset


gym.register("Unseeded-v0", Unseeded)


def test_environments_that_cannot_be_brought_back_say_so():
    envs = make_envs("Unseeded-v0", 2)
    envs.reset([0, 1])
    envs.step(np.array([0, 0]))
    assert make_envs("Unseeded-v0", 2).retrace(envs.state_dict()) is None
    pong = make_envs("ALE/Pong-v5", 2)
    pong.reset([0, 1])
    assert pong.retrace(pong.state_dict()) is None


def test_an_episode_that_is_too_long_is_not_remembered(monkeypatch):
    monkeypatch.setattr("asynclab.envs.Traced.LIMIT", 5)
    envs = make_envs("Pendulum-v1", 1)
    envs.reset([0])
    for _ in range(9):
        envs.step(np.zeros((1, 1)))
    state = envs.state_dict()
    assert state["episodes"] == [{}]
    assert make_envs("Pendulum-v1", 1).retrace(state) is None
