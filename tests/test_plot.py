"""The plots: numbers against literal ones, figures that are not blank, and folders that are not as they should be."""

import ast
import json
import logging
import math
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from omegaconf import OmegaConf
from test_study import line, write_run

from asynclab.analysis import curves, plots, runs

pytestmark = pytest.mark.medium


def write(folder, name="run", sessions=2, seed=0, episodes=150, slope=1.0, **kwargs):
    """Write a run whose session ``rank`` ends an episode of return ``slope * (i + rank)`` every 10 frames."""
    run = write_run(folder, name, seed, line(100.0), sessions=sessions, **kwargs)
    lines = [
        {"kind": "session", "rank": rank}
        | {
            "episodes": [
                {"frame": 10 * i, "total_frame": 10 * sessions * i, "seconds": i / 10, "ret": slope * (i + rank)}
                for i in range(1, episodes + 1)
            ]
        }
        for rank in range(sessions)
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(content) + "\n" for content in lines))
    return run


def colours(path):
    """Return how many colours a PNG has; a blank figure has a few shades of its axes and text."""
    import matplotlib.image

    picture = matplotlib.image.imread(path)[..., :3].reshape(-1, 3)
    return len(np.unique(picture[picture.max(axis=1) - picture.min(axis=1) > 0.1], axis=0))


def test_a_moving_average_is_over_the_episodes_so_far_and_then_over_its_window():
    assert curves.moving_average([2, 4, 9, 1], window=2).tolist() == [2, 3, 6.5, 5]
    assert curves.moving_average(np.arange(1, 151))[[0, 99, 149]].tolist() == [1, 50.5, 100.5]
    average = curves.moving_average([1, math.nan, 3, 5, 7], window=2)
    assert np.isnan(average).tolist() == [False, True, True, False, False]
    assert average[3:].tolist() == [4, 6]


def test_the_trial_is_the_mean_and_the_deviation_over_its_sessions(tmp_path):
    found = curves.read(write(tmp_path, sessions=3, episodes=10))
    grid, mean, spread = curves.over_sessions(found, "total_frames")
    assert (grid[0], grid[-1], len(grid)) == (30, 300, 200)
    assert mean[[0, -1]].tolist() == [2, 6.5]  # ranks 0, 1, 2; ten episodes: (1 + ... + 10) / 10 + 1
    assert spread == pytest.approx(np.ones(200))
    assert curves.over_sessions(found, "session_frames")[0][-1] == 100
    assert curves.over_sessions(found, "seconds")[0][-1] == 1
    alone = curves.over_sessions(curves.read(write(tmp_path, "alone", sessions=1)), "seconds")
    assert np.isnan(alone[2]).all()


def test_sessions_with_clocks_of_their_own_are_put_on_that_of_all(tmp_path):
    run = write_run(tmp_path, "off", 0, [(1_000, 10.0, 1.0), (4_000, 20.0, 2.0)], sessions=2)
    episodes = [{"frame": 250 * i, "total_frame": 250 * i, "seconds": 5.0 * i, "ret": 0.0} for i in range(1, 5)]
    with (run / "metrics.jsonl").open("a") as file:
        for rank in (0, 1):
            file.write(json.dumps({"kind": "session", "rank": rank, "episodes": episodes}) + "\n")
    session = curves.read(run).sessions[1]
    assert session.session_frames.tolist() == [250, 500, 750, 1_000]
    assert session.total_frames.tolist() == [500, 1_000, 2_500, 4_000]


@pytest.mark.parametrize("x", curves.AXES)
@pytest.mark.parametrize("kind", ["trial", "sessions", "runs"])
def test_every_graph_on_every_axis_is_not_blank(tmp_path, kind, x):
    for seed in (0, 1):
        write(tmp_path, "a3c", seed=seed, slope=1 + seed)
    files, notes = plots.plot([tmp_path / f"a3c_seed_{seed}" for seed in (0, 1)], tmp_path / "x" / "curve", kind, x)
    names = ["curve_a3c_seed_0", "curve_a3c_seed_1"] if kind == "sessions" else ["curve"]
    assert [file.name for file in files] == [f"{name}{suffix}" for name in names for suffix in (".png", ".svg")]
    assert notes == []
    for file in files:
        if file.suffix == ".png":
            assert colours(file) > 20
        else:
            assert file.read_text().count("<path") > 20


def counted(folder, name, counts, seed=0, **kwargs):
    return write(folder, name, seed=seed, episodes=1, summary={"staleness_counts": counts}, **kwargs)


