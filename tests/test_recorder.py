import errno
import json
import math
import re
import subprocess
import sys
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asynclab.analysis.curves import read
from asynclab.distributed import Off, Synced
from asynclab.evaluation.evaluator import Evaluated
from asynclab.processes.launch import Failure
from asynclab.run import resources
from asynclab.run.recorder import Moment, Recorder, a_minute_before
from asynclab.run.statistics import Statistics
from asynclab.training.messages import Record, Return


@pytest.fixture
def record(make_trial, tmp_path):
    """Return a function that makes a recorder for a mode and gives it some records."""

    def run(mode, *records):
        trial = make_trial(mode=mode)
        recorder = Recorder(tmp_path, mode, trial.stores, every=1000.0)
        for r in records:
            recorder.write(r)
        recorder.close("finished")
        lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").open()]
        return json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail), lines

    return run


def episodes(ret, n, first_second):
    return [Return(i, i, first_second + 2.0 * i, ret, 10) for i in range(n)]


def test_the_mean_return_is_over_the_episodes_that_ended_last_and_not_those_reported_last(record):
    a = Record(0, 100, 1, episodes(0.0, 100, 1000.0), {}, {})
    b = Record(1, 100, 1, episodes(100.0, 100, 1001.0), {}, {})
    summary, _ = record(Synced(2), a, b)
    assert summary["mean_return"] == 50.0
    assert summary["session_mean_return"] == [0.0, 100.0]


def test_only_the_last_100_episodes_count(record):
    summary, _ = record(Off(1), Record(0, 1, 1, episodes(5.0, 50, 0.0) + episodes(7.0, 100, 200.0), {}, {}))
    assert (summary["mean_return"], summary["episodes"]) == (7.0, 150)


def test_of_episodes_that_end_in_one_virtual_moment_the_lowest_are_not_left_out(record):
    returns = [float(i % 100) for i in range(200)]
    summary, _ = record(Off(1), Record(0, 1, 1, [Return(i, i, 1.0, ret, 10) for i, ret in enumerate(returns)], {}, {}))
    assert summary["mean_return"] == 49.5


def test_nan_is_written_as_null(record):
    summary, lines = record(Off(1), Record(0, 1, 1, episodes(math.nan, 1, 0.0), {"loss/policy": math.inf}, {}))
    assert summary["mean_return"] is None
    assert lines[0]["metrics"]["loss/policy"] is None
    assert lines[0]["episodes"][0]["ret"] is None


def test_the_status_follows_a_session_from_its_start_over_a_failure_to_the_end(make_trial, tmp_path):
    trial = make_trial(mode=Off(2))
    recorder = Recorder(tmp_path, trial.mode, trial.stores, every=1000.0)
    one, two = recorder.status.sessions
    states = [one.state]
    for happens in (
        lambda: recorder.process(0, 1),
        lambda: recorder.write(Record(0, 8, 1, episodes(3.0, 100, 0.0), {}, {}, {2: 1})),
        lambda: recorder.failure(Failure(0, "hung for 60 s and was killed", -9, "", 1, 1.0)),
        lambda: recorder.process(0, 2),
        lambda: recorder.write(Record(0, 16, 2, episodes(1.0, 100, 500.0), {}, {})),
        lambda: trial.stores[0].frames.fill_(2_000),
        lambda: recorder.write(Record(0, 2_000, 2, [], {}, {})),
        lambda: recorder.failure(Failure(1, "was killed by SIGKILL", -9, "", 0, None)),
        lambda: recorder.status.end(),
    ):
        happens()
        states.append(one.state)
    assert list(dict.fromkeys(states)) == ["starting", "running", "hung", "restarting", "resting", "ended"]
    assert (one.episodes, one.mean_return, one.staleness, one.restarts) == (200, 1.0, 2.0, 1)
    assert (two.state, two.restarts) == ("dead", 0)
    assert (recorder.status.mean_return, recorder.status.best) == (1.0, 3.0)
    assert (recorder.status.budget, recorder.status.frames()) == (4_000, [2_000, 0])
    again = Recorder(tmp_path, trial.mode, trial.stores, 1000.0, json.loads(json.dumps(recorder.state_dict()))).status
    assert (again.mean_return, again.best) == (1.0, 3.0)
    assert [(s.episodes, s.mean_return, s.restarts) for s in again.sessions[:1]] == [(200, 1.0, 1)]


def test_a_second_recorder_cannot_write_into_the_folder(record):
    record(Off(1))
    with pytest.raises(ValueError, match="holds a run already"):
        record(Off(1))


