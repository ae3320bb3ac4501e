"""Agents that are kept: exported, taken like the runs they are from, refused if damaged; and those in zoo/."""

import hashlib
import json
import re
import runpy
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from conftest import ROOT
from test_plot import write

import asynclab
from asynclab.analysis import curves, jobs, plots, report, runs
from asynclab.evaluation import play
from asynclab.evaluation.export import export
from asynclab.storage import zoo
from asynclab.storage.folder import agents

AGENTS = agents(ROOT / "zoo")
SMALL = ["env.num_envs=2", "distributed.max_session=1", "device=cpu", "algo.precision=fp32", "plot=false"]
RUNS = {
    "cartpole": ["algo=a3c", "env=cartpole", "env.torso.hidden=[16]", "env.max_frame=2_000", "log_every=0.2"],
    "pendulum": [
        "algo=ppo", "env=pendulum", "env.make.normalize_obs=true", "algo.memory.horizon=32", "env.max_frame=800",
        "algo.agent.minibatch_size=16",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that returns the output folder of one of ``RUNS``, made once by the real command."""
    made = {}

    def make(name):
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp("runs") / name
            process = commands.run("train.py", *RUNS[name], *SMALL, f"hydra.run.dir={folder}")
            assert process.returncode == 0, process.stderr
        return made[name]

    return make


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Return a function that returns the folder of the agent of one of ``RUNS``, made once."""
    made, folder = {}, tmp_path_factory.mktemp("exported") / "zoo"

    def make(name):
        if name not in made:
            made[name] = folder / name
            export(run(name), made[name], episodes=3)
        return made[name]

    return make


@pytest.fixture
def agent(exported, tmp_path):
    """Return the folder of an agent that a test may damage."""
    return shutil.copytree(exported("cartpole"), tmp_path / "zoo" / "cartpole")


# The agents in zoo/


@pytest.mark.medium
@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_of_the_zoo_is_worth_what_it_is_said_to_be(name):
    said = json.loads((ROOT / "zoo" / name / "evaluation.json").read_text())
    played = play.evaluate(ROOT / "zoo" / name, 1, said["deterministic"])
    assert played.returns[0] >= said["least"]


def test_the_zoo_is_small():
    assert sum(path.stat().st_size for path in (ROOT / "zoo").rglob("*") if path.is_file()) < 12e6


def test_the_page_on_the_zoo_is_up_to_date():
    script = runpy.run_path(str(ROOT / "scripts" / "zoo.py"))
    assert script["page"]() == script["PAGE"].read_text(), "run python scripts/zoo.py"


# Export


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.medium
def test_an_agent_does_what_its_run_does(run, exported, name):
    folder, agent = run(name), exported(name)
    expected = play.evaluate(folder, 3)
    assert play.evaluate(agent, 3).returns == expected.returns
    said = json.loads((agent / "evaluation.json").read_text())
    assert (said["returns"], said["seeds"], said["run"]) == (expected.returns, [1000, 1001, 1002], str(agent))
    assert (said["least"], said["mean_return"]) == (min(expected.returns), pytest.approx(sum(expected.returns) / 3))
    assert said["interval_95"][0] <= said["mean_return"] <= said["interval_95"][1]
    obs = np.array([0.1, -0.2, 0.3, 0.4], np.float32)[: 4 if name == "cartpole" else 3]
    policies = [asynclab.load(str(path)) for path in (folder, agent)]
    assert [p.act(obs, deterministic=True) for p in policies[:1]] == [
        p.act(obs, deterministic=True) for p in policies[1:]
    ]


@pytest.mark.medium
def test_an_agent_can_be_said_to_be_worth_what_its_best_actions_return(run, tmp_path):
    export(run("cartpole"), tmp_path / "x", episodes=2, deterministic=True)
    said = json.loads((tmp_path / "x" / "evaluation.json").read_text())
    assert said["deterministic"]
    assert said["returns"] == play.evaluate(run("cartpole"), 2, deterministic=True).returns
    assert said["command"][-1] == "deterministic=true"


@pytest.mark.medium
def test_its_folder_has_all_that_is_to_be_kept_and_nothing_else(run, exported):
    agent = exported("pendulum")
    assert sorted(path.name for path in agent.iterdir()) == [
        "config.yaml", "evaluation.json", "manifest.json", "metrics.jsonl", "run.json", "summary.json", "weights.npz",
    ]  # fmt: skip
    for name in ("config.yaml", "summary.json"):
        assert (agent / name).read_bytes() == (run("pendulum") / name).read_bytes()
    (store,) = torch.load(run("pendulum") / "checkpoints" / "latest" / "stores.pt", weights_only=True)
    with np.load(agent / "weights.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["moments_obs", "moments_return", "theta"]
        assert arrays["theta"].dtype == np.float32
        assert np.array_equal(arrays["theta"], store["theta"])
        assert np.array_equal(arrays["moments_obs"], store["moments"]["obs"])
    made, before = (json.loads((folder / "run.json").read_text()) for folder in (agent, run("pendulum")))
    assert made | {"command": before["command"]} == before
    assert made["command"][:4] == ["python", "train.py", "algo=ppo", "env=pendulum"]
    assert str(ROOT) not in "".join(path.read_text() for path in agent.glob("*.json"))
    manifest = json.loads((agent / "manifest.json").read_text())
    assert manifest["frames"] == 800
    for name in ("weights.npz", "metrics.jsonl", "run.json"):
        content = (agent / name).read_bytes()
        assert manifest["files"][name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.medium
def test_an_agent_is_drawn_and_reported_like_a_run(run, exported, tmp_path):
    files, notes = plots.plot([exported("cartpole")], tmp_path / "curve")
    assert [file.name for file in files] == ["curve.png", "curve.svg", "curve_sessions.png", "curve_sessions.svg"]
    assert notes == []
    assert report.write([exported("cartpole")], tmp_path / "report.html") == []
    (job,), _ = jobs.find([exported("cartpole")])
    assert (job.status, job.problems) == ("finished", [])
    assert job.command.startswith("python train.py algo=a3c env=cartpole 'env.torso.hidden=[16]' ")
    both, notes = runs.load([exported("cartpole"), run("cartpole")])
    assert notes == []
    assert both[0].curve.returns[-1] == pytest.approx(both[1].curve.returns[-1], rel=1e-5)


@pytest.mark.parametrize(("episodes", "every"), [(150, 1), (301, 2), (1_500, 5), (40_000, 100)])
def test_thinned_curves_go_through_points_of_the_whole_ones(tmp_path, episodes, every):
    run = write(tmp_path, sessions=2, episodes=episodes, slope=0.1)
    whole = curves.read(run)
    lines = list(curves.thin(whole))
    (tmp_path / "thin").mkdir()
    (tmp_path / "thin" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    thin = curves.read(tmp_path / "thin")
    assert thin.every == every
    for rank, curve in thin.sessions.items():
        full = whole.sessions[rank]
        assert len(curve.returns) == -(-episodes // every)
        assert curve.total_frames[-1] == full.total_frames[-1]
        at = np.searchsorted(full.total_frames, curve.total_frames)
        average = curves.moving_average(curve.returns, 100 // every)
        expected = curves.moving_average(full.returns)[at]
        settled = at >= 100 + every  # before, the first point may be of fewer episodes than the others
        assert average[settled] == pytest.approx(expected[settled], rel=1e-5)
    at = np.searchsorted(whole.trial.total_frames, thin.trial.total_frames)
    assert 2 <= len(at) <= 300
    assert (at[0], at[-1]) == (0, len(whole.trial.returns) - 1)
    assert thin.trial.returns == pytest.approx(whole.trial.returns[at])
    assert thin.trial.session_frames == pytest.approx(whole.trial.session_frames[at])
    assert thin.ended[-1] == pytest.approx(2 * episodes, abs=2 * every)


def test_thinning_keeps_sessions_without_episodes_evaluations_and_what_is_not_a_number(tmp_path):
    line = [{"kind": "session", "rank": rank, "episodes": []} for rank in (0, 1)]
    line += [{"kind": "session", "rank": 1, "episodes": [{"frame": 4, "total_frame": 9, "seconds": 1.0, "ret": None}]}]
    line += [{"kind": "trial", "total_frames": 9, "seconds": 1.5, "metrics": {"train/return_100": None}}]
    line += [{"kind": "evaluation", "total_frames": 9, "seconds": 2.0, "returns": [1.0, 4.0]}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(content) + "\n" for content in line))
    whole = curves.read(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(content) + "\n" for content in curves.thin(whole)))
    thin = curves.read(tmp_path)
    assert list(thin.sessions) == [0, 1]
    assert np.isnan(thin.sessions[1].returns).tolist() == [True]
    assert np.isnan(thin.trial.returns).tolist() == [True]
    assert (thin.evaluation.total_frames.tolist(), thin.evaluation.returns.tolist()) == ([9], [2.5])


def no_summary(run):
    (run / "summary.json").unlink()


def stopped(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))


def no_metrics(run):
    (run / "metrics.jsonl").unlink()


def damaged_metrics(run):
    (run / "metrics.jsonl").write_text("{\n")


def no_origin(run):
    (run / "run.json").unlink()


def damaged_checkpoint(run):
    file = run / "checkpoints" / "latest" / "stores.pt"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def no_checkpoint(run):
    shutil.rmtree(run / "checkpoints")


def no_config(run):
    (run / "config.yaml").unlink()


@pytest.mark.medium
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            no_summary,
            r"run=\S+ cannot be exported: it has no summary\.json, so it was killed \(resume=auto continues it",
        ),
        (stopped, r"run=\S+ cannot be exported: its status is interrupted \(resume=auto continues it\)"),
        (no_metrics, r"is not an output folder: it has no metrics\.jsonl"),
        (damaged_metrics, r"metrics\.jsonl is damaged"),
        (no_origin, r"run=\S+ cannot be exported: run\.json is missing"),
        (damaged_checkpoint, r"checkpoints/000001/stores\.pt is damaged: its checksum is not the manifest's"),
        (no_checkpoint, r"\S+ has no checkpoint in"),
        (no_config, r"run=\S+ cannot be exported: config\.yaml is missing"),
        (shutil.rmtree, r"run=\S+/run is not a folder"),
    ],
)
def test_what_is_no_whole_and_finished_run_is_refused_and_nothing_is_left(run, tmp_path, damage, message, caplog):
    damaged = shutil.copytree(run("cartpole"), tmp_path / "run", symlinks=True)
    damage(damaged)
    with pytest.raises(ValueError, match=message) as raised:
        export(damaged, tmp_path / "zoo" / "x", episodes=1)
    assert "\n" not in str(raised.value)
    assert not caplog.records  # the sentence is all that is said
    assert not list(tmp_path.glob("zoo/*"))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": 0}, r"episodes=0 must be a whole number of 1 or more"),
        ({"least": "much"}, r"least=much must be a number"),
        ({"name": "7"}, r"checkpoints/000007 does not exist; use latest, best or one of 000001, 000000"),
        ({"session": 1}, r"session=1 has no network of its own; the run has 1"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(run, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        export(run("cartpole"), tmp_path / "x", **({"episodes": 1} | settings))
    assert not list(tmp_path.iterdir())


@pytest.mark.medium
def test_nothing_is_overwritten_or_left_half_written(run, tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("keep")
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "mine", tmp_path / "empty"):
        with pytest.raises(ValueError, match=r"out=\S+ cannot be written: it exists; set out to another folder"):
            export(run("cartpole"), out, episodes=1)
    with pytest.raises(ValueError, match=r"out=/proc/zoo/x cannot be written: No such file or directory; set out to"):
        export(run("cartpole"), Path("/proc/zoo/x"), episodes=1)
    monkeypatch.setattr(np, "savez_compressed", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(ValueError, match=r"out=\S+/new cannot be written: No space; set out to another folder"):
        export(run("cartpole"), tmp_path / "new", episodes=1)
    monkeypatch.setattr(zoo, "seal", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(zoo, "write", lambda *args: None)
    with pytest.raises(KeyboardInterrupt):
        export(run("cartpole"), tmp_path / "new", episodes=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine"]
    assert (tmp_path / "mine").read_text() == "keep"
    assert not list((tmp_path / "empty").iterdir())


# Folders that are not as they were written


def sealed(agent, **changes):
    """Let the manifest agree with whatever is in the folder, as somebody can who wants to deceive."""
    manifest = json.loads((agent / "manifest.json").read_text())
    manifest["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in agent.iterdir() if path.name != "manifest.json"
    }  # fmt: skip
    (agent / "manifest.json").write_text(json.dumps(manifest | changes))


def with_weights(agent, **arrays):
    np.savez(agent / "weights.npz", **arrays)
    sealed(agent)


def one_bit(agent):
    content = bytearray((agent / "weights.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (agent / "weights.npz").write_bytes(content)


def cut_short(agent):
    (agent / "weights.npz").write_bytes((agent / "weights.npz").read_bytes()[:-9])
    sealed(agent)


def with_code(agent):
    with_weights(agent, theta=np.array([print, 1], dtype=object))


def other_config(agent):
    config = (agent / "config.yaml").read_text()
    (agent / "config.yaml").write_text(config.replace("- 16\n", "- 17\n", 1))


def other_network(agent):
    other_config(agent)
    sealed(agent)


def same_number_of_weights(agent):
    layout = json.loads((agent / "manifest.json").read_text())["layout"]
    sealed(agent, layout=[layout[0].replace("[16, 4]", "[4, 16]"), *layout[1:]])


def no_manifest(agent):
    (agent / "manifest.json").unlink()


def damaged_manifest(agent):
    (agent / "manifest.json").write_text('{"format": 1, "files": []}')


def later_manifest(agent):
    sealed(agent, format=2)


def forgetful_manifest(agent):
    manifest = json.loads((agent / "manifest.json").read_text())
    del manifest["files"]["weights.npz"]
    (agent / "manifest.json").write_text(json.dumps(manifest))


def without(name):
    def remove(agent):
        (agent / name).unlink()

    remove.__name__ = f"without_{name}"
    return remove


@pytest.mark.medium
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (one_bit, r"weights\.npz is damaged: its checksum is not the manifest's"),
        (forgetful_manifest, r"weights\.npz is damaged: its checksum is not the manifest's"),
        (other_config, r"config\.yaml is damaged: its checksum is not the manifest's"),
        (cut_short, r"weights\.npz is not loaded: it is not a file of arrays of numbers and text"),
        (with_code, r"weights\.npz is not loaded: it is not a file of arrays of numbers and text"),
        (lambda agent: with_weights(agent, other=np.zeros(9)), r"weights\.npz has no theta"),
        (lambda agent: with_weights(agent, theta=np.array(["a"])), r"weights\.npz has no theta, .* of float32"),
        (
            lambda agent: with_weights(agent, theta=np.zeros(9, np.float32), moments_obs=np.array(["a"])),
            r"weights\.npz has a moments_obs that is not a matrix of float64",
        ),
        (lambda agent: with_weights(agent, theta=np.zeros(9, np.float32)), r"has weights of other shapes than the net"),
        (other_network, r"run=\S+ has weights of other shapes than the network in its config"),
        (same_number_of_weights, r"run=\S+ has weights of other shapes than the network in its config"),
        (no_manifest, r"manifest\.json is missing"),
        (damaged_manifest, r"manifest\.json is damaged"),
        (lambda agent: sealed(agent, layout=[1, 2]), r"manifest\.json is damaged"),
        (later_manifest, r"manifest\.json has format 2, and this version of asynclab reads 1"),
        *((without(name), rf"{re.escape(name)} cannot be read: No such file or directory") for name in zoo.FILES),
    ],
)  # fmt: skip
def test_an_agent_that_is_not_as_it_was_written_is_refused(agent, damage, message):
    damage(agent)
    with pytest.raises(ValueError, match=message) as raised:
        asynclab.load(agent)
    assert "\n" not in str(raised.value)


@pytest.mark.medium
def test_moments_of_other_observations_are_refused(exported, tmp_path):
    agent = shutil.copytree(exported("pendulum"), tmp_path / "pendulum")
    arrays = dict(np.load(agent / "weights.npz"))
    without = {name: array for name, array in arrays.items() if name != "moments_obs"}
    for wrong in (without, arrays | {"moments_obs": np.zeros((1, 3))}, arrays | {"moments_x": np.eye(3)}):
        with_weights(agent, **wrong)
        with pytest.raises(ValueError, match=r"run=\S+ normalises observations by moments of other shapes than"):
            asynclab.load(agent)


@pytest.mark.medium
def test_an_agent_has_one_checkpoint_and_session(agent):
    for settings in ({"checkpoint": "best"}, {"checkpoint": 0}, {"session": 1}):
        with pytest.raises(
            ValueError, match=r"has the weights of one checkpoint and session; leave out checkpoint and"
        ):
            asynclab.load(agent, **settings)
    assert asynclab.load(agent, "000001").env_id == "CartPole-v1"


# Commands


@pytest.mark.medium
def test_the_commands_take_an_agent_like_a_run_and_leave_its_folder_alone(run, tmp_path):
    wanted = [f"run={run('cartpole')}", "out=zoo/mine", "episodes=2"]
    process = commands.run("scripts/export.py", *wanted, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert re.fullmatch(
        r"return \S+ \+- \S+ over 2 episodes \(.*\) of zoo/mine, checkpoint 000001 at 2,000 frames, sampled actions\n"
        r"wrote zoo/mine \(0\.0\d MB\)\n",
        process.stdout,
    )
    before = {path.name: path.read_bytes() for path in (tmp_path / "zoo" / "mine").iterdir()}
    played = commands.run("scripts/evaluate.py", "run=zoo/mine", "episodes=2", "video=true", cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    assert played.stdout.splitlines()[0] == process.stdout.splitlines()[0]
    outputs = tmp_path / "outputs" / "zoo" / "mine"
    assert len(list((outputs / "videos").glob("*.mp4"))) == 2
    (found,) = (outputs / "evaluations").iterdir()
    assert f"wrote {found.relative_to(tmp_path)}\n" in played.stdout
    drawn = commands.run("scripts/plot.py", "runs=zoo/mine", "out=curve.png", cwd=tmp_path)
    assert (drawn.returncode, drawn.stdout, drawn.stderr) == (0, "wrote curve.png, curve_sessions.png\n", "")
    for script, overrides, message in (
        ("evaluate", ["run=zoo/typo"], "run=zoo/typo is not an output folder: it has no config.yaml; zoo has mine\n"),
        ("evaluate", ["run=zoo/mine", "out=zoo/mine"], "out=zoo/mine is a zoo's agent, which stays as it is; set out"),
        ("train", ["resume=zoo/mine"], "zoo/mine is a zoo's agent, which has no checkpoint to go on with. Resume the"),
        ("export", [f"run={run('cartpole')}", "out=zoo/mine"], "out=zoo/mine cannot be written: it exists; set out to"),
    ):
        process = commands.run(f"{'' if script == 'train' else 'scripts/'}{script}.py", *overrides, cwd=tmp_path)
        assert process.returncode == 1
        assert message in process.stderr
        assert "Traceback" not in process.stderr
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == ["mine"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "zoo" / "mine").iterdir()} == before


def test_a_typo_is_answered_with_what_the_zoo_has(agent, tmp_path):
    copy = shutil.copytree(agent, agent.with_name("another"))
    (copy.with_name(".another.123.new")).mkdir()  # an export goes on
    has = f"; {agent.parent} has another, cartpole"
    for wrong in (agent.with_name("typo"), agent.parent):
        with pytest.raises(ValueError, match=rf"is not an output folder: it has no config\.yaml{has}$"):
            asynclab.load(wrong)
    with pytest.raises(ValueError, match=rf"typo is not a folder{has}\.$"):
        plots.plot([agent.with_name("typo")], tmp_path / "curve")
    with pytest.raises(ValueError, match=rf"typo is not a folder{has}$"):
        export(agent.with_name("typo"), tmp_path / "new")
    with pytest.raises(ValueError, match=r"run=\S+cartpole is a zoo's agent already; with format=onnx"):
        export(agent, tmp_path / "new")
    with pytest.raises(ValueError, match=r"no config\.yaml$"):
        asynclab.load(tmp_path / "typo")