def test_the_share_of_the_updates_that_had_each_staleness(tmp_path):
    counted(tmp_path, "a", [[0, 2_000], [1, 6_000]])
    counted(tmp_path, "a", [[1, 10_000], [3, 2_000], [40, 1]], seed=1)  # the last is too rare to be seen
    counted(tmp_path, "a", [[7, 9_999]], seed=2, status="interrupted")
    counted(tmp_path, "a", [1, 2], seed=3)
    counted(tmp_path, "$b$", [[0, 5]], lam=0.5)
    counted(tmp_path, "none", [], lam=0.6)
    counted(tmp_path, "damaged", 3, lam=0.7)
    counted(tmp_path, "zero", [[0, 0]], lam=0.8)
    write(tmp_path, "old", episodes=1, lam=0.9)
    figure, notes = plots.draw_staleness(runs.groups_of(runs.load([tmp_path])[0])[0])
    labels = [bars.get_label() for bars in figure.axes[0].containers]
    assert labels == [r"\$b\$ (mean 0.00)", "a (mean 1.10)"]
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert heights[0] == [1.0]
    assert heights[1] == pytest.approx([0.1, 0.8, 0.1], abs=1e-4)
    assert set(notes) == {
        "a_seed_2 is left out of a, which has complete runs.",
        "a_seed_3 is left out of a: the staleness_counts in its summary.json are damaged.",
        "damaged is left out: the staleness_counts in its summary.json are damaged.",
        "zero is left out: its staleness is not on record.",
        "none is left out: its staleness is not on record.",
        "old is left out: its staleness is not on record.",
    }
    files, _ = plots.plot([tmp_path], tmp_path / "x" / "curve", "staleness")
    assert [file.name for file in files] == ["curve.png", "curve.svg"]
    assert colours(files[0]) >= 2  # bars of two groups


def test_what_has_no_staleness_is_named(tmp_path):
    write(tmp_path, "old", episodes=1)
    with pytest.raises(ValueError, match=r"nothing to draw\. old is left out: its staleness is not on record\."):
        plots.plot([tmp_path], tmp_path / "curve.png", "staleness")


def test_an_evaluation_that_cannot_be_read_is_skipped_and_the_others_are_drawn_once(tmp_path):
    run = write(tmp_path, "$a$")
    good = {"kind": "evaluation", "total_frames": 300, "seconds": 1.5, "returns": [1, 5]}
    bad = [{}, {"returns": []}, {"returns": 3}, {"returns": "x"}, {"returns": ["x"]}, {"total_frames": None}]
    rows = [good, *({**good, **b} for b in bad), {"kind": "evaluation"}, good | {"returns": [None, 2]}]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = curves.read(run).evaluation
    assert evaluation.seconds.tolist() == [1.5] * 3
    assert evaluation.returns[:2].tolist() == [3, 3]
    assert math.isnan(evaluation.returns[2])
    figure, _ = plots.draw_trials({"$a$": runs.read(run)[0]}, "seconds")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [r"\$a\$ (2 sessions)", r"\$a\$: evaluation"]


def configure(run, **settings):
    """Set settings in a run's config."""
    file = run / "config.yaml"
    config = OmegaConf.load(file)
    for key, value in settings.items():
        OmegaConf.update(config, key, value)
    OmegaConf.save(config, file)


def test_runs_of_different_budgets_are_named(tmp_path):
    for seed, frames in enumerate((1_000, 2_000, 1_000)):
        write_run(tmp_path, "a", seed, line(100.0), max_frame=frames)
    groups, notes = runs.groups_of(runs.load([tmp_path])[0])
    assert [len(members) for members in groups.values()] == [3]
    assert notes == ["The runs of a have different budgets: env.max_frame is 1000 and 2000."]
    groups, notes = runs.groups_of(runs.load([tmp_path])[0], ["env.max_frame"])
    assert ([len(members) for members in groups.values()], notes) == ([2, 1], [])


def test_runs_that_were_evaluated_in_different_ways_are_no_repetitions(tmp_path):
    for seed in range(3):
        run = write_run(tmp_path, "a", seed, line(100.0))
        configure(run, **{"eval.every": None, "eval.deterministic": seed == 0})
    found = runs.load([tmp_path])[0]
    assert list(runs.groups_of(found)[0]) == ["a"]  # there are no evaluations
    for seed in range(3):
        configure(tmp_path / f"a_seed_{seed}", **{"eval.every": 100})
    found = runs.load([tmp_path])[0]
    groups, notes = runs.groups_of(found)
    assert {label: len(members) for label, members in groups.items()} == {
        "a, eval.deterministic=True": 1, "a, eval.deterministic=False": 2,
    }  # fmt: skip
    assert notes == []
    _, notes = runs.groups_of(found, ["env.id"])
    assert "were evaluated in different ways: eval.deterministic is True and False." in notes[-1]


