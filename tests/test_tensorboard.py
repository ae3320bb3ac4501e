import json
import math
import re
import shutil
import subprocess
import sys

import commands
import numpy as np
import pytest
import yaml
from browser import chromium, complaints
from conftest import ROOT
from pages import page, tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from asynclab.distributed import Synced
from asynclab.run.recorder import Recorder
from asynclab.run.tensorboard import Writer, describe, hparams, layout
from asynclab.storage.provenance import circumstances
from asynclab.training.messages import Record, Return

CATEGORIES = ["trial", "sessions", "losses", "hogwild", "performance"]
# on the pages beside the axis that charts have
ELSEWHERE = {"train/return", "train/return_100"}
HARMLESS = "Three.js|WebGL|is deprecated"  # TensorBoard of itself


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Return the folder of a sweep of two runs with two sessions each, A3C and SAC."""
    folder = tmp_path_factory.mktemp("sweep")
    settings = ["algo=a3c,sac", "env=cartpole", "distributed.max_session=2", "env.max_frame=2_560", "log_every=0.5"]
    command = ["train.py", "-m", *settings, "plot=false", f"hydra.sweep.dir={folder}"]
    commands.run(*command, cwd=folder).check_returncode()
    return folder


def events(run, name="summary"):
    """Return what TensorBoard reads of one of a run's folders."""
    return EventAccumulator(str(run / "tensorboard" / name), size_guidance={"tensors": 0, "scalars": 0}).Reload()


def scalars(run, name):
    return set(events(run, name).Tags()["scalars"])


def row(run):
    """Return hparams, metrics and status, as the HParams page finds them."""
    found = events(run)
    content = {tag: HParamsPluginData.FromString(data) for tag, data in found.PluginTagToContent("hparams").items()}
    start = content["_hparams_/session_start_info"].session_start_info
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}
    end = content.get("_hparams_/session_end_info")
    metrics = {tag.removeprefix("summary/"): found.Scalars(tag)[-1].value for tag in found.Tags()["scalars"]}
    return values, metrics, end and end.session_end_info.status


def charts(run):
    """Return the patterns of every chart of a run, by category and title."""
    tensor = events(run).Tensors("custom_scalars__config__")[-1].tensor_proto
    found = layout_pb2.Layout.FromString(tensor.string_val[0])
    return {
        (category.title, chart.title): list(chart.multiline.tag)
        or [f"{tag}$" for series in chart.margin.series for tag in (series.value, series.lower, series.upper)]
        for category in found.category
        for chart in category.chart
    }


def texts(run):
    found = events(run)
    tags = {"config/text_summary", "run/text_summary"}
    assert tags <= set(found.Tags()["tensors"])
    assert all(len(found.Tensors(tag)) == 1 for tag in tags)
    return {tag.partition("/")[0]: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("job", "losses"), [("0", {"policy", "value", "entropy"}), ("1", {"critic", "actor", "temperature"})]
)
def test_every_chart_has_a_scalar_and_every_scalar_a_chart(sweep, job, losses):
    found = charts(sweep / job)
    tags = scalars(sweep / job, "trial") | scalars(sweep / job, "session_00")
    for chart, patterns in found.items():
        assert all(any(re.match(pattern, tag) for tag in tags) for pattern in patterns), chart
    patterns = [pattern for patterns in found.values() for pattern in patterns]
    assert {tag for tag in tags if not any(re.match(pattern, tag) for pattern in patterns)} == ELSEWHERE
    assert list(dict.fromkeys(category for category, _ in found)) == CATEGORIES
    assert {title for category, title in found if title.startswith("loss/")} == {f"loss/{name}" for name in losses}


def curve(run, name, tag):
    return [(point.step, point.value) for point in events(run, name).Scalars(tag)]


def points(lines, frames, value):
    """Return what a curve should be; TensorBoard keeps float32."""
    return [(line[frames], np.float32(line[value])) for line in lines if value in line]


@pytest.mark.medium
def test_the_curves_are_those_of_the_metrics(sweep):
    run = sweep / "0"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [line | line["metrics"] for line in lines if line["kind"] == "session" and line["rank"] == 0]
    episodes = [episode for record in records for episode in record["episodes"]]
    assert curve(run, "session_00", "train/return") == points(episodes, "frame", "ret")
    assert curve(run, "session_00", "by_total_frames/return") == points(episodes, "total_frame", "ret")
    for tag in ("train/return_100", "by_session_frames/return_100"):
        assert curve(run, "session_00", tag) == points(records, "frames", "train/return_100")
    trial = [line | line["metrics"] for line in lines if line["kind"] == "trial"]
    for tag in ("train/return_100", "by_total_frames/return_100"):
        assert curve(run, "trial", tag) == points(trial, "total_frames", "train/return_100")
    for tag in ("loss/policy", "perf/fps", "hogwild/staleness_mean"):
        assert curve(run, "trial", tag) == points(trial, "total_frames", tag)


