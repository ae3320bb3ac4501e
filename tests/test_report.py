"""The report: its numbers against literal ones, folders that are not as they should be, and the page in a browser."""

import itertools
import json
import logging
import math
import re
import runpy
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import commands
import pytest
import yaml
from browser import chromium, complaints
from conftest import ROOT
from test_plot import write
from test_study import line, write_run

from asynclab.analysis import jobs, ranking, report, runs


class Page(HTMLParser):
    """What a reader sees of a page: its text, and the tables by their captions."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text()
        self.text, self.tables, self.ids, self.open = "", {}, [], []
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "wbr", "link", "use", "path"):
            self.open.append(tag)
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        if tag == "table":
            self.tables[self.caption] = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self.caption = data.strip()
        elif "table" in self.open and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def column(self, caption: str, title: str) -> list[str]:
        head, *rows = self.tables[caption]
        return [row[head.index(title)] for row in rows]


def make(folder, out, **kwargs):
    notes = report.write([folder], out, **kwargs)
    return Page(out), notes


def job(folder, name, overrides, error=None):
    """Write what a job of a sweep leaves that failed before it began."""
    (folder / name / ".hydra").mkdir(parents=True)
    (folder / name / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    if error:
        (folder / name / "failure.json").write_text(json.dumps({"error": error, "type": "ValueError"}))


def multirun(folder, task, target="hydra._internal.core_plugins.basic_sweeper.BasicSweeper", hydra=(), params=None):
    """Write what Hydra notes of a sweep."""
    content = {"sweeper": {"_target_": target, "params": params}}
    content["overrides"] = {"hydra": ["hydra.mode=MULTIRUN", *hydra], "task": task}
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": content}))


def test_the_score_of_a_run_by_every_metric(tmp_path):
    points = [(0, 0.0, None), (100, 1.0, 10.0), (300, 2.0, 50.0), (400, 3.0, 20.0)]
    summary = {"evaluation": {"mean_return": 7.5}, "best_return": 30.5}
    run, _ = runs.read(write_run(tmp_path, "a", 0, points, summary=summary))
    scores = {metric: ranking.score(run, metric) for metric in ranking.METRICS}
    assert scores == {"final": 20, "best": 30.5, "mean": (30 * 200 + 35 * 100) / 300, "evaluation": 7.5}
    lost, _ = runs.read(write_run(tmp_path, "lost", 0, [*points[:3], (400, 3.0, math.nan)]))
    assert math.isnan(ranking.score(lost, "final"))  # rewards were no longer finite
    assert ranking.score(lost, "mean") == 30


@pytest.mark.medium
def test_the_best_return_is_of_full_windows(tmp_path):
    few = write_run(tmp_path, "few", 0, line(90.0), summary={"best_return": None})
    assert math.isnan(ranking.score(runs.read(few)[0], "best"))
    killed = write_run(tmp_path, "killed", 0, line(80.0), lam=0.5)
    (killed / "summary.json").unlink()
    assert math.isnan(ranking.score(runs.read(killed)[0], "best"))  # nobody knows over how many episodes
    episode = {"frame": 1, "total_frame": 1, "seconds": 1.0, "ret": 0.0}
    rows = []
    for episodes, mean in ((99, 500.0), (1, 40.0), (50, 30.0)):
        rows.append({"kind": "session", "rank": 0, "episodes": [episode] * episodes})
        progress = {"kind": "trial", "total_frames": 10, "seconds": 1.0}
        rows.append(progress | {"metrics": {"train/return_100": mean}})
    (killed / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ranking.score(runs.read(killed)[0], "best") == 40
    page, _ = make(tmp_path, tmp_path / "report.html", metric="best")
    assert page.column("Results, best best return first", "best return") == ["40.00", "-"]
    assert "The best return needs 100 episodes, which are not on record of all runs of few." in page.text


def test_what_is_not_a_number_is_none():
    assert ranking.number({"a": {"b": 2}}, "a", "b") == 2
    for content in ({}, {"a": 3}, {"a": {"b": "2"}}, {"a": {"b": float("nan")}}, {"a": {"b": True}}, None):
        assert ranking.number(content, "a", "b") is None


def test_groups_are_ranked_over_their_finished_runs(tmp_path):
    for seed, last in enumerate((10, 20, 60)):
        write_run(tmp_path, "low", seed, line(last))
    write_run(tmp_path, "low", 3, line(9_999), status="interrupted")
    write_run(tmp_path, "high", 0, line(40))
    write_run(tmp_path, "silent", 0, [(10, 1.0, None)])
    found, _ = jobs.find([tmp_path])
    named = {label: [j for j in found if j.name.startswith(label)] for label in ("silent", "low", "high")}
    groups = ranking.rank(named, "final")
    assert [(g.label, len(g.used), len(g.jobs)) for g in groups] == [("high", 1, 1), ("low", 3, 4), ("silent", 1, 1)]
    value, low, high = groups[1].estimates["final"]
    assert (value, low, high) == (30, 10, 60)
    assert all(map(math.isnan, groups[0].estimates["final"][1:]))  # one run has no interval


def test_a_group_in_which_a_run_diverged_is_not_ranked_by_the_others(tmp_path):
    write_run(tmp_path, "good", 0, line(9.0))
    write_run(tmp_path, "frail", 0, line(50.0))
    write_run(tmp_path, "frail", 1, [(100, 1.0, -3.0), (1_000, 10.0, math.nan)])
    found, _ = jobs.find([tmp_path])
    named = {label: [j for j in found if j.name.startswith(label)] for label in ("frail", "good")}
    groups = ranking.rank(named, "final")
    assert [group.label for group in groups] == ["good", "frail"]
    assert all(map(math.isnan, groups[1].estimates["final"]))


def test_a_group_with_an_evaluation_of_nan_is_not_ranked_by_the_others_and_one_with_few_says_so(tmp_path):
    evaluations = {"frail": [300.0, None], "good": [200.0, 200.0], "few": [100.0]}
    for arm, means in evaluations.items():
        for seed in (0, 1):
            found = {"mean_return": means[seed]} if seed < len(means) else None
            write_run(tmp_path, arm, seed, line(1.0), summary={"evaluation": found}, note=arm)
    page, _ = make(tmp_path, tmp_path / "report.html", metric="evaluation")
    table = "Results, best evaluation first"
    assert [label.rpartition("=")[2] for label in page.column(table, "group")] == ["good", "few", "frail"]
    assert page.column(table, "evaluation") == ["200.0 [200.0, 200.0]", "100.0", "-"]
    assert re.search("Evaluations are those of some runs only of .*few: the others have none", page.text)


def test_a_command_can_be_pasted_into_a_shell(tmp_path):
    typed = ["env.id='a b'", "+x=$HOME", "seed=1"]
    made = {"command": ["/usr/bin/python", "/home/me/train.py", "-m"], "max_session": 7}
    folder = write_run(tmp_path, "a", 1, line(1), overrides=[*typed, "resume=auto", "hydra.run.dir=x"], made=made)
    ((found,), _) = jobs.find([folder])
    assert shlex.split(found.command) == ["python", "train.py", *typed]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["distributed"]["max_session"] = None  # one for each core
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    made = json.loads((folder / "run.json").read_text()) | {"command": ["/bin/python", "/venv/bin/asynclab-train"]}
    (folder / "run.json").write_text(json.dumps(made))
    ((found,), _) = jobs.find([folder])
    assert shlex.split(found.command) == ["asynclab", "train", *typed, "distributed.max_session=7"]


@pytest.mark.parametrize("revision", ["x; rm -rf ~", "--help", 3])
def test_only_a_revision_gets_into_a_command(tmp_path, revision):
    folder = write_run(tmp_path, "a", 0, [(10, 1.0, None)], made={"git": {"revision": revision, "dirty": False}})
    page, _ = make(folder, tmp_path / "report.html")
    assert "Run it again" in page.text
    assert "git checkout" not in page.text


def test_what_became_of_jobs(tmp_path):
    write_run(tmp_path, "done", 0, line(1))
    write_run(tmp_path, "stopped", 0, line(1), status="interrupted")
    (write_run(tmp_path, "shot", 0, line(1)) / "summary.json").unlink()
    (write_run(tmp_path, "going", 0, line(1)) / "summary.json").unlink()
    ended = write_run(tmp_path, "ended", 0, line(1), status="failed")
    (ended / "failure.json").write_text('{"error": "session 0 raised."}')
    refused = write_run(tmp_path, "refused", 0, line(1))  # killed, and then resumed with other settings
    (refused / "summary.json").unlink()
    (refused / "failure.json").write_text('{"error": "it has other settings."}')
    job(tmp_path, "wrong", ["algo.optimizer.lr=-1", "resume=auto"], "lr must be above 0.")
    job(tmp_path, "lost", ["seed=3"])
    command = [sys.executable, "-c", "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
               "print(1, flush=True); input()", tmp_path / "going_seed_0" / ".lock"]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        found, _ = jobs.find([tmp_path])
        process.communicate(b"\n")
    assert {j.name.removesuffix("_seed_0"): (j.status, j.problems) for j in found} == {
        "done": ("finished", []),
        "stopped": ("interrupted", ["its status is interrupted (resume=auto continues it)"]),
        "shot": ("killed", ["it has no summary.json, so it was killed (resume=auto continues it)"]),
        "going": ("running", ["it still runs"]),
        "ended": ("failed", ["it failed: session 0 raised (resume=auto continues it)"]),
        "refused": ("failed", ["it failed: it has other settings (resume=auto continues it)"]),
        "wrong": ("failed", ["it failed: lr must be above 0"]),
        "lost": ("failed", ["it ended before training, without a reason"]),
    }
    assert next(j for j in found if j.name == "wrong").typed == ["algo.optimizer.lr=-1"]


def test_an_interrupted_sweep_knows_what_never_began(tmp_path):
    task = ["algo=a3c,ppo", "resume=auto", "hydra.sweep.dir=here"]
    multirun(tmp_path, task, hydra=["hydra/launcher=joblib"], params={"seed": "0,1"})
    write_run(tmp_path, "x", 0, line(1), overrides=["hydra.searchpath=[a]", "seed=0", "algo=a3c"])
    job(tmp_path, "y", ["seed=0", "algo=ppo", "resume=auto"])
    found, _ = jobs.find([tmp_path])
    (sweep,) = jobs.sweeps(found, [tmp_path])
    assert sweep.typed == ["hydra/launcher=joblib", "algo=a3c,ppo"]
    assert sweep.missing == [["seed=1", "algo=a3c"], ["seed=1", "algo=ppo"]]
    assert jobs.sweeps(found, [tmp_path / "x_seed_0"]) == []
    run_json = tmp_path / "x_seed_0" / "run.json"  # gone on with another budget
    (tmp_path / "x_seed_0" / ".hydra").mkdir()
    (tmp_path / "x_seed_0" / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["seed=0", "algo=a3c"]))
    made = json.loads(run_json.read_text()) | {"overrides": ["seed=0", "algo=a3c", "env.max_frame=6000"]}
    run_json.write_text(json.dumps(made))
    assert jobs.sweeps(found, [tmp_path])[0].missing == sweep.missing
    multirun(tmp_path, [*task, "env.max_frame=6000"], params={"seed": "0,1"})  # the whole sweep goes on with it
    (tmp_path / "y" / ".hydra" / "later").mkdir()
    later = ["seed=0", "algo=ppo", "resume=auto", "env.max_frame=6000"]
    (tmp_path / "y" / ".hydra" / "later" / "overrides.yaml").write_text(yaml.safe_dump(later))
    missing = [["seed=1", algo, "env.max_frame=6000"] for algo in ("algo=a3c", "algo=ppo")]
    assert jobs.sweeps(found, [tmp_path])[0].missing == missing
    for text in ("{", "3", "hydra: {sweeper: null}", "hydra: {sweeper: {_target_: OptunaSweeper}}"):
        (tmp_path / "multirun.yaml").write_text(text)
        (sweep,) = jobs.sweeps(found, [tmp_path])
        assert sweep.missing == []


def test_a_search_of_optuna_has_its_command_from_its_jobs(tmp_path):
    command = ["python", "train.py", "-m", "+experiment=tune", "hydra.sweeper.n_trials=4", "hydra.sweep.dir=here"]
    write_run(tmp_path, "x", 0, line(1), made={"command": command})
    (tmp_path / "optimization_results.yaml").write_text("{name: optuna, best_params: {seed: 3}, best_value: 2.5}")
    (sweep,) = jobs.sweeps(jobs.find([tmp_path])[0], [tmp_path])
    assert (sweep.typed, sweep.missing) == (["+experiment=tune", "hydra.sweeper.n_trials=4"], [])
    assert sweep.results["best_params"] == {"seed": 3}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"metric": "finl"}, "metric=finl is unknown; use one of final, best, mean, evaluation"),
        ({"out": "report.pdf"}, r"out=\S+/report\.pdf must end in \.html"),
        ({"out": "/proc/asynclab/x.html"}, r"out=/proc/asynclab/x\.html cannot be written: "),
        ({"out": "folder.html"}, r"out=\S+/folder\.html cannot be written: Is a directory; set out to another file"),
        ({"group": ["lr"]}, r"group=lr is a setting of no run; use algo\.optimizer\.lr"),
    ],
    ids=str,
)
def test_settings_of_the_report_are_checked(tmp_path, kwargs, message):
    job_free = write_run(tmp_path, "a", 0, [(10, 1.0, None)], optimizer={"lr": 1.0})  # nothing to draw
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ValueError, match=message):
        report.write([job_free], tmp_path / kwargs.pop("out", "report.html"), **kwargs)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"there is no run to report\. \S+ has no run in it\. /nowhere is not a folder"
    ):
        report.write([tmp_path, Path("/nowhere")], tmp_path / "report.html")


@pytest.mark.medium
def test_what_is_on_the_page_of_a_sweep(tmp_path):
    overrides = {}
    for lr, last in (("0.001", 100.0), ("0.01", 300.0)):
        for seed in range(3):
            typed = overrides[lr, seed] = [f"algo.optimizer.lr={lr}", f"seed={seed}", "env=cartpole"]
            summary = {
                "updates": 500, "fps": 120.0, "dropped_updates": seed, "lost_updates": [0.01 * seed],
                "staleness": {"mean": 2.0, "p95": 4, "max": 5 + seed}, "restarts": 1,
                "failures": [{"rank": 1, "cause": "was killed", "total_frames": 300, "restarted": True}] * (seed == 0),
            }  # fmt: skip
            write_run(tmp_path, f"lr{lr}", seed, line(last + seed), sessions=2, optimizer={"lr": float(lr)},
                      overrides=typed, summary=summary)  # fmt: skip
    job(tmp_path, "wrong", ["algo.optimizer.lr=-1", "seed=0", "env=cartpole"], "algo.optimizer.lr=-1 is not above 0")
    multirun(tmp_path, ["algo.optimizer.lr=0.001,0.01,-1", "seed=0,1,2", "env=cartpole"])
    best = {"name": "optuna", "best_params": {"algo.optimizer.lr": 0.01}, "best_value": 301.0}
    (tmp_path / "optimization_results.yaml").write_text(yaml.safe_dump(best))
    page, notes = make(tmp_path, tmp_path / "report.html")
    results = "Results, best final return first"
    assert page.column(results, "rank") == ["1", "2"]
    assert page.column(results, "group") == ["algo.optimizer.lr=0.01", "algo.optimizer.lr=0.001"]
    assert page.column(results, "final return") == ["301.0 [300.0, 302.0]", "101.0 [100.0, 102.0]"]
    assert page.column(results, "runs") == ["3", "3"]
    assert page.column(results, "frames") == ["1,000", "1,000"]
    assert page.tables["Settings that differ"][1:] == [
        ["algo.optimizer.lr=0.01", "0.01"],
        ["algo.optimizer.lr=0.001", "0.001"],
    ]
    speed = {
        title: page.column("Speed and asynchrony", title)[0] for title in page.tables["Speed and asynchrony"][0][1:]
    }
    assert speed == {
        "frames/s": "100", "updates/s": "50.0", "mean staleness": "2.00", "95th percentile": "4.0", "highest": "7",
        "lost updates": "1.00%", "dropped updates": "3", "restarts": "3",
    }  # fmt: skip
    assert page.column("Failures of sessions", "run") == ["lr0.001_seed_0", "lr0.01_seed_0"]
    assert page.tables["Failures of sessions"][1][1:] == ["1", "300", "was killed", "yes"]
    assert len(page.tables["Every run"]) == 8
    assert page.tables["Runs that did not finish"][1:] == [
        ["wrong", "failed", "It failed: algo.optimizer.lr=-1 is not above 0.", "algo.optimizer.lr=-1 seed=0"]
    ]
    assert page.tables["Best settings of the sweep, return 301.0"][1:] == [["algo.optimizer.lr", "0.01"]]
    (common,) = [rows for caption, rows in page.tables.items() if caption.endswith(" settings")]
    assert {"env.num_envs": "8", "env.id": "CartPole-v1"}.items() <= dict(common[1:]).items()
    assert not {"algo.optimizer.lr", "seed"} & {row[0] for row in common}
    for command in (
        "python train.py -m algo.optimizer.lr=0.001,0.01,-1 seed=0,1,2 env=cartpole",
        "python train.py algo.optimizer.lr=0.01 seed=2 env=cartpole",
        f"git checkout {'0123456789' * 4}",
    ):
        assert command in page.text
    assert "2 jobs of the sweep" in page.text  # lr=-1 with seeds 1 and 2
    assert notes[-1] == "wrong: It failed: algo.optimizer.lr=-1 is not above 0."
    assert len(page.ids) == len(set(page.ids))
    assert page.html.count("<svg ") == 6  # two drawings, two lines of the legend, two bars
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)|url\((?!#)|@import|<script""", page.html)
    assert (tmp_path / "report.html").stat().st_size < 150_000