def test_a_run_that_left_the_evaluation_to_its_agent_repeats_one_that_asked_for_the_same(tmp_path):
    for seed, own_way in enumerate((False, False, True)):
        run = write_run(tmp_path, "a", seed, line(100.0))
        configure(run, **{"eval.every": 100, "eval.deterministic": None if seed else False})
        made = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(made | {"deterministic": own_way}))
    groups, _ = runs.groups_of(runs.load([tmp_path])[0])
    assert {label: len(members) for label, members in groups.items()} == {
        "a, eval.deterministic=False": 2, "a, eval.deterministic=True": 1,
    }  # fmt: skip


def test_one_run_becomes_a_trial_and_a_session_graph_and_several_become_one(tmp_path):
    write(tmp_path / "sweep", "a", seed=0)
    files, _ = plots.plot([tmp_path / "sweep"], tmp_path / "curve.png")
    assert [file.name for file in files] == ["curve.png", "curve_sessions.png"]
    write(tmp_path / "sweep" / "deeper", "b", seed=1)
    files, _ = plots.plot([tmp_path], tmp_path / "lr0.001")  # a name with a dot
    assert [file.name for file in files] == ["lr0.001.png", "lr0.001.svg"]


@pytest.mark.parametrize("sessions", [1, 3, 5, 16, 30])
def test_every_session_has_a_panel(tmp_path, sessions):
    run, _ = runs.read(write(tmp_path, sessions=sessions))
    figure, notes = plots.draw_sessions(run, "total_frames", "title")
    assert [axes.get_title() for axes in figure.axes] == [f"session {rank}" for rank in range(min(sessions, 25))]
    labelled = [axes for axes in figure.axes if axes.get_xlabel() == "frames of all sessions"]
    assert len(labelled) == {1: 1, 3: 3, 5: 4, 16: 4, 30: 5}[sessions]
    assert notes == (["the first 25 of 30 sessions are drawn."] if sessions == 30 else [])
    assert len(figure.axes[0].lines) == (2 if sessions == 1 else 3)


def test_runs_are_grouped_by_any_key(tmp_path):
    for lr in ("1e-2", "5e-3", "1e-1"):
        for seed in (1, 0):
            typed = ["algo=a3c", f"algo.optimizer.lr={lr}", f"seed={seed}"] + ["arm=x"] * (lr == "1e-1")
            write(tmp_path, lr, seed=seed, optimizer={"lr": float(lr)}, overrides=typed)
    found, notes = runs.load([tmp_path])
    assert (len(found), notes) == (6, [])
    groups, notes = runs.group_by(found, ["algo.optimizer.lr"])
    assert list(groups) == [f"algo.optimizer.lr={lr}" for lr in ("0.005", "0.01", "0.1")]
    assert [[run.settings["seed"] for run in group] for group in groups.values()] == [[0, 1]] * 3
    assert notes == []
    for run in found:  # what somebody else chose, as an experiment does, and a later command in vain
        for name, algo in (("1", "a3c"), ("2", "ppo")):
            path = run.folder / ".hydra" / name / "hydra.yaml"
            path.parent.mkdir(parents=True)
            path.write_text(yaml.safe_dump({"hydra": {"runtime": {"choices": {"env": "small", "algo": algo}}}}))
    groups, _ = runs.group_by(found, ["env", "algo"])
    assert list(groups) == ["env=small, algo=a3c"]
    groups, notes = runs.group_by(found, ["algo", "seed"])
    assert {label: len(group) for label, group in groups.items()} == {"algo=a3c, seed=0": 3, "algo=a3c, seed=1": 3}
    assert notes[0] == "The runs of algo=a3c, seed=0 differ in more than their seeds: algo.optimizer.lr."
    assert {k: len(g) for k, g in runs.group_by(found, ["arm"])[0].items()} == {"arm=unset": 4, "arm=x": 2}
    with pytest.raises(ValueError, match=r"group=lr is a setting of no run; use algo\.optimizer\.lr"):
        runs.group_by(found, ["lr"])


