"""Running mean and variance over all sessions, and environments that use them."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import REPLAY
from gymnasium.wrappers.vector import NormalizeObservation, NormalizeReward

from asynclab.envs import make_envs
from asynclab.envs.normalize import Moments
from asynclab.profile import Profile


def test_several_writers_estimate_what_one_would_have():
    rng = np.random.default_rng(0)
    samples = rng.normal([1.0, -1e4, 5.0], [1.0, 3.0, 0.0], (300, 3))
    moments = Moments(3, writers=4)
    for i, part in enumerate(np.split(samples, 30)):
        moments.add(i % 3, part)  # the fourth has not begun
    mean, var = moments.mean_var()
    np.testing.assert_allclose(mean, samples.mean(0))
    np.testing.assert_allclose(var, samples.var(0), rtol=1e-6, atol=1e-12)
    assert moments.slots.is_shared()


def test_what_is_not_finite_spoils_nothing():
    moments = Moments(2)
    moments.add(0, np.array([[1.0, 2.0], [np.nan, 5.0], [np.inf, 5.0], [3.0, 4.0]]))
    moments.add(0, np.array([[np.nan, np.nan]]))
    mean, var = moments.mean_var()
    assert (mean.tolist(), var.tolist(), moments.slots[0, 0]) == ([2.0, 3.0], [1.0, 1.0], 2)


def test_a_very_large_number_leaves_the_estimate_finite():
    moments = Moments(2)
    moments.add(0, np.array([[1.0, 1.0], [3.0, np.finfo(np.float32).max]], np.float32))
    moments.add(0, np.array([[2.0, 1.0]], np.float32))
    mean, var = moments.mean_var()
    assert moments.slots.isfinite().all()
    assert (mean[0], var[0]) == pytest.approx((2.0, 2 / 3))
    assert var[1] > 1e76


def test_one_bad_reward_does_not_stay_in_the_discounted_return():
    envs = make_envs("Pendulum-v1", 2, scale_reward=0.9)
    envs.reset([1, 2])
    for reward in (np.array([np.nan, 1.0]), np.array([1.0, 1.0])):
        envs._discount(reward, np.array([False, False]))
    assert np.isfinite(envs.scale(np.array([1.0, 1.0]))).all()
    assert envs._discounted.tolist() == [1.0, 1.9]


def test_nothing_seen_leaves_samples_as_they_are():
    mean, var = Moments(2).mean_var()
    assert mean.tolist() == [0, 0]
    assert var.tolist() == [1, 1]


def test_observations_and_rewards_are_scaled_as_gymnasium_does():
    """On Pendulum without an end of an episode, where gymnasium's order of things is ours."""
    ours = make_envs("Pendulum-v1", 4, normalize_obs=True, scale_reward=0.9)
    plain = gym.make_vec("Pendulum-v1", num_envs=4, vectorization_mode="sync")
    theirs = NormalizeReward(NormalizeObservation(plain, epsilon=1e-8), gamma=0.9, epsilon=1e-8)
    for rms in (theirs.return_rms, theirs.env.obs_rms):
        rms.count = 0.0  # theirs begins with a sample of zeros
    seeds = [1, 2, 3, 4]
    theirs.env.update_running_mean = False  # ours counts what follows an action
    ours.reset(seeds), theirs.reset(seed=seeds)
    theirs.env.update_running_mean = True
    rng = np.random.default_rng(0)
    for _ in range(150):
        action = rng.uniform(-1, 1, (4, 1)).astype(np.float32)
        step, (obs, reward, *_) = ours.step(action), theirs.step(2 * action)
        np.testing.assert_allclose(step.obs, obs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(step.reward, reward, rtol=1e-4, atol=1e-5)


def test_the_last_observation_of_a_cut_episode_is_normalized_too():
    ours, plain = (make_envs("Pendulum-v1", 2, normalize_obs=n) for n in (True, False))
    ours.reset([1, 2]), plain.reset([1, 2])
    for _ in range(200):
        step, raw = ours.step(np.zeros((2, 1), np.float32)), plain.step(np.zeros((2, 1), np.float32))
    mean, var = ours._moments["obs"].mean_var()
    assert step.truncated.all()
    for b in (0, 1):
        expected = (raw.final_obs[b] - mean) / np.sqrt(var + 1e-8)
        np.testing.assert_allclose(step.final_obs[b], expected, rtol=1e-4, atol=1e-5)
    assert step.episodes == raw.episodes


def test_returns_are_discounted_within_an_episode_only():
    envs = make_envs("Pendulum-v1", 1, scale_reward=1.0)
    envs.reset([1])
    seen = 0.0
    for _ in range(200):
        seen += float(envs._env.step(np.zeros((1, 1), np.float32))[1][0])
    envs.reset([1])
    for _ in range(200):
        before = envs._discounted.copy()
        envs.step(np.zeros((1, 1), np.float32))
    assert before[0] == pytest.approx(seen, rel=0.05)
    assert envs._discounted[0] == 0


def test_all_sessions_normalize_with_what_all_have_seen():
    moments = {"obs": Moments(3, writers=2)}
    first, second = (make_envs("Pendulum-v1", 2, normalize_obs=True) for _ in range(2))
    for slot, envs in enumerate((first, second)):
        envs.attach(moments, slot)
        envs.reset([slot, 10 + slot])
        envs.step(np.ones((2, 1), np.float32))
    assert moments["obs"].slots[:, 0].tolist() == [2, 2]
    seen = np.concatenate([first.raw, second.raw])
    expected = (second.raw - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8)
    np.testing.assert_allclose(second._normalized(), expected, rtol=1e-4, atol=1e-5)
    before = first._normalized().copy()
    second.step(np.ones((2, 1), np.float32))
    assert not np.array_equal(first._normalized(), before)


def test_without_a_slot_the_estimates_stay_as_they_are():
    moments = {"obs": Moments(3), "return": Moments(1)}
    moments["obs"].add(0, np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 8.0]]))
    before = moments["obs"].slots.clone()
    envs = make_envs("Pendulum-v1", 2, normalize_obs=True, scale_reward=0.9)
    envs.attach(moments, None)
    obs = envs.reset([1, 2])
    envs.step(np.ones((2, 1), np.float32))
    assert torch.equal(moments["obs"].slots, before)
    assert np.abs(obs).max() <= 10
    assert moments["return"].slots.sum() == 0


