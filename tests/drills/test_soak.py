"""Sixteen sessions, of which one after the other is killed."""

import os
import random
import signal
import statistics
from contextlib import suppress

import psutil
import pytest
from drill import SMALL, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_000)]

KILLS = 25


def memory(process):
    """Return the MiB of the command itself, and the mean of its children; shared pages are counted once."""
    sizes = []
    for p in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # one has just been killed
            sizes.append(p.memory_full_info().pss / 2**20)
    return sizes[0], statistics.fmean(sizes[1:])


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
    (parent, child), (parent_late, child_late) = (
        [statistics.median(values) for values in zip(*part, strict=True)] for part in (sizes[5:12], sizes[-7:])
    )
    with capsys.disabled():
        print(f"\n{KILLS} kills, {summary['frames']:,} frames in {summary['seconds']:.0f} s; MiB of the command"
              f" {parent:.0f} -> {parent_late:.0f}, of each session {child:.0f} -> {child_late:.0f}")  # fmt: skip
    assert parent_late < 1.15 * parent  # it keeps some of what it took to write checkpoints
    assert child_late < 1.1 * child  # they unshare pages with the fork server as they run