def test_runs_are_grouped_by_a_setting_that_is_a_list(tmp_path):
    for hidden in ([64, 64], [256, 256], [64, 64]):
        write(tmp_path, f"{hidden[0]}", seed=len(list(tmp_path.iterdir())), hidden=hidden)
    groups, _ = runs.group_by(runs.load([tmp_path])[0], ["algo.hidden"])
    assert {label: len(members) for label, members in groups.items()} == {
        "algo.hidden=[256, 256]": 1,
        "algo.hidden=[64, 64]": 2,
    }


def test_environments_are_never_averaged(tmp_path):
    for env in ("CartPole-v1", "ALE/Pong-v5"):
        write(tmp_path, env.replace("/", "_"), env=env)
    groups, notes = runs.groups_of(runs.load([tmp_path])[0], ["seed"])
    figure, _ = plots.draw_groups(groups, "seconds")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "seed=0, env.id=ALE/Pong-v5 (1 run)", "seed=0, env.id=CartPole-v1 (1 run)",
    ]  # fmt: skip
    assert "The runs are of several environments, whose returns cannot be compared." in notes


def test_what_is_wrong_is_said_and_the_rest_is_drawn(tmp_path):
    write(tmp_path, "good", seed=0)
    write(tmp_path, "good", seed=1)
    write(tmp_path, "good", seed=2, status="interrupted")
    (write(tmp_path, "killed") / "summary.json").unlink()
    (write(tmp_path, "broken") / "summary.json").write_text('{"status": "fin')
    (write(tmp_path, "bare") / "config.yaml").unlink()
    (write(tmp_path, "garbled") / "config.yaml").write_text("{")
    (write(tmp_path, "torn") / "metrics.jsonl").write_text('{"kind"\n')
    (write(tmp_path, "old") / "metrics.jsonl").write_text('{"frame": 3}\n')
    write_run(tmp_path, "silent", 0, [(10, 1.0, None)])
    write_run(tmp_path, "summed", 0, line(10))  # no episodes of single sessions
    with (write(tmp_path, "half") / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tri')
    (tmp_path / "began" / ".hydra").mkdir(parents=True)
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "failure.json").write_text('{"error": "lr must be above 0."}')
    _, notes = plots.plot([tmp_path, tmp_path / "nowhere"], tmp_path / "curve.png", "trial")
    for sentence in (
        r"\S+/nowhere is not a folder\.",
        r"began is left out: .* has no metrics\.jsonl",
        r"failed is left out: it failed: lr must be above 0\.",
        r"torn_seed_0 is left out: .* is damaged",
        r"old_seed_0 is left out: .*metrics\.jsonl is of another version of asynclab",
        r"silent_seed_0 is left out: .* has no finished episode yet\.",
        r"summed_seed_0 is left out of the trial graph: its metrics have no episodes of single sessions",
        r"good_seed_2: its status is interrupted \(resume=auto continues it\)\.",
        r"killed_seed_0: it has no summary\.json, so it was killed \(resume=auto continues it\)\.",
        r"broken_seed_0: summary\.json is damaged\.",
        r"bare_seed_0: config\.yaml is missing\.",
        r"garbled_seed_0: config\.yaml is damaged",
    ):
        assert [note for note in notes if re.match(sentence, note)], (sentence, notes)
    assert len(notes) == 12
    figure, notes = plots.draw_groups(runs.groups_of(runs.load([tmp_path])[0])[0], "seconds")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"bare_seed_0 (1 run)", "garbled_seed_0 (1 run)"} < set(labels)  # who knows what they repeat
    assert any(re.match(r"good_seed_2 is left out of .*, which has complete runs\.", note) for note in notes)