@pytest.mark.medium
@pytest.mark.parametrize(("job", "agent"), [("0", "A3C"), ("1", "make_sac")])
def test_a_row_has_the_settings_and_the_results(sweep, job, agent):
    run = sweep / job
    config, summary = yaml.safe_load((run / "config.yaml").read_text()), json.loads((run / "summary.json").read_text())
    values, metrics, status = row(run)
    mode = "Shared" if agent == "make_sac" else "Synced"
    assert (values["algo.agent"], values["distributed"], values["env.id"]) == (agent, mode, "CartPole-v1")
    assert values["algo.optimizer.lr"] == config["algo"]["optimizer"]["lr"]
    assert (values["seed"], values["distributed.max_session"], values["env.max_frame"]) == (0, 2, 2_560)
    assert values["distributed.diagnostics"] is False
    assert values["env.torso.hidden"] == "[64, 64]"
    left_out = {"log_every", "plot", "env.make.id", "algo.agent.torso.hidden", "algo.memory._partial_"}
    assert not left_out & set(values)
    assert metrics["mean_return"] == pytest.approx(summary["mean_return"])
    assert (metrics["frames"], metrics["updates"]) == (summary["frames"], summary["updates"])
    assert metrics["staleness_mean"] == pytest.approx(summary["staleness"]["mean"])
    assert metrics["fps"] > 0
    assert status == 1  # success


@pytest.mark.medium
def test_the_text_is_the_config_and_where_the_run_comes_from(sweep):
    text, made = texts(sweep / "0"), json.loads((sweep / "0" / "run.json").read_text())
    assert text["config"] == f"```yaml\n{(sweep / '0' / 'config.yaml').read_text()}```"
    assert "`algo=a3c env=cartpole" in text["run"]
    assert made["git"]["revision"] in text["run"]


@pytest.mark.slow
def test_a_resumed_run_has_one_row_one_layout_and_its_new_settings(sweep, tmp_path):
    run = shutil.copytree(sweep / "0", tmp_path / "run", symlinks=True)
    before, layout_before = curve(run, "trial", "perf/updates"), charts(run)
    command = [sys.executable, ROOT / "train.py", f"resume={run}", "env.max_frame=4_000"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=240)
    values, metrics, status = row(run)
    assert (values["env.max_frame"], metrics["frames"], status) == (4_000, 4_000, 1)
    assert charts(run) == layout_before
    text = texts(run)["run"]
    assert "### Resumed at 2,560 frames" in text
    assert "- **env.max_frame**: 2560 -> 4000" in text
    after = curve(run, "trial", "perf/updates")
    assert after[: len(before) - 1] == before[:-1]  # the last one was written after the checkpoint
    assert after[-1][0] == 4_000


@pytest.mark.slow
def test_the_pages_show_the_sweep(sweep):
    with tensorboard(sweep) as address, chromium(size=(1280, 1000)) as browser:
        page(browser, address, "scalars", "0/tensorboard/trial", "1/tensorboard/session_01", "by_session_frames")
        text = page(browser, address, "custom_scalars", *CATEGORIES, "loss/policy", "loss/critic", "Matches (6)")
        assert text.count("mean return by frames of all sessions") == 1  # not once for each run
        rows = ["0/tensorboard/summary", "1/tensorboard/summary", "A3C", "make_sac"]
        page(browser, address, "hparams", *rows, "algo.agent", "summary/mean_return")
        page(browser, address, "text", "config/text_summary", "_target_: asynclab.agents.A3C", "revision")
        assert not [message for message in complaints(browser) if not re.search(HARMLESS, message)]


@pytest.fixture
def record(make_trial, tmp_path):
    """Return a function that makes the recorder of a trial with two sessions; with a state, of a resumed one."""
    stores = make_trial(mode=Synced(2)).stores

    def make(state=None, **config):
        return Recorder(tmp_path, Synced(2), stores, 1000.0, state, config)

    return make


def episode(ret):
    return [Return(8, 16, 1.0, ret, 8)]


