"""A timing is measured from a real run's profile, and a simulation with it is as stale as its original."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from asynclab.analysis.timing import measured

PROFILE = {"env": 0.2, "act": 0.1, "remember": 0.05, "sample": 0.01, "forward": 0.14, "backward": 0.1, "push": 0.05,
           "pull": 0.05, "other": 0.05, "waiting": 0.25}  # fmt: skip


def write(folder, **changes):
    """Write what is read of a run: two sessions of 4 environments, alike, that took 100 seconds each."""
    summary = {"profile": [PROFILE] * 2, "profile_seconds": [100.0] * 2, "session_frames": [4_000] * 2,
               "session_updates": [250] * 2} | changes  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if v is not None}))
    (folder / "run.json").write_text(json.dumps({"max_session": 2}))
    (folder / "config.yaml").write_text("env: {num_envs: 4}\n")
    return folder


def test_durations_are_those_of_the_profile(tmp_path):
    # 1,000 steps and 250 updates; a quarter of the time was waited, so all took 4/3 as long as it ran
    assert measured(write(tmp_path)) == {
        "act": pytest.approx(100 * 0.1 / 0.75 / 1_000, rel=1e-3),
        "step": pytest.approx(100 * 0.3 / 0.75 / 1_000, rel=1e-3),
        "gradient": pytest.approx(100 * 0.25 / 0.75 / 250, rel=1e-3),
        "push": pytest.approx(100 * 0.05 / 0.75 / 250, rel=1e-3),
        "pull": pytest.approx(100 * 0.05 / 0.75 / 250, rel=1e-3),
    }


def test_the_profile_of_a_resumed_run_is_not_that_of_all_its_frames(tmp_path):
    write(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"max_session": 2, "resumes": [{}]}))
    with pytest.raises(ValueError, match="was resumed, and its profile is that of its last part"):
        measured(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"profile": None}, "has no profile; run it with profile=true"), ({"session_updates": [0, 5]}, "learned nothing")],
)
def test_a_run_that_tells_no_durations_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        measured(write(tmp_path, **changes))
    with pytest.raises(ValueError, match=r"run=\S*nowhere is not a folder"):
        measured(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"run=\S*empty cannot be measured: summary\.json is missing"):
        measured(tmp_path / "empty")


def test_the_command_overwrites_nothing_and_says_where_it_cannot_write(tmp_path):
    write(tmp_path)

    def timing(*overrides):
        command = [sys.executable, ROOT / "scripts" / "timing.py", f"run={tmp_path}", *overrides]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Traceback" not in process.stderr
        return process

    assert timing("spread=0.5").returncode == 0
    file = tmp_path / "timing" / "distributed" / "timing" / "measured.yaml"
    written = file.read_text()
    again = timing()
    assert again.returncode == 1
    assert f"{file} exists; set out to another folder" in again.stderr
    assert file.read_text() == written
    (tmp_path / "file").write_text("")
    there = timing(f"out={tmp_path}/file")
    assert there.returncode == 1
    assert f"out={tmp_path}/file cannot be written" in there.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sessions", [2, 4])
def test_a_simulation_is_as_stale_as_the_run_whose_timing_it_has(train, tmp_path, sessions):
    """The kernel decides whose turn it is in one, measured durations in the other."""
    settings = ["algo=a3c", "env=cartpole", "env.max_frame=30_000", f"distributed.max_session={sessions}"]
    real, simulated = tmp_path / "real", tmp_path / "simulated"
    train(*settings, "profile=true", folder=real).check_returncode()
    told = subprocess.run(
        [sys.executable, ROOT / "scripts" / "timing.py", f"run={real}"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert f"--config-dir {real}/timing distributed=simulated distributed/timing=measured" in told
    command = [sys.executable, ROOT / "train.py", f"--config-dir={real}/timing", "plot=false", "distributed=simulated"]
    typed = ["distributed/timing=measured", *settings, f"hydra.run.dir={simulated}"]
    subprocess.run([*command, *typed], check=True, capture_output=True)
    means = [json.loads((run / "summary.json").read_text())["staleness"]["mean"] for run in (real, simulated)]
    assert means[1] == pytest.approx(means[0], rel=0.15)
