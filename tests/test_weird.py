"""Any environment that gymnasium allows is trained right, or refused in one sentence."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ROOT
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.utils import instantiate
from weird_env import ACTIONS, OBSERVATIONS, REFUSED, REFUSED_ACTIONS

import asynclab
from asynclab import config
from asynclab.adapters.actions import Actions
from asynclab.agents import A3C, DQN, PPO, NStepQ, make_sac
from asynclab.agents.distributions import categorical, multi_categorical
from asynclab.config import targets
from asynclab.doctor.audit import audit, hands_out_all, random_actions
from asynclab.envs import make_envs
from asynclab.evaluation.play import check_changes, evaluate
from asynclab.memory import Replay, Rollout
from asynclab.nets import ConvTorso, JoinedTorso, MLPTorso, auto_torso, is_convolutional

config.register()
TORSO = partial(auto_torso, hidden=[16])


def play(id, steps=25, num_envs=2, **settings):
    """Step with random actions; return the environments and all steps."""
    envs = make_envs(id, num_envs, **settings)
    envs.reset(list(range(num_envs)))
    rng = np.random.default_rng(0)
    steps = [
        step._replace(obs=step.obs.copy()) for step in (envs.step(random_actions(rng, envs)) for _ in range(steps))
    ]
    envs.close()
    return envs, steps


# Actions


@pytest.mark.parametrize("name", ACTIONS)
def test_actions_lie_in_the_space_in_training_and_from_load(name):
    space = ACTIONS[name]
    envs, steps = play(f"Actions{name}-v0")  # which asserts it
    assert [e.ret for step in steps for e in step.episodes] == [20.0, 20.0]
    rng = np.random.default_rng(0)
    for size in (1, 1e6):
        given = random_actions(rng, envs) * (size if isinstance(envs.action_space, Box) else 1)
        for action, sent in zip(given, Actions(space)(given), strict=True):
            assert space.contains(envs.actions.one(action))
            assert np.array_equal(envs.actions.one(action), sent)


@pytest.mark.parametrize(
    ("name", "given", "sent"),
    [
        ("Half", [-3.0, 2.5], [0.0, 2.5]),
        ("HalfAbove", [0.5, -0.5], [1.0, 49.5]),
        ("Bytes", [-1.0, 0.5], [-128, 63]),
        ("Longs", [-2.4, 1e30], [-2, 10**15]),
        ("Huge", [-2.4, 7.0], [-2.4, 7.0]),
        ("Mixed", [0.5, -9.0, -1.0, 0.3], [2.0, -9.0, 0.0, 5.0]),
        ("Matrix", [0.5] * 6, [[1.0] * 3] * 2),
        ("Scalar", [-0.5], -1.0),
        ("Double", [1.0, -1.0], [7.0, -1e-3]),
        ("MultiMatrix", [0, 1, 2, 3], [[0, 2], [4, 6]]),
        ("BinaryMatrix", [0, 1, 1, 0], [[0, 1], [1, 0]]),
        ("Bytes", [np.nan, np.inf], [0, 127]),  # not sent as nan
        ("Huge", [np.nan, 1.0], [0.0, 1.0]),
    ],
)
def test_what_an_action_becomes(name, given, sent):
    actions = Actions(ACTIONS[name])
    dtype = np.float32 if isinstance(actions.space, Box) else np.int64
    assert np.array_equal(actions.one(np.array(given, dtype)), np.array(sent, ACTIONS[name].dtype))


def test_discrete_actions_begin_where_they_do():
    assert [Actions(Discrete(3, start=5)).one(np.int64(a)[()]) for a in (0, 2)] == [5, 7]


def test_bounded_floats_are_what_they_have_always_been():
    space = Box(np.array([-0.4, -2.0], np.float32), np.array([0.4, 3.0], np.float32))
    given = np.random.default_rng(0).normal(0, 1, (1000, 2)).astype(np.float32)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    assert np.array_equal(
        Actions(space)(given), np.clip(middle + half * np.clip(given, -1.0, 1.0), space.low, space.high)
    )


def test_what_the_environment_does_to_an_action_does_not_reach_the_agent():
    envs = make_envs("Doubles-v0", 2)
    envs.reset([0, 1])
    action = np.ones((2, 2), np.float32)
    envs.step(action)
    assert (action == 1).all()


@pytest.mark.parametrize("name", REFUSED_ACTIONS)
def test_other_actions_are_refused(name):
    with pytest.raises(ValueError, match=rf"^env\.id=RefusedActions{name}-v0 has actions .*; they must be Discrete"):
        make_envs(f"RefusedActions{name}-v0", 2)


@pytest.mark.parametrize("kind", [A3C, PPO])
@pytest.mark.parametrize("name", ["Multi", "MultiMatrix", "Binary", "Start", "Matrix", "Scalar"])
def test_actor_critics_act_and_learn_in_any_of_them(name, kind):
    envs = make_envs(f"Actions{name}-v0", 2)
    agent = kind(envs.obs_space, envs.action_space, TORSO)
    agent.start(2)
    memory = Rollout(envs.obs_space, envs.action_space, 2, horizon=4)
    obs = envs.reset([0, 1])
    memory.reset(obs)
    for _ in range(4):
        action = agent.act(torch.from_numpy(obs.copy())).numpy()
        step = envs.step(action)
        memory.add(action, step)
        obs = step.obs
    (batch,) = memory.batches(0)
    for minibatch in agent.minibatches(batch):
        losses, _ = agent.loss(minibatch, 0.0)
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in agent.nets.parameters())


@pytest.mark.parametrize("kind", [make_sac, NStepQ, DQN])
def test_others_refuse_several_numbers_in_a_sentence(kind):
    space = Actions(ACTIONS["Multi"]).space
    with pytest.raises(ValueError, match=r"^algo=\w+ needs .*actions, and this env has MultiDiscrete\(\[2 3 4\]\)"):
        kind(Box(-1, 1, (3,)), space, TORSO)


def test_the_numbers_of_an_action_are_independent_and_each_is_one_of_its_own():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    policy, parts = multi_categorical(logits, [2, 3]), [categorical(logits[:, :2]), categorical(logits[:, 2:])]
    action = torch.tensor([[0, 0], [1, 2], [1, 1], [0, 2]])
    by_hand = sum(part.log_prob(action[:, i]) for i, part in enumerate(parts))
    assert torch.allclose(policy.log_prob(action), by_hand)
    assert torch.allclose(policy.entropy(), sum(part.entropy() for part in parts))
    assert torch.equal(policy.mode, torch.stack([part.mode for part in parts], 1))
    drawn = torch.stack([policy.sample() for _ in range(200)])
    assert drawn.amax((0, 1)).tolist() == [1, 2]
    (policy.entropy().sum() + policy.log_prob(action).sum()).backward()
    assert logits.grad.isfinite().all()


# Observations


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations_are_one_array_which_training_and_load_agree_on(name):
    _, shape, dtype = OBSERVATIONS[name]
    envs, steps = play(f"Shows{name}-v0", steps=2)
    assert (envs.obs_space.shape, envs.obs_space.dtype) == (shape, dtype)
    assert envs.obs_space.contains(steps[0].obs[0])
    plain = gym.make(f"Shows{name}-v0")
    first = plain.reset(seed=0)[0]
    envs = make_envs(f"Shows{name}-v0", 2)
    assert np.array_equal(envs.reset([0, 1])[:1], envs.observe(first))


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_every_transition_is_one_of_a_plain_environment(name):
    result = audit(partial(make_envs, id=f"Shows{name}-v0", num_envs=2), 100, partial(Rollout, horizon=10))
    assert (result.bogus, result.terminated) == ({}, 4)


@pytest.mark.parametrize("name", REFUSED)
def test_observations_without_a_fixed_size_are_refused(name):
    with pytest.raises(ValueError, match=rf"^env\.id=Refused{name}-v0 has observations of {REFUSED[name][1]}"):
        make_envs(f"Refused{name}-v0", 2)


@pytest.mark.parametrize(("id", "convolutional"), [("BrightDict-v0", False), ("BrightTuple-v0", True)])
def test_numbers_beside_pictures_are_not_rounded_to_eight_bits(id, convolutional):
    envs = make_envs(id, 1)
    assert is_convolutional(auto_torso(envs.obs_space, hidden=[8])) == convolutional
    envs.close()


@pytest.mark.parametrize(
    ("id", "kind"),
    [
        ("BrightDict-v0", JoinedTorso),
        ("BrightTuple-v0", JoinedTorso),
        ("BrightRows-v0", ConvTorso),
        ("BrightStack-v0", ConvTorso),
        ("BrightBytes-v0", MLPTorso),
        ("BrightBits-v0", MLPTorso),
        ("BrightTiny-v0", MLPTorso),
    ],
)
def test_bytes_are_scaled_to_one_and_images_are_convolved(id, kind):
    envs = make_envs(id, 1)
    torso = auto_torso(envs.obs_space, hidden=[8])
    assert type(torso) is kind
    obs = torch.from_numpy(envs.reset([0]).copy())
    if envs.obs_space.dtype == np.uint8:
        high = torch.from_numpy(envs.obs_space.high.copy()).float()
        as_floats = auto_torso(envs.obs_space, hidden=[8])
        as_floats.load_state_dict(torso.state_dict())
        seen = []
        torso.dense.first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        torso(obs)
        bright = torso(high[None])  # all as bright as can be
        assert bright.isfinite().all()
        assert seen[-1].abs().max() < 5
    else:
        assert obs.max() <= 1


def test_an_image_in_a_dict_lies_where_the_convolutions_look_for_it():
    envs = make_envs("ShowsCameraAndMore-v0", 1)
    space = envs.obs_space
    torso = auto_torso(space, hidden=[8])
    plain = gym.make("ShowsCameraAndMore-v0")
    first = plain.reset(seed=0)[0]
    seen = []
    torso.convs[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torso(torch.from_numpy(envs.observe(first)))
    assert np.allclose(seen[0][0].numpy(), np.moveaxis(first["cam"], -1, 0) / 255)


def test_convolutions_that_were_asked_for_must_fit():
    space = Box(0, 255, (3, 16, 16), np.uint8)
    with pytest.raises(ValueError, match=r"env\.torso\.conv=\[\[32, 90, 4\]\] does not fit images of \(3, 16, 16\)"):
        auto_torso(space, conv=[[32, 90, 4]], hidden=[8])


@pytest.mark.parametrize("hidden", [64, [], "64", [64, 0], [6.5], None])
def test_widths_that_are_none_are_refused(hidden):
    with pytest.raises(ValueError, match=r"env\.torso\.hidden=.* must be a list of the dense layers' widths"):
        auto_torso(Box(-1, 1, (3,)), hidden=hidden)


# Not finite


@pytest.mark.parametrize(
    ("id", "said", "step", "lost"),
    [
        ("NanReward-v0", r"environment 0 of env.id=NanReward-v0 gave the reward nan in step 10", 9, {9}),
        ("InfReward-v0", r"environment 0 of .* gave the reward -inf in step 3", 2, {2, 22}),
        ("NanObs-v0", r"environment 0 of .* an observation with nan \(number 1 of 3\) in step 7", 6, {6, 7}),
        ("NanStart-v0", r"environment 0 of .* an observation with inf \(number 2 of 3\) in step 0", 0, {0, 19, 20}),
        ("NanEnd-v0", r"environment 0 of .* an observation with nan \(number 0 of 3\) in step 20", 19, {19}),
    ],
)
def test_what_is_not_finite_is_told_and_not_learned_from(id, said, step, lost):
    envs, steps = play(id)
    assert re.match(said, envs.complaint)
    assert {t for t, s in enumerate(steps) if np.isnan(s.reward).any()} == lost
    for s in steps:
        assert np.isfinite(s.obs).all()
        assert all(np.isfinite(obs).all() for obs in s.final_obs.values())


def test_a_reward_that_is_not_finite_is_not_clipped_to_one():
    _, steps = play("InfReward-v0", clip_reward=True)
    assert np.isnan(steps[2].reward).all()
    assert (steps[0].reward == 1).all()


def test_load_refuses_what_is_not_finite():
    envs = make_envs("NanStart-v0", 1)
    with pytest.raises(ValueError, match="the observation is not finite"):
        envs.observe(gym.make("NanStart-v0").reset(seed=0)[0])


@pytest.mark.medium
def test_a_run_without_one_update_is_no_success_and_says_why(train):
    settings = ["algo=a3c", "env=gym", "env.id=weird_env:NanAlways-v0", "env.max_frame=2_000"]
    done = train(*settings)
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert "gave the reward nan in step 1; updates that learn from such steps are dropped" in said
    assert "no update was applied, so nothing was learned; " in done.stderr
    assert "Traceback" not in done.stderr
    assert "finished:" not in said
    assert "more dropped, as they were not finite" in said
    again = train(*settings, "resume=auto")
    assert (again.returncode, "no update was applied, so nothing" in again.stderr) == (1, True)


# Lifecycles


@pytest.mark.parametrize("id", ["InPlace-v0", "InPlaceDict-v0", "SameStep-v0", "Disabled-v0"])
def test_the_last_observation_is_the_episodes_own(id):
    mode = "vector_entry_point" if id in ("SameStep-v0", "Disabled-v0") else None
    _, steps = play(id, vectorization_mode=mode)
    assert [step.final_obs[1][0] for step in steps if step.final_obs] == [10.0, 10.0]
    assert [e.ret for step in steps for e in step.episodes] == [10.0] * 4
    make = partial(make_envs, id=id, num_envs=2, vectorization_mode=mode)
    for make_memory in (partial(Rollout, horizon=10), partial(Replay, capacity=100, batch_size=2)):
        result = audit(make, 100, hands_out_all(make_memory))
        assert (result.bogus, result.truncated >= 8) == ({}, True)


def test_a_vector_that_resets_in_the_next_step_is_refused():
    with pytest.raises(ValueError, match=r"env\.id=NextStep-v0 cannot be made \(.*its vector resets in the step after"):
        make_envs("NextStep-v0", 2, vectorization_mode="vector_entry_point")


def test_a_vector_whose_observations_are_no_arrays_is_refused():
    with pytest.raises(ValueError, match=r"env\.id=Numbers-v0 has .*Discrete\(5\), are no arrays: set env\.make\.vec"):
        make_envs("Numbers-v0", 2, vectorization_mode="vector_entry_point")
    assert make_envs("Numbers-v0", 2, vectorization_mode="sync").reset([1, 2]).tolist() == [[0, 0, 0, 1, 0]] * 2


def test_what_a_constructor_raises_is_shown_with_its_type_and_the_id():
    with pytest.raises(ValueError, match=r"^env\.id=KeyErrorInit-v0 cannot be made \(KeyError: 'mapname'\); install"):
        make_envs("KeyErrorInit-v0", 1)
    with pytest.raises(ValueError, match=r"^env\.id=SilentInit-v0 cannot be made \(AssertionError\); install"):
        make_envs("SilentInit-v0", 1)


@pytest.mark.parametrize(("id", "where"), [("Raises-v0", "step 1"), ("WrongShape-v0", "reset")])
def test_what_is_raised_later_is_noted_with_the_id(id, where):
    with pytest.raises(Exception) as raised:  # noqa: PT011
        play(id)
    assert f"raised by env.id={id} in {where}" in raised.value.__notes__[0]


@pytest.mark.medium
def test_processes_step_slow_environments_to_the_same_end():
    envs, steps = play("Slow-v0", steps=2, vectorization_mode="async")
    assert len({float(x) for x in steps[0].obs[:, 0]}) == 2
    assert envs.state_dict() == {}
    one, other = (play("InPlace-v0", vectorization_mode=mode)[1] for mode in ("sync", "async"))
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.obs, b.obs)
        assert np.array_equal(a.reward, b.reward)
        assert a.episodes == b.episodes
        assert {k: v.tolist() for k, v in a.final_obs.items()} == {k: v.tolist() for k, v in b.final_obs.items()}


@pytest.mark.parametrize("name", ["autoreset_mode", "life_loss_info", "reward_clipping", "batch_size", "vector_kwargs"])
def test_what_training_relies_on_cannot_be_set(name):
    with pytest.raises(ValueError, match=rf"env\.make\.{name}=.* is no setting of an environment"):
        make_envs("ALE/Pong-v5", 1, **{name: 1})


@pytest.mark.parametrize(
    ("id", "new"),
    [
        ("PongNoFrameskip-v4", r"set env\.id=ALE/Pong-v5$"),
        ("ale_py:PongNoFrameskip-v4", r"set env\.id=ALE/Pong-v5$"),
        ("BreakoutDeterministic-v0", r"set env\.id=ALE/Breakout-v5$"),
        ("SpaceInvaders-v4", r"set env\.id=ALE/SpaceInvaders-v5$"),
        ("Pong-ram-v0", r"set env\.id=ALE/Pong-v5 \+env\.make\.obs_type=ram$"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("Humanoid-v2", "set env.id=Humanoid-v5, which is newer"),
        ("no_such_module:Foo-v0", r"ModuleNotFoundError|No module named"),
    ],
)
def test_old_ids_are_refused_and_name_the_new_one(id, new):
    with pytest.raises(ValueError, match=f"env.id={id} .*{new}"):
        make_envs(id, 1)


def test_a_game_is_the_same_however_it_is_named():
    envs = make_envs("ale_py:ALE/Pong-v5", 2)
    assert envs.obs_space.shape == (4, 84, 84)
    assert np.array_equal(envs.reset([5, 6]), make_envs("ALE/Pong-v5", 2).reset([5, 6]))


def test_multi_discrete_spaces_begin_at_zero_for_the_agent():
    assert Actions(ACTIONS["MultiMatrix"]).space == MultiDiscrete([2, 3, 4, 5])


# Wrappers


STACKED = "env.wrappers=[{_target_: gymnasium.wrappers.FrameStackObservation, stack_size: 3}]"


def compose(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return hydra_compose("config", ["env=gym", *overrides])


def test_wrappers_come_from_the_config_and_are_checked():
    cfg = compose("env.id=CartPole-v1", STACKED)
    targets.check(cfg)
    envs = instantiate(targets.waiting(cfg).env.make, _convert_="object")()
    assert envs.obs_space.shape == (3, 4)
    plain = envs.wrap(gym.make("CartPole-v1"))
    assert np.array_equal(envs.observe(plain.reset(seed=7)[0]), envs.reset([7] * 8)[:1])
    result = audit(instantiate(targets.waiting(cfg).env.make, _convert_="object"), 100, partial(Rollout, horizon=10))
    assert (result.bogus, result.terminated > 2) == ({}, True)


@pytest.mark.parametrize("target", ["gymnasium.wrappers.RecordVideo", "gymnasium.make", "os.system"])
def test_other_wrappers_are_refused(target):
    with pytest.raises(ValueError, match=f"_target_={target} is not in a package that configs may use"):
        targets.check(compose("env.id=CartPole-v1", f"env.wrappers=[{{_target_: {target}}}]"))


def test_wrappers_that_are_no_list_of_targets_are_refused():
    with pytest.raises(ValueError, match=r"env\.wrappers=\[3\] must be a list such as"):
        targets.waiting(compose("env.id=CartPole-v1", "env.wrappers=[3]"))


def test_wrappers_need_single_environments():
    wrapper = partial(gym.wrappers.FrameStackObservation, stack_size=2)
    with pytest.raises(ValueError, match=r"env\.wrappers are put around single environments"):
        make_envs("CartPole-v1", 2, wrappers=[wrapper], vectorization_mode="vector_entry_point")


@pytest.mark.medium
def test_wrappers_are_the_same_in_training_evaluation_video_and_load(train, tmp_path):
    done = train("algo=a3c", "distributed=off", "env=gym", "env.id=CartPole-v1", "env.max_frame=1_000", STACKED)
    assert done.returncode == 0, done.stderr
    plain = evaluate(tmp_path / "run", 2)
    assert plain.returns == evaluate(tmp_path / "run", 2, videos=tmp_path / "videos").returns
    policy = asynclab.load(tmp_path / "run")
    env = policy.wrap(gym.make(policy.env_id))
    obs, total, ended = env.reset(seed=1000)[0], 0.0, False
    torch.manual_seed(1000)
    policy.reset()
    while not ended:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs))
        total, ended = total + float(reward), terminated or truncated
    assert total == plain.returns[0]


@pytest.mark.medium
def test_car_racing_runs_with_stacked_grey_frames():
    pytest.importorskip("Box2D")
    grey = partial(gym.wrappers.GrayscaleObservation)
    stack = partial(gym.wrappers.FrameStackObservation, stack_size=4)
    envs = make_envs("CarRacing-v3", 1, wrappers=[grey, stack], continuous=False)
    assert (envs.obs_space.shape, envs.obs_space.dtype) == ((4, 96, 96), np.uint8)
    assert type(auto_torso(envs.obs_space, hidden=[8])) is ConvTorso
    envs.reset([0])
    assert envs.step(np.array([3])).obs.any()
    envs.close()


def test_mini_grid_needs_its_mission_left_out():
    pytest.importorskip("minigrid")
    with pytest.raises(ValueError, match=r"has observations of .*MissionSpace.*which are not a fixed number"):
        make_envs("minigrid:MiniGrid-Empty-5x5-v0", 1)
    keep = partial(gym.wrappers.FilterObservation, filter_keys=["image", "direction"])
    envs = make_envs("minigrid:MiniGrid-Empty-5x5-v0", 2, wrappers=[keep])
    assert type(auto_torso(envs.obs_space, hidden=[8])) is JoinedTorso


# Atari


@pytest.mark.medium
@pytest.mark.parametrize("game", [pytest.param("Pong", marks=pytest.mark.slow), "Breakout"])
def test_the_plain_emulator_shows_and_pays_what_the_vector_does(game):
    same = {"noop_max": 0, "repeat_action_probability": 0.0}
    ours, theirs = (make_envs(f"ALE/{game}-v5", 2, vectorization_mode=mode, **same) for mode in ("sync", None))
    seen = [(ours.reset([0, 1]), theirs.reset([0, 1]))]
    rng = np.random.default_rng(0)
    for _ in range(200):
        action = rng.integers(ours.action_space.n, size=2)
        a, b = ours.step(action), theirs.step(action)
        assert np.array_equal(a.reward, b.reward)
        assert np.array_equal(a.done, b.done)
        seen.append((a.obs, b.obs))
        assert np.abs(a.obs.astype(int) - b.obs).max() <= 1  # shades of grey, rounded
    assert len(seen) == 201


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"mode": 1, "difficulty": 1}, (4, 84, 84)),
        ({"obs_type": "ram"}, (128,)),
        ({"grayscale": False}, (12, 84, 84)),
        ({"grayscale": False, "mode": 0}, (12, 84, 84)),
    ],
)
def test_modes_difficulties_ram_and_colours_of_atari(settings, shape):
    envs = make_envs("ALE/Pong-v5", 2, **settings)
    first = envs.reset([0, 1]).copy()
    assert first.shape == (2, *shape)
    for _ in range(30):
        step = envs.step(np.zeros(2, np.int64))
    assert not np.array_equal(first, step.obs)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("limit", "length"),
    [
        ({"max_episode_steps": 30}, 30),
        ({"max_num_frames_per_episode": 102}, 26),  # ale-py's own steps of 4 frames, without those before the first
        ({"max_num_frames_per_episode": 102, "max_episode_steps": 30}, 26),
    ],
)
@pytest.mark.parametrize("kind", [{"vectorization_mode": "sync"}, {"mode": 0}, {"obs_type": "ram"}, {}])
def test_limits_of_episodes_of_atari_are_the_agents_steps(kind, limit, length):
    if not kind and "max_episode_steps" in limit:
        with pytest.raises(ValueError, match="max_episode_steps"):  # which ale-py's vector does not have
            make_envs("ALE/Pong-v5", 2, **limit)
        return
    envs = make_envs("ALE/Pong-v5", 2, **kind, **limit)
    envs.reset([0, 1])
    steps = [envs.step(np.zeros(2, np.int64)) for _ in range(70)]
    envs.close()
    assert [episode.length for step in steps for episode in step.episodes] == [length] * (2 * (70 // length))
    assert not any(step.terminated.any() for step in steps)


@pytest.mark.parametrize("mode", [None, "sync"])
@pytest.mark.parametrize(
    ("setting", "must"),
    [
        ({"frameskip": 0}, "frameskip=0 must be a whole number of 1 or more"),
        ({"frameskip": [2, 5]}, r"frameskip=\[2, 5\] must be a whole number"),
        ({"stack_num": 0}, "stack_num=0 must be a whole number of 1 or more"),
        ({"noop_max": -3}, "noop_max=-3 must be a whole number of 0 or more"),
        ({"max_num_frames_per_episode": -3}, "max_num_frames_per_episode=-3 must be a whole number of 0 or more"),
        ({"repeat_action_probability": 25}, "repeat_action_probability=25 must be a number from 0 to 1"),
    ],
)
def test_numbers_that_atari_cannot_mean_are_refused(setting, must, mode):
    with pytest.raises(ValueError, match=rf"^env\.make\.{must}"):
        make_envs("ALE/Pong-v5", 2, vectorization_mode=mode, **setting)


def test_games_that_somebody_has_registered():
    for limits, frames, length in (({"max_episode_steps": 12}, {}, 12), ({}, {"max_num_frames_per_episode": None}, 0)):
        settings = {"game": "pong", **frames}
        gym.register("MyPong-v0", entry_point="ale_py.env:AtariEnv", kwargs=settings, **limits)
        try:
            envs = make_envs("MyPong-v0", 1, vectorization_mode="sync")
            envs.reset([0])
            steps = [envs.step(np.zeros(1, np.int64)) for _ in range(30)]
            envs.close()
            assert [e.length for step in steps for e in step.episodes] == [length] * (2 if length else 0)
        finally:
            del gym.registry["MyPong-v0"]
    settings = {"max_num_frames_per_episode": None, "max_episode_steps": -1, "noop_max": 0}
    make_envs("ALE/Pong-v5", 1, vectorization_mode="sync", **settings).close()
    make_envs("ALE/Pong-v5", 1, obs_type="ram", frameskip=(2, 5)).close()


@pytest.mark.parametrize("kind", [{"vectorization_mode": "sync"}, {}])
def test_continuous_actions_of_atari(kind):
    envs = make_envs("ALE/Breakout-v5", 1, continuous=True, **kind)
    first = envs.reset([0]).copy()
    steps = [envs.step(np.ones((1, 3), np.float32)).obs.copy() for _ in range(5)]
    envs.close()
    assert not np.array_equal(first, steps[-1])


@pytest.mark.medium
def test_lives_are_episodes_for_training_and_whole_games_are_counted():
    whole, lives = (make_envs("ALE/Breakout-v5", 2, episodic_life=lives) for lives in (False, True))
    assert np.array_equal(whole.reset([0, 1]), lives.reset([0, 1]))
    rng = np.random.default_rng(0)
    ends = 0
    episodes = [], []
    for _ in range(600):
        action = rng.integers(4, size=2)
        a, b = whole.step(action), lives.step(action)
        assert np.array_equal(a.obs, b.obs)  # a lost life resets nothing
        assert (b.terminated | ~a.terminated).all()
        ends += int(b.terminated.sum())
        episodes[0].extend(a.episodes)
        episodes[1].extend(b.episodes)
    assert episodes[0] == episodes[1]
    assert ends >= 5 * len(episodes[0]) > 0


def test_lives_are_for_atari():
    with pytest.raises(ValueError, match=r"env\.make\.episodic_life=true is for Atari games, and env\.id=CartPole-v1"):
        make_envs("CartPole-v1", 1, episodic_life=True)


# Learning


def learn(train, tmp_path, id, *overrides):
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"}
    one = "distributed.num_threads=1"  # with two, beside another test that has two, it is ten times slower
    done = train("algo=ppo", "distributed=off", one, "env=gym", f"env.id={id}", *overrides, env=path, timeout=1200)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "run" / "summary.json").read_text())["mean_return"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "name", ["BrightDict", "BrightTuple", "BrightRows", "BrightStack", "BrightBytes", "BrightBits", "BrightTiny"]
)
def test_bytes_learn_as_floats_do(name, train, tmp_path):
    assert learn(train, tmp_path, f"weird_env:{name}-v0", "env.max_frame=30_000") > 18


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("name", "best", "random"), [("Pairs", 40, 11), ("Bits", 80, 40)])
def test_several_numbers_of_an_action_learn_a_task_of_their_own(name, best, random, train, tmp_path):
    assert learn(train, tmp_path, f"weird_env:{name}-v0", "env.max_frame=120_000") > random + 0.8 * (best - random)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_mini_grid_is_solved(train, tmp_path):
    pytest.importorskip("minigrid")
    keep = "env.wrappers=[{_target_: gymnasium.wrappers.FilterObservation, filter_keys: [image, direction]}]"
    id = "minigrid:MiniGrid-Empty-5x5-v0"
    assert learn(train, tmp_path, id, keep, "env.max_frame=60_000", "env.torso.hidden=[64]") > 0.9


def both_run(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["rank"] for line in lines if line["kind"] == "session"} == {0, 1}


@pytest.mark.slow
def test_ctrl_c_leaves_a_whole_checkpoint_where_environments_are_stepped_in_processes(tmp_path):
    command = [
        sys.executable, ROOT / "train.py", "plot=false", f"hydra.run.dir={tmp_path / 'run'}", "env=cartpole",
        "env.num_envs=2", "+env.make.vectorization_mode=async", "distributed.max_session=2", "log_every=0.5",
        "env.max_frame=4_000_000",
    ]  # fmt: skip
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, start_new_session=True, **streams) as process:
        assert any(line.startswith("frames") and both_run(tmp_path / "run") for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in rest, rest
    assert json.loads((tmp_path / "run/checkpoints/latest/manifest.json").read_text())["complete"]


# What a review found


@pytest.mark.parametrize(
    "settings", [{"vectorization_mode": "sync"}, {"obs_type": "ram"}, pytest.param({"mode": 0}, marks=pytest.mark.slow)]
)
def test_lives_are_seen_however_the_emulators_are_stepped(settings):
    envs = make_envs("ALE/Breakout-v5", 2, episodic_life=True, **settings)
    envs.reset([0, 1])
    rng = np.random.default_rng(0)
    steps = [envs.step(rng.integers(4, size=2)) for _ in range(400)]
    games = sum(len(step.episodes) for step in steps)
    assert sum(int(step.terminated.sum()) for step in steps) >= 3 * max(games, 1)


def test_a_game_that_goes_on_has_the_lives_that_it_had():
    make = partial(make_envs, "ALE/Breakout-v5", 2, episodic_life=True, vectorization_mode="sync")
    envs, again, rng = make(), make(), np.random.default_rng(0)
    envs.reset([0, 1])
    while not envs.step(rng.integers(4, size=2)).terminated.any():
        pass
    state = envs.state_dict()
    again.reset([7, 8])
    assert again.retrace(state) is not None
    for _ in range(20):
        action = rng.integers(4, size=2)
        assert np.array_equal(envs.step(action).terminated, again.step(action).terminated)


@pytest.mark.parametrize(
    ("shape", "seen"), [((4, 4), (1, 4, 4)), ((3, 3), (1, 3, 3)), ((64, 4), (1, 64, 4)), ((20, 5, 8), (8, 20, 5)),
                        ((4, 3, 3), (3, 4, 3)), ((7, 7, 3), (3, 7, 7))],
)  # fmt: skip
def test_an_image_is_turned_once(shape, seen):
    class Board(gym.Env):
        observation_space, action_space = Box(0, 255, shape, np.uint8), Discrete(2)
        picture = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.picture, {}

        def step(self, action):
            return self.picture, 1.0, False, False, {}

    gym.register("Board-v0", Board)
    try:
        envs = make_envs("Board-v0", 2)
        obs = envs.reset([0, 1])
        assert (envs.obs_space.shape, obs.shape) == (seen, (2, *seen))
        assert np.array_equal(envs.observe(Board.picture), obs[:1])  # what asynclab.load shows the agent
    finally:
        del gym.registry["Board-v0"]


def test_bytes_are_not_normalised():
    with pytest.raises(ValueError, match=r"env\.make\.normalize_obs=true is for vectors of floats.*set it to false"):
        make_envs("ALE/Pong-v5", 1, obs_type="ram", normalize_obs=True)


@pytest.mark.parametrize(("own", "change"), [(True, False), (False, True)])
def test_an_agent_is_not_evaluated_with_another_normalisation(own, change):
    make = partial(make_envs, "Pendulum-v1", normalize_obs=own)
    with pytest.raises(ValueError, match=rf"eval\.make\.normalize_obs={change}.*trained with {own}"):
        check_changes(make, {"normalize_obs": change}, "eval.")