def test_a_summary_that_cannot_be_written_leaves_nothing_behind(record, tmp_path, monkeypatch):
    def fail(path, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        record(Off(1))
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_a_curve_of_a_killed_run_is_read_without_its_half_line(record, tmp_path):
    record(Off(1), Record(0, 200, 1, episodes(3.0, 2, 0.0), {}, {}))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tri')
    assert read(tmp_path).trial.returns.tolist() == [3.0]


def test_memory_that_runs_out_is_said(record, monkeypatch, caplog):
    monkeypatch.setattr("asynclab.run.resources.is_low", lambda available: True)
    record(Off(1), Record(0, 1, 1, [], {"perf/memory_mib": 250.0}, {}))
    assert "memory is running out" in caplog.text
    assert "sessions have up to 250 MiB each" in caplog.text


def test_staleness_is_summed_up_for_sessions_and_trial(record):
    a = Record(0, 8, 1, [], {}, {}, {0: 3, 2: 1})
    b = Record(1, 8, 1, [], {}, {}, {4: 4})
    summary, lines = record(Synced(2), a, b)
    assert summary["session_staleness"] == [
        {"mean": 0.5, "p50": 0, "p95": 2, "max": 2},
        {"mean": 4.0, "p50": 4, "p95": 4, "max": 4},
    ]
    assert summary["staleness"] == {"mean": 2.25, "p50": 2, "p95": 4, "max": 4}
    assert lines[0]["metrics"]["hogwild/staleness_mean"] == 0.5
    assert lines[-1]["metrics"]["hogwild/staleness_max"] == 4


def test_the_progress_line_tells_how_old_gradients_are_and_how_busy_the_cores(record, caplog):
    caplog.set_level("INFO")
    _, lines = record(Synced(2), Record(0, 8, 1, [], {}, {}, {0: 1, 3: 1}))
    assert re.search(r"  fps [\d,]+  return nan  updates 0  staleness 1\.50  cores \d+%  left \?$", caplog.text, re.M)
    assert lines[-1]["metrics"]["perf/cores_busy"] >= 0


def test_speeds_are_those_of_the_last_minute():
    moments = deque(Moment(10.0 * i, 100 * i**2, 5.0 * i) for i in range(10))
    before = a_minute_before(95.0, moments)
    assert (before.seconds, len(moments)) == (30.0, 7)
    now = Moment(95.0, 13_900, 145.0)
    assert (before.fps(now), before.cores(now)) == (200.0, 2.0)
    assert a_minute_before(2_000.0, deque([now])) is now


@pytest.mark.parametrize("ended", [False, True])
def test_the_time_of_what_a_process_has_started_counts(ended):
    before = resources.core_seconds()
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    if ended:
        process.communicate(b"\n")
    assert resources.core_seconds() - before > 0.45
    if not ended:
        process.communicate(b"\n")


def test_what_was_last_known_of_a_loss_stays_in_the_trials_line(record):
    first = Record(0, 8, 1, [], {"loss/policy": 3.0, "perf/memory_mib": 1.0}, {})
    _, lines = record(Off(1), first, Record(0, 16, 1, [], {"perf/memory_mib": 2.0}, {}))
    assert (lines[-1]["metrics"]["loss/policy"], lines[-1]["metrics"]["perf/memory_mib"]) == (3.0, 2.0)


def test_a_run_goes_on_after_an_evaluation_that_was_not_finite():
    before = Statistics(1)
    for ret in (3.0, math.nan):
        before.evaluated(Evaluated(8, 1, 0.0, [ret], [10], 0))
    after = Statistics(1, json.loads(json.dumps(before.state_dict())))
    assert math.isnan(after.evaluation["mean_return"])
    assert after.evaluation["best"]["mean_return"] == 3.0


def test_what_works_after_the_training_does_not_count_as_cores_that_it_kept_busy(make_trial, tmp_path, monkeypatch):
    trial = make_trial()
    recorder = Recorder(tmp_path, trial.mode, trial.stores, every=1000.0)
    recorder.stop()
    monkeypatch.setattr(resources, "core_seconds", lambda: 1e9)  # of the last evaluation
    recorder.close("finished")
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["metrics"]["perf/cores_busy"] < 1000


def test_the_speed_of_a_run_that_goes_on_is_that_of_all_of_it_and_its_end_is_noted(make_trial, tmp_path):
    trial = make_trial(mode=Off(1))
    trial.stores[0].frames[0] = 1_000
    state = Recorder(tmp_path, trial.mode, trial.stores, every=1000.0).state_dict() | {"seconds": 100.0}
    summary = Recorder(tmp_path, trial.mode, trial.stores, every=1000.0, state=state).close("finished")
    assert 5 < summary["fps"] <= 10  # nothing was stepped after the state was saved
    assert abs(datetime.fromisoformat(summary["ended"]) - datetime.now(UTC)) < timedelta(minutes=5)