@pytest.mark.medium
def test_what_is_on_the_page_of_a_run(tmp_path):
    session = {"session_frames": [400, 600], "session_updates": [4, 6], "session_mean_return": [1.0, None]}
    run = write(tmp_path, sessions=2, summary=session | {"evaluation": {"mean_return": 77.0, "frames": 900}})
    with (run / "metrics.jsonl").open("a") as file:
        for i in range(1, 4):
            content = {"kind": "evaluation", "total_frames": 300 * i, "seconds": i, "returns": [i, 3 * i]}
            file.write(json.dumps(content) + "\n")
        file.write('{"kind": "evaluation", "returns": []}\n')
    page, notes = make(run, tmp_path / "report.html")
    assert notes == []
    assert page.tables["Sessions"][1:] == [["session 0", "400", "4", "1.00"], ["session 1", "600", "6", "-"]]
    assert "Results" not in page.tables
    assert "Every run" not in page.tables
    assert "77.00" in page.text
    (legend,) = re.findall(r'<ul class="legend">.*?</ul>', page.html, re.DOTALL)
    assert re.findall(r"</svg>(.*?)</li>", legend) == ["training", "evaluation"]
    assert page.html.count('role="img"') == 3  # by frames, by seconds, the sessions


@pytest.mark.medium
def test_what_is_wrong_is_on_the_page_and_the_rest_is_too(tmp_path):
    write(tmp_path, "good", seed=0)
    write(tmp_path, "good", seed=1)
    nasty = write(tmp_path, "<script>$x_$", overrides=["algo=<b>", "seed=0"],
                  made={"machine": {"processor": "<i>mine</i>"}})  # fmt: skip
    (write(tmp_path, "killed") / "summary.json").unlink()
    (write(tmp_path, "broken") / "summary.json").write_text('{"status": "fin')
    (write(tmp_path, "bare") / "config.yaml").unlink()
    (write(tmp_path, "norun") / "run.json").unlink()
    (write(tmp_path, "garbled") / "config.yaml").write_text("{")
    (write(tmp_path, "torn") / "metrics.jsonl").write_text('{"kind"\n')
    (write(tmp_path, "old") / "metrics.jsonl").write_text('{"frame": 3}\n')
    write_run(tmp_path, "silent", 0, [(10, 1.0, None)])
    write_run(tmp_path, "summed", 0, line(10))  # no episodes of single sessions
    other = {"status": "finished", "staleness": 3, "failures": "none", "lost_updates": 0.1, "session_frames": None}
    (write(tmp_path, "other") / "summary.json").write_text(json.dumps(other))
    made = {"started": 3, "git": "x", "machine": None, "packages": [], "overrides": None, "max_session": "two"}
    (write(tmp_path, "weird") / "run.json").write_text(json.dumps(made))
    with (write(tmp_path, "half") / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tri')
    notes = report.write([tmp_path, tmp_path / "nowhere"], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    for sentence in (
        r"\S+/nowhere is not a folder\.",
        r"torn_seed_0: \S+/metrics\.jsonl is damaged",
        r"old_seed_0: \S+/metrics\.jsonl is of another version of asynclab",
        r"silent_seed_0: It has no finished episode yet\.",
        r"killed_seed_0: It has no summary\.json, so it was killed",
        r"broken_seed_0: summary\.json is damaged\.",
        r"bare_seed_0: config\.yaml is missing\.",
        r"norun_seed_0: run\.json is missing\.",
        r"garbled_seed_0: config\.yaml is damaged",
        r"The runs were made on different machines\.",
    ):
        assert [note for note in notes if re.match(sentence, note)], (sentence, notes)
        assert re.search(sentence.split(": ")[-1], page.text), sentence
    assert len(page.column("Every run", "run")) == 15
    assert nasty.name in page.column("Every run", "run")
    assert "<script" not in page.html
    assert "<i>mine</i>" in page.text
    assert {"bare_seed_0", "garbled_seed_0"} <= {row[1] for row in page.tables["Results, best final return first"][1:]}
    for name in ("torn", "silent", "bare", "summed", "weird"):  # however little is known
        report.write([tmp_path / f"{name}_seed_0"], tmp_path / "one.html")


@pytest.mark.medium
def test_only_so_many_lines_are_drawn_as_can_be_told_apart(tmp_path):
    for i in range(9):
        write_run(tmp_path, f"arm{i}", 0, line(float(i)), entropy_coef=i / 10)
    page, _ = make(tmp_path, tmp_path / "report.html")
    assert "not drawn are arm1; arm0." in page.text
    assert page.html.count('stroke="var(--line-') == 7


@pytest.mark.medium
def test_a_group_that_only_one_axis_can_have_does_not_take_the_names_of_others(tmp_path):
    late = [(100 * i, 20.0 + i, 1.0 * i) for i in range(1, 11)]
    for arm, seconds in (("a", (10.0, None)), ("b", (30.0, 40.0))):
        for seed, last in enumerate(seconds):
            write_run(tmp_path, arm, seed, late if last is None else line(10.0, seconds=last))
    found, _ = jobs.find([tmp_path])
    named = {label: [j for j in found if j.name.startswith(label)] for label in ("a", "b")}
    figures, notes = report._figures(ranking.rank(named, "final"))
    assert notes == []
    assert [[line.label for line in figure.lines] for figure in figures] == [
        ["a (2 runs)", "b (2 runs)"],
        ["b (2 runs)"],
    ]
    assert [len(figure.drawings) for figure in figures] == [1, 1]


def test_the_times_of_simulations_are_called_virtual(tmp_path):
    run = write_run(tmp_path, "a", 0, line(1.0, seconds=0.1), summary={"real_seconds": 7_200.0})
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["distributed"]["_target_"] = "asynclab.distributed.Simulated"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    page, _ = make(tmp_path, tmp_path / "report.html")
    assert "Times and speeds are virtual, as those of all simulations." in page.text
    assert "12:00 to 14:00 UTC" in " ".join(page.text.split())


@pytest.mark.medium
def test_a_run_that_was_resumed_elsewhere_says_where_and_when_and_its_speed_is_of_all_of_it(tmp_path):
    again = {
        "started": "2026-11-25T08:00:00+00:00",
        "git": {"revision": "fedcba9876" * 4, "dirty": False},
        "machine": {"processor": "another processor", "cores": 16},
        "packages": {"python": "3.12.3"},
    }
    summary = {"fps": 0.0, "ended": "2026-11-25T09:30:00+00:00"}  # the last part has only evaluated
    run = write_run(tmp_path, "a", 0, line(1.0), made={"resumes": [again]}, summary=summary)
    page, _ = make(run, tmp_path / "report.html")
    text = " ".join(page.text.split())
    assert "22 November 2026, 12:00 to 25 November 2026, 09:30 UTC" in text
    assert all(part in text for part in ("a processor", "another processor", "0123456789", "fedcba9876"))
    assert re.search("Speed *100 *frames per second", text)
    for difference in ("on different machines", "from different revisions of the code"):
        assert f"The run was made {difference}." in text


def test_long_names_of_groups_are_replaced(tmp_path):
    for arm, seeds in (("a", [0]), ("b", [0, 1])):
        for seed in seeds:
            typed = [f"seed={seed}", f"algo.note={arm * 100}"]
            write_run(tmp_path, arm, seed, line(10.0 if arm == "a" else 5.0), note=arm * 100, overrides=typed)
    page, _ = make(tmp_path, tmp_path / "report.html")
    assert page.column("Results, best final return first", "group") == ["run a_seed_0", "group 2"]
    assert page.tables["Settings that differ"][1:] == [["run a_seed_0", "a" * 100], ["group 2", "b" * 100]]


@pytest.mark.medium
def test_environments_are_ranked_apart(tmp_path):
    for env in ("CartPole-v1", "ALE/Pong-v5"):
        for arm in ("a", "b"):
            write_run(tmp_path, f"{arm}_{env.replace('/', '_')}", 0, line(10), env=env, lam=0.9 if arm == "a" else 1.0)
    page, notes = make(tmp_path, tmp_path / "report.html", group=["algo.lam"])
    assert "The runs are of several environments, whose returns cannot be compared." in notes
    assert page.html.count("best final return first</h3>") == 2
    assert "ALE/Pong-v5 and CartPole-v1" in page.text
    assert page.html.count("(1 frame = 4 emulator frames)") == 1


@pytest.mark.medium
@pytest.mark.parametrize("package", ["matplotlib", "scipy"])
def test_without_a_package_the_rest_is_reported(tmp_path, monkeypatch, package):
    for seed in (0, 1):
        write_run(tmp_path, "a", seed, line(10.0 + seed))
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith((f"{package}.", "asynclab.analysis.estimates"))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr("asynclab.analysis.estimates", raising=False)
    page, notes = make(tmp_path, tmp_path / "report.html")
    (note,) = notes
    assert f"{package} is not installed (pip install 'asynclab[plot]')." in note
    assert note in page.text
    assert "Curves" not in page.text
    assert page.column("Results", "final return")[0].startswith("10.50")


@pytest.mark.medium
def test_the_end_of_a_run_writes_its_report_or_says_in_one_line_why_not(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    run = write(tmp_path)
    report.write_at_end(run)
    report.write_at_end(run)  # it replaces its own
    assert [r.levelname for r in caplog.records] == ["INFO", "INFO"]
    assert "CartPole-v1" in Page(run / "report.html").text
    caplog.clear()
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    report.write_at_end(run)
    assert [(r.levelname, r.getMessage().startswith("no report.html: ")) for r in caplog.records] == [("WARNING", True)]
    caplog.clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    report.write_at_end(run)
    assert caplog.messages == ["no report.html: jinja2 is not installed (pip install 'asynclab[plot]')"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Return the folder of a real sweep: two good runs, which leave reports, and one whose seed is wrong."""
    folder = tmp_path_factory.mktemp("sweep")
    settings = ["env=cartpole", "distributed.max_session=1", "env.max_frame=3_000", "log_every=0.2", "seed=0,1,-1"]
    process = commands.run("train.py", "-m", *settings, f"hydra.sweep.dir={folder}", cwd=folder)
    assert process.returncode == 1, process.stderr
    return folder


@pytest.mark.medium
def test_a_real_sweep_by_the_command(sweep, monkeypatch, capsys):
    monkeypatch.chdir(sweep)
    for name in ("0", "1"):
        page = Page(sweep / name / "report.html")
        assert "CartPole-v1" in page.text
        assert page.html.count('role="img"') == 3
    script = ROOT / "scripts" / "report.py"
    monkeypatch.setattr(sys, "argv", [str(script), f"runs={sweep}", "out=report.html", "group=env.id"])
    runpy.run_path(str(script), run_name="__main__")
    out, err = capsys.readouterr()
    assert out == "wrote report.html\n"
    assert [row.split(":")[0] for row in err.splitlines()] == ["2"]
    page = Page(sweep / "report.html")
    assert page.column("Results", "group") == ["env.id=CartPole-v1"]
    assert page.column("Results", "runs") == ["2"]
    assert page.column("Runs that did not finish", "settings") == ["seed=-1"]
    assert "python train.py -m env=cartpole distributed.max_session=1" in page.text


CONTRAST = """
const parse = c => c.match(/[\\d.]+/g).map(Number);
const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const ground = e => { while (e) { const c = parse(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c; e = e.parentElement; } return [255, 255, 255]; };
return arguments[0].map(selector => { const e = document.querySelector(selector);
  const style = getComputedStyle(e), box = e.getBoundingClientRect();
  const colour = parse(e instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(colour), light(ground(e))].sort((x, y) => y - x);
  return [selector, (a + .05) / (b + .05), box.width * box.height]; });
"""
AREAS = """
return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect()).map(b => b.width * b.height);
"""
WIDE = """
return [...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".scroll > *") && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 200));
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Return the folder of a made-up sweep: 30 runs, 12 settings that differ, long names."""
    folder = tmp_path_factory.mktemp("wide")
    for i in range(30):
        settings = {f"a_setting_with_a_long_name_{k}": i * k / 7 for k in range(12)}
        typed = [f"algo.{key}={value}" for key, value in settings.items()]
        write_run(folder, f"arm{i:02d}", 0, line(float(i)), overrides=typed, staleness=1.5, **settings)
    job(folder, "wrong", ["algo.lam=" + "9" * 100], "a sentence " * 30)
    return folder


@pytest.mark.medium
def test_the_page_in_a_browser(sweep, wide):
    pages = [folder / "page.html" for folder in (wide, sweep, sweep / "0")]
    for page in pages:
        report.write([page.parent], page)
    parts = ["h1", "h2", ".name", ".note", ".stats dt", "thead th", "tbody th", "td.number", "summary", "pre",
             "figcaption", ".drawings text", "footer"]  # fmt: skip
    with chromium(offline=True) as browser:
        for scheme, page in itertools.product(("light", "dark"), pages):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            for width in (1280, 400):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                browser.get(page.as_uri())
                browser.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
                assert browser.execute_script("return document.documentElement.scrollWidth") == width
                assert browser.execute_script(WIDE) == []
                several = [] if page is pages[-1] else [".notices a", ".badge.finished", ".badge.failed", ".legend li"]
                for selector, contrast, area in browser.execute_script(CONTRAST, parts + several):
                    assert contrast >= 4.5, (selector, contrast)
                    assert area > 0, selector
                for tag in ("table", ".drawings > svg"):
                    areas = browser.execute_script(AREAS, tag)
                    assert len(areas) >= 2
                    assert min(areas) > 1_000, tag
        assert complaints(browser) == []
