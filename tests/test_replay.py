"""A real run of several processes is recorded, and repeated to the bit in one."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from commands import run
from conftest import ROOT, run_session

from asynclab.distributed import Off, Shared, Synced

RECORDED = ["distributed=synced", "distributed.record=true", "distributed.lock=update", "env.make.normalize_obs=false",
            "env.make.scale_reward=null", "algo.precision=fp32", "device=cpu"]  # fmt: skip
CARTPOLE = ["algo=a3c", "env=cartpole", "distributed.max_session=3", "env.max_frame=3_000", *RECORDED]
pytestmark = [pytest.mark.medium, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Return the folder of a recorded run of three processes, which no test changes."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    run("train.py", "plot=false", *CARTPOLE, f"hydra.run.dir={folder}", cwd=folder.parent).check_returncode()
    return folder


def replay(folder, *typed, debugger="0"):
    return run("scripts/replay.py", f"run={folder}", *typed, cwd=folder.parent, PYTHONBREAKPOINT=debugger)


def refusal(folder, *typed):
    done = replay(folder, *typed)
    assert done.returncode
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def copied(recorded, tmp_path):
    """Return a copy of that folder, and a function that changes a line of the record."""
    folder = tmp_path / "run"
    shutil.copytree(recorded, folder, ignore=shutil.ignore_patterns("tensorboard", "checkpoints"))

    def change(update, edit):
        lines = (folder / "record.csv").read_text().splitlines(keepends=True)
        lines[update] = edit(lines[update])
        (folder / "record.csv").write_text("".join(lines))

    return folder, change


def test_a_run_of_three_processes_is_repeated_to_the_bit(recorded):
    done = replay(recorded)
    (theta,) = json.loads((recorded / "summary.json").read_text())["theta"]
    updates = len((recorded / "record.csv").read_text().splitlines()) - 1
    assert f"{updates} updates of 3 sessions lead to the same weights: sha256 {theta}" in done.stdout
    ranks = {line.split(",")[1] for line in (recorded / "record.csv").read_text().splitlines()[1:]}
    assert ranks == {"0", "1", "2"}


def another_version(line):
    """Return the line of update 6 with another version of the weights that its gradient was of, whichever that was."""
    update, rank, pulled, rest = line.split(",", 3)
    return f"{update},{rank},{(int(pulled) + 1) % 6},{rest}"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda line: re.sub(r" \d+,", lambda found: f" {int(found[0][1:-1]) + 8},", line), "theta is another one"),
        (lambda line: line[:-2] + ("0" if line[-2] != "0" else "1") + "\n", "theta is another one"),
        (lambda line: "6,9," + line.split(",", 2)[2], "there is no session 9"),
        (another_version, "session . cannot have weights of version .|theta is another one"),
        (lambda line: "", "line is of update 7"),
        (lambda line: "torn\n", "cannot be read: torn"),
    ],
)
def test_a_record_with_one_line_changed_is_found_out(copied, edit, words):
    folder, change = copied
    change(6, edit)
    told = refusal(folder)
    assert "the record differs from update 6 on" in told
    assert re.search(words, told)


@pytest.mark.slow
def test_a_replay_stops_before_an_update_and_hands_over_what_there_is(recorded):
    done = replay(recorded, "until=7", debugger="replays_debugger.look")
    assert "before update 7" in done.stdout
    assert "6 updates so far, Turn.GRADIENT, a gradient of 9155 numbers" in done.stdout
    command = [sys.executable, ROOT / "scripts" / "replay.py", f"run={recorded}", "until=7"]
    done = subprocess.run(command, cwd=recorded.parent, input="n\nq\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "until=100000, but the run made" in refusal(recorded, "until=100000")
    assert "until=0 must be a whole number of 1 or more" in refusal(recorded, "until=0")


@pytest.mark.slow
def test_what_cannot_be_replayed_is_refused_in_a_sentence(copied, tmp_path):
    folder, _ = copied
    summary, made = (json.loads((folder / name).read_text()) for name in ("summary.json", "run.json"))

    def with_(name, content, **changes):
        (folder / name).write_text(json.dumps(content | changes))
        told = refusal(folder)
        (folder / name).write_text(json.dumps(content))
        return told

    assert "had 1 restarts of sessions" in with_("summary.json", summary, restarts=1)
    assert "dropped 2 updates that were not finite" in with_("summary.json", summary, dropped_updates=2)
    assert "was resumed" in with_("run.json", made, resumes=[{}])
    packages = made["packages"] | {"torch": "1.0"}
    assert "was recorded with torch 1.0, and this is" in with_("run.json", made, packages=packages)
    assert "lead to other weights" in with_("summary.json", summary, theta=["0"])
    (folder / "summary.json").unlink()
    assert "has no summary.json: it still runs or was killed" in refusal(folder)
    (folder / "record.csv").unlink()
    assert "only runs with distributed.record=true can be replayed" in refusal(folder)
    assert "run is missing" in refusal(folder, "run=???")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Synced(2, record=True), "distributed.record=true needs distributed.lock=update, and it is none"),
        (lambda: Shared(2, lock="update", record=True), "needs distributed=synced, and this is shared"),
        (lambda: Off(2, lock="update", record=True), "needs distributed=synced, and this is off"),
        (lambda: Synced(2, lock="update", record="x"), "distributed.record=x must be true or false"),
    ],
)
def test_recording_needs_the_lock_and_private_weights(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("algo", "words"), [("ppo_normalized", "moments of all sessions"), ("dqn", "targets that all")]
)
def test_what_sessions_share_besides_theta_and_the_clock_cannot_be_recorded(make_trial, algo, words):
    with pytest.raises(ValueError, match=f"distributed.record=true cannot be replayed with .*{words}"):
        make_trial(algo, mode=Synced(2, lock="update", record=True))


@pytest.mark.parametrize("algo", ["a3c", "lstm", "ppo", "sac"])
def test_one_recorded_session_equals_one_that_is_not(make_trial, algo, tmp_path):
    thetas = []
    for mode in (Synced(1), Synced(1, lock="update", record=True)):
        trial = make_trial(algo, mode=mode, max_frame=400)
        if mode.record:
            trial.session.tape.begin()
        run_session(trial.session, 0, trial.stores[0])
        thetas.append(trial.stores[0].theta)
    assert torch.equal(*thetas)
    assert len((tmp_path / "record.csv").read_text().splitlines()) == trial.stores[0].total_updates() + 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "typed",
    [
        ["algo=a3c", "env=cartpole", "distributed.max_session=4", "env.max_frame=50_000"],
        ["algo=sac", "env=pendulum", "distributed.max_session=2", "env.max_frame=8_000"],
        ["algo=ppo", "env=cartpole", "algo.memory.horizon=64", "distributed.max_session=2", "env.max_frame=8_000"],
        ["algo=a3c", "env=cartpole", "algo.agent.lstm=16", "algo.agent.shared=true", "distributed.max_session=2",
         "distributed.diagnostics=true", "distributed.compensate=0.04", "env.max_frame=8_000"],
    ],
)  # fmt: skip
def test_runs_of_several_algorithms_are_repeated_to_the_bit(train, tmp_path, typed):
    train(*typed, *RECORDED).check_returncode()
    done = replay(tmp_path / "run")
    assert "lead to the same weights" in done.stdout, done.stderr
