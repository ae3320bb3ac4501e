import re
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import asynclab
from asynclab import build, config
from asynclab.evaluation.play import evaluate

config.register()
SMALL = ["env.num_envs=2", "env.torso.hidden=[8]", "distributed.max_session=1", "device=cpu", "algo.precision=fp32"]
RUNS = {
    "lstm": [
        "algo=a3c", "env=cartpole", "algo.agent.lstm=4", "algo.agent.shared=true", "algo.memory.horizon=16",
        "env.max_frame=400",
    ],
    "normalized": [
        "algo=ppo", "env=pendulum", "env.make.normalize_obs=true", "algo.memory.horizon=32", "env.max_frame=400",
        "algo.agent.minibatch_size=16",
    ],
    "sac": ["algo=sac", "env=pendulum", "algo.memory.start=350", "algo.memory.batch_size=8", "env.max_frame=400"],
    "tuple": ["algo=a3c", "env=gym", "env.id=Blackjack-v1", "algo.memory.horizon=16", "env.max_frame=400"],
    "off": ["algo=a3c", "env=cartpole", "distributed=off", "algo.memory.horizon=16", "env.max_frame=100"],
    "pong": ["algo=a3c", "env=pong", "env.torso.conv=[[4,8,8]]", "algo.memory.horizon=5", "env.max_frame=20"],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that returns the output folder of one of ``RUNS``, made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp(name)
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                cfg = compose("config", [*SMALL, *RUNS[name]])
            OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
            build.make_trial(cfg, folder).run()
        return made[name]

    return make


def play(policy, seed, deterministic=True):
    """Play one episode in the plain environment, as somebody does who knows gymnasium only; return its return."""
    env = gym.make(policy.env_id)
    obs, _ = env.reset(seed=seed)
    policy.reset()
    total, done = 0.0, False
    while not done:
        action = policy.act(obs, deterministic)
        assert env.action_space.contains(action)
        obs, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        done = terminated or truncated
    env.close()
    return total


@pytest.mark.parametrize("name", ["lstm", "normalized", "sac", "tuple"])
def test_a_policy_does_in_the_plain_environment_what_the_agent_does_in_ours(run, name):
    policy = asynclab.load(run(name))
    expected = evaluate(run(name), 1, deterministic=True).returns
    for _ in range(2):  # the second time, an LSTM must have forgotten the first
        assert [play(policy, seed=1000)] == pytest.approx(expected, rel=1e-6)


def test_actions_are_within_the_bounds_of_the_plain_environment(run):
    policy = asynclab.load(run("sac"))
    obs = np.zeros(3, np.float32)
    torch.manual_seed(0)
    actions = np.array([policy.act(obs, deterministic=False) for _ in range(200)])
    assert actions.shape == (200, 1)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 2.0
    assert np.abs(actions).max() > 1.0  # Pendulum's torque is in [-2, 2], the agent's in [-1, 1]
    assert policy.act(obs) == policy.act(obs) == policy.act(obs, deterministic=True)  # SAC's own way


def test_an_actor_critic_draws_its_actions_unless_asked_for_the_best(run):
    policy, obs = asynclab.load(run("off")), np.zeros(4, np.float32)
    torch.manual_seed(0)
    assert {policy.act(obs) for _ in range(100)} == {0, 1}
    assert len({policy.act(obs, deterministic=True) for _ in range(100)}) == 1


def test_an_lstm_remembers_until_reset(run):
    policy = asynclab.load(run("lstm"))
    obs, state = np.array([0.1, -0.2, 0.3, 0.4], np.float32), policy._agent.state_dict
    policy.act(obs)
    first = state()["state"]
    policy.act(obs)
    assert not torch.equal(first, state()["state"])
    policy.reset()
    assert not state()["state"].any()
    policy.act(obs)
    assert torch.equal(first, state()["state"])


def test_atari_takes_stacked_frames_and_says_so(run):
    policy = asynclab.load(run("pong"))
    assert policy.act(np.zeros((4, 84, 84), np.uint8)) in range(6)
    frame = np.zeros((210, 160, 3), np.uint8)
    with pytest.raises(ValueError, match=r"shape \(210, 160, 3\) .* trained on shape \(4, 84, 84\) .*AtariPreprocess"):
        policy.act(frame)
    with pytest.raises(ValueError, match=r"type float32 was given to an agent that was trained .* type uint8"):
        policy.act(np.zeros((4, 84, 84), np.float32))


@pytest.mark.parametrize("obs", [np.zeros(3), 1.0, None, "left", {"x": 1}])
def test_an_observation_of_another_environment_is_refused(run, obs):
    for name in ("lstm", "tuple"):
        with pytest.raises(ValueError, match=r"observation"):
            asynclab.load(run(name)).act(obs)


def test_loading_leaves_the_random_numbers_alone(run):
    before = torch.get_rng_state()
    asynclab.load(run("lstm"))
    assert torch.equal(before, torch.get_rng_state())


def test_sessions_and_checkpoints_can_be_chosen(run):
    first, last = (asynclab.load(str(run("off")), checkpoint, session=0) for checkpoint in (0, "000001"))
    weights = [next(policy._agent.nets.parameters()) for policy in (first, last, asynclab.load(run("off")))]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    with pytest.raises(ValueError, match=r"session=1 has no network of its own; the run has 1"):
        asynclab.load(run("off"), session=1)
    with pytest.raises(ValueError, match=r"checkpoints/000009 does not exist; use latest, best or .* 000001, 000000"):
        asynclab.load(run("off"), checkpoint=9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not an output folder: it has no config.yaml"),
        ("a: [", r"config\.yaml cannot be read \(while parsing"),
        ("a: ${nothing:here}", r"config\.yaml cannot be read \(Unsupported interpolation type nothing"),
        ("[1, 2]", r"config\.yaml is not the config of a run"),
        ("env: {id: X}", r"config\.yaml is not the config of a run"),
        ("{env: {id: X, make: {_target_: os.system}}, algo: {agent: {a: 1}}}", "is not in a package that configs may"),
    ],
)  # fmt: skip
def test_what_is_no_run_is_said_in_one_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        asynclab.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_run_may_be_in_a_folder_called_checkpoints(run, tmp_path):
    shutil.copytree(run("off"), tmp_path / "checkpoints" / "run", symlinks=True)
    asynclab.load(tmp_path / "checkpoints" / "run")