def test_a_figure_is_whole_or_not_there(tmp_path):
    class FullDisk:
        def savefig(self, path, **kwargs):
            path.write_text("half of")
            raise OSError(28, "No space left on device")

    (tmp_path / "curve.png").write_text("the one before")
    with pytest.raises(ValueError, match=r"out=\S+/curve\.png cannot be written: No space left on device"):
        plots.save(FullDisk(), [tmp_path / "curve.png"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("curve.png", "the one before")]


@pytest.mark.parametrize(
    ("env", "x", "label"),
    [
        ("ALE/Pong-v5", "total_frames", "frames of all sessions (1 frame = 4 emulator frames)"),
        ("ALE/Pong-v5", "seconds", "wall-clock time (s)"),
        ("CartPole-v1", "session_frames", "frames per session"),
    ],
)
def test_an_axis_says_what_a_frame_is(tmp_path, env, x, label):
    run, _ = runs.read(write(tmp_path, env=env))
    assert plots.draw_trials({"$a$": run}, x)[0].axes[0].get_xlabel() == label


def test_curves_that_do_not_overlap_are_left_out(tmp_path):
    write_run(tmp_path, "a", 0, [(100, 1.0, 1.0), (200, 2.0, 2.0)], status="interrupted")
    write_run(tmp_path, "a", 1, [(300, 3.0, 1.0), (400, 4.0, 2.0)], status="interrupted")
    found, _ = runs.load([tmp_path])
    with pytest.raises(ValueError, match="one curve ends at 200, before another one begins at 300"):
        plots.draw_groups(runs.groups_of(found, ["env.id"])[0], "total_frames")


def test_a_run_whose_sessions_do_not_overlap_is_drawn_by_its_progress(tmp_path, caplog):
    run = write(tmp_path, episodes=0)
    with (run / "metrics.jsonl").open("a") as file:
        for rank, frame in ((0, 100), (1, 300)):
            episode = {"frame": frame, "total_frame": frame, "seconds": frame / 100, "ret": 1.0}
            file.write(json.dumps({"kind": "session", "rank": rank, "episodes": [episode]}) + "\n")
    files, notes = plots.plot([run], tmp_path / "curve.png")
    assert ([path.name for path in files], notes) == (["curve.png", "curve_sessions.png"], [])
    assert colours(tmp_path / "curve.png") > 20
    plots.write_at_end(run)
    assert colours(run / "curve.png") > 20
    assert caplog.messages == []


def test_a_name_that_begins_with_an_underscore_is_in_the_legend(tmp_path):
    for name in ("_old", "new"):
        write(tmp_path, name)
    found, _ = runs.load([tmp_path])
    figure, _ = plots.draw_trials(dict(zip(("new", "_old"), found, strict=True)), "total_frames")
    labels = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert labels == ["new (2 sessions)", "_old (2 sessions)"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "session"}, "kind=session is unknown; use one of trial, sessions, runs"),
        ({"x": "frames"}, "x=frames is unknown; use one of total_frames, session_frames, seconds"),
        ({"labels": ["a", "b"]}, "there are 1 runs and 2 labels; give one label per run"),
        ({"out": "curve.pdf"}, r"out=\S+/curve\.pdf must end in \.png or \.svg"),
        ({"out": "/proc/asynclab/x"}, r"out=/proc/asynclab/x\.png cannot be written: "),
        ({"group": ["lr"], "kind": "runs"}, "group=lr is a setting of no run"),
        ({"group": ["seed"], "kind": "trial"}, "group makes groups of runs, and kind=trial draws each; add kind=runs"),
        ({"labels": ["a"], "kind": "runs"}, "labels name runs, and kind=runs draws groups of them; add kind=trial"),
    ],
    ids=str,
)
def test_settings_of_the_plot_are_checked(tmp_path, kwargs, message):
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        plots.plot([tmp_path], tmp_path / kwargs.pop("out", "curve.png"), **kwargs)


def test_every_run_that_is_drawn_has_a_name_and_a_file_of_its_own(tmp_path):
    for name in ("a_b", "a"):
        write(tmp_path / "in", name)
    (tmp_path / "in" / "a").mkdir()
    (tmp_path / "in" / "a_seed_0").rename(tmp_path / "in" / "a" / "b_seed_0")
    with pytest.raises(ValueError, match="labels=x,x are not all different"):
        plots.plot([tmp_path / "in"], tmp_path / "curve.png", kind="trial", labels=["x", "x"])
    with pytest.raises(ValueError, match="labels name runs, and kind=runs"):
        plots.plot([tmp_path / "in"], tmp_path / "curve.png", labels=["x", "y"])
    files, _ = plots.plot([tmp_path / "in"], tmp_path / "curve.png", kind="sessions")
    assert len({file.name for file in files}) == 2


def test_a_long_legend_makes_the_figure_larger_and_not_the_axes_smaller(tmp_path):
    groups = {
        f"a long name of a group, number {i}, with its settings": [runs.read(write(tmp_path, f"g{i}"))[0]]
        for i in range(30)
    }
    heights = {}
    for number in (3, 30):
        figure, _ = plots.draw_groups(dict(list(groups.items())[:number]), "total_frames")
        plots.save(figure, [tmp_path / "x.png"])
        box = figure.axes[0].get_window_extent()
        heights[number] = box.height
        assert figure.legends[0].get_window_extent().y1 <= box.y0
    assert heights[30] > 0.8 * heights[3]


