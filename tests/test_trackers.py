"""Weights & Biases without a network and MLflow on a file store: what is in their files; a tracker never ends a run."""

import json
import os
import re
import struct
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

import asynclab
from asynclab.run import trackers

pytestmark = pytest.mark.medium
SMALL = ["env=cartpole", "env.max_frame=1_000", "env.num_envs=2", "distributed.max_session=1", "log_every=0.3",
         "eval.every=600", "eval.episodes=2", "plot=false"]  # fmt: skip


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Return a function that trains in a folder of the test, with trackers that reach nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*overrides):
        return asynclab.train([*SMALL, "hydra.run.dir=run", *overrides], quiet=True)

    return run


def wandb_records(path):
    """Yield what a file of an offline run holds: records in blocks of 32 KiB, as in LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := 32_768 - at % 32_768) < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def wandb_run(folder):
    """Return the run's ids, its settings and its rows, of all offline files together."""
    ids, config, rows = set(), {}, []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in wandb_records(path):
            if record.run.run_id:
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.history.item:
                rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item})
    return ids, config, rows


def lines(kind):
    with open("run/metrics.jsonl") as file:  # noqa: PTH123
        return [line for line in map(json.loads, file) if line["kind"] == kind]


@pytest.mark.slow
def test_wandb_has_the_curves_and_a_resumed_run_goes_on_there(train, tmp_path):
    train("track=wandb")
    asynclab.train(["resume=run", "env.max_frame=2_000"], quiet=True)
    ids, config, rows = wandb_run(tmp_path / "run")
    assert ids == {json.loads((tmp_path / "run" / "tracked.json").read_text())["wandb"]}
    assert (config["env.id"], config["env.max_frame"]) == ("CartPole-v1", 2_000)
    returns = [(row["frames"], row["train/return_100"]) for row in rows if "train/return_100" in row]
    assert returns == [(x["total_frames"], x["metrics"]["train/return_100"]) for x in lines("trial")
                       if "train/return_100" in x["metrics"]]  # fmt: skip
    assert returns[-1][0] == 2_000
    played = [(row["frames"], row["eval/return"]) for row in rows if "eval/return" in row]
    assert played == [(x["total_frames"], sum(x["returns"]) / 2) for x in lines("evaluation")]


def test_mlflow_has_the_curves_and_a_resumed_run_goes_on_there(train, tmp_path):
    from mlflow.tracking import MlflowClient

    train("track=mlflow")
    asynclab.train(["resume=run", "env.max_frame=2_000"], quiet=True)
    client = MlflowClient(f"file:{tmp_path / 'mlruns'}")
    experiment = client.get_experiment_by_name("asynclab")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "run" / "tracked.json").read_text())["mlflow"]
    assert (run.info.status, run.data.params["env.id"]) == ("FINISHED", "CartPole-v1")
    set_later = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert (run.data.params["env.max_frame"], set_later["env.max_frame"]) == ("1000", "2000")
    assert "env.id" not in set_later
    found = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/return_100")]
    assert found == [(x["total_frames"], x["metrics"]["train/return_100"]) for x in lines("trial")
                     if "train/return_100" in x["metrics"]]  # fmt: skip
    played = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "eval/return")]
    assert played == [(x["total_frames"], sum(x["returns"]) / 2) for x in lines("evaluation")]


def test_a_tracker_that_fails_does_not_end_the_run(train, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:/proc/nowhere")
    run = train("track=mlflow")
    assert run.summary["status"] == "finished"
    (warning,) = [line for line in (run.folder / "train.log").read_text().splitlines() if "track=" in line]
    assert "[WARNING] track=mlflow failed (" in warning
    assert warning.endswith("; the run goes on without it")


@pytest.mark.parametrize(("uri", "folder"), [("databricks", None), ("kept here", "kept here")])
def test_where_mlflow_writes_is_what_its_variable_says(train, monkeypatch, tmp_path, uri, folder):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    before = {path.name for path in tmp_path.iterdir()}
    run = train("track=mlflow")
    assert {path.name for path in tmp_path.iterdir()} - before == {run.folder.name} | ({folder} if folder else set())
    assert ("track=mlflow failed" in (run.folder / "train.log").read_text()) == (folder is None)


def test_a_tracker_that_hangs_does_not_hold_up_the_run(train, monkeypatch):
    ever = threading.Event()
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda *_: ever.wait())
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    run = train("track=wandb")
    ever.set()
    assert run.summary["status"] == "finished"
    assert "track=wandb has not taken everything within 0 s" in (run.folder / "train.log").read_text()


@pytest.mark.slow
def test_without_a_login_there_is_a_sentence(tmp_path):
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "train.py", *SMALL, "hydra.run.dir=run", "track=wandb"]
    process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert re.search(r"^track=wandb failed \(\w+: .*\); the run goes on without it$", process.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("neptune", "^track=neptune is unknown; use one of wandb, mlflow, or null for none$"),
        ("mlflow", r"^track=mlflow needs mlflow: pip install 'asynclab\[mlflow\]'$"),
    ],
)
def test_what_there_is_not_is_said_before_anything_starts(name, message, train, monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=message):
        train(f"track={name}")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
