"""Moments in which all sessions stand still: with sessions that start, die or learn for long, and at the end."""

import json
import math
import multiprocessing as mp
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import REPLAY, TORSO, run_session
from runs import step_slowly

from asynclab.agents import SAC
from asynclab.distributed import Synced
from asynclab.distributed.store import Store
from asynclab.processes.control import Control, Report
from asynclab.processes.launch import Failure, launch
from asynclab.run.recorder import Recorder
from asynclab.run.snapshots import Snapshots
from asynclab.run.trial import TrialError
from asynclab.storage import checkpoint
from asynclab.storage.checkpoint import Checkpoints
from asynclab.training.messages import Record, Saved


def at_update(store, number, what):
    """Let something happen right after an update of this store in this process."""
    apply, updates = store.apply, iter(range(1, 10**9))

    def watched(grad, scale=1.0):
        apply(grad, scale)
        if next(updates) == number:
            what()

    store.apply = watched


def busy(trial):
    """Return the trial's session with 40 updates of SAC after each step."""
    return replace(trial.session, make_memory=partial(REPLAY, updates_per_frame=20.0))


def two_begun(trial, folder):
    """Return what takes a trial's messages, and its two sessions, of which it has heard once."""
    recorder = Recorder(folder, trial.mode, trial.stores, 1000.0)
    snapshots = trial.snapshots(Checkpoints(folder, 2), recorder)
    sessions = [trial.session.run(rank, trial.stores[0], trial.control) for rank in (0, 1)]
    for session in sessions:
        trial.handle(next(session), recorder, snapshots)
    return recorder, snapshots, sessions


def due(folder):
    """Return how many batches a saved replay has still to hand out."""
    with np.load(folder / "session_00.npz") as arrays:
        return json.loads(str(arrays["json"]))["numbers"]["due"]


def test_several_sessions_leave_the_updates_that_are_due_when_somebody_waits_for_the_end(make_trial, tmp_path):
    trial, control = make_trial("sac", mode=Synced(2)), Control(2)
    (store,) = trial.stores
    at_update(store, 43, control.finish)
    *_, saved = busy(trial).run(0, store, control)
    assert saved.number == 1
    assert store.total_updates() == 43
    assert due(tmp_path / "checkpoints" / ".partial_1") == 2 * 40 - 43


@pytest.mark.parametrize("stop_seconds", [0.0, math.inf])
def test_one_session_that_is_interrupted_between_updates_ends_as_if_it_had_not_been(make_trial, tmp_path, stop_seconds):
    whole = make_trial("sac", max_frame=108)
    run_session(busy(whole), 0, whole.stores[0])
    trial = make_trial("sac", max_frame=108)
    trial.session, trial.control.stop_seconds = busy(trial), stop_seconds
    at_update(trial.stores[0], 43, trial.control.finish)
    with pytest.raises(TrialError):
        trial.run()
    found = checkpoint.load(tmp_path)
    left = 37 if stop_seconds == 0 else 0  # without time it leaves them for later
    assert trial.stores[0].total_updates() == 80 - left
    assert due(found.path) == left
    again = make_trial("sac", max_frame=108, checkpoint=found)
    again.session = busy(again)
    again.run()
    assert again.stores[0].total_updates() == whole.stores[0].total_updates() == 5 * 40
    assert torch.equal(again.stores[0].theta, whole.stores[0].theta)


@pytest.mark.parametrize(
    ("sessions", "seconds", "updates"), [(1, 100.0, 12), (2, 100.0, 12), (1, None, 12), (2, None, 8)]
)
def test_when_the_budget_is_used_up_all_updates_that_are_due_are_made(make_trial, sessions, seconds, updates):
    trial, control = make_trial("ppo", mode=Synced(sessions)), Control(sessions)  # 6 updates of each rollout
    (store,) = trial.stores
    at_update(store, 8, lambda: control.finish(seconds))
    list(trial.session.run(0, store, control))
    assert store.total_updates() == updates