@pytest.mark.parametrize(("status", "end"), [("finished", 1), ("failed", 2), ("interrupted", 0)])
def test_every_run_has_a_row_that_says_how_it_ended(record, tmp_path, status, end):
    memory = {"_target_": "asynclab.memory.Rollout", "_partial_": True, "horizon": 5}
    recorder = record(seed=3, algo={"memory": memory, "max_grad_norm": math.inf})  # which JSON cannot say
    recorder.write(Record(0, 8, 1, episode(30.0), {}, {}))
    recorder.write(Record(1, 8, 1, episode(10.0), {}, {}))
    recorder.close(status)
    values, metrics, found = row(tmp_path)
    expected = {"seed": 3.0, "algo.memory": "Rollout", "algo.memory.horizon": 5.0, "distributed.max_session": 2.0}
    assert values == expected | {"algo.max_grad_norm": "inf"}
    assert metrics["mean_return"] == 20.0
    assert "best_return" not in metrics  # of less than 100 episodes
    assert found == end


def test_a_run_that_was_killed_has_a_row_without_an_end(record, tmp_path):
    recorder = record(seed=3)
    recorder.write(Record(0, 8, 1, episode(30.0), {}, {}))
    recorder.progress()
    recorder.state_dict()
    recorder._board._overview._writer.flush()
    values, metrics, end = row(tmp_path)
    assert (values["seed"], metrics["mean_return"], end) == (3.0, 30.0, None)


def test_the_band_is_the_range_of_the_sessions(record, tmp_path):
    recorder = record()
    recorder.write(Record(0, 8, 1, episode(30.0), {}, {}))
    recorder.write(Record(1, 8, 1, episode(10.0) + episode(11.0), {}, {}))
    recorder.close("finished")
    points = [events(tmp_path, "trial").Scalars(f"sessions/return_{name}")[-1].value for name in ("mean", "min", "max")]
    assert points == [20.25, 10.5, 30.0]
    assert ("trial", "mean and range of the sessions' mean returns") in charts(tmp_path)


def test_a_resumed_run_has_charts_and_results_of_what_was_logged_before(record, tmp_path):
    first = record(seed=3)
    first.write(Record(0, 8, 1, episode(30.0), {"loss/policy": 1.0}, {}))
    for name in ("return", "return_min", "return_max", "length"):
        first._board.add({f"eval/{name}": 25.0}, 8)
    first.progress()
    state = json.loads(json.dumps(first.state_dict()))
    first.close("interrupted")
    second = record(state, seed=3, algo={"memory": {"horizon": 7}})
    second.close("finished")
    values, metrics, end = row(tmp_path)
    assert (values["algo.memory.horizon"], metrics["eval_return"], metrics["mean_return"], end) == (7.0, 25.0, 30.0, 1)
    found = charts(tmp_path)
    assert found["evaluation", "eval/length"] == ["eval/length$"]
    assert ("evaluation", "mean and range of the episodes' returns") in found
    assert {("losses", "loss/policy"), ("sessions", "return of every episode")} <= set(found)


@pytest.mark.parametrize("every", [math.inf, 1e30])
def test_a_writer_that_is_seldom_looked_at_writes(tmp_path, every):
    writer = Writer(tmp_path, every)
    writer.add_scalar("train/return", 3.0, 8)
    writer.close()
    assert EventAccumulator(str(tmp_path)).Reload().Scalars("train/return")[-1].value == 3.0


def test_a_scalar_of_a_new_kind_has_a_chart():
    found = layout(["loss/policy", "loss/my.own", "curiosity/bonus", "temperature", "train/return"])
    assert found == {
        "losses": {"loss/my.own": ["Multiline", ["loss/my\\.own$"]], "loss/policy": ["Multiline", ["loss/policy$"]]},
        "other": {
            "curiosity/bonus": ["Multiline", ["curiosity/bonus$"]],
            "temperature": ["Multiline", ["temperature$"]],
        },
    }


def test_a_copy_is_left_out_unless_it_differs():
    torso = {"_target_": "asynclab.nets.auto_torso", "hidden": [64, 64]}
    config = {"algo": {"agent": {"torso": torso}}, "env": {"torso": torso, "id": "A-v0", "make": {"id": "B-v0"}}}
    assert hparams(config, 1) == {
        "env.torso": "auto_torso",
        "env.torso.hidden": "[64, 64]",
        "env.id": "A-v0",
        "env.make.id": "B-v0",
        "distributed.max_session": 1,
    }


def test_the_command_of_a_wheel_is_shown_as_it_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/venv/bin/asynclab-train", "seed=1"])
    made = circumstances() | {"overrides": ["seed=1"], "resumes": [], "max_session": 1, "devices": ["cpu"]}
    assert "- **command**: `asynclab train seed=1`" in describe(made).splitlines()
