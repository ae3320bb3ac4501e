"""The study: statistics against literal numbers, sweeps that are not as they should be, and a real one."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from asynclab import config
from asynclab.analysis import runs, study
from asynclab.analysis.curves import step
from asynclab.analysis.estimates import band, interval, iqm

config.register()
SWEPT = yaml.safe_load((ROOT / "conf" / "experiment" / "study_cartpole.yaml").read_text())["hydra"]["sweeper"]["params"]
SWEPT_PONG = yaml.safe_load((ROOT / "conf" / "experiment" / "study_pong.yaml").read_text())["hydra"]["sweeper"][
    "params"
]
CORRECTIONS = sorted(p.stem for p in (ROOT / "conf" / "correction").glob("*.yaml"))
SMALL = ["+experiment=study_cartpole", "env.max_frame=10_000", "log_every=0.1", "plot=false"]


def write_run(sweep, arm, seed, points, *, sessions=1, threads=1, env="CartPole-v1", max_frame=1_000, status="finished",
              staleness=None, overrides=None, made=(), summary=(), **algo):  # fmt: skip
    """Write the files of a run whose progress lines are ``points``: (frames, seconds, return or None)."""
    folder = sweep / f"{arm}_seed_{seed}"
    folder.mkdir(parents=True)
    mode = "Synced" if sessions > 1 else "Off"
    settings = {
        "algo": {"memory": {"horizon": 16}} | algo,
        "env": {"id": env, "num_envs": 8, "max_frame": max_frame},
        "distributed": {"_target_": f"asynclab.distributed.{mode}", "max_session": sessions, "num_threads": threads},
        "seed": seed,
        "resume": None,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    provenance = {
        "max_session": sessions,
        "started": f"2026-11-22T12:00:{len(list(sweep.iterdir())):02d}+00:00",
        "git": {"revision": "0123456789" * 4, "dirty": False},
        "machine": {"processor": "a processor", "cores": 2, "memory_gib": 8.0, "platform": "Linux-6"},
        "packages": {"python": "3.11.7", "torch": "2.13.0"},
        "resumes": [],
        "overrides": overrides or [f"seed={seed}", f"arm={arm}", "+experiment=study_cartpole"],
    }
    (folder / "run.json").write_text(json.dumps(provenance | dict(made)))
    lines = [{"kind": "session", "rank": rank} for rank in range(sessions)] + [
        {"kind": "trial", "total_frames": frames, "seconds": seconds}
        | {"metrics": {} if ret is None else {"train/return_100": ret}}
        for frames, seconds, ret in points
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    frames, seconds, _ = points[-1]
    ending = {"status": status, "frames": frames, "seconds": seconds, "restarts": 0, "lost_updates": None}
    ending |= {"staleness": None if staleness is None else {"mean": staleness}}
    (folder / "summary.json").write_text(json.dumps(ending | dict(summary)))
    return folder


def line(last, seconds=10.0, max_frame=1_000):
    """Return points that rise to ``last`` in ten equal steps; there is no episode yet in the first."""
    return [(max_frame * i // 10, seconds * i / 10, last * i / 10 if i > 1 else None) for i in range(1, 11)]


def script(*overrides):
    return commands.run("scripts/study.py", *overrides)


def test_iqm_leaves_out_the_lowest_and_the_highest_quarter():
    assert iqm([1, 2, 3, 4, 100]) == 3
    assert iqm([8, 7, 6, 5, 4, 3, 2, -50]) == 4.5
    assert iqm([0, 10]) == 5
    assert iqm([0, 1, 8]) == 3  # nothing to cut: the mean
    assert iqm([[1, 10], [3, 30]]).tolist() == [2, 20]
    assert math.isnan(iqm([1, 2, 3, 4, math.nan]))


def test_interval_is_the_percentiles_of_what_resampling_gives():
    assert interval([0, 10]) == (0, 10)  # 0 in a quarter of the resamples, 5 in half, 10 in a quarter
    assert interval([7, 7, 7, 7, 7]) == (7, 7)
    low, high = interval([1, 2, 3, 4, 100])
    assert 1 <= low < 3 < high <= 100
    assert interval([1, 2, 3, 4, 100]) == (low, high)  # seeded
    assert all(map(math.isnan, interval([7])))
    low, high = interval([[0, 1], [10, math.nan]])
    assert (low[0], high[0]) == (0, 10)
    assert math.isnan(low[1])
    assert math.isnan(high[1])


def test_a_curve_keeps_its_last_value_and_has_none_before_its_first():
    values = step([10, 20, 40], [1, 2, 3], [5, 10, 19.9, 20, 39, 40, 99])
    assert np.isnan(values[0])
    assert values[1:].tolist() == [1, 1, 2, 2, 3, 3]
    assert step([10, 20, 20], [1, 2, 3], 20) == 3  # the last line of a run can have the frames of the one before


def test_a_band_is_where_all_seeds_have_a_value(tmp_path):
    write_run(tmp_path, "a2c", 0, [(100, 1.0, 10.0), (900, 9.0, 20.0)])
    write_run(tmp_path, "a2c", 1, [(300, 2.0, 30.0), (700, 8.0, 50.0)])
    found, _ = study.load(tmp_path)
    grid, middle, low, high = band([run.curve.along("total_frames") for run in found], points=3)
    assert grid.tolist() == [300, 500, 700]
    assert middle.tolist() == [20, 20, 30]
    assert (low.tolist(), high.tolist()) == ([10, 10, 10], [30, 30, 50])
    assert band([run.curve.along("seconds") for run in found], points=2)[0].tolist() == [2, 8]


def test_the_numbers_of_a_study(tmp_path):
    for seed, last in enumerate((100, 200, 300, 400, 1_000)):
        write_run(tmp_path, "a3c_4", seed, line(last, seconds=20.0), sessions=4, staleness=3.0 + seed)
        write_run(tmp_path, "a2c", seed, line(100, seconds=10.0))
    result = study.analyse(tmp_path, threshold=250)
    a3c, a2c = result.arms
    assert (result.env, result.budget, result.seconds, result.notes) == ("CartPole-v1", 1_000, 10.0, [])
    assert (a3c.label, a3c.sessions, a3c.envs, a3c.cores, len(a3c.runs)) == ("a3c_4", 4, 32, 2, 5)
    assert (a2c.label, a2c.sessions, a2c.envs, a2c.cores) == ("a2c", 1, 8, 1)
    assert (a3c.frames, a3c.seconds, a3c.fps, a3c.staleness) == (1_000, 20, 50, 5)
    assert (a2c.fps, a2c.staleness, a2c.lost) == (100, None, None)
    assert a3c.at_frames.iqm == 300
    assert 100 <= a3c.at_frames.low < 300 < a3c.at_frames.high <= 1_000
    assert a3c.at_seconds.iqm == 150  # half of its time, and half of the rise
    assert a2c.at_seconds == a2c.at_frames == (100, 100, 100)
    assert (a3c.reached, a3c.frames_to, a3c.seconds_to) == (3, 900, 18)  # 300 came to 270 then
    assert (a2c.reached, a2c.frames_to) == (0, math.inf)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in study.table(result).splitlines()[:4]]
    assert dict(zip(rows[0], rows[3], strict=True)) == {
        "arm": "a2c", "sessions": "1", "environments": "8", "seeds": "5", "frames": "1,000", "seconds": "10.0",
        "return at 1,000 frames": "100.0 [100.0, 100.0]", "return at 10.0 s": "100.0 [100.0, 100.0]",
        "reached 250": "0 of 5", "frames to 250": "-", "seconds to 250": "-",
        "frames/s": "100", "frames/s per core": "100", "mean staleness": "-",
    }  # fmt: skip
    assert rows[2][-3:] == ["50", "25", "5.00"]


def test_the_time_of_the_comparison_can_be_set(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "a2c", seed, line(100, seconds=10.0))
    assert study.analyse(tmp_path, seconds=5).arms[0].at_seconds.iqm == 50
    assert study.analyse(tmp_path, seconds=99).arms[0].at_seconds.iqm == 100
    early = study.analyse(tmp_path, seconds=1.5).arms[0].at_seconds
    assert all(map(math.isnan, early))


def test_arms_with_budgets_of_their_own_are_compared_at_equal_time(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "fast", seed, line(100, max_frame=5_000), sessions=2, max_frame=5_000)
        write_run(tmp_path, "ppo", seed, line(50, seconds=20.0))
        write_run(tmp_path, "cartpole", seed, line(50), env="Acrobot-v1")
    result = study.analyse(tmp_path, equal="time")
    assert [(arm.label, len(arm.runs), arm.frames) for arm in result.arms] == [("fast", 2, 5_000), ("ppo", 2, 1_000)]
    assert (result.budget, result.seconds) == (None, 10)
    assert [(arm.at_frames.iqm, arm.at_seconds.iqm) for arm in result.arms] == [(100, 100), (50, 25)]
    assert result.notes == [
        f"cartpole_seed_{s} is left out: it is Acrobot-v1, and most others are CartPole-v1." for s in (0, 1)
    ]
    assert "| return at the end | return at 10.0 s |" in study.table(result)
    files, notes = study.write(result, tmp_path / "x")
    assert ([p.exists() for p in files], notes) == ([True] * 4, [])
    assert [arm.label for arm in study.analyse(tmp_path).arms] == ["fast"]  # by frames only one arm is left


def test_an_arm_has_one_budget_also_where_arms_have_their_own(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "fast", seed, line(100, max_frame=2_000), sessions=2, max_frame=2_000)
    write_run(tmp_path, "fast", 2, line(100), sessions=2)
    write_run(tmp_path, "ppo", 0, line(50))
    result = study.analyse(tmp_path, equal="time")
    assert [(arm.label, len(arm.runs), arm.frames) for arm in result.arms] == [("fast", 2, 2_000), ("ppo", 1, 1_000)]
    assert result.notes[0] == "fast_seed_2 is left out: it has 1,000 frames, and most of its arm are of 2,000."


def test_at_equal_time_the_figure_against_a_setting_shows_returns_at_that_time(tmp_path, monkeypatch):
    for sessions, seconds in ((1, 10.0), (2, 20.0)):
        write_run(tmp_path / "sweep", str(sessions), 0, line(100, seconds=seconds), sessions=sessions, threads=1,
                  overrides=[f"distributed.max_session={sessions}", "seed=0"])  # fmt: skip
    figures = []
    monkeypatch.setattr(study.plots, "save", lambda figure, outs: figures.append(figure))
    study.write(study.analyse(tmp_path / "sweep", x="distributed.max_session", equal="time"), tmp_path / "out")
    (panel,) = figures[0].axes
    (drawn,) = [line for line in panel.lines if not line.get_label().startswith("_")]
    assert (list(drawn.get_ydata()), panel.get_title()) == ([100, 50], "CartPole-v1: at 10.0 s")


def test_lost_updates_are_shown_if_they_were_measured(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "a3c_2", seed, line(100), sessions=2, summary={"lost_updates": [0.01 * (seed + 1)]})
        write_run(tmp_path, "a2c", seed, line(100))
    result = study.analyse(tmp_path)
    assert [arm.lost for arm in result.arms] == [0.015, None]
    head, _, a3c, a2c = study.table(result).splitlines()[:4]
    assert head.endswith("| lost updates |")
    assert a3c.endswith("| 1.50% |")
    assert a2c.endswith("| - |")


def test_the_agreement_of_gradients_is_shown_if_it_was_measured(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "a3c_2", seed, line(100), sessions=2, summary={"agreement": 0.7 + 0.2 * seed})
        write_run(tmp_path, "a2c", seed, line(100))
    result = study.analyse(tmp_path)
    head, _, a3c, a2c = study.table(result).splitlines()[:4]
    assert [row.split(" | ")[-1] for row in (head, a3c, a2c)] == ["agreement |", "0.80 |", "- |"]


def test_one_seed_has_no_interval(tmp_path):
    write_run(tmp_path, "a2c", 0, line(100))
    result = study.analyse(tmp_path)
    assert result.arms[0].at_frames.iqm == 100
    assert "| 100.0 |" in study.table(result)
    assert result.notes == ["a2c has one run, so no interval."]
    files, _ = study.write(result, tmp_path / "x")
    assert [p.name for p in files] == ["x_table.md", "x_table.csv", "x.png", "x.svg"]


def test_short_runs_that_do_not_overlap_have_a_table_and_are_not_drawn(tmp_path):
    for seed, seconds in enumerate((1.5, 1.9)):  # one progress line each, at the end
        write_run(tmp_path / "sweep", "short", seed, [(1_000, seconds, 10.0)])
        write_run(tmp_path / "sweep", "long", seed, line(20.0))
    done = script(f"sweep={tmp_path / 'sweep'}", f"out={tmp_path / 'x'}")
    assert (done.returncode, "| short |" in done.stdout) == (0, True), done.stderr
    note = "short is not drawn against wall-clock time (s): one curve ends at 1.5, before another one begins at 1.9."
    assert done.stderr.strip() == note
    assert (tmp_path / "x.png").exists()


def test_jobs_in_deeper_folders_are_found(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "sweep" / "algo", "optimizer=adam", seed, line(100))
        write_run(tmp_path / "sweep" / "algo", "optimizer=rmsprop", seed, line(100), status="failed", alpha=0.9)
    result = study.analyse(tmp_path / "sweep")
    assert [(arm.label, len(arm.runs)) for arm in result.arms] == [("optimizer=adam", 2)]
    assert result.notes[0].startswith("algo/optimizer=rmsprop_seed_0 is left out: its status is failed")


def test_links_upwards_and_folders_that_cannot_be_read_add_nothing_to_a_sweep(tmp_path, monkeypatch):
    write_run(tmp_path / "other", "a3c", 0, line(1))
    job = write_run(tmp_path / "sweep", "a2c", 0, line(100))
    (tmp_path / "sweep" / "up").symlink_to("..")
    (tmp_path / "sweep" / "lost+found").mkdir()

    def denied(path, do):
        if "lost+found" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return do(path)

    for name in ("iterdir", "is_file", "exists"):  # root can read everything
        monkeypatch.setattr(Path, name, lambda path, do=getattr(Path, name): denied(path, do))
    result = study.analyse(tmp_path / "sweep")
    assert [run.folder for arm in result.arms for run in arm.runs] == [job]
    notes = [note for note in result.notes if "interval" not in note]
    assert [note.split(" is left out: ")[0].split(" cannot")[0].rpartition("/")[2] for note in notes] == [
        "lost+found", "lost+found", "up",
    ]  # fmt: skip


def test_arms_are_what_differs_except_the_seed(tmp_path):
    for i, (algo, lr, seed) in enumerate([(a, r, s) for a in ("a3c", "a2c") for r in ("1e-3", "1e-2") for s in (1, 0)]):
        overrides = [f"algo={algo}", f"algo.optimizer.lr={lr}", f"seed={seed}", f"log_every={i}", "env=cartpole"]
        write_run(tmp_path, f"{i}", seed, line(100), overrides=overrides, agent=algo, optimizer={"lr": float(lr)})
    arms = runs.group(study.load(tmp_path)[0])
    assert list(arms) == [f"algo={a}, algo.optimizer.lr={r}" for a in ("a3c", "a2c") for r in ("1e-3", "1e-2")]
    assert [[run.settings["seed"] for run in arm] for arm in arms.values()] == [[0, 1]] * 4


def test_arms_of_one_name_that_differ_are_told_apart(tmp_path):
    write_run(tmp_path, "a2c", 0, line(100))
    changed = write_run(tmp_path, "a2c", 1, line(100), optimizer={"lr": 0.1})
    other = write_run(tmp_path, "a3c_2", 0, line(100), sessions=2)
    arms = runs.group(study.load(tmp_path)[0])
    assert list(arms) == ["a2c", "a2c, algo.optimizer.lr=0.1", "a3c_2"]
    assert [arm[0].folder for arm in arms.values()][1:] == [changed, other]


def test_a_setting_that_is_null_or_an_integer_is_the_same_as_none_and_as_its_float(tmp_path):
    for seed, settings in enumerate(({}, {"target": None}, {"lam": 1}, {"lam": 1.0}, {"lam": 2, "target": None})):
        write_run(tmp_path, "x", seed, line(1), **settings)
    found, _ = study.load(tmp_path)
    groups = {label: [run.settings["seed"] for run in members] for label, members in runs.group(found).items()}
    assert groups == {"the rest": [0, 1], "algo.lam=1": [2, 3], "algo.lam=2": [4]}


def test_no_run_is_lost_where_two_arms_would_have_one_name(tmp_path):
    for seed, (typed, settings) in enumerate(
        ((["algo.a=1", "algo.b=1"], {"a": 1, "b": 1, "c": 1}), (["algo.a=1"], {"a": 1, "b": 1}),
         (["algo.a=1"], {"a": 1, "b": 2}), (["x=1"], {}))
    ):  # fmt: skip
        write_run(tmp_path, "x", seed, line(1), overrides=typed, **settings)
    found, _ = study.load(tmp_path)
    groups = runs.group(found)
    assert sorted(run.settings["seed"] for members in groups.values() for run in members) == [0, 1, 2, 3]
    assert list(groups) == ["algo.a=1, algo.b=1", "algo.a=1, algo.b=1 (x_seed_1)", "algo.a=1, algo.b=2", "x=1"]


def test_runs_of_other_numbers_of_nodes_repeat_nothing(tmp_path):
    for nodes in (None, 2, 4):
        run = write_run(tmp_path, f"nodes_{nodes}", 0, line(1), overrides=["seed=0"])
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["distributed"] |= {"_target_": "asynclab.distributed.Simulated", "nodes": nodes}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = study.analyse(tmp_path)
    assert [arm.label for arm in found.arms] == [f"distributed.nodes={n}" for n in (None, 2, 4)]
    assert not any("repeats" in note for note in found.notes)
    assert "Seconds are virtual." in study.table(found)


def test_runs_on_other_numbers_of_machines_repeat_nothing_though_that_was_left_to_the_cluster(tmp_path):
    for nodes in (2, 4):
        run = write_run(tmp_path, f"on_{nodes}", 0, line(1), overrides=["seed=0"], made={"nodes": nodes})
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["distributed"] |= {"_target_": "asynclab.distributed.Cluster", "nodes": None}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert list(runs.group(study.load(tmp_path)[0])) == ["distributed.nodes=2", "distributed.nodes=4"]


def test_a_threshold_is_reached_by_a_mean_of_100_episodes_and_not_by_one_of_a_few(tmp_path):
    run = write_run(tmp_path, "x", 0, line(1))
    episodes = [{"frame": 1, "total_frame": 1, "seconds": 1.0, "ret": 0.0}] * 60
    lines = []
    for i, mean in enumerate((50.0, 20.0, 30.0), start=1):
        lines.append({"kind": "session", "rank": 0, "episodes": episodes})
        lines.append({"kind": "trial", "total_frames": 100 * i, "seconds": float(i)})
        lines[-1]["metrics"] = {"train/return_100": mean}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [study.analyse(tmp_path, goal).arms[0].frames_to for goal in (10.0, 25.0, 40.0)] == [200, 300, math.inf]


def test_a_run_that_was_stopped_is_no_limit_and_is_named(tmp_path):
    write_run(tmp_path, "stopped", 0, line(475.0, seconds=2.0), summary={"stopped_by": "stop_at=475"})
    write_run(tmp_path, "whole", 0, line(400.0, seconds=9.0), lam=0.5)
    found = study.analyse(tmp_path)
    assert (found.seconds, [arm.at_seconds.iqm for arm in found.arms]) == (9, [475, 400])
    note = "stopped_seed_0 was stopped by stop_at=475 after 1,000 frames and 2.0 s; its last return stands for later"
    assert any(note in line for line in found.notes)
    assert "at 9.0 s the first run that was not stopped ended." in study.table(found)


def test_what_is_wrong_with_a_sweep_is_said_and_the_rest_is_evaluated(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "a2c", seed, line(100))
    write_run(tmp_path, "a3c_2", 1, line(100), sessions=2, made={"resumes": [{}]}, summary={"restarts": 2})
    write_run(tmp_path, "pong", 0, line(100), env="ALE/Pong-v5")
    write_run(tmp_path, "long", 0, line(100, max_frame=5_000), max_frame=5_000)
    write_run(tmp_path, "stopped", 0, line(100), status="interrupted")
    write_run(tmp_path, "failed", 0, line(100), status="failed")
    (write_run(tmp_path, "killed", 0, line(100)) / "summary.json").unlink()
    (write_run(tmp_path, "silent", 0, [(1_000, 9.0, None)])).touch()
    (write_run(tmp_path, "broken", 0, line(100)) / "summary.json").write_text('{"status": "fin')
    (write_run(tmp_path, "torn", 0, line(100)) / "metrics.jsonl").write_text('{"kind"\n')
    (write_run(tmp_path, "old", 0, line(100)) / "config.yaml").write_text("seed: 0\n")
    (write_run(tmp_path, "garbled", 0, line(100)) / "config.yaml").write_text("{")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "run.json").write_text("[")
    (tmp_path / "never").mkdir()
    (tmp_path / "multirun.yaml").touch()
    repeated = write_run(tmp_path, "zz", 0, line(100), overrides=["arm=a2c"])
    result = study.analyse(tmp_path)
    assert [(arm.label, len(arm.runs)) for arm in result.arms] == [("a2c", 2), ("a3c_2", 1)]
    for sentence in (
        r"pong_seed_0 is left out: it is ALE/Pong-v5, and most others are CartPole-v1\.",
        r"long_seed_0 is left out: it has 5,000 frames, and most others are of 1,000; equal=time compares arms",
        r"stopped_seed_0 is left out: its status is interrupted \(resume=auto continues it\)\.",
        r"failed_seed_0 is left out: its status is failed",
        r"killed_seed_0 is left out: it has no summary\.json, so it still runs or was killed",
        r"silent_seed_0 is left out: .* has no finished episode yet\.",
        r"broken_seed_0 is left out: summary\.json is damaged\.",
        r"torn_seed_0 is left out: .*metrics\.jsonl is damaged",
        r"old_seed_0 is left out: config\.yaml, run\.json or summary\.json is damaged or of another version",
        r"garbled_seed_0 is left out: config\.yaml, run\.json or summary\.json is damaged",
        r"again is left out: it has no summary\.json",
        r"never is left out: it has no run\.json, so no run began here\.",
        rf"{repeated.name} is left out: it repeats a2c_seed_0\.",
        r"a3c_2 has no finished run with seed 0\.",
        r"a3c_2 has one run, so no interval\.",
        r"a3c_2_seed_1 was interrupted and resumed; its seconds have two starts\.",
        r"a3c_2_seed_1 had sessions that failed and were started again\.",
    ):
        assert [note for note in result.notes if re.match(sentence, note)], (sentence, result.notes)
    assert len(result.notes) == 17
    assert f"- {result.notes[0]}" in study.table(result)


def test_runs_of_several_revisions_are_named(tmp_path):
    write_run(tmp_path, "a2c", 0, line(100))
    write_run(tmp_path, "a2c", 1, line(100), made={"git": {"revision": "f" * 40, "dirty": True}})
    lines = study.table(study.analyse(tmp_path)).splitlines()
    assert [line for line in lines if line.startswith("- commit fffffff with changes; ") and line.endswith("seed_1")]
    assert [line for line in lines if line.startswith("- commit 0123456; a processor, 2 cores, ")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"sweep is missing: set sweep=<folder of a sweep>"),
        (["sweep={0}"], r"sweep=\S+ has no finished run to evaluate\. empty is left out: it has no run\.json"),
    ],
    ids=["no-sweep", "no-run"],
)
@pytest.mark.medium
def test_bad_input_is_one_clear_message(tmp_path, overrides, message):
    (tmp_path / "empty").mkdir()
    process = script(*[o.format(tmp_path) for o in overrides])
    assert process.returncode == 1
    assert re.search(message, process.stderr), process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"threshold": "high"}, r"threshold=high must be a number"),
        ({"equal": "frame"}, r"equal=frame is unknown; use one of frames, time"),
        ({"seconds": 0}, r"seconds=0 must be a number above 0"),
        ({"seconds": math.nan}, r"seconds=nan must be a number"),
        ({"x": "distributed.max_sesion"}, r"x=distributed\.max_sesion is not a setting that has a number in every run"),
        ({"x": "env.id"}, r"x=env\.id is not a setting that has a number"),
    ],
    ids=str,
)
def test_settings_of_the_study_are_checked(tmp_path, kwargs, message):
    write_run(tmp_path, "a2c", 0, line(100))
    with pytest.raises(ValueError, match=message):
        study.analyse(tmp_path, **kwargs)


def test_returns_are_drawn_against_a_setting_with_a_line_for_each_of_the_others(tmp_path, monkeypatch):
    for sessions, lr, last in ((4, 0.1, 50), (1, 0.1, 100), (1, 0.2, 200), (4, 0.2, 400)):
        for seed in (0, 1):
            write_run(tmp_path / "sweep", f"{sessions}_{lr}", seed, line(last + seed), sessions=sessions, threads=1,
                      overrides=[f"distributed.max_session={sessions}", f"algo.lr={lr}", f"seed={seed}"],
                      summary={"agreement": 1 / sessions}, lr=lr)  # fmt: skip
    figures = []
    monkeypatch.setattr(study.plots, "save", lambda figure, outs: figures.append(figure))
    found = study.analyse(tmp_path / "sweep", x="distributed.max_session")
    study.write(found, tmp_path / "out")
    returns, agreement = figures[0].axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in returns.lines}
    assert drawn["algo.lr=0.1"] == ([1, 4], [100.5, 50.5])
    assert drawn["algo.lr=0.2"] == ([1, 4], [200.5, 400.5])
    assert [list(line.get_ydata()) for line in agreement.lines] == [[1, 0.25], [1, 0.25]]
    assert returns.get_xlabel() == "distributed.max_session"


def test_a_sweep_over_one_setting_has_one_line_and_no_panel_for_what_was_not_measured(tmp_path, monkeypatch):
    for sessions in (1, 4):
        write_run(tmp_path / "sweep", str(sessions), 0, line(100), sessions=sessions, threads=1,
                  overrides=[f"distributed.max_session={sessions}", "seed=0"])  # fmt: skip
    figures = []
    monkeypatch.setattr(study.plots, "save", lambda figure, outs: figures.append(figure))
    study.write(study.analyse(tmp_path / "sweep", x="distributed.max_session"), tmp_path / "out")
    (panel,) = figures[0].axes
    assert [line.get_label() for line in panel.lines if not line.get_label().startswith("_")] == ["all runs"]


def test_a_run_is_no_sweep_and_files_need_a_place(tmp_path):
    run = write_run(tmp_path, "a2c", 0, line(100))
    with pytest.raises(ValueError, match=r"sweep=\S+ is a run; set sweep to the folder of a sweep, hydra\.sweep\.dir"):
        study.analyse(run)
    with pytest.raises(ValueError, match=r"sweep=/nowhere is not a folder"):
        study.analyse(Path("/nowhere"))
    with pytest.raises(ValueError, match=r"out=/proc/asynclab/x cannot be written: "):
        study.write(study.analyse(tmp_path), Path("/proc/asynclab/x"))


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", list(overrides))
    config.refuse_unknown_keys(cfg)
    return cfg


@pytest.mark.parametrize("arm", SWEPT["arm"].split(","))
def test_every_arm_of_the_study_of_cartpole_has_what_is_common(arm):
    cfg = composed("+experiment=study_cartpole", f"arm={arm}")
    assert cfg.algo.lr_schedule._target_ == "asynclab.schedules.Linear"
    assert cfg.distributed._target_.endswith("Synced" if arm.startswith("a3c") else "Off")
    assert (cfg.algo.memory.horizon, cfg.env.num_envs) == (
        (128 if arm == "ppo" else 16), 8 if arm.startswith("a3c") else 16,
    )  # fmt: skip
    assert (cfg.env.id, cfg.env.max_frame, cfg.algo.optimizer.lr) == ("CartPole-v1", 400_000, 2e-3)
    assert (cfg.algo.agent.shared, cfg.algo.precision) == (False, "auto")  # fp32: the layers are dense
    sessions = int(arm.removeprefix("a3c_")) if arm.startswith("a3c") else 1
    assert (cfg.distributed.max_session, cfg.distributed.num_threads) == (sessions, 1)


@pytest.mark.parametrize(
    ("arm", "experiment"),
    [("fast", "pong_fast"), ("fast_off", "pong_fast"), ("a3c", "a3c_pong_small"), ("ppo", "ppo_pong")],
)
def test_every_arm_of_the_study_of_pong_is_its_experiment(arm, experiment):
    cfg, known = composed("+experiment=study_pong", f"arm_pong={arm}"), composed(f"+experiment={experiment}")
    if arm == "fast_off":  # explores as much as the two sessions of fast in the mean
        assert cfg.algo.agent.epsilons == [sum(known.algo.agent.epsilons) / 2]
        known.algo.agent.epsilons = cfg.algo.agent.epsilons
    assert OmegaConf.to_container(cfg.algo) == OmegaConf.to_container(known.algo)  # but for the network
    assert cfg.env.id == known.env.id == "ALE/Pong-v5"
    assert cfg.algo.lr_schedule.final == 0.0
    off = arm in ("fast_off", "ppo")
    assert cfg.distributed._target_.endswith("Off" if off else "Synced")
    assert (cfg.distributed.max_session, cfg.distributed.num_threads) == (
        1 if off else 2,
        None,
    )  # both cores either way
    assert cfg.env.num_envs * cfg.distributed.max_session == 16


def test_the_studies_sweep_over_all_arms_and_the_seeds_are_outside():
    for group, params in (("arm", SWEPT), ("arm_pong", SWEPT_PONG)):
        assert set(params[group].split(",")) == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        assert list(params) == ["seed", group]


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_every_correction_of_the_study_of_scale_has_what_is_common(correction):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["+experiment=study_scale", f"correction={correction}", "distributed.max_session=16"]
        cfg = compose("config", overrides)
        sweep = compose("config", overrides, return_hydra_config=True).hydra.sweeper.params
    config.refuse_unknown_keys(cfg)
    assert set(sweep.correction.split(",")) == set(CORRECTIONS)
    assert (cfg.env.id, cfg.env.num_envs, cfg.env.max_frame, cfg.algo.memory.horizon) == ("CartPole-v1", 8, 400_000, 16)
    assert cfg.distributed._target_.endswith("Simulated")
    assert cfg.distributed.timing._target_.endswith("Lognormal")
    assert (cfg.log_every, cfg.algo.optimizer.lr) == (0.625, 5e-4 if correction == "lr" else 2e-3)
    assert cfg.distributed.placement == ("shared" if correction in ("shared", "vtrace") else "synced")
    found = (cfg.distributed.staleness_lr, cfg.distributed.compensate > 0, cfg.algo.agent.vtrace)
    assert found == tuple(correction == name for name in ("staleness_lr", "compensate", "vtrace"))


@pytest.mark.parametrize(
    ("exchange", "outer", "beta1"),
    [("sum", (1.0, 0.0), 0.9), ("root", (0.5, 0.0), 0.9), ("mean", (0.25, 0.0), 0.9),
     ("diloco", (0.175, 0.9), 0.9), ("beta", (1.0, 0.0), 0.6561)],
)  # fmt: skip
def test_every_exchange_of_the_study_of_machines_is_what_it_says_for_four_nodes(exchange, outer, beta1):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["+experiment=study_cluster", f"exchange={exchange}", "distributed.max_session=4"]
        cfg = compose("config", overrides)
        sweep = compose("config", overrides, return_hydra_config=True).hydra.sweeper.params
    config.refuse_unknown_keys(cfg)
    assert exchange in sweep.exchange.split(",")
    assert (cfg.distributed.nodes, cfg.distributed.exchange_every) == (4, 5)
    assert (cfg.distributed.outer.lr, cfg.distributed.outer.momentum) == pytest.approx(outer)
    assert list(cfg.algo.optimizer.betas) == pytest.approx([beta1, 0.999])


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on_and_becomes_a_table_and_a_figure(tmp_path):
    sweep = tmp_path / "sweep"
    command = [sys.executable, ROOT / "train.py", "-m", *SMALL, "arm=a3c_2,a2c", "seed=0,1", f"hydra.sweep.dir={sweep}"]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    for text in process.stdout:
        if text.startswith("frames "):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=60)
    assert process.returncode == 130
    with pytest.raises(ValueError, match="a3c_2_seed_0 is left out: its status is interrupted"):
        study.analyse(sweep)
    again = subprocess.run([*command, "resume=auto"], capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert sorted(p.parent.name for p in sweep.glob("*/summary.json")) == [
        f"{arm}_seed_{seed}" for arm in ("a2c", "a3c_2") for seed in (0, 1)
    ]
    out = tmp_path / "new" / "study"
    done = script(f"sweep={sweep}", f"out={out}", "threshold=15")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    text = (tmp_path / "new" / "study_table.md").read_text()
    assert done.stdout.startswith(text)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()[:4]]
    a3c, a2c = (dict(zip(rows[0], row, strict=True)) for row in rows[2:])
    assert (a3c["arm"], a3c["sessions"], a3c["environments"], a3c["seeds"]) == ("a3c_2", "2", "16", "2")
    assert (a2c["arm"], a2c["sessions"], a2c["environments"], a2c["frames"]) == ("a2c", "1", "16", "10,000")
    assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", a2c["return at 10,000 frames"])
    assert a2c["reached 15"] == "2 of 2"
    assert float(a2c["mean staleness"]) == 0 < float(a3c["mean staleness"])
    assert "a3c_2_seed_0 was interrupted and resumed" in text
    with (tmp_path / "new" / "study_table.csv").open() as file:
        numbers = {row["arm"]: row for row in csv.DictReader(file)}
    assert (numbers["a2c"]["seeds"], float(numbers["a2c"]["frames"])) == ("0 1", 10_000)
    assert float(numbers["a2c"]["return_at_frames"]) == pytest.approx(
        float(a2c["return at 10,000 frames"].split()[0]), abs=0.06
    )
    import matplotlib.image

    picture = matplotlib.image.imread(tmp_path / "new" / "study.png")
    assert picture.shape == (576, 1320, 4)
    assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 50  # lines and bands in colours
    assert "<svg" in (tmp_path / "new" / "study.svg").read_text()