def test_seconds_of_a_simulation_are_virtual(tmp_path):
    run, other = write(tmp_path, "simulated"), write(tmp_path, "real")
    configure(run, **{"distributed._target_": "asynclab.distributed.Simulated"})
    simulated, real = runs.read(run)[0], runs.read(other)[0]
    for found, label in (
        ([simulated], "virtual time (s)"),
        ([real], "wall-clock time (s)"),
        ([real, simulated], "wall-clock time (s), of simulations virtual"),
    ):
        figure, _ = plots.panels(["seconds"], (8, 4.8), found)
        assert figure.axes[0].get_xlabel() == label


def test_a_link_that_points_upwards_is_no_folder_of_runs(tmp_path):
    run = write(tmp_path / "sweep")
    for name in ("a", "b"):
        (tmp_path / "sweep" / name).symlink_to(tmp_path)
    assert runs.find(tmp_path / "sweep") == ([run], [])


def test_a_folder_that_cannot_be_read_does_not_cost_the_others(tmp_path, monkeypatch):
    run = write(tmp_path / "mine")
    (tmp_path / "lost+found").mkdir()
    iterdir = Path.iterdir

    def denied(path):
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", denied)  # root can read everything
    found, notes = runs.load([tmp_path])
    assert [one.folder for one in found] == [run]
    assert notes == [f"{tmp_path}/lost+found cannot be read: Permission denied."]
    with pytest.raises(ValueError, match=r"lost\+found has no run in it \(\S+ cannot be read: Permission denied\)\."):
        runs.load([tmp_path / "lost+found"])


def test_a_folder_without_runs_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no run to draw\. \S+/empty has no run in it\."):
        plots.plot([tmp_path / "empty"], tmp_path / "curve.png")


def test_a_run_counts_once_by_whatever_way_it_is_reached(tmp_path):
    run = write(tmp_path / "sweep")
    (tmp_path / "link").symlink_to(run)
    assert [r.folder for r in runs.load([tmp_path / "sweep", run, tmp_path / "sweep" / ".." / "sweep"])[0]] == [run]
    assert len(runs.load([run, tmp_path / "link"])[0]) == 1


def test_the_end_of_a_run_draws_or_says_in_one_line_why_not(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    run = write(tmp_path)
    plots.write_at_end(run)
    assert colours(run / "curve.png") > 20
    assert colours(run / "sessions.png") > 20
    caplog.clear()
    silent = write_run(tmp_path, "silent", 0, [(10, 1.0, None)])
    plots.write_at_end(silent)
    assert (caplog.text, list(silent.glob("*.png"))) == ("", [])
    broken = write(tmp_path, "broken")
    (broken / "sessions.png").mkdir()
    plots.write_at_end(broken)
    assert [(r.levelname, r.getMessage().startswith("no curve.png: ")) for r in caplog.records] == [("WARNING", True)]
    caplog.clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plots.write_at_end(run)
    (message,) = caplog.messages
    assert message == "no curve.png: matplotlib is not installed (pip install 'asynclab[plot]')"


@pytest.mark.parametrize("name", ["analysis/curves", "analysis/plots", "run/recorder", "run/resume", "analysis/runs"])
def test_training_does_not_import_what_only_plots_need(name):
    body = ast.parse((ROOT / "asynclab" / f"{name}.py").read_text()).body
    imports = " ".join(ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert not re.search("matplotlib|scipy|cycler|estimates|study", imports)


@pytest.mark.medium
def test_a_run_ends_with_its_curves_and_the_command_draws_them_again(train, tmp_path, monkeypatch, capsys):
    process = train("env=cartpole", "env.max_frame=2_000", "distributed.max_session=1", "log_every=0.5", "plot=true")
    assert process.returncode == 0, process.stderr
    assert "\n               sessions.png, " in process.stdout
    assert "\n  picture      run/curve.png\n" in process.stdout
    assert colours(tmp_path / "run" / "curve.png") > 20
    assert colours(tmp_path / "run" / "sessions.png") > 20
    script = ROOT / "scripts" / "plot.py"
    monkeypatch.setattr(
        sys, "argv", [str(script), f"runs=[{tmp_path},/nowhere]", f"out={tmp_path}/again.png", "x=seconds"]
    )
    runpy.run_path(str(script), run_name="__main__")
    out, err = capsys.readouterr()
    assert out == f"wrote {tmp_path}/again.png, {tmp_path}/again_sessions.png\n"
    assert err == "/nowhere is not a folder.\n"
