"""What several tests use: small real environments, agents and stores made as train.py makes them, and the command."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import commands
import pytest
import torch

from asynclab.agents import A3C, DQN, PPO, SAC, DiscreteSAC, NStepQ
from asynclab.config.schema import AlgoConfig, Config, EnvConfig, EvalConfig
from asynclab.distributed import Off
from asynclab.envs import make_envs
from asynclab.evaluation.evaluator import Schedule
from asynclab.memory import Replay, Rollout
from asynclab.nets import MLPTorso
from asynclab.optim import GlobalAdam
from asynclab.processes import server
from asynclab.processes.control import Control
from asynclab.processes.launch import Failure, Started, launch
from asynclab.run.trial import Trial
from asynclab.schedules import Constant
from asynclab.training.messages import Record

ROOT = Path(__file__).parent.parent
TORSO = partial(MLPTorso, hidden=[16, 16])
ROLLOUT = partial(Rollout, horizon=10)
REPLAY = partial(Replay, capacity=1_000, batch_size=32, start=100)
ALGOS = {  # agent, memory, environment
    "a3c": (A3C, ROLLOUT, partial(make_envs, "CartPole-v1")),
    "lstm": (partial(A3C, lstm=8), ROLLOUT, partial(make_envs, "CartPole-v1")),
    "ppo": (partial(PPO, epochs=2, minibatch_size=8), ROLLOUT, partial(make_envs, "CartPole-v1")),
    "ppo_normalized": (
        partial(PPO, epochs=2, minibatch_size=8, shared=False),
        ROLLOUT,
        partial(make_envs, "Pendulum-v1", normalize_obs=True, scale_reward=0.9),
    ),
    "nstep_q": (partial(NStepQ, target_every=100), ROLLOUT, partial(make_envs, "CartPole-v1")),
    "pqn": (
        partial(NStepQ, lam=0.7, epochs=2, minibatch_size=8, target_every=None),
        ROLLOUT,
        partial(make_envs, "CartPole-v1"),
    ),
    "dqn": (partial(DQN, target_every=40), partial(REPLAY, n_step=3, gamma=0.99), partial(make_envs, "CartPole-v1")),
    "sac": (SAC, REPLAY, partial(make_envs, "Pendulum-v1")),
    "sac_normalized": (SAC, REPLAY, partial(make_envs, "Pendulum-v1", normalize_obs=True, scale_reward=0.9)),
    "discrete_sac": (DiscreteSAC, REPLAY, partial(make_envs, "CartPole-v1")),
}

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # `make test &` ignores it, and would whatever tests start


def start_warm_server():
    """Start the fork server with what every process of a test would import."""
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "MODULES", [*server.MODULES, "warm"])
        patch.setenv("PYTHONPATH", path)  # where the server looks for warm, which drops the first again
        server.start_server()


def pytest_sessionstart(session):
    start_warm_server()


@pytest.hookimpl(trylast=True)  # after those that are not wanted have been left out
def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, those with most real commands: no worker is left with one at the end."""
    medium = Counter(item.path for item in items if item.get_closest_marker("medium"))
    items.sort(key=lambda item: -medium[item.path])


def run_session(session, rank, store):
    """Run a session in this process until its store's budget is used up; return its records."""
    control, records = Control(rank + 1), []
    for event in session.run(rank, store, control):
        if isinstance(event, Record):
            records.append(event)
        if store.is_complete():
            control.finish()
    return records


def items(runs, control=None):
    """Return what sessions yield, without what launch itself says of them."""
    return [e for e in launch(runs, 1, control) if e is not None and not isinstance(e, (Started, Failure))]


def copy_checkout(folder):
    """Copy this checkout, without what git ignores."""
    ignored = shutil.ignore_patterns(".*", "outputs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignored)


def make_schedule(**settings):
    """Return when a run is evaluated, by default never."""
    return Schedule(**vars(EvalConfig(**settings)))


@pytest.fixture
def plain_server():
    """Let sessions start from the fork server that users have."""
    forkserver._forkserver._stop()
    server.start_server()
    yield
    forkserver._forkserver._stop()
    start_warm_server()


@pytest.fixture
def make_trial(tmp_path):
    """Return a function that makes a small trial of one of ``ALGOS``."""

    def make(algo="a3c", mode=None, max_frame=2_000, seed=0, optimizer=GlobalAdam, precision="fp32",
             checkpoint=None, schedule=make_schedule(), **agent):  # fmt: skip
        make_agent, make_memory, make = ALGOS[algo]
        algo_cfg = AlgoConfig(
            agent=partial(make_agent, **({"torso": TORSO} | agent)),
            memory=make_memory,
            optimizer=partial(optimizer, lr=1e-3),
            lr_schedule=Constant(),
            max_grad_norm=0.5,
            precision=precision,
        )
        cfg = Config(
            algo=algo_cfg,
            env=EnvConfig(make=partial(make, num_envs=2), max_frame=max_frame),
            distributed=mode or Off(max_session=1),
            seed=seed,
            device="cpu",
            log_every=0.2,
            checkpoint_every=1000.0,
            checkpoint_keep=2,
            checkpoint_memory=1.0,
            max_dropped=3,
            eval=EvalConfig(**vars(schedule)),
        )
        return Trial(cfg, tmp_path, checkpoint)

    return make


@pytest.fixture
def train(tmp_path):
    """Return a function that runs the real command in an output folder of the test and returns the process.

    It is forked (``commands``); with ``python=True``, variables for its sessions or options of ``subprocess.run`` it is
    started.
    """

    def run(*overrides, folder=None, timeout=240, python=False, env=None, **kwargs):
        typed = ["plot=false", *overrides]  # a figure costs a second or two
        if folder is not False:
            typed.append(f"hydra.run.dir={folder or tmp_path / 'run'}")
        if not (python or env or kwargs):
            return commands.run("train.py", *typed, cwd=tmp_path, timeout=timeout)
        env = os.environ | {"PYTHONUNBUFFERED": "1"} | (env or {})
        return subprocess.run(
            [sys.executable, ROOT / "train.py", *typed], cwd=tmp_path, env=env, capture_output=True, text=True,
            timeout=timeout, check=False, **kwargs,
        )  # fmt: skip

    return run
