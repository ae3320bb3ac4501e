"""Exported policies do what asynclab.load does: ONNX in onnxruntime, TorchScript and torch.export in torch."""

import sys

import commands
import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT

import asynclab
from asynclab.evaluation import graph, play

COMMON = ["env.max_frame=1_000", "env.num_envs=2", "distributed.max_session=1", "plot=false"]
CONV = "env.torso={conv: [[8, 8, 4]], hidden: [16]}"
TRAINED = {
    "vectors": ["algo=a3c", "env=cartpole"],
    "q": ["algo=dqn", "env=cartpole", "algo.agent.bins=51", "algo.agent.value_range=100", "algo.memory.start=500"],
    "continuous": ["algo=ppo", "env=pendulum", "spaces=continuous", "algo.memory.horizon=64"],  # normalised, scaled
    "sac": ["algo=sac", "env=pendulum", "algo.memory.start=500"],
    "multi": ["algo=a3c", "env=gym", "env.id=weird_env:Pairs-v0"],
    "dict": ["algo=a3c", "env=gym", "env.id=weird_env:BrightDict-v0", "spaces=pixels", CONV],
    "lstm": ["algo=a3c", "env=cartpole", "algo.agent.lstm=8", "algo.agent.shared=true"],
}
ZOO = {"pixels": ROOT / "zoo" / "pong_fast"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that trains what has a name, once."""
    made = dict(ZOO)

    def train(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("graph") / name
            made[name] = asynclab.train([*TRAINED[name], *COMMON, f"hydra.run.dir={folder}"], quiet=True).folder
        return made[name]

    return train


def observations(folder, number):
    """Return what the agent of a run sees while it plays, half with noise, and its actions."""
    player = play.load(folder)
    seen, done, seed = [], np.array([True]), 0
    while len(seen) < number:
        if done[0]:
            player.envs.reset([seed])
            player.agent.start(1, 0)
            seed += 1
        seen.append(player.envs.raw.copy())
        obs = torch.from_numpy(player.envs.normalize(player.envs.raw))
        done = player.envs.step(player.agent.act(obs, deterministic=seed % 2 == 0).numpy()).done
    noise = np.random.default_rng(0)
    if player.envs.obs_space.dtype != np.uint8:  # what a policy of a second's training sees, it answers alike
        seen = [obs + noise.normal(size=obs.shape).astype(obs.dtype) * (i % 2) for i, obs in enumerate(seen)]
    policy = asynclab.load(folder)
    convert, policy._envs.observe = policy._envs.observe, lambda obs: policy._envs.normalize(obs)
    actions = [policy.act(obs, deterministic=True) for obs in seen]
    policy._envs.observe = convert
    return np.concatenate(seen), np.stack(actions)


def exported(path, obs):
    """Return the actions of an exported policy."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return np.concatenate([session.run(["action"], {"observation": o})[0] for o in np.array_split(obs, 7)])
    load = torch.jit.load if path.suffix == ".pt" else lambda file: torch.export.load(file).module()
    module = load(path)
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(o.copy())).numpy() for o in np.array_split(obs, 7)])


@pytest.mark.medium
@pytest.mark.parametrize(
    "name",
    [
        "q",
        "multi",
        "pixels",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("vectors", "continuous", "sac", "dict")),
    ],
)
def test_it_acts_as_the_loaded_policy_on_a_thousand_observations(name, run, tmp_path):
    obs, expected = observations(run(name), 1_000)
    for kind in graph.FORMATS if name in ("vectors", "continuous", "pixels") else ["onnx"]:
        path = tmp_path / f"policy{graph.FORMATS[kind]}"
        told = graph.export(run(name), path, kind)
        actions = exported(path, obs)
        assert actions.shape == expected.shape
        assert actions.dtype == expected.dtype
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(actions, expected)
        assert name == "q" or len(np.unique(expected)) > 1
        assert told.startswith(f"observation [N, {', '.join(map(str, obs.shape[1:]))}] {obs.dtype} -> action [N")


