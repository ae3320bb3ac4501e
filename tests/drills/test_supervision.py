"""Sessions that are killed, raise or hang."""

import json
import re
import signal
import time

import pytest
import torch
from drill import LONG, SMALL, Run, all_gone, env_id

from asynclab.storage import checkpoint

pytestmark = pytest.mark.medium


def check_frames(run, budget, num_envs, kills):
    """Hold that the total is met exactly, and that nothing was counted that was not stepped."""
    summary = run.summary()
    assert summary["frames"] == budget == sum(summary["session_frames"])
    for rank, frames in enumerate(summary["session_frames"]):
        reported = [line["frames"] for line in run.lines("session") if line["rank"] == rank]
        assert reported == sorted(reported)
        assert reported[-1] == frames
    # a session that is killed within a step has stepped up to all its environments without having counted
    assert budget <= run.steps_counted() <= budget + kills * num_envs


@pytest.mark.parametrize(
    "mode", ["synced", pytest.param("shared", marks=pytest.mark.slow), pytest.param("off", marks=pytest.mark.slow)]
)
def test_a_killed_session_is_restarted_and_no_frame_is_lost_or_counted_twice(tmp_path, mode):
    run = Run(tmp_path / "run", *SMALL, *env_id("Counted"), "env.max_frame=30_000", f"distributed={mode}",
              "distributed.max_session=2", "env.torso.hidden=[8]")  # fmt: skip
    run.until_running()[1].kill()
    assert run.wait() == 0, run.text()
    summary = run.summary()
    assert (summary["status"], summary["restarts"]) == ("finished", 1)
    (failure,) = run.lines("failure")
    assert (failure["rank"], failure["cause"], failure["exitcode"]) == (1, "was killed by SIGKILL", -signal.SIGKILL)
    assert len(run.lines("process")) == 3
    assert "session 1 was killed by SIGKILL; restart 1 in 1 s" in run.text()
    assert "sessions     2, 1 restart, " in run.text()
    check_frames(run, 60_000 if mode == "off" else 30_000, 4, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("sessions", [1, 2])
def test_a_session_that_fails_again_and_again_ends_the_trial_with_a_checkpoint(tmp_path, sessions):
    run = Run(tmp_path / "run", *SMALL, *env_id("Crash"), "env.max_frame=10_000_000", "distributed.max_restarts=2",
              f"distributed.max_session={sessions}")  # fmt: skip
    assert run.wait() == 1
    summary = run.summary()
    assert summary["status"] == "failed"
    assert 2 <= summary["restarts"] <= 4  # of the first to fail, and perhaps of the other
    assert re.search(r"session \d raised after 2 restarts; the trial was stopped", run.text())
    assert "RuntimeError: the simulator broke" in run.text()
    assert "in step" in run.lines("failure")[0]["details"]
    assert run.theta().isfinite().all()
    assert summary["frames"] >= 3 * 499 * 4 / 4 * sessions / 2


@pytest.mark.slow
@pytest.mark.parametrize("sessions", [1, 2])
def test_a_session_that_raises_before_its_first_step_is_not_tried_again(tmp_path, sessions):
    run = Run(tmp_path / "run", *SMALL, *env_id("Broken"), f"distributed.max_session={sessions}")
    assert run.wait() == 1
    assert re.search(r"session \d raised; the trial was stopped", run.text())
    assert "RuntimeError: the simulator is not installed" in run.text()
    assert (run.summary()["status"], run.summary()["restarts"]) == ("failed", 0)


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "kept"), [("1", True), ("0", False)])
def test_a_killed_session_goes_on_with_its_replay_or_waits_until_it_has_another(tmp_path, memory, kept):
    settings = ["algo=sac", "env=pendulum", "distributed=shared", "distributed.max_session=2", "log_every=0.2",
                "algo.memory.start=600", "algo.memory.batch_size=16", "env.torso.hidden=[8]"]  # fmt: skip
    run = Run(tmp_path / "run", *settings, "env.max_frame=12_000", "checkpoint_every=1", f"checkpoint_memory={memory}")
    victim, frames = run.until_running()[1], run.folder / "checkpoints" / "latest" / "manifest.json"
    run.until(lambda: json.loads(frames.read_text())["frames"] > 4_000)
    victim.kill()
    assert run.wait() == 0, run.text()
    summary = run.summary()
    assert (summary["frames"], summary["restarts"]) == (12_000, 1)
    waited = summary["frames"] - summary["updates"] - 600  # a frame that is learned from has one update
    assert waited < 100 if kept else 550 < waited < 1_800
    assert not list((run.folder / "checkpoints").glob(".*"))
    assert any((run.folder / "checkpoints" / "latest").glob("session_0?_*.npz")) == kept