def test_a_config_that_is_not_the_runs_any_more_is_told(run, tmp_path, caplog):
    shutil.copytree(run("off"), tmp_path / "run", symlinks=True)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("horizon: ", "horizon: 1"))  # as a run that goes on may
    asynclab.load(tmp_path / "run")
    assert not caplog.text
    config.write_text(config.read_text().replace("CartPole-v1", "CartPole-v0"))
    with pytest.raises(ValueError, match=r"^session=0 has no network of its own"):
        asynclab.load(tmp_path / "run", session="0")
    asynclab.load(tmp_path / "run")
    assert "config.yaml has another env.id and env.make than the run was made with" in caplog.text


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
    (tmp_path / "config.yaml").write_text((run("off") / "config.yaml").read_text())
    with pytest.raises(ValueError, match="has no checkpoint"):
        asynclab.load(tmp_path)
    (tmp_path / "checkpoints" / "000000").mkdir(parents=True)
    (tmp_path / "checkpoints" / "000000" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"has no checkpoint that can be read: .*manifest\.json is damaged"):
        asynclab.load(tmp_path)


def test_the_lines_of_the_readme_run(run):
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    short, names = lines.replace('"env=cartpole"]', '"env=cartpole", "env.max_frame=4_000"]'), {}
    assert short != lines
    exec(short.replace("outputs/a3c_cartpole_synced/<time>", str(run("off"))), names)
    assert names["action"] in (0, 1)


def test_importing_asynclab_imports_no_torch():
    code = "import sys, asynclab; print({'torch', 'gymnasium', 'hydra', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
