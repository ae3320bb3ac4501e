"""Environments with odd infos, odd ends and processes of their own train as others do (the table is odd_envs.py)."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT

from asynclab.envs import make_envs

FEW = ["algo=a3c", "env=gym", "env.num_envs=2", "env.torso.hidden=[8]", "algo.memory.horizon=8", "env.max_frame=480"]
INFOS = ["GrowingArray", "SometimesNone", "OtherType", "OwnEpisode", "OwnFinal", "KeysThatAreNoText", "RaggedLists"]
LIVES = {"Both": 20, "OneStep": 1, "NumpyFlags": 20, "WholeRewards": 20, "CutAtTwenty": 20}
HELPERS = [
    "EveryHelper",  # all the others, but Stubborn
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "Stubborn", "ForkHelper", "SpawnHelper", "ServedHelper", "HastyHelper", "NotDaemon", "Forgotten", "Program",
            "PlainFork", "Worker",
        )
    ),
]  # fmt: skip
ENV = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])}


def command(tmp_path, *overrides, script="train.py", **options):
    """Run a real command in a group of its own; what is left of the group must be nothing."""
    process = subprocess.Popen(
        [sys.executable, ROOT / script, *overrides],
        cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=100)
    finally:
        left = [p for p in psutil.process_iter() if _group(p) == process.pid and p.status() != psutil.STATUS_ZOMBIE]
        _, left = psutil.wait_procs(left, timeout=10)  # what ends when the command does may take a moment
        for other in left:
            other.kill()
    return process.returncode, text, left


def _group(process):
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


@pytest.mark.parametrize("name", INFOS)
def test_what_an_info_holds_does_not_matter(name):
    envs = make_envs(f"odd_envs:{name}-v0", 3)
    envs.reset([0, 1, 2])
    episodes = [e for _ in range(90) for e in envs.step(envs.action_space.sample().repeat(3)).episodes]
    assert len(episodes) >= 12
    assert all(e.ret == e.length <= 20 for e in episodes)
    envs.close()


@pytest.mark.parametrize(("name", "length"), LIVES.items())
def test_every_episode_counts_all_of_its_rewards(name, length):
    envs = make_envs(f"odd_envs:{name}-v0", 2)
    envs.reset([0, 1])
    steps = [envs.step(envs.action_space.sample().repeat(2)) for _ in range(60)]
    found = [(e.ret, e.length) for step in steps for e in step.episodes]
    assert found == [(length, length)] * (120 // length)
    assert any(step.truncated.any() for step in steps) == (name == "CutAtTwenty")
    envs.close()


@pytest.mark.medium
@pytest.mark.parametrize("sessions", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HELPERS)
def test_processes_of_an_environment_neither_end_nor_hold_up_the_run(tmp_path, name, sessions):
    code, text, left = command(
        tmp_path, *FEW, f"env.id=odd_envs:{name}-v0", f"distributed.max_session={sessions}", "plot=false",
        "hydra.run.dir=run",
    )  # fmt: skip
    assert code == 0, text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["frames"], summary["failures"]) == ("finished", 480, [])
    assert summary["mean_return"] == 20
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OwnEpisode", "GrowingArray", "ForkHelper"])
def test_the_doctor_finds_nothing_wrong_with_them(tmp_path, name):
    code, text, left = command(
        tmp_path, *FEW, f"env.id=odd_envs:{name}-v0", "distributed.max_session=2", "frames=200",
        "checks=[infos,transitions,raw_returns,reproducible,seeds]", script="scripts/doctor.py",
    )  # fmt: skip
    assert code == 0, text
    assert "5 ok, 0 FAILED, 0 skipped" in text
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("sessions", [1, 2])
def test_ctrl_c_that_ends_the_process_of_an_environment_too_is_an_interruption(tmp_path, sessions):
    words = [o for o in FEW if "max_frame" not in o] + ["env.max_frame=100_000_000", "log_every=0.2", "plot=false"]
    output = tmp_path / "output"
    with output.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, ROOT / "train.py", *words, "env.id=odd_envs:Worker-v0", "hydra.run.dir=run",
             f"distributed.max_session={sessions}"],
            cwd=tmp_path, env=ENV, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() or '"kind": "trial"' not in metrics.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, output.read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_a_session_that_is_killed_takes_the_processes_of_its_environments_along(tmp_path):
    code, text, left = command(
        tmp_path, *FEW, "env.id=odd_envs:Hanging-v0", "distributed.max_session=2", "distributed.hang_after=3",
        "distributed.max_restarts=0", "plot=false", "hydra.run.dir=run",
    )  # fmt: skip
    assert code == 1, text
    assert "hung for 3 s and was killed" in text
    assert not left