def test_images_are_not_normalized():
    with pytest.raises(
        ValueError, match=r"env.make.normalize_obs=true is for vectors of floats, and this env shows images"
    ):
        make_envs("ALE/Pong-v5", 1, normalize_obs=True)
    with pytest.raises(ValueError, match=r"env.make.scale_reward=2 must be a number from 0 to 1"):
        make_envs("Pendulum-v1", 1, scale_reward=2)


def trained_on(make_trial, algo, steps):
    """Let a session of Pendulum act; return its parts, the observations acted on, and what a plain twin gave."""
    trial = make_trial(algo)
    parts = trial.session.set_up(0, trial.stores[0], Profile(False))
    plain = make_envs("Pendulum-v1", 2)
    obs, rng, acted_on, rows = plain.reset(parts.seeds).copy(), np.random.default_rng(0), [parts.obs.copy()], {}
    for _ in range(steps):
        action = rng.uniform(-1, 1, (2, 1)).astype(np.float32)
        seen, raw = parts.envs.step(action), plain.step(action)
        parts.memory.add(action, seen)
        acted_on.append(seen.obs.copy())
        for b in range(2):
            rows[float(action[b, 0])] = obs[b].copy(), raw.reward[b], raw.final_obs.get(b, raw.obs[b]).copy()
        obs = raw.obs.copy()
    return parts, acted_on, rows


def test_a_replay_hands_out_all_its_steps_by_the_present_moments(make_trial):
    parts, _, rows = trained_on(make_trial, "sac_normalized", 250)  # episodes are cut short after 200
    mean, var = parts.envs._moments["obs"].mean_var()
    (return_var,) = parts.envs._moments["return"].mean_var()[1]
    for batch in (parts.memory.sample() for _ in range(60)):
        for obs, action, reward, next_obs, *_ in zip(*batch, strict=True):
            raw_obs, raw_reward, raw_next = rows[float(action)]
            np.testing.assert_allclose(obs, (raw_obs - mean) / np.sqrt(var), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(next_obs, (raw_next - mean) / np.sqrt(var), rtol=1e-4, atol=1e-5)
            assert float(reward) == pytest.approx(raw_reward / np.sqrt(return_var), rel=1e-4, abs=1e-6)


def test_a_rollout_hands_out_what_was_acted_on(make_trial):
    parts, acted_on, _ = trained_on(make_trial, "ppo_normalized", 10)
    (batch,) = parts.memory.batches(10**9)
    assert torch.equal(batch.obs, torch.from_numpy(np.stack(acted_on)))


def test_a_replay_of_normalized_steps_is_filled_anew(make_trial):
    """Earlier versions kept what they had normalised, and rows and numbers in one file."""
    envs = trained_on(make_trial, "sac_normalized", 3)[0].envs
    numbers = {"head": 120, "full": False, "due": 0.0, "turn": 0, "least": 0}
    old = {"json": np.array(json.dumps({"numbers": numbers})), "reward": np.zeros((121, 2), np.float32)}
    other = REPLAY(envs.obs_space, envs.action_space, 2)
    other.attach(envs)
    other.load_state_dict(old)
    assert len(other) == 0
    assert np.array_equal(other._obs[0], envs.raw)
    assert other._least == 100  # its warm-up