@pytest.mark.medium
def test_the_command_writes_it_and_it_needs_no_asynclab(tmp_path):
    settings = [f"run={ROOT / 'zoo' / 'a3c_cartpole'}", "format=onnx", "out=policy.onnx"]
    process = commands.run("scripts/export.py", *settings, cwd=tmp_path)
    sentence = (
        r"wrote policy.onnx (0.04 MB): observation [N, 4] float32 -> action [N] int64 of CartPole-v1, the best one"
    )
    assert process.stdout == f"{sentence}\n", process.stderr
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    env = gymnasium.make("CartPole-v1")
    obs, done, total = env.reset(seed=0)[0], False, 0.0
    while not done:
        (action,) = session.run(["action"], {"observation": obs[None]})[0]
        obs, reward, terminated, truncated, _ = env.step(int(action))
        total, done = total + reward, terminated or truncated
    assert total == 500


@pytest.mark.medium
def test_what_an_environment_gives_in_float64_is_taken_in_float32(tmp_path):
    path, zoo = tmp_path / "policy.onnx", ROOT / "zoo" / "ppo_humanoid"  # normalised
    assert graph.export(zoo, path, "onnx").startswith("observation [N, 348] float32 -> action [N, 17] float32")
    session, policy = onnxruntime.InferenceSession(path), asynclab.load(zoo)
    env = gymnasium.make("Humanoid-v5")
    obs, _ = env.reset(seed=0)
    assert obs.dtype == np.float64
    for _ in range(20):
        (action,) = session.run(["action"], {"observation": obs.astype("float32")[None]})[0]
        np.testing.assert_allclose(action, policy.act(obs, deterministic=True), rtol=1e-4, atol=1e-5)
        obs, *_ = env.step(action)


@pytest.mark.parametrize(
    ("kind", "out", "message"),
    [
        ("tflite", "x.onnx", "^format=tflite is unknown; use one of folder, onnx, torchscript, torch_export$"),
        ("onnx", "x.pt", r"^out=.*x\.pt must end in \.onnx for format=onnx$"),
        ("torchscript", "there.pt", r"^out=.*there\.pt exists; set out to another file$"),
        ("torchscript", "file/x.pt", r"^out=.*x\.pt cannot be written: .*; set out to another file$"),
    ],
)
def test_what_cannot_be_is_one_sentence(kind, out, message, tmp_path):
    for name in ("there.pt", "file"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        graph.export(ROOT / "zoo" / "a3c_cartpole", tmp_path / out, kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there.pt"]


def test_an_agent_that_remembers_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"^algo\.agent\.lstm cannot be exported: it remembers"):
        graph.export(run("lstm"), tmp_path / "x.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_the_part_that_cannot_be_exported_is_named(tmp_path, monkeypatch):
    from asynclab.agents.a3c import A3C
    from asynclab.nets import MLPTorso

    zoo = ROOT / "zoo" / "a3c_cartpole"
    monkeypatch.setattr(A3C, "act", lambda self, obs, **_: torch.full((3,), int(obs.sum().item())))
    with pytest.raises(ValueError, match=r"cannot be exported as torch_export: its agent, A3C\.act \("):
        graph.export(zoo, tmp_path / "x.pt2", "torch_export")
    monkeypatch.undo()
    encode = MLPTorso.encode
    monkeypatch.setattr(MLPTorso, "encode", lambda self, obs: encode(self, obs) if obs.sum().item() > 3 else obs)
    with pytest.raises(ValueError, match=r"cannot be exported as torch_export: its torso, MLPTorso \("):
        graph.export(zoo, tmp_path / "x.pt2", "torch_export")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError) as error:
        graph.export(ROOT / "zoo" / "a3c_cartpole", tmp_path / "x.onnx", "onnx")
    assert error.value.name == "onnxscript"
