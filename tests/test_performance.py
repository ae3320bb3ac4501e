"""What makes it fast, held by counts and not by seconds."""

import json
import math
import os
import re
import subprocess
import sys
import time
import tracemalloc
from functools import partial
from types import SimpleNamespace

import commands
import numpy as np
import pytest
from conftest import ROOT, items, run_session
from runs import faults, handles

from asynclab.distributed import Off, Synced
from asynclab.envs import make_envs
from asynclab.memory import Replay, Rollout
from asynclab.nets import MLPTorso
from asynclab.profile import PHASES, Profile


@pytest.mark.parametrize("id", ["ALE/Pong-v5", "Humanoid-v5"])
@pytest.mark.parametrize("memory", [partial(Rollout, horizon=4), partial(Replay, capacity=64, batch_size=4)])
def test_a_step_allocates_no_array_as_large_as_the_observations(id, memory):
    envs = make_envs(id, 8)
    made = memory(envs.obs_space, envs.action_space, 8)
    obs = envs.reset(list(range(8)))
    made.reset(obs)
    action = np.stack([envs.action_space.sample() for _ in range(8)])
    inner = envs._env.step(action)  # the emulator's own arrays are not ours to count
    envs._env = SimpleNamespace(step=lambda _: inner)
    made.add(action, envs.step(action))
    tracemalloc.start()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(20):
        made.add(action, envs.step(action))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < obs.nbytes / 2


def test_descriptors_and_segments_do_not_grow_with_the_number_of_parameters(make_trial, tmp_path):
    counts = []
    for layers in (2, 40):
        trial = make_trial(mode=Synced(2), torso=partial(MLPTorso, hidden=[16] * layers))
        runs = [partial(handles, trial.store_of(rank)) for rank in range(2)]
        counts.append(sorted(items(runs)))
    assert counts[0] == counts[1]
    assert counts[0][0][1] > 0


def test_sessions_keep_freed_memory():
    # 16 MiB a round are 4,096 pages: 80,000 faults if they were given back every time, and a heap with holes may take
    # the first rounds from new memory
    assert max(items([faults, faults])) < 20_000


def imports(session, rank, store):
    """Run a session and yield the modules that it has imported."""
    before = set(sys.modules)
    run_session(session, rank, store)
    yield sorted(set(sys.modules) - before)


@pytest.mark.medium
def test_what_a_session_imports_was_imported_before_it_was_forked(make_trial, plain_server):
    # Each with a budget of its own: of a shared one, a session could see the end only after it has rested.
    trial = make_trial(mode=Off(2), max_frame=200)
    runs = [partial(imports, trial.session, rank, trial.store_of(rank)) for rank in range(2)]
    for imported in items(runs):
        assert not [name for name in imported if name.startswith(("torch._dynamo", "sympy"))]
        assert len(imported) < 60


@pytest.mark.slow
def test_nothing_that_a_run_does_imports_torchs_compiler(tmp_path):
    code = "import sys; from asynclab.main import main; main(); print('torch._dynamo' in sys.modules)"
    small = ["env.torso.hidden=[8]", "env.num_envs=1", "plot=false", "log_every=0.2"]
    for algo, frames in (
        (["algo=a3c", "env=cartpole"], 300),
        (["algo=sac", "env=pendulum", "algo.memory.start=100"], 150),
    ):
        settings = [
            *algo,
            *small,
            "distributed.max_session=1",
            f"hydra.run.dir={tmp_path / str(frames)}",
            "resume=auto",
        ]
        for budget in (frames, 2 * frames):  # begun and resumed
            command = [sys.executable, "-c", code, *settings, f"env.max_frame={budget}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
            assert done.stdout.endswith("\nFalse\n"), done.stdout + done.stderr


def test_profile_adds_up_and_name_what_took_the_time():
    profile = Profile(enabled=True)
    before, total = time.perf_counter(), 0
    profile.start()
    start = time.perf_counter()
    for i in profile.each("sample", range(3)):
        with profile.phase("env"):
            total += sum(range(300_000 + i))
    passed = time.perf_counter() - start
    seconds = profile.seconds()
    assert set(seconds) == set(PHASES)
    assert passed < sum(seconds.values()) < time.perf_counter() - before
    assert seconds["env"] + seconds["waiting"] > 0.9 * passed
    assert profile.seconds()["env"] == 0.0
    assert Profile(enabled=False).seconds() == {}


def test_waiting_is_time_in_which_the_process_did_not_run():
    profile = Profile(enabled=True)
    profile.start()
    with profile.phase("env"):
        time.sleep(0.2)
    assert profile.seconds()["waiting"] > 0.1


@pytest.mark.medium
def test_profile_is_printed_and_logged(train, tmp_path):
    process = train("algo=sac", "env=pendulum", "distributed=shared", "distributed.max_session=2", "profile=true",
                    "env.max_frame=1_500", "algo.memory.start=1_000", "log_every=0.5")  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("time in %"))
    head, *rows = lines[first : first + 4]
    assert head.split() == ["time", "in", "%", *PHASES]
    assert [row.split()[:-10] for row in rows] == [["session", "00"], ["session", "01"], ["mean"]]
    for row in rows:
        assert sum(map(float, row.split()[-10:])) == pytest.approx(100, abs=1)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [sum(shares.values()) for shares in summary["profile"]] == pytest.approx([1, 1], abs=0.01)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {f"profile/{phase}" for phase in PHASES} <= set(lines[-1]["metrics"])