@pytest.mark.slow
def test_a_stopped_session_is_noticed_and_replaced(tmp_path):
    run = Run(tmp_path / "run", *SMALL, *env_id("Counted"), "env.max_frame=60_000", "distributed.hang_after=3")
    victim = run.until_running()[0]
    victim.send_signal(signal.SIGSTOP)
    assert run.wait() == 0, run.text()
    assert run.summary()["restarts"] == 1
    (failure,) = run.lines("failure")
    assert re.fullmatch(r"hung for \d+ s and was killed", failure["cause"])
    assert "its process was stopped by a signal" in failure["details"]
    assert all_gone([victim])
    check_frames(run, 60_000, 4, kills=1)


@pytest.mark.slow
def test_a_hung_session_leaves_the_stacks_of_its_threads(tmp_path):
    run = Run(tmp_path / "run", *SMALL, *env_id("Hang"), "distributed.hang_after=3")
    assert run.wait() == 0, run.text()
    (failure,) = run.lines("failure")
    assert "wait_for_a_sensor_that_never_answers" in failure["details"]
    assert "in step" in failure["details"]
    assert (run.summary()["restarts"], run.summary()["frames"]) == (1, 20_000)


@pytest.mark.slow
def test_updates_that_are_not_finite_are_dropped_and_counted(tmp_path):
    run = Run(tmp_path / "run", *SMALL, *env_id("SometimesNan"))
    assert run.wait() == 0, run.text()
    summary = run.summary()
    assert summary["dropped_updates"] > 0
    assert sum(summary["session_updates"]) > 0
    # a rollout of 4 x 16 steps has a reward of nan in about half of the cases
    share = summary["dropped_updates"] / (summary["dropped_updates"] + summary["updates"])
    assert 0.1 < share < 0.9
    assert run.theta().isfinite().all()


@pytest.mark.slow
def test_too_many_updates_that_are_not_finite_end_the_run_with_good_weights(tmp_path):
    run = Run(tmp_path / "run", *SMALL, *env_id("Nan"), "max_dropped=5", "env.max_frame=1_000_000")
    assert run.wait() == 1
    assert re.search(r"6 updates in a row were not finite \(policy nan", run.text())
    summary = run.summary()
    assert (summary["status"], summary["restarts"]) == ("failed", 0)
    assert summary["frames"] < 100_000
    assert run.theta().isfinite().all()
    assert not torch.equal(run.theta(), run.theta("000000"))


@pytest.mark.slow
def test_one_session_alone_is_restarted_and_saved_on(tmp_path):
    run = Run(tmp_path / "run", *SMALL, *env_id("Crash"), "env.max_frame=100_000_000", "distributed.max_session=1",
              "distributed.max_restarts=1000", "checkpoint_every=0.5")  # fmt: skip
    run.until(lambda: len(run.lines("failure")) >= 2)
    latest = (run.folder / "checkpoints" / "latest").resolve().name
    run.until(lambda: (run.folder / "checkpoints" / "latest").resolve().name > latest)
    run.process.kill()
    run.wait()
    assert checkpoint.load(run.folder).manifest["complete"]


@pytest.mark.slow
def test_a_session_that_leaves_by_itself_is_restarted_too(tmp_path):
    run = Run(tmp_path / "run", *SMALL, *env_id("Leave"), "env.max_frame=100_000_000", "distributed.max_restarts=1")
    assert run.wait() == 1
    assert "SystemExit: 7" in run.lines("failure")[0]["details"]
    assert re.search(r"session \d raised after 1 restarts; the trial was stopped", run.text())


@pytest.mark.slow
def test_the_fork_server_may_die_too(tmp_path):
    run = Run(tmp_path / "run", *LONG, "env.max_frame=150_000")
    sessions = run.until_running()
    sessions[0].parent().kill()
    assert run.wait() == 0, run.text()
    assert (run.summary()["restarts"], run.summary()["frames"]) == (2, 150_000)


@pytest.mark.slow
def test_checkpoints_do_not_wait_for_sessions_that_start(tmp_path):
    run = Run(tmp_path / "run", *LONG, "checkpoint_every=0.3", "distributed.max_restarts=100")
    run.until_running()
    latest, seen = run.folder / "checkpoints" / "latest", set()
    for _ in range(4):
        count = len(run.lines("process"))
        run.sessions()[1].kill()
        run.until(lambda count=count: len(run.lines("process")) > count)
        seen.add(latest.resolve().name)
    assert len(seen) >= 3
    run.process.kill()


@pytest.mark.slow
def test_a_session_that_dies_while_a_checkpoint_waits_for_it_does_not_hold_it_up(tmp_path):
    run = Run(tmp_path / "run", *LONG, "checkpoint_every=0.3")
    victim = run.until_running()[1]
    victim.send_signal(signal.SIGSTOP)
    time.sleep(3)  # by now one has been asked for
    before = checkpoint.load(run.folder)
    time.sleep(2)
    assert checkpoint.load(run.folder).path == before.path
    victim.kill()
    run.until(lambda: checkpoint.load(run.folder).path.name > before.path.name)
    assert not checkpoint.load(run.folder).manifest["complete"]
    run.until(lambda: checkpoint.load(run.folder).manifest["complete"])  # with the one that was started instead
    assert len(run.lines("process")) == 3
    run.process.kill()
    run.wait()
