"""Sweeps: failed jobs and their reasons, folders of their own, other launchers, a study of Optuna that goes on."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import commands
import psutil
import pytest
import yaml
from conftest import ROOT
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from asynclab.storage import checkpoint, folder
from asynclab.sweeps import watch

SMALL = ["env=cartpole", "env.num_envs=2", "algo.memory.horizon=16", "distributed=off", "log_every=0.2", "plot=false"]
OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=0", "algo.optimizer.lr=tag(log,interval(1e-4,1e-2))"]


def typed(path, *overrides):
    return ["-m", *SMALL, *overrides, f"hydra.sweep.dir={path}"]


def sweep(path, *overrides, timeout=240, **env):
    """Run a sweep to its end; its output must have no traceback."""
    if env or any("launcher=" in override for override in overrides):  # launchers start processes of their own
        command = [sys.executable, ROOT / "train.py", *typed(path, *overrides)]
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=os.environ | env
        )
    else:
        process = commands.run("train.py", *typed(path, *overrides), timeout=timeout)
    assert "Traceback" not in process.stdout + process.stderr, process.stdout + process.stderr
    return process


def start(path, *overrides):
    """Start a sweep that will be disturbed."""
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, ROOT / "train.py", *typed(path, *overrides)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)


def read(path):
    return json.loads(path.read_text())


def study(path):
    import optuna  # takes a second

    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{path}/study.db")


def lr(run):
    return yaml.safe_load((run / "config.yaml").read_text())["algo"]["optimizer"]["lr"]


# What callbacks do


def config(
    tmp_path, number=0, sweeper="hydra._internal.core_plugins.basic_sweeper.BasicSweeper", mode=RunMode.MULTIRUN
):
    run = tmp_path / str(number)
    run.mkdir(exist_ok=True)
    hydra = {
        "job": {"num": number},
        "mode": mode,
        "overrides": {"task": ["algo=a3c", f"seed={number}"]},
        "runtime": {"output_dir": str(run)},
        "sweep": {"dir": str(tmp_path)},
        "sweeper": {"_target_": sweeper},
    }
    return OmegaConf.create({"env": {"max_frame": 100}, "hydra": hydra})


def end(cfg, value):
    """Begin and end a job that returns or raises a value; return what the sweeper sees."""
    callback, failed = watch.SweepWatch(), isinstance(value, Exception)
    callback.on_job_start(cfg, task_function=len)
    result = JobReturn(status=JobStatus.FAILED if failed else JobStatus.COMPLETED, _return_value=value)
    callback.on_job_end(cfg, result)
    return result


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "text", "kind"),
    [
        (caused(CompactHydraException("seed=-1 is wrong"), ValueError("x")), "seed=-1 is wrong", "ValueError"),
        (KeyError("a"), "KeyError: 'a'", "KeyError"),
        (ValueError("two\n lines"), "two lines", "ValueError"),
        (RuntimeError(), "RuntimeError: RuntimeError", "RuntimeError"),
        (
            CompactHydraException("session 0 raised\nTraceback (most recent call last):\n  File x\nOSError: full\n"),
            "session 0 raised: OSError: full",
            "CompactHydraException",
        ),
    ],
    ids=["user", "bug", "lines", "empty", "session"],
)
def test_a_failed_job_leaves_its_reason_until_it_succeeds(tmp_path, error, text, kind):
    cfg = config(tmp_path)
    assert math.isnan(end(cfg, error).return_value)  # the basic sweeper goes on
    assert read(tmp_path / "0" / "failure.json") == {"error": text, "type": kind}
    assert watch.report(cfg)[0].splitlines()[:2] == [
        f"1 job in {tmp_path}: 0 finished, 1 failed",
        f"  0 algo=a3c seed=0: {text}",
    ]
    assert end(cfg, 9.0).return_value == 9
    assert [path.name for path in (tmp_path / "0").iterdir()] == []
    assert watch.report(cfg) == (f"1 job in {tmp_path}: 1 finished", True)


def test_jobs_that_did_not_end_are_told_from_those_that_failed(tmp_path):
    for number in range(4):
        cfg = config(tmp_path, number)
        watch.SweepWatch().on_job_start(cfg, task_function=len)
    (tmp_path / "1" / "summary.json").write_text('{"status": "interrupted"}')
    folder.lock(tmp_path / "2")
    end(cfg, ValueError("wrong"))
    text, good = watch.report(cfg)
    folder.unlock(tmp_path / "2")
    assert not good
    assert text.splitlines()[:5] == [
        f"4 jobs in {tmp_path}: 0 finished, 1 failed, 3 not finished",
        "  0 seed=0: it was killed",
        "  1 seed=1: interrupted",
        "  2 seed=2: it still runs",
        "  3 seed=3: wrong",
    ]


def test_who_looks_whether_a_folder_is_free_keeps_nobody_out(tmp_path):
    folder.lock(tmp_path)
    folder.unlock(tmp_path)
    done = threading.Event()

    def look():
        while not done.is_set():
            folder.is_locked(tmp_path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(500):
            folder.lock(tmp_path)
            folder.unlock(tmp_path)
    finally:
        done.set()
        looking.join()


def test_a_job_that_may_not_touch_a_finished_run_leaves_no_failure_there(tmp_path):
    cfg = config(tmp_path)
    (tmp_path / "0" / "summary.json").write_text('{"status": "finished"}')
    end(cfg, ValueError("made with other settings"))
    assert not (tmp_path / "0" / "failure.json").exists()
    assert "made with other settings" in watch.report(cfg)[0]


def test_a_run_that_is_no_sweep_leaves_its_reason_too(tmp_path):
    error = CompactHydraException("wrong")
    assert end(config(tmp_path, mode=RunMode.RUN), error)._return_value is error  # Hydra says it
    assert read(tmp_path / "0" / "failure.json")["error"] == "wrong"
    assert not (tmp_path / ".jobs").exists()


def test_a_run_that_begins_again_forgets_an_earlier_failure_even_if_it_is_killed(tmp_path):
    cfg = config(tmp_path, mode=RunMode.RUN)
    end(cfg, CompactHydraException("a typo"))
    folder.lock(tmp_path / "0")  # as ``CheckOutput`` does
    watch.SweepWatch().on_job_start(cfg, task_function=len)
    folder.unlock(tmp_path / "0")
    assert not (tmp_path / "0" / "failure.json").exists()


def test_a_job_leaves_the_failure_of_a_run_that_another_process_has_taken_up(tmp_path):
    cfg = config(tmp_path)
    end(cfg, ValueError("x"))
    folder.lock(tmp_path / "0")
    watch.SweepWatch().on_job_start(cfg, task_function=len)
    folder.unlock(tmp_path / "0")
    assert (tmp_path / "0" / "failure.json").exists()


def test_the_command_that_goes_on_can_be_pasted(tmp_path):
    (tmp_path / "my runs").mkdir()
    cfg = config(tmp_path / "my runs")
    end(cfg, ValueError("x"))
    words = shlex.split(watch.report(cfg)[0].splitlines()[-1])
    assert words[-2:] == [f'hydra.sweep.dir="{tmp_path / "my runs"}"', "resume=auto"]


@pytest.mark.parametrize("name", ["0", "a/b/c/d"])
def test_runs_are_found_however_deep_they_are(tmp_path, name):
    assert watch._holds(tmp_path) is None
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "run.json").touch()
    assert watch._holds(tmp_path) == f"runs already ({name})"


def test_a_process_that_has_ended_is_no_worker():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        found = psutil.Process(process.pid)
    assert not watch._is_worker(found)


def test_a_trial_without_a_return_fails(tmp_path):
    result = end(config(tmp_path, sweeper="hydra_plugins.hydra_optuna_sweeper.OptunaSweeper"), math.nan)
    assert result.status is JobStatus.FAILED
    with pytest.raises(CompactHydraException, match=r"no episode has ended within env\.max_frame=100"):
        _ = result.return_value
    assert read(tmp_path / "0" / "failure.json")["type"] == "ValueError"


# Real sweeps


@pytest.mark.medium
@pytest.mark.parametrize(
    "launcher",
    [
        [],
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], marks=pytest.mark.slow),
        pytest.param(["hydra/launcher=submitit_local"], marks=pytest.mark.slow),
    ],
    ids=["basic", "joblib", "submitit"],
)
def test_failed_jobs_are_listed_and_the_others_finish(tmp_path, launcher):
    sessions = ["distributed=synced", "distributed.max_session=2"] if launcher else []
    process = sweep(tmp_path, "env.max_frame=2_000", "env.num_envs=0,2", *sessions, *launcher)
    assert process.returncode == 1
    text = "env.num_envs=0 must be a whole number of 1 or more"
    assert process.stderr.splitlines()[-3:-1] == [
        f"2 jobs in {tmp_path}: 1 finished, 1 failed", f"  0 env.num_envs=0: {text}",
    ]  # fmt: skip
    assert read(tmp_path / "0" / "failure.json") == {"error": text, "type": "ValueError"}
    assert read(tmp_path / "1" / "summary.json")["status"] == "finished"
    assert not (tmp_path / "1" / "failure.json").exists()


def test_a_mistyped_value_is_said_with_the_reason(tmp_path):
    process = sweep(tmp_path, "env.max_frame=1e5,2e5")
    assert process.returncode == 1
    assert process.stderr.startswith("Error merging override env.max_frame=100000.0\nValue '100000.0' of type 'float'")
    assert "could not be converted to Integer" in process.stderr


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_where_it_was(tmp_path):
    settings = [*OPTUNA, "env.max_frame=6_000", "checkpoint_every=0.2", "resume=auto", "hydra.sweeper.n_trials=3"]
    process = start(tmp_path, *settings)
    for _ in process.stdout:
        if list((tmp_path / "1" / "checkpoints").glob("00*[1-9]")):  # not only the one of the beginning
            process.kill()
            break
    process.communicate(timeout=60)
    before = [(t.state.name, t.params) for t in study(tmp_path).trials]
    assert [state for state, _ in before] == ["COMPLETE", "RUNNING"]
    other = sweep(tmp_path, *settings, "env.max_frame=9_000")
    assert other.returncode == 1
    assert "was made with other settings (env.max_frame: 6000 -> 9000)" in other.stderr
    again = sweep(tmp_path, *settings)
    assert again.returncode == 0, again.stderr
    assert f"2 jobs in {tmp_path}: 2 finished" in again.stdout
    trials = study(tmp_path).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 3
    assert [t.params for t in trials[:2]] == [params for _, params in before]
    rates = [t.params["algo.optimizer.lr"] for t in trials]
    assert len(set(rates)) == 3
    assert [lr(tmp_path / str(t.number)) for t in trials] == pytest.approx(rates)
    runs = [read(tmp_path / str(number) / "run.json")["resumes"] for number in range(3)]
    assert [len(resumes) for resumes in runs] == [0, 1, 0]
    assert runs[1][0]["frames"] > 0
    assert f"the best of 3 trials is {study(tmp_path).best_trial.number}, which returned" in again.stdout


@pytest.mark.medium
def test_a_study_of_which_every_trial_fails_says_so(tmp_path):
    process = sweep(tmp_path, *OPTUNA, "env.num_envs=0", "env.max_frame=2_000", "hydra.sweeper.n_trials=2")
    assert process.returncode == 1
    assert f"2 jobs in {tmp_path}: 0 finished, 2 failed" in process.stderr
    assert len(re.findall(r"^  [01] .*: env\.num_envs=0 must be a whole number", process.stderr, re.MULTILINE)) == 2
    assert process.stderr.splitlines()[-1] == (
        "The sweep has ended early: no trial has returned anything that could be compared"
    )


@pytest.mark.medium
def test_two_jobs_cannot_share_a_folder(tmp_path):
    process = sweep(tmp_path, "+experiment=study_cartpole", "arm=a2c,ppo", "seed=0", "algo.optimizer.lr=1e-3,2e-3")
    assert process.returncode == 1
    assert "'hydra.sweep.subdir=${hydra.runtime.choices.arm}_seed_${seed}_lr_${algo.optimizer.lr}'" in process.stderr
    assert not list(tmp_path.glob("*/"))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("swept", "advice"),
    [
        ("algo/optimizer=adam,rmsprop", "x_algo_optimizer_${hydra.runtime.choices.algo/optimizer}"),
        ("algo=a3c,a2c", "x_algo_${hydra.runtime.choices.algo}"),
        ("+env.make.g=1,2", "x_g_${env.make.g}"),
    ],
)
def test_folders_that_are_proposed_have_names_of_files_and_new_settings(tmp_path, swept, advice):
    process = sweep(tmp_path, "hydra.sweep.subdir=x", swept)
    assert process.returncode == 1
    assert process.stderr.endswith(f"the same folder, x; set 'hydra.sweep.subdir={advice}'.\n")


@pytest.mark.medium
@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["+experiment=tune_cartpole"], r"hydra/sweeper=optuna needs .*: pip install 'asynclab\[sweep\]'"),
        (
            ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=x", "seed=0,1"],
            r"pip install 'asynclab\[slurm\]'",
        ),
    ],
    ids=["optuna", "slurm"],
)
def test_a_missing_plugin_is_named_with_its_extra(tmp_path, overrides, text):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('hydra_plugins'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    python_path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    process = sweep(tmp_path / "sweep", *overrides, PYTHONPATH=python_path)
    assert process.returncode == 1
    assert re.search(text, process.stderr.strip()), process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


def job_that_trains(process, run):
    """Return the process in which a job runs, once its sessions have reported."""
    metrics, asked = run / "metrics.jsonl", time.monotonic()
    while not (metrics.exists() and '"session"' in metrics.read_text()):
        assert process.poll() is None
        assert time.monotonic() - asked < 200
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    return next(p for p in family if str(run / ".lock") in {file.path for file in p.open_files()})


@pytest.mark.slow
def test_a_job_of_submitit_whose_time_is_over_saves_and_goes_on(tmp_path):
    settings = ["distributed=synced", "distributed.max_session=2", "env.max_frame=30_000", "resume=auto", "seed=0,1"]
    process = start(tmp_path, *settings, "hydra/launcher=submitit_local")
    job = job_that_trains(process, tmp_path / "0")
    for member in [*job.children(recursive=True), job]:  # Slurm sends it to all of them
        member.send_signal(signal.SIGUSR2)
    text = process.communicate(timeout=250)[0]
    assert process.returncode == 0, text
    assert f"2 jobs in {tmp_path}: 2 finished" in text
    (resume,) = read(tmp_path / "0" / "run.json")["resumes"]
    assert resume["frames"] > 0
    summary = read(tmp_path / "0" / "summary.json")
    assert (summary["frames"], summary["restarts"]) == (30_000, 0)


@pytest.mark.slow
def test_a_killed_worker_of_joblib_is_found_unfinished(tmp_path):
    process = start(tmp_path, "env.max_frame=200_000", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    job_that_trains(process, tmp_path / "0").kill()
    text = process.communicate(timeout=100)[0]
    assert process.returncode == 1
    assert "Traceback" not in text
    assert re.search(r"^  0 seed=0: it was killed", text, re.MULTILINE), text
    assert "The sweep has ended early: TerminatedWorkerError" in text
    assert not (tmp_path / "0" / "failure.json").exists()


@pytest.mark.slow
def test_a_signal_ends_the_workers_of_joblib_with_checkpoints(tmp_path):
    process = start(tmp_path, "env.max_frame=900_000", "seed=0,1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    workers = [job_that_trains(process, tmp_path / name) for name in ("0", "1")]
    process.terminate()
    text = process.communicate(timeout=100)[0]
    assert process.returncode == 143
    assert re.search(r"^  0 seed=0: interrupted\n  1 seed=1: interrupted$", text, re.MULTILINE), text
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    for name in ("0", "1"):
        assert checkpoint.load(tmp_path / name).manifest["frames"] > 0


CLUSTER = {  # Slurm on one machine: what is handed in runs at once
    "sbatch": """
        cp "${@: -1}" $CLUSTER/script
        for i in 0 1; do
            SLURM_JOB_ID=8$i SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$i SLURM_NTASKS=1 bash $CLUSTER/script
        done > $CLUSTER/output 2>&1 &
        echo Submitted batch job 7""",
    "srun": """
        while [[ $1 == -* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
        exec "$@" """,
    "sacct": "echo 'JobID|State|NodeList'",
}


@pytest.mark.slow
def test_jobs_are_handed_in_to_slurm_as_asked_for(tmp_path):
    for name, text in CLUSTER.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    wanted = ["cpus_per_task=16", "mem_gb=32", "partition=cpu", "timeout_min=240", "max_num_timeout=20"]
    settings = ["env.num_envs=0,2", "env.max_frame=2_000", "resume=auto", *(f"hydra.launcher.{w}" for w in wanted)]
    where = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CLUSTER": str(tmp_path)}
    process = sweep(tmp_path / "sweep", *settings, "hydra/launcher=submitit_slurm", **where)
    assert f"2 jobs in {tmp_path / 'sweep'}: 1 finished, 1 failed" in process.stderr
    assert read(tmp_path / "sweep" / "0" / "failure.json")["error"].startswith("env.num_envs=0 must be")
    assert read(tmp_path / "sweep" / "1" / "summary.json")["status"] == "finished"
    script = (tmp_path / "script").read_text()
    for line in ("array=0-1%2", "cpus-per-task=16", "mem=32GB", "partition=cpu", "signal=USR2@120", "time=240"):
        assert f"#SBATCH --{line}\n" in script


def test_the_tuned_experiment_starts_from_its_start():
    experiments = Path(ROOT / "conf" / "experiment")
    start = yaml.safe_load((experiments / "tune_cartpole_start.yaml").read_text())
    tune = yaml.safe_load((experiments / "tune_cartpole.yaml").read_text())
    assert tune["defaults"][0] == "tune_cartpole_start"
    assert start["algo"]["optimizer"]["lr"] == 2e-5
    assert tune["hydra"]["sweeper"]["params"]["algo.optimizer.lr"] == "tag(log, interval(1e-5, 3e-2))"