def train_stable_baselines3(out, *overrides):
    """Train its PPO; return the frames of its curve's points."""
    process = commands.run("benchmarks/sb3_ppo.py", "algo.precision=fp32", f"out={out}", *overrides)
    assert process.returncode == 0, process.stderr
    frames, seconds, returns = zip(*json.loads(out.read_text())["curve"], strict=True)
    assert frames == tuple(sorted(set(frames)))
    assert seconds == tuple(sorted(seconds))
    assert all(math.isfinite(r) for r in returns)
    return frames


@pytest.mark.slow
def test_stable_baselines3_trains_with_our_numbers(tmp_path):
    vectors = ["env=cartpole", "algo.agent.shared=false", "algo.agent.epochs=1", "env.max_frame=4_000"]
    frames = train_stable_baselines3(tmp_path / "curve.json", *vectors)
    assert frames[-1] >= 3_600
    assert 10 < len(frames) < 130  # a hundred points, and those of the last rollout


@pytest.mark.slow
def test_stable_baselines3_trains_as_long_as_its_return_is_low(tmp_path):
    pixels = ["env=pong", "env.num_envs=4", "env.torso={conv: [[8, 8, 8]], hidden: [8]}", "algo.agent.epochs=1"]
    rollouts = ["algo.memory.horizon=16", "algo.agent.minibatch_size=64", "+env.make.max_num_frames_per_episode=60"]
    # 100 episodes take 1,500 frames and some; any return is above -22
    frames = train_stable_baselines3(tmp_path / "curve.json", *pixels, *rollouts, "env.max_frame=6_000", "stop_at=-22")
    assert 1_000 < frames[-1] < 3_000


def benchmark(*overrides):
    return commands.run("benchmarks/throughput.py", *overrides, timeout=280)


@pytest.mark.slow
def test_benchmark_measures_parts_whole_and_stable_baselines3(tmp_path):
    out = tmp_path / "benchmark.json"
    process = benchmark(
        "env=cartpole", "algo.memory.horizon=32", "sessions=[1,2]", "repeats=1", "seconds=2", "sb3=true", f"out={out}"
    )
    assert process.returncode == 0, process.stderr
    content = json.loads(out.read_text())
    result = content["result"]
    for n in ("1", "2"):
        run = result["runs"][n]
        assert run["frames"]["median"] > 0
        # horizon 32 of 8 environments: frames and updates must fit together, but for the few at the ends of a window
        assert 128 < run["frames"]["median"] / run["updates"]["median"] < 512
        assert f"| {n} |" in process.stdout
        assert run["peak"]["median"] > 50 * 2**20
    assert set(result["sb3"]) == {"1", str(len(os.sched_getaffinity(0)))}
    for peer in result["sb3"].values():
        assert 250 < peer["frames"]["median"] / peer["updates"]["median"] < 262  # whole rounds of 256
    assert content["about"].startswith("fp32 on ")
    assert content["about"] in process.stdout
    parts = content["samples"]["parts"][0]
    assert [p["frames_per_update"] for p in parts] == [256.0] * len(os.sched_getaffinity(0))
    env, act, update = (sum(p[name] for p in parts) for name in ("env", "act", "update"))
    assert result["limit"]["median"] == pytest.approx(1 / (1 / env + 1 / act + 1 / (256 * update)))
    assert content["git"]["revision"]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.medium
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sessions=[0]"], "sessions=0 must be a whole number of 1 or more"),
        (["seconds=0"], "seconds=0.0 must be a number above 0"),
        (["repeats=many"], "repeats"),
        ([f"out={ROOT}/README.md"], "out=.*README.md exists; set out to another file"),
        (["sessions=[1,1]"], r"sessions=\[1, 1\] names a number twice"),
        (["sessions=[]"], r"sessions=\[\] leaves nothing to measure"),
        (["variants=['algo=ppo']"], "variants has 'algo=ppo', which must be settings of distributed"),
        (["out=README.md/x.json"], "output folder out=README.md cannot be written"),
        (["algo.memory.horizon=0"], "algo.memory.horizon=0"),
        (
            ["algo=sac", "env=pendulum", "algo.memory.capacity=20_000_000", "sessions=[1,200]"],
            "the sessions' memories need ",
        ),
    ],
)
def test_benchmark_refuses(overrides, message):
    process = benchmark("env=cartpole", *overrides)
    assert process.returncode == 1
    assert re.search(message, process.stderr)
    assert "Traceback" not in process.stderr
    assert "1 of 5" not in process.stdout  # before anything is measured


@pytest.mark.slow
def test_benchmark_says_why_a_command_failed(tmp_path):
    # one session's memory fits, and the benchmark's own parts start; 200 times as much is refused by train.py
    process = benchmark("algo=sac", "env=pendulum", "distributed=shared", "algo.memory.capacity=20_000_000",
                        "sessions=[]", "variants=['distributed.max_session=200']", "repeats=1", "seconds=1",
                        f"out={tmp_path / 'b.json'}")  # fmt: skip
    assert process.returncode == 1
    assert "the command ended early: " in process.stderr
    assert re.search(r"the sessions' memories need .* GB", process.stderr)
    assert "Traceback" not in process.stderr