def test_who_waits_for_an_end_that_was_not_urgent_makes_it_urgent(make_trial):
    trial, control = make_trial("ppo", mode=Synced(2)), Control(2)
    (store,) = trial.stores
    at_update(store, 8, lambda: control.finish(100.0))
    at_update(store, 9, control.finish)
    list(trial.session.run(0, store, control))
    assert store.total_updates() == 9


def test_the_longest_step_is_waited_for_and_half_of_the_time_is_kept_for_saving(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    for slowest, deadline in ((0.0, 106.0), (3.0, 106.0), (8.0, 111.0)):
        control = Control(2)
        control.slowest = slowest
        control.finish()
        assert control.deadline == deadline


@pytest.mark.slow
def test_sessions_whose_steps_take_longer_than_the_time_to_end_are_not_killed():
    control, steps = Control(2, stop_seconds=2.0), {0: 0, 1: 0}
    events = []
    for event in launch([partial(step_slowly, control, rank, 3.0) for rank in (0, 1)], 1, control):
        if isinstance(event, tuple) and event[1] == "step":
            steps[event[0]] += 1
            if min(steps.values()) == 3:  # the parent has seen how long each of them takes
                control.finish()
        events.append(event)
    assert not [event for event in events if isinstance(event, Failure)]
    assert {(0, "saved"), (1, "saved")} <= set(events)


def test_a_session_that_has_stepped_is_awaited_before_the_parent_has_heard_of_it(make_trial, tmp_path):
    trial = make_trial(mode=Synced(2))
    recorder, snapshots, sessions = two_begun(trial, tmp_path)
    trial.control.count_restart(1)  # it has died
    sessions[1] = trial.session.run(1, trial.stores[0], trial.control)
    unheard = next(sessions[1])
    assert isinstance(unheard, Record)
    snapshots.every = 0.0
    snapshots.begin()
    trial.handle(None, recorder, snapshots)
    assert trial.control.is_pending()
    for event in (next(sessions[0]), next(sessions[0])):
        trial.handle(event, recorder, snapshots)
    assert isinstance(event, Saved)
    assert trial.control.is_pending()
    assert not checkpoint.exists(tmp_path)
    for event in (unheard, next(sessions[1]), next(sessions[1])):
        trial.handle(event, recorder, snapshots)
    assert not trial.control.is_pending()
    assert checkpoint.load(tmp_path).manifest["complete"]
    recorder.close("interrupted")


def test_a_checkpoint_that_could_not_be_written_leaves_nothing_on_the_disk(make_trial, tmp_path, caplog):
    trial = make_trial(mode=Synced(2))
    recorder, snapshots, sessions = two_begun(trial, tmp_path)
    for damage in ("no room", "nan"):
        snapshots.every = 0.0
        snapshots.begin()
        trial.handle(None, recorder, snapshots)
        saved = [next(event for event in session if isinstance(event, Saved)) for session in sessions]
        assert list((tmp_path / "checkpoints").glob(".partial_*"))
        if damage == "nan":
            trial.stores[0].theta[0] = float("nan")
        else:
            saved[1] = saved[1]._replace(files=None, error="no room")
        for event in saved:
            trial.handle(event, recorder, snapshots)
        assert not trial.control.is_pending()
        assert not list((tmp_path / "checkpoints").glob(".partial_*"))
    assert [record.message.partition(":")[0] for record in caplog.records] == ["no checkpoint was written"] * 2
    recorder.close("interrupted")


def test_a_session_that_dies_while_it_is_awaited_is_awaited_no_more(make_trial, tmp_path):
    trial = make_trial(mode=Synced(2))
    recorder, snapshots, sessions = two_begun(trial, tmp_path)
    snapshots.every = 0.0
    snapshots.begin()
    trial.handle(None, recorder, snapshots)
    for event in (next(sessions[0]), next(sessions[0])):
        trial.handle(event, recorder, snapshots)
    assert trial.control.is_pending()
    trial.control.count_restart(1)
    trial.handle(Failure(1, "was killed by SIGKILL", -9, "", 1, 1.0), recorder, snapshots)
    assert not trial.control.is_pending()
    assert not checkpoint.load(tmp_path).manifest["complete"]
    recorder.close("interrupted")


def test_a_session_that_starts_while_the_others_stand_still_waits_before_its_first_step(make_trial):
    trial, control = make_trial(mode=Synced(2)), Control(2)
    (store,) = trial.stores
    control.ask()
    beats, events = control.beats(1), []
    session = trial.session.run(1, store, control)
    thread = threading.Thread(target=lambda: events.append(next(session)), daemon=True)
    thread.start()
    while control.beats(1) < beats + 20:
        time.sleep(0.01)
    assert store.total_frames() == 0
    assert control.running() == set()
    control.release(1)
    thread.join(60)
    assert store.total_frames() == 2
    assert control.running() == {1}
    assert isinstance(events[0], Record)  # it has not been asked to save
    session.close()


class Slow(SAC):
    """Takes its time in session 1."""

    rank = 0

    def start(self, num_envs, rank=0):
        self.rank = rank

    def loss(self, batch, progress):
        time.sleep(0.1 * self.rank)
        return super().loss(batch, progress)


@pytest.mark.medium
def test_nothing_moves_while_the_parent_saves_although_a_restarted_session_learns(make_trial, monkeypatch):
    """Session 1 makes 10 slow updates after its very first step; checkpoints are taken as often as possible."""
    trial = make_trial("sac", mode=Synced(2), max_frame=10**8)
    trial.session = replace(
        trial.session,
        make_agent=partial(Slow, torso=TORSO),
        make_memory=partial(REPLAY, start=0, updates_per_frame=5.0),
    )
    trial.cfg.checkpoint_every = 0.01
    state_dict, moved, updates = Store.state_dict, [], []  # before it dies, and then after each checkpoint

    def watched(store):
        before = store.total_updates()
        state = state_dict(store)
        time.sleep(0.3)
        moved.append(store.total_updates() - before)
        if len(moved) == 3:
            updates.append(int(store.updates[1]))
            (victim,) = [process for process in mp.active_children() if process.name == "session-1"]
            victim.kill()
        elif updates and store.updates[1] > updates[-1]:
            updates.append(int(store.updates[1]))
            if len(updates) == 4:
                trial.control.finish()
        return state

    monkeypatch.setattr(Store, "state_dict", watched)
    with pytest.raises(TrialError, match="not by a signal to it"):
        trial.run()
    assert trial.control.restarts(1) == 1
    assert set(moved) == {0}


@pytest.mark.parametrize(("awaits_all", "asked"), [(True, 0), (False, 1)])
def test_checkpoints_of_a_cluster_do_not_wait_for_machines_that_have_not_joined(tmp_path, awaits_all, asked):
    control = Control(2)
    snapshots = Snapshots(control, [], Checkpoints(tmp_path, 1), 0.0, lambda: ({}, 0.0), 0.0, awaits_all)
    snapshots.begin()
    control.hear(Report(asked=0, running=frozenset({0}), slowest=0.0), range(1))
    snapshots.attend()
    assert control.asked() == asked


def test_a_last_checkpoint_that_could_not_be_written_leaves_nothing_on_the_disk(make_trial, tmp_path, monkeypatch):
    trial = make_trial("sac", max_frame=200)
    checkpoints = tmp_path / "checkpoints"

    def fail(self):
        (checkpoints / ".partial_9").mkdir()
        raise OSError("no room")

    monkeypatch.setattr(Snapshots, "commit_last", fail)
    with pytest.raises(TrialError, match="the run had to end: no room"):
        trial.run()
    assert not list(checkpoints.glob(".*"))
