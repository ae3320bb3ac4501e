"""asynclab.train: in this process, in a script without a main guard, in a thread."""

import json
import logging
import multiprocessing as mp
import subprocess
import sys
import threading
import time

import gymnasium
import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra.core.hydra_config import HydraConfig

import asynclab
from asynclab.processes.launch import SessionError

SMALL = ["env=cartpole", "env.num_envs=2", "env.max_frame=1_000", "distributed.max_session=1", "log_every=0.2"]


def in_folder(folder):
    return [*SMALL, f"hydra.run.dir={folder / 'run'}", "plot=false"]


def test_it_returns_the_run(tmp_path, capsys):
    run = asynclab.train(in_folder(tmp_path))
    assert (run.folder, run.summary["status"], run.summary["frames"]) == (tmp_path / "run", "finished", 1_000)
    assert len(run.returns) == run.summary["episodes"]
    assert run.mean_return == pytest.approx(run.returns[-100:].mean()) == run.curve.returns[-1]
    assert run.curve.total_frames[-1] == 1_000
    assert run.policy.act(np.zeros(4, np.float32)) in (0, 1)
    (axes,) = run.plot().axes
    assert axes.get_xlabel() == "frames of all sessions"
    printed, log = capsys.readouterr().out, (run.folder / "train.log").read_text()
    for text in ("finished: mean return", "frames 1,000/1,000 (100.0%)"):
        assert text in printed
        assert text in log
    assert repr(run) == f"Run('{run.folder}', finished, mean return {run.mean_return:.2f})"


def test_the_callback_is_told_every_line(tmp_path, capsys):
    lines = []
    run = asynclab.train(in_folder(tmp_path), lines.append, quiet=True)
    written = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["seconds"]) for line in lines] == [(line["kind"], line["seconds"]) for line in written]
    assert {"process", "session", "trial"} == {line["kind"] for line in lines}
    assert capsys.readouterr().out == ""


def test_what_the_callback_raises_ends_the_run_with_a_checkpoint(tmp_path):
    def enough(line):
        if line.get("total_frames", 0) > 500:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        asynclab.train([*in_folder(tmp_path), "env.max_frame=1_000_000"], enough, quiet=True)
    summary = asynclab.train([f"resume={tmp_path / 'run'}", "env.max_frame=3_000"], quiet=True).summary
    made = json.loads((tmp_path / "run" / "run.json").read_text())
    assert 500 < made["resumes"][0]["frames"] < summary["frames"] == 3_000


def test_this_process_is_left_as_it_was(tmp_path):
    class Own(gymnasium.Env):  # known to this process alone
        observation_space = gymnasium.spaces.Box(-1, 1, (3,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(3, np.float32), {}

        def step(self, action):
            return np.zeros(3, np.float32), float(action), True, False, {}

    gymnasium.register("Own-v0", Own)
    logger, threads, method = logging.getLogger("asynclab"), torch.get_num_threads(), mp.get_start_method(True)
    before = logger.level, logger.propagate, list(logger.handlers), HydraConfig.instance().cfg
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run = asynclab.train(
        [*in_folder(tmp_path), "env=gym", "env.id=Own-v0", "env.max_frame=200", "distributed.num_threads=2"], quiet=True
    )
    assert set(run.returns) == {0.0, 1.0}
    assert torch.rand(1) == expected
    assert (torch.get_num_threads(), mp.get_start_method(True)) == (threads, method)
    assert (logger.level, logger.propagate, logger.handlers, HydraConfig.instance().cfg) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("algo=a3c", r"overrides='algo=a3c' must be a list of settings"),
        (["algo=a4c"], r"Could not find 'algo/a4c'"),
        (["seed=0,1"], r"Ambiguous value for argument 'seed=0,1'"),
        (["algo=nstep_q", "env=pendulum"], r"^algo=nstep_q needs discrete actions, and this env has Box"),
        (["resume=nowhere"], r"^resume=nowhere is not the output folder of a run: it has no run.json\.$"),
    ],
)
def test_bad_input_is_a_value_error(overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        asynclab.train(overrides)


def test_a_session_that_fails_for_good_is_told(tmp_path):
    with pytest.raises(SessionError, match="session 0 raised"):
        asynclab.train([*in_folder(tmp_path), "env=gym", "env.id=weird_env:Raises-v0"], quiet=True)


def test_one_run_at_a_time(tmp_path):
    answers = []

    def other(line):
        if not answers:
            with pytest.raises(ValueError, match="a run trains in this process already") as error:
                asynclab.train(SMALL)
            answers.append(error)

    thread = threading.Thread(target=asynclab.train, args=(in_folder(tmp_path), other, True))
    thread.start()
    thread.join()
    assert len(answers) == 1


SCRIPT = """
import sys, threading, asynclab
print("begun")

def go():
    settings = ["env=cartpole", "env.max_frame=4_000", "distributed.max_session=2", "hydra.run.dir=run", "plot=false"]
    run = asynclab.train(settings, quiet=True)
    print(run.summary["restarts"], len(run.summary["session_frames"]), min(run.summary["session_frames"]) > 0)

thread = threading.Thread(target=go)
thread.start()
thread.join()
print(asynclab.train([*sys.argv[1:], "hydra.run.dir=alone"], quiet=True).summary["theta"][0])
"""


@pytest.mark.medium
def test_a_script_without_a_main_guard_trains_from_a_thread_and_as_the_command_does(tmp_path, train):
    (tmp_path / "script.py").write_text(SCRIPT)
    settings = [*SMALL, "seed=3", "plot=false"]
    process = subprocess.run(
        [sys.executable, "script.py", *settings], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    train(*settings, folder=tmp_path / "command")
    (theta,) = json.loads((tmp_path / "command" / "summary.json").read_text())["theta"]
    assert process.stdout == f"begun\n0 2 True\n{theta}\n", process.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"][1:3] == ["asynclab-train", "env=cartpole"]


def test_a_process_that_somebody_starts_meanwhile_is_left_alone(tmp_path):
    mine = []

    def listen(line):
        if not mine:
            mine.append(mp.get_context("forkserver").Process(target=time.sleep, args=(60,), daemon=True))
            mine[0].start()

    asynclab.train(in_folder(tmp_path), listen, quiet=True)
    assert mine[0].is_alive()
    mine[0].kill()
    mine[0].join()
