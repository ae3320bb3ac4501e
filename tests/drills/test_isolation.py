"""What a run must not do to others, a config to the machine, and a machine to a run without a word."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from drill import LONG, SMALL, Run

pytestmark = pytest.mark.medium


@pytest.mark.slow
def test_two_runs_cannot_write_one_folder_and_a_killed_one_leaves_no_lock(tmp_path):
    first = Run(tmp_path / "run", *LONG)
    first.until_running()
    config = (first.folder / ".hydra" / "config.yaml").read_bytes()
    for resume in ([], ["resume=auto"], [f"resume={first.folder}"]):
        second = Run(first.folder, *LONG, *resume, "seed=7")
        second.output.rename(first.folder.parent / "second.out")
        assert second.wait() == 1
        text = (first.folder.parent / "second.out").read_text()
        assert re.search(rf"a run writes into .*run \(process {first.process.pid}\); set hydra\.run\.dir to", text)
        assert "Traceback" not in text
    assert (first.folder / ".hydra" / "config.yaml").read_bytes() == config
    assert first.process.poll() is None
    first.process.kill()
    first.wait()
    third = Run(first.folder, f"resume={first.folder}", "env.max_frame=20_000")
    assert third.wait() == 0, third.text()


@pytest.mark.slow
def test_a_failing_job_is_named_and_the_others_of_its_sweep_finish(tmp_path):
    command = [sys.executable, ROOT / "train.py", "-m", *SMALL, "env.max_frame=4_000", "env.num_envs=2,0,4",
               f"hydra.sweep.dir={tmp_path / 'sweep'}"]  # fmt: skip
    process = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 1
    assert "env.num_envs=0 must be a whole number" in process.stderr
    assert re.search(r"#1 : .*env\.num_envs=0", process.stdout)  # Hydra says which job it was
    for job in ("0", "2"):
        assert json.loads((tmp_path / "sweep" / job / "summary.json").read_text())["status"] == "finished"
    assert not (tmp_path / "sweep" / "1" / "summary.json").exists()


def test_a_target_outside_the_allowed_packages_is_refused_before_it_is_imported(train, tmp_path):
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\ndef spring(): pass\n")
    process = train(*SMALL, "algo.lr_schedule._target_=trap.spring", env={"PYTHONPATH": str(tmp_path)})
    assert process.returncode == 1
    assert "algo.lr_schedule._target_=trap.spring is not in a package that configs may use" in process.stderr
    assert "export ASYNCLAB_TARGETS=trap" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_the_config_of_a_run_is_held_to_the_list_too(train, tmp_path):
    assert train(*SMALL, "env.max_frame=3_000").returncode == 0
    path = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["env"]["make"] = {"_target_": "builtins.open", "file": str(tmp_path / "sprung"), "mode": "w"}
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, ROOT / "scripts" / "evaluate.py", f"run={tmp_path / 'run'}"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 1
    assert "env.make._target_=builtins.open is not in a package that configs may use" in process.stderr
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
def test_the_user_can_extend_the_list(train, tmp_path):
    (tmp_path / "mine.py").write_text("class Half:\n    def __call__(self, progress):\n        return 0.5\n")
    told = train(*SMALL, "algo.lr_schedule._target_=mine.Half", folder=tmp_path / "told",
                 env={"PYTHONPATH": str(tmp_path), "ASYNCLAB_TARGETS": "mine"})  # fmt: skip
    assert "Half() takes no arguments; algo.lr_schedule._target_ is given all that stands beside it, and" in told.stderr
    assert "~algo.lr_schedule.<name> leaves one out" in told.stderr
    settings = [*SMALL, "env.max_frame=3_000", "algo.lr_schedule._target_=mine.Half", "~algo.lr_schedule.final"]
    process = train(*settings, env={"PYTHONPATH": str(tmp_path), "ASYNCLAB_TARGETS": "other,mine"})
    assert process.returncode == 0, process.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["metrics"]["train/lr"] == pytest.approx(0.5 * 1e-3)


def test_too_few_open_files_are_said_before_any_process_starts(tmp_path):
    limited = ["bash", "-c", 'ulimit -n 64 && exec "$@"', "bash"]
    run = Run(tmp_path / "run", *LONG, "distributed.max_session=16", prefix=limited)
    assert run.wait() == 1
    assert re.search(
        r"16 sessions need about 128 open files and the limit is 64; raise it \(ulimit -n 128\)", run.text()
    )
    assert "Traceback" not in run.text()
    assert not run.lines("process")


@pytest.mark.slow
def test_what_is_said_about_open_files_is_enough(tmp_path):
    limited = ["bash", "-c", 'ulimit -n 83 && exec "$@"', "bash"]
    evaluation = ["eval.every=5_000", "eval.episodes=1"]
    run = Run(
        tmp_path / "run", *SMALL, *evaluation, "distributed.max_session=4", "env.max_frame=20_000", prefix=limited
    )
    run.until_running(4)[2].kill()
    assert run.wait() == 0, run.text()
    assert run.summary()["restarts"] == 1


@pytest.mark.slow
def test_a_sweep_is_not_overwritten_but_goes_on_if_asked_to(tmp_path):
    def sweep(*overrides):
        command = [sys.executable, ROOT / "train.py", "-m", *SMALL, "env.max_frame=4_000", *overrides,
                   f"hydra.sweep.dir={tmp_path / 'sweep'}"]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    assert sweep("seed=0,1").returncode == 0
    before = (tmp_path / "sweep" / "0" / ".hydra" / "overrides.yaml").stat().st_mtime_ns
    again = sweep("seed=0,1")
    assert again.returncode == 1
    assert "holds runs already (0, 1). Set hydra.sweep.dir to another folder, or resume=auto" in again.stderr
    more = sweep("seed=0,1,2", "resume=auto")
    assert more.returncode == 0, more.stderr
    assert more.stdout.count("is finished at 4,000 frames") == 2
    assert json.loads((tmp_path / "sweep" / "2" / "summary.json").read_text())["frames"] == 4_000
    assert (tmp_path / "sweep" / "0" / ".hydra" / "overrides.yaml").stat().st_mtime_ns == before
