"""Sixteen sessions, of which one after the other is killed."""

import os
import random
import signal
import statistics

import psutil
import pytest
from drill import SMALL, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_000)]

KILLS = 25


def memory(process):
    """Return the bytes of a process tree, shared pages counted once."""
    total = 0
    for p in [process, *process.children(recursive=True)]:
        try:
            total += p.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


@pytest.mark.parametrize(
    ("settings", "budget"),
    [([*SMALL, "env=cartpole"], 1_000_000), (["algo=a3c", "env=pong", "log_every=1"], 200_000)],
    ids=["cartpole", "pong"],
)
def test_16_sessions_survive_25_random_kills_with_every_frame_and_flat_memory(tmp_path, settings, budget, capsys):
    rng = random.Random(0)
    run = Run(tmp_path / "run", *settings, f"env.max_frame={budget}", "distributed.max_session=16",
              "distributed.max_restarts=100", "checkpoint_every=20")  # fmt: skip
    run.until_running(16)
    sizes = []
    for kill in range(KILLS):
        due = budget * (kill + 1) / (KILLS + 2)
        run.until(lambda due=due: run.frames() >= due, timeout=600)
        sizes.append(memory(psutil.Process(run.process.pid)))
        os.kill(rng.choice([pid for pid in run.pids().values() if psutil.pid_exists(pid)]), signal.SIGKILL)
    assert run.wait(600) == 0, run.text()
    summary = run.summary()
    assert summary["frames"] == sum(summary["session_frames"]) == budget
    assert summary["restarts"] == len(run.lines("failure")) == KILLS
    assert {line["cause"] for line in run.lines("failure")} == {"was killed by SIGKILL"}
    early, late = statistics.median(sizes[2:9]), statistics.median(sizes[-7:])
    with capsys.disabled():
        print(f"\n{KILLS} kills, {summary['seconds']:.0f} s, {early / 2**20:.0f} -> {late / 2**20:.0f} MiB")
    assert late < 1.05 * early
