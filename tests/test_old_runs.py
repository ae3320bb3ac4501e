"""Folders of a run and a sweep that were made at 2b8bcca, before the modules became packages, are taken as they are.

    python train.py algo=a3c env=cartpole env.max_frame=2_000 env.torso.hidden=[8,8] env.num_envs=2 \
        distributed.max_session=2 distributed.num_threads=1 checkpoint_keep=1 plot=false log_every=0.2
    python train.py -m algo=sac env=pendulum env.max_frame=600 algo.memory.start=200 env.torso.hidden=[8,8] \
        checkpoint_keep=1 plot=false log_every=0.2 distributed.max_session=1 seed=0,1
"""

import json
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest

import asynclab

pytestmark = pytest.mark.medium
DATA = Path(__file__).parent / "data" / "before_packages"


@pytest.fixture
def folder(tmp_path):
    """Return a copy: commands write into the folder of a run."""
    shutil.copytree(DATA, tmp_path / "old", symlinks=True)
    return tmp_path / "old"


def run(folder, script, *arguments):
    """Run a command where ``old/`` lies, which must succeed."""
    done = commands.run(script, *arguments, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_run_goes_on(folder):
    run(folder, "train.py", "resume=old/run", "env.max_frame=3_000")
    summary = json.loads((folder / "run/summary.json").read_text())
    assert (summary["status"], summary["frames"]) == ("finished", 3_000)
    assert len(json.loads((folder / "run/run.json").read_text())["resumes"]) == 1


def test_a_run_is_evaluated_plotted_reported_and_loaded(folder):
    assert "over 2 episodes" in run(folder, "scripts/evaluate.py", "run=old/run", "episodes=2")
    run(folder, "scripts/plot.py", "runs=old/run", "out=curve.png")
    run(folder, "scripts/report.py", "runs=[old/run,old/sweep]", "out=report.html")
    page = (folder.parent / "report.html").read_text()
    assert "CartPole" in page
    assert "Pendulum" in page
    policy = asynclab.load(folder / "run")
    assert policy.env_id == "CartPole-v1"
    assert policy.act(np.zeros(4, np.float32)) in (0, 1)


def test_a_sweep_is_found_finished(folder):
    before = {path: path.read_bytes() for path in folder.glob("sweep/*/summary.json")}
    run(
        folder, "train.py", "-m", "algo=sac", "env=pendulum", "env.max_frame=600", "algo.memory.start=200",
        "env.torso.hidden=[8,8]", "checkpoint_keep=1", "plot=false", "log_every=0.2", "distributed.max_session=1",
        "seed=0,1", "resume=auto", "hydra.sweep.dir=old/sweep",
    )  # fmt: skip
    assert len(before) == 2
    assert all(path.read_bytes() == content for path, content in before.items())
