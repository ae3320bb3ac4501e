"""Weights on a real GPU, in synced and off; skipped where there is none."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
import torch
from conftest import ALGOS, ROOT, run_session
from test_learner import some_batches

from asynclab.distributed import Off
from asynclab.profile import Profile
from asynclab.training.instruments import Instruments

pytestmark = [
    pytest.mark.medium,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
RUNS = {
    "a3c": ["algo=a3c", "env=cartpole", "env.max_frame=4_096"],
    "lstm": ["algo=a3c", "env=cartpole", "env.max_frame=4_096", "algo.agent.lstm=16", "algo.agent.shared=true"],
    "ppo": ["algo=ppo", "env=pendulum", "env.max_frame=8_192"],  # normalises observations, scales rewards
    "nstep_q": ["algo=nstep_q", "env=cartpole", "env.max_frame=4_096"],
    "dqn": ["algo=dqn", "env=cartpole", "env.max_frame=2_048", "algo.memory.start=1_000"],
    "sac": ["algo=sac", "env=pendulum", "env.max_frame=1_600", "algo.memory.start=1_200"],
    "discrete_sac": ["algo=sac", "env=cartpole", "env.max_frame=1_600", "algo.memory.start=1_200"],
    "pong": ["algo=a3c", "env=pong", "env.max_frame=1_024", "env.num_envs=4"],  # bf16
    "pong_dqn": ["algo=dqn", "env=pong", "env.max_frame=1_024", "env.num_envs=4", "algo.memory.start=800",
                 "algo.memory.capacity=2_000"],
}  # fmt: skip


@pytest.fixture
def train(train):
    """Return a function that starts the command, with a CUDA context of its own."""
    return partial(train, python=True)


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("mode", ["off", "synced"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_gpu_meets_its_budget_and_is_played_without_one(train, tmp_path, name, mode):
    sessions = 2 if mode == "synced" else 1
    process = train(*RUNS[name], f"distributed={mode}", f"distributed.max_session={sessions}", "device=cuda")
    assert process.returncode == 0, process.stderr
    run = tmp_path / "run"
    summary, made = summary_of(run), json.loads((run / "run.json").read_text())
    assert made["devices"] == ["cuda"]
    assert made["precision"] == ("bf16" if "pong" in name else "fp32")
    assert (summary["status"], summary["dropped_updates"]) == ("finished", 0)
    assert min(summary["session_updates"]) > 0
    play = subprocess.run(
        [sys.executable, ROOT / "scripts" / "evaluate.py", f"run={run}", "episodes=1", "max_episode_steps=50"],
        capture_output=True, text=True, timeout=240, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert play.returncode == 0, play.stderr


@pytest.mark.parametrize("algo", ALGOS)
def test_gradients_on_a_gpu_are_those_of_the_cpu(make_trial, monkeypatch, algo):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))  # generators differ, losses shall not
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.full_like(x, 0.5))
    monkeypatch.setattr(torch.distributions.Normal, "rsample", lambda self, *_: self.mean + 0.5 * self.stddev)
    found = []
    for device in ("cpu", "cuda"):
        trial = make_trial(algo)
        session = trial.session
        envs = session.make_envs()
        agent = session.make_agent(envs.obs_space, envs.action_space)
        learner = Instruments(Profile(False), agent, trial.mode, trial.stores[0], 0, device, session.rules)
        torch.manual_seed(0)  # minibatches are drawn on the CPU
        agent.start(envs.num_envs, 0)
        agent.begin_batch()
        batch = next(iter(learner.minibatches(some_batches(trial, 1)[0])))
        losses, _ = learner.forward(batch)
        learner.backward(losses)
        found.append((learner.grad.full.cpu(), {k: float(v.detach()) for k, v in losses.items()}))
    (cpu, cpu_losses), (gpu, gpu_losses) = found
    assert gpu_losses == pytest.approx(cpu_losses, rel=1e-3, abs=1e-5)
    assert float((cpu - gpu).norm() / cpu.norm()) < 1e-3


@pytest.mark.parametrize("name", ["a3c", "lstm", "ppo", "nstep_q", "dqn", "sac", "discrete_sac"])
def test_one_session_with_n_plus_n_frames_equals_2n_bit_for_bit(train, tmp_path, name):
    """Of dense networks; what depends on the budget is made constant."""
    constant = ["algo.lr_schedule.final=1.0"]
    if name in ("nstep_q", "dqn"):
        constant += ["algo.agent.anneal=1e-9", "algo.agent.target_every=100"]
    if name in ("dqn", "sac", "discrete_sac"):
        constant += ["algo.memory.start=600", "algo.memory.capacity=10_000"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, frames in ((whole, 2_048), (parts, 1_024)):
        process = train(*RUNS[name], *constant, f"env.max_frame={frames}", "distributed=off",
                        "distributed.max_session=1", "device=cuda", folder=folder)  # fmt: skip
        assert process.returncode == 0, process.stderr
    process = train(f"resume={parts}", "env.max_frame=2_048", folder=False)
    assert process.returncode == 0, process.stderr
    assert summary_of(parts)["updates"] == summary_of(whole)["updates"] > 0
    assert summary_of(parts)["theta"] == summary_of(whole)["theta"]


@pytest.mark.parametrize("settings", [["distributed=synced"], ["distributed.diagnostics=true"]], ids=["synced", "diag"])
def test_one_session_has_the_weights_of_off_without_instruments(train, tmp_path, settings):
    thetas = []
    for i, more in enumerate(([], settings)):
        folder = tmp_path / str(i)
        process = train(*RUNS["lstm"], "distributed=off", "distributed.max_session=1", "device=cuda", *more,
                        folder=folder)  # fmt: skip
        assert process.returncode == 0, process.stderr
        thetas.append(summary_of(folder)["theta"])
    assert thetas[0] == thetas[1]


def test_a_run_goes_on_on_the_other_kind_of_device(train, tmp_path):
    train(*RUNS["sac"], "distributed=off", "device=cuda")
    process = train(f"resume={tmp_path / 'run'}", "env.max_frame=2_000", "device=cpu", folder=False)
    assert process.returncode == 0, process.stderr
    process = train(f"resume={tmp_path / 'run'}", "env.max_frame=2_400", "device=cuda", folder=False)
    assert process.returncode == 0, process.stderr
    assert summary_of(tmp_path / "run")["frames"] == 2_400


def test_a_session_that_is_killed_on_the_gpu_is_restarted_and_no_frame_is_lost(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, ROOT / "train.py", "plot=false", "algo=a3c", "env=cartpole", "env.max_frame=60_000",
               "distributed.max_session=2", "device=cuda", "log_every=0.5", f"hydra.run.dir={run}"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 4:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        on_gpu = [p for p in children if any("libcuda.so" in m.path for m in p.memory_maps())]
        assert len(on_gpu) >= 2
        on_gpu[-1].send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    summary = summary_of(run)
    assert summary["restarts"] == 1
    assert 60_000 <= summary["frames"] < 60_000 + 64
    psutil.wait_procs(children, timeout=10)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in children)  # nobody may reap orphans


def test_the_memory_of_a_gpu_stays_what_it_was_while_a_session_learns(make_trial):
    peaks = []
    for frames in (1_000, 4_000):  # cuBLAS alone takes 65 MB
        trial = make_trial("sac", mode=Off(max_session=1), max_frame=frames)
        trial.session.devices[:] = ["cuda"]
        run_session(trial.session, 0, trial.stores[0])
        assert trial.stores[0].total_updates() > frames // 2
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0] + 2**20
