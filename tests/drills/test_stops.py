"""Ends that somebody asks for: Ctrl-C, SIGTERM, a closed terminal, a killed parent."""

import fcntl
import json
import os
import pty
import signal
import termios
import time
from pathlib import Path

import psutil
import pytest
from drill import LONG, SMALL, Run, all_gone, env_id

from asynclab.storage import checkpoint, snapshot

pytestmark = pytest.mark.medium


def check_end(run, code, family, asked, seconds=10):
    """Hold that a run that was asked to end did so in time, with all that belongs to it."""
    assert run.wait(60) == code, run.text()
    assert time.monotonic() - asked < seconds  # the promise itself
    assert all_gone(family)
    summary = run.summary()
    assert summary["status"] == "interrupted"
    found = checkpoint.load(run.folder)
    assert found.manifest["frames"] == summary["frames"] > 0
    sessions = len(summary["session_frames"])
    assert {f"session_{rank:02d}.pt" for rank in range(sessions)} <= set(found.manifest["files"])
    assert "Traceback" not in run.text()
    assert not list((run.folder / "checkpoints").glob(".partial*"))


@pytest.mark.parametrize(
    ("sessions", "number", "code"),
    [
        (2, signal.SIGINT, 130),
        pytest.param(1, signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_parent_alone_ends_everything(tmp_path, sessions, number, code):
    run = Run(tmp_path / "run", *LONG, f"distributed.max_session={sessions}")
    run.until_running(sessions)
    family, asked = run.family(), time.monotonic()
    run.process.send_signal(number)
    check_end(run, code, family, asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGHUP, 129),
    ],
)
def test_a_signal_to_the_whole_group_ends_everything(tmp_path, number, code):
    run = Run(tmp_path / "run", *LONG, start_new_session=True)
    run.until_running()
    family, asked = run.family(), time.monotonic()
    os.killpg(run.process.pid, number)
    check_end(run, code, family, asked)


@pytest.mark.slow
def test_a_closed_terminal_ends_everything(tmp_path):
    leader, follower = pty.openpty()

    def take_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup a closed terminal is to be ignored
        os.setsid()
        fcntl.ioctl(follower, termios.TIOCSCTTY, 0)

    streams = dict.fromkeys(("stdin", "stdout", "stderr"), follower)
    run = Run(tmp_path / "run", *LONG, preexec_fn=take_terminal, terminal="xterm", **streams)
    os.close(follower)
    run.until_running()
    seen = b""
    while seen.count(b"restarts") < 3:  # the live table is drawn again and again
        seen += os.read(leader, 65536)
    family, asked = run.family(), time.monotonic()
    os.close(leader)
    check_end(run, 129, family, asked)


@pytest.mark.slow
@pytest.mark.parametrize("sessions", [1, 2])
def test_updates_that_are_due_do_not_hold_up_the_end_and_are_kept(tmp_path, sessions):
    run = Run(tmp_path / "run", "algo=sac", *env_id("Gate"), "distributed=shared", "algo.memory.start=100",
              f"distributed.max_session={sessions}", "algo.memory.updates_per_frame=100_000")  # fmt: skip
    run.until_running(sessions)
    (tmp_path / "run.count.go").touch()
    run.until(lambda: run.steps_counted() >= 100)  # after which somebody has 400,000 updates to make
    family, asked = run.family(), time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    check_end(run, 143, family, asked)
    assert run.summary()["updates"] > 0
    folder = run.folder / "checkpoints" / "latest"
    arrays = [snapshot.read_arrays(folder / f"session_{rank:02d}.npz") for rank in range(sessions)]
    assert max(json.loads(str(a["json"]))["numbers"]["due"] for a in arrays) > 300_000


@pytest.mark.slow
def test_a_step_of_eight_seconds_may_end_before_the_session_is_killed(tmp_path):
    run = Run(tmp_path / "run", *SMALL, *env_id("Sluggish"))
    run.until_running()
    run.until(lambda: {(0, 208), (1, 208)} <= {(line["rank"], line["frames"]) for line in run.lines("session")})
    family, asked = run.family(), time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    check_end(run, 143, family, asked, seconds=8 + 10)


@pytest.mark.slow
def test_a_stopped_session_does_not_hold_up_the_end(tmp_path):
    run = Run(tmp_path / "run", *LONG)
    victim = run.until_running()[1]
    victim.send_signal(signal.SIGSTOP)
    family, asked = run.family(), time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143, run.text()
    assert time.monotonic() - asked < 10
    assert all_gone(family)
    assert "session 1 did not end in time and was killed" in run.text()
    assert checkpoint.load(run.folder).manifest["frames"] == run.summary()["frames"]


@pytest.mark.slow
def test_a_signal_before_anything_leaves_no_process(tmp_path):
    run = Run(tmp_path / "run", *LONG)
    run.until(run.family)
    family = run.family()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(60) in (143, -signal.SIGTERM)
    assert all_gone(family)
    assert "Traceback" not in run.text()


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.slow
def test_a_signal_while_the_sessions_start_ends_them_and_loses_nothing(tmp_path, resumed):
    run = Run(tmp_path / "run", *LONG)
    if resumed:
        run.until_running()
        run.process.send_signal(signal.SIGTERM)
        assert run.wait(60) == 143
        run = Run(run.folder, f"resume={run.folder}")
        run.until(lambda: len(run.lines("process")) == 4)
    else:
        run.until(lambda: run.lines("process"))
    before = checkpoint.load(run.folder)
    family, asked = run.family(), time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143, run.text()
    assert time.monotonic() - asked < 10
    assert all_gone(family)
    assert "Traceback" not in run.text()
    after = checkpoint.load(run.folder)
    assert after.path == before.path or after.manifest["complete"] or not resumed
    assert after.manifest["frames"] == run.summary()["frames"] >= before.manifest["frames"]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path):
    run = Run(tmp_path / "run", *LONG)
    run.until_running()[0].send_signal(signal.SIGSTOP)  # so that the first Ctrl-C has to wait
    family = run.family()
    run.process.send_signal(signal.SIGINT)
    run.until(lambda: "saving and ending" in run.text())
    again = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert time.monotonic() - again < 3
    assert all_gone(family)


@pytest.mark.parametrize("stopped", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_parent_killed_for_good_leaves_no_process_and_no_shared_memory(tmp_path, stopped):
    before = set(Path("/dev/shm").iterdir())
    run = Run(tmp_path / "run", *LONG)
    sessions = run.until_running()
    family = run.family()
    assert set(sessions.values()) <= set(family)
    if stopped:
        for session in sessions.values():
            session.send_signal(signal.SIGSTOP)
    run.process.kill()
    run.wait()
    assert all_gone(family)
    assert set(Path("/dev/shm").iterdir()) <= before
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(run.folder) in " ".join(p.info["cmdline"] or [])]
