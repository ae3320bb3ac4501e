"""Playing checkpoints, and evaluation while a run trains: in a process of its own, which training does not notice."""

import argparse
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

import commands
import psutil
import pytest
import torch
from conftest import ALGOS, ROOT, TORSO, make_schedule
from hydra import compose, initialize_config_dir
from hydra.errors import CompactHydraException, ConfigCompositionException
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asynclab import build, config, progress
from asynclab.analysis import curves
from asynclab.distributed import Synced
from asynclab.evaluation import evaluator, play
from asynclab.evaluation.evaluator import Evaluated, Evaluator, Player
from asynclab.evaluation.play import Evaluation, evaluate
from asynclab.processes.control import Control
from asynclab.run import trial
from asynclab.run.ending import end_on_signals
from asynclab.storage import checkpoint

config.register()
NICE = 7  # by which tests find the process
CARTPOLE = ["algo=a3c", "env=cartpole", "env.torso.hidden=[16]", "device=cpu", "algo.precision=fp32"]
PLAYED = {
    "lstm": [*CARTPOLE, "algo.agent.lstm=4", "algo.agent.shared=true", "env.max_frame=800"],
    "normalized": [
        "algo=ppo", "env=pendulum", "env.make.normalize_obs=true", "algo.memory.horizon=32", "env.max_frame=800",
        "algo.agent.minibatch_size=16",
    ],
    "sac": ["algo=sac", "env=pendulum", "algo.memory.start=350", "algo.memory.batch_size=8", "env.max_frame=400"],
    "nstep_q": [*CARTPOLE, "algo=nstep_q", "env.max_frame=400"],
    "two_in_off": [*CARTPOLE, "distributed=off", "env.max_frame=800"],
}  # fmt: skip


def compose_run(folder, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", list(overrides))
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    return cfg


def evaluations(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "evaluation"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a small run of CartPole."""
    folder = tmp_path_factory.mktemp("run")
    cfg = compose_run(folder, *CARTPOLE, "distributed.max_session=1", "env.max_frame=400", "algo.memory.horizon=16")
    build.make_trial(cfg, folder).run()
    return folder


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    """Return the folder of a small run whose agent remembers."""
    folder = tmp_path_factory.mktemp("recurrent")
    cfg = compose_run(folder, *PLAYED["lstm"], "distributed.max_session=1")
    build.make_trial(cfg, folder).run()
    return folder


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["run", "recurrent"])
def test_an_episode_is_that_of_its_seed_whatever_else_is_played(request, name, deterministic):
    folder = request.getfixturevalue(name)
    together = evaluate(folder, 10, deterministic)
    assert together.seeds == list(range(1000, 1010))
    alone = [evaluate(folder, 1, deterministic, seed=1000 + i) for i in (0, 4, 9)]
    assert [together.returns[i] for i in (0, 4, 9)] == [e.returns[0] for e in alone]
    assert [together.lengths[i] for i in (0, 4, 9)] == [e.lengths[0] for e in alone]
    assert len(set(together.returns)) > 1


def test_the_same_evaluation_gives_the_same_returns_and_another_seed_others(run):
    returns = [evaluate(run, 6, seed=seed).returns for seed in (0, 0, 50)]
    assert returns[0] == returns[1] != returns[2]
    assert returns[0] != evaluate(run, 6, deterministic=True, seed=0).returns


def test_statistics_of_returns(run):
    def of(*returns):
        e = Evaluation(Path(), "X-v0", "000001", 1, 0, False, [0] * len(returns), list(returns), [3] * len(returns), [])
        return e.as_json()

    found = of(1.0, 3.0)
    assert (found["mean_return"], found["mean_length"]) == (2.0, 3.0)
    assert (found["std_return"], found["standard_error"]) == pytest.approx((math.sqrt(2), 1.0))
    assert found["interval_95"] == [1.0, 3.0]
    low, high = of(*([0.0] * 50 + [1.0] * 50))["interval_95"]
    assert 0.39 <= low <= 0.42
    assert 0.58 <= high <= 0.61
    assert of(5.0)["std_return"] is of(5.0)["interval_95"] is None
    assert of(math.nan, 1.0)["returns"] == [None, 1.0]
    assert of(math.nan, 1.0)["mean_return"] is None


def test_results_are_written_with_what_it_takes_to_repeat_them(run, tmp_path):
    first, again = (evaluate(run, 3, deterministic=True, results=tmp_path) for _ in range(2))
    assert first.file.name == "000001_deterministic_seed_1000_episodes_3.json"
    assert again.file.name == "000001_deterministic_seed_1000_episodes_3__2.json"
    content = json.loads(first.file.read_text(), parse_constant=pytest.fail)
    assert content["returns"] == first.returns == again.returns
    assert content["lengths"] == first.lengths
    assert (content["seeds"], content["deterministic"], content["session"]) == ([1000, 1001, 1002], True, 0)
    assert (content["env"], content["checkpoint"], content["frames"]) == ("CartPole-v1", "000001", 400)
    assert (content["run"], content["videos"]) == (str(run), [])
    assert content["packages"]["torch"] == metadata.version("torch")  # torch.__version__ may add its CUDA
    assert content["asynclab"]


def test_a_long_episode_shows_its_steps(run, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    games = play.play
    monkeypatch.setattr(play, "play", lambda *args: (time.sleep(0.02) or game for game in games(*args)))
    evaluate(run, 1)
    assert re.search(r"^0 of 1 episodes, [1-9]\d* steps in 0:00:0\d$", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": 0}, r"episodes=0 must be a whole number of 1 or more"),
        ({"episodes": 2, "seed": -1}, r"seed=-1 must be a whole number of 0 or more"),
        (
            {"episodes": 2, "seed": 2**31 - 1},
            r"seed=2147483647 is too large: those of 2 episodes must be below 2\*\*31",
        ),
        ({"episodes": 1, "name": "9"}, r"checkpoints/000009 does not exist; use latest"),
    ],
)
def test_a_request_that_makes_no_sense_plays_nothing(run, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate(run, results=tmp_path / "results", **settings)
    assert not list(tmp_path.iterdir())


def test_what_fails_leaves_nothing_and_closes_the_environment(run, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr("asynclab.envs.Envs.close", lambda envs: closed.append(envs))
    monkeypatch.setattr(Path, "write_text", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match=r"results cannot be written \(No space left on device\); set out to another"):
        evaluate(run, 1, results=tmp_path / "results")
    assert not list((tmp_path / "results").iterdir())
    monkeypatch.undo()
    monkeypatch.setattr("asynclab.envs.Envs.close", lambda envs: closed.append(envs))
    monkeypatch.setattr(play, "equip", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(run, 1, results=tmp_path / "others")
    assert not (tmp_path / "others").exists()
    assert len(closed) == 2


@pytest.mark.medium
def test_the_command_prints_a_sentence_or_json_and_names_a_folder_that_cannot_be_written(run, tmp_path):
    def command(*overrides):
        return commands.run("scripts/evaluate.py", f"run={run}", f"out={tmp_path}", *overrides)

    process = command("episodes=4")
    (path,) = (tmp_path / "evaluations").iterdir()
    content = json.loads(path.read_text())
    mean, low, high = content["mean_return"], *content["interval_95"]
    assert process.stdout == (
        f"return {mean:.2f} +- {content['std_return']:.2f} over 4 episodes (mean between {low:.2f} and {high:.2f} with"
        f" 95%) of {run}, checkpoint 000001 at 400 frames, sampled actions\nwrote {path}\n"
    )
    assert command("episodes=1", "deterministic=true").stdout.splitlines()[0].endswith(" at 400 frames, best actions")
    printed = json.loads(command("episodes=4", "json=true").stdout)
    assert printed["returns"] == content["returns"]
    assert printed["file"] == str(path.with_stem(f"{path.stem}__2"))
    process = command("out=/proc/nowhere")
    assert process.returncode == 1
    assert "\n/proc/nowhere/evaluations cannot be written (No such file or directory); set out to" in process.stderr
    assert "Traceback" not in process.stderr


# Evaluation while a run trains


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.every=-5", r"eval\.every=-5 must be a whole number of 1 or more, or null for no evaluation"),
        ("eval.every=0", r"eval\.every=0 must be a whole number of 1 or more, or null for no evaluation"),
        ("eval.every=1e5", r"Value '100000\.0' of type 'float' could not be converted to Integer"),
        ("eval.every=often", r"Value 'often' .* could not be converted to Integer"),
        ("eval.episodes=0", r"eval\.episodes=0 must be a whole number of 1 or more"),
        ("eval.nice=20", r"eval\.nice=20 must be a whole number from 0 to 19"),
        ("eval.nice=-5", r"eval\.nice=-5 must be a whole number of 0 or more"),
        ("eval.wait=-1", r"eval\.wait=-1.0 must be 0 or more seconds"),
        ("+eval.seed=1", r"eval\.seed is not a setting; use one of eval\.every, eval\.episodes"),
    ],
)
def test_a_mistyped_schedule_is_refused_before_anything_starts(tmp_path, override, message):
    with (
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
        pytest.raises((CompactHydraException, ConfigCompositionException)) as error,
    ):
        build.make_trial(compose("config", ["env=cartpole", override]), tmp_path)
    assert re.search(message, f"{error.value}\n{error.value.__cause__}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("normalized", "sac") else name for name in PLAYED]
)
@pytest.mark.medium
def test_the_last_evaluation_is_what_evaluate_says_of_the_last_checkpoint(tmp_path, name):
    sessions = ["distributed.max_session=2"] if name == "two_in_off" else ["distributed.max_session=1"]
    cfg = compose_run(tmp_path, *PLAYED[name], *sessions, "eval.every=100", "eval.episodes=3", "env.num_envs=2")
    build.make_trial(cfg, tmp_path).run()
    last = evaluations(tmp_path)[-1]
    played = evaluate(tmp_path, 3)
    assert (last["returns"], last["lengths"]) == (played.returns, played.lengths)
    best, sampled = (evaluate(tmp_path, 3, deterministic) for deterministic in (True, False))
    assert played.deterministic is (name in ("sac", "nstep_q"))
    assert played.returns == (best if played.deterministic else sampled).returns
    assert best.returns != sampled.returns
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (last["total_frames"], last["updates"]) == (summary["frames"], summary["updates"])
    assert summary["evaluation"]["mean_return"] == pytest.approx(played.statistics()["mean_return"])


def test_training_is_the_same_to_the_bit_with_evaluation(make_trial, tmp_path):
    thetas = []
    for schedule in (make_schedule(), make_schedule(every=200, episodes=2)):
        trial = make_trial(schedule=schedule, max_frame=2_000)
        trial.run()
        thetas.append(trial.stores[0].theta.clone())
        found = evaluations(tmp_path)
        for path in tmp_path.iterdir():
            path.rename(path.with_name(f"{path.name}_{len(thetas)}"))
    assert torch.equal(*thetas)
    assert len(found) >= 1


@pytest.mark.medium
def test_a_run_leaves_its_evaluations_in_every_log(make_trial, tmp_path):
    schedule = make_schedule(every=500, episodes=3, deterministic=True)
    made = make_trial(mode=Synced(2), schedule=schedule, max_frame=10**9)

    def end_after_two():
        metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 240
        while time.monotonic() < deadline and metrics.read_text().count('"kind": "evaluation"') < 2:
            time.sleep(0.1)
        made.control.finish()

    (tmp_path / "metrics.jsonl").touch()
    thread = threading.Thread(target=end_after_two)
    thread.start()
    with pytest.raises(trial.TrialError, match="not by a signal to it"):
        made.run()
    thread.join()
    lines = evaluations(tmp_path)
    frames = [line["total_frames"] for line in lines]
    assert len(frames) >= 2
    assert frames == sorted(frames)
    assert all(len(line["returns"]) == len(line["lengths"]) == 3 for line in lines)
    summary = json.loads((tmp_path / "summary.json").read_text())["evaluation"]
    means = [sum(line["returns"]) / 3 for line in lines]
    assert (summary["mean_return"], summary["frames"]) == (pytest.approx(means[-1]), frames[-1])
    assert summary["best"]["mean_return"] == pytest.approx(max(means))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "trial"))
    events.Reload()
    for tag, values in {
        "eval/return": means,
        "eval/return_min": [min(line["returns"]) for line in lines],
        "eval/return_max": [max(line["returns"]) for line in lines],
        "eval/length": [sum(line["lengths"]) / 3 for line in lines],
    }.items():
        scalars = events.Scalars(tag)
        assert [s.step for s in scalars] == frames
        assert [s.value for s in scalars] == pytest.approx(values)
    curve = curves.read(tmp_path).evaluation
    assert curve.total_frames.tolist() == frames
    assert curve.session_frames.tolist() == [n / 2 for n in frames]
    assert curve.returns.tolist() == pytest.approx(means)
    assert curve.seconds.tolist() == [line["seconds"] for line in lines]


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_evaluations(make_trial, tmp_path):
    schedule = make_schedule(every=1_000, episodes=2)
    make_trial(schedule=schedule, max_frame=2_000).run()
    (tmp_path / "metrics.jsonl").open("a").write("half a line")
    make_trial(schedule=schedule, max_frame=5_000, checkpoint=checkpoint.load(tmp_path)).run()
    frames = [line["total_frames"] for line in evaluations(tmp_path)]
    marks = [n // 1_000 for n in frames]
    assert marks == sorted(set(marks))  # none twice, though the last one before came after the checkpoint
    assert frames[-1] == 5_000
    assert json.loads((tmp_path / "summary.json").read_text())["evaluation"]["frames"] == 5_000


# The process


def player():
    """Return the process that evaluates."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            try:
                if process.nice() == os.nice(0) + NICE and process.status() != psutil.STATUS_ZOMBIE:
                    return process
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
    raise AssertionError("no process evaluates")


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture
def evaluates(make_trial, caplog):
    """Return a context manager for an evaluator of a store that this test trains, so to say."""
    caplog.set_level(logging.WARNING, "asynclab")

    @contextmanager
    def make(algo="a3c", hang_after=6.0, episodes=2, **agent):
        store = make_trial().stores[0]
        make_agent, _, make_envs = ALGOS[algo]
        found = Evaluator(
            make_schedule(every=100, episodes=episodes, nice=NICE),
            partial(make_envs, num_envs=2),
            partial(make_agent, **({"torso": TORSO} | agent)),
            [store],
            hang_after,
        )
        try:
            yield found, store
        finally:
            found.close()
            assert not found._thread.is_alive()

    return make


def test_a_killed_evaluator_starts_again_and_evaluates_the_newest_weights(evaluates, caplog):
    with evaluates() as (found, store):
        player().kill()
        wait_for(lambda: "the evaluator was killed by SIGKILL; restart in 1 s" in caplog.text)
        store.frames[0] = 450
        (result,) = wait_for(lambda: list(found.results()))
        assert (result.frames, result.updates, len(result.returns)) == (450, 0, 2)
        process = player()
    wait_for(lambda: not process.is_running())


@pytest.mark.medium
def test_a_hung_evaluator_is_killed_and_one_that_fails_three_times_is_given_up(evaluates, caplog):
    with evaluates(hang_after=0.1) as (found, _):
        os.kill(player().pid, signal.SIGSTOP)
        wait_for(lambda: "the evaluator hung for 1 s and was killed; restart in 1 s" in caplog.text)
        assert "its process was stopped by a signal" in caplog.text
    with evaluates(torso=None) as (found, _):
        wait_for(lambda: not found._thread.is_alive())
        assert caplog.text.count("the evaluator raised") == 3
        assert "TypeError" in caplog.text
        assert "the run goes on without evaluations" in caplog.text
        assert list(found.finish(lambda: False)) == []


@pytest.fixture
def player_of(make_trial):
    """Return what the process gets, and the store that it evaluates."""
    store = make_trial().stores[0]
    make_agent, _, make_envs = ALGOS["a3c"]
    return Player(
        make_envs, partial(make_agent, torso=TORSO), make_schedule(every=100, episodes=2), store.theta, {},
        [store.frames], store.max_frame, [store.updates], torch.zeros(2, dtype=torch.int64), torch.tensor(False),
        Control(1),
    ), store  # fmt: skip


def test_weights_in_between_are_left_out_and_the_final_ones_are_not(player_of):
    played, store = player_of
    results = played.run()
    store.frames[0] = 120
    first = next(results)
    store.frames[0] = 580  # four marks later
    store.theta.copy_(torch.linspace(-1, 1, len(store.theta)))  # always the same action
    second = next(results)
    store.frames[0] = 599
    played.ended.fill_(True)
    assert [first.frames, second.frames, *(r.frames for r in results)] == [120, 580, 599]
    assert first.returns != second.returns
    played.last[0] = 599
    assert list(played.run()) == []  # nothing has changed since


def test_when_the_budget_is_used_up_only_the_final_weights_are_evaluated(player_of, monkeypatch):
    played, store = player_of
    store.frames[0] = store.max_frame

    def learn_for_the_last_time(seconds):
        store.updates[0] = 7
        played.ended.fill_(True)

    monkeypatch.setattr(evaluator.time, "sleep", learn_for_the_last_time)
    assert [(r.frames, r.updates) for r in played.run()] == [(store.max_frame, 7)]


def test_evaluations_that_come_after_the_last_event_are_in_the_checkpoint(make_trial, tmp_path, monkeypatch):
    launched, late = trial.launch, []

    class Late:
        results = late.copy

        def __init__(self, *args):
            pass

        def finish(self, cancelled):
            return []

        def close(self):
            pass

    def launch(*args):
        yield from launched(*args)
        late.append(Evaluated(1_500, 3, 0.0, [4.0], [5]))

    monkeypatch.setattr(trial, "Evaluator", Late)
    monkeypatch.setattr(trial, "launch", launch)
    make_trial(schedule=make_schedule(every=100)).run()
    assert checkpoint.load(tmp_path).trial()["recorder"]["evaluation"]["frames"] == 1_500


def test_when_all_is_saved_signals_end_the_evaluation_and_not_the_summary(make_trial):
    ends = []
    for numbers in ([signal.SIGINT] * 3, [signal.SIGUSR2], [signal.SIGINT, signal.SIGTERM]):
        made = make_trial()
        status = argparse.Namespace(is_shown=True)
        with end_on_signals(made.control, status) as ending:
            ending.is_saved = True
            for number in numbers:
                signal.raise_signal(number)
        ends.append((ending.is_asked, ending.number))
    assert ends == [(True, None), (True, signal.SIGUSR2), (True, signal.SIGTERM)]
    assert status.note == "SIGINT: ending without the last evaluation"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 0),
        pytest.param(signal.SIGUSR2, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
@pytest.mark.medium
def test_a_real_run_survives_a_killed_evaluator_and_a_signal_ends_the_wait_for_the_last_evaluation(
    tmp_path, number, code
):
    command = [
        sys.executable, ROOT / "train.py", *CARTPOLE, "env.max_frame=20_000", "distributed.max_session=2", "plot=false",
        "eval.every=1", "eval.episodes=1_000_000", f"eval.nice={NICE}", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
    lines = []
    try:
        player().kill()
        for expected in ("the evaluator was killed by SIGKILL; restart in 1 s", "evaluating the final weights"):
            while not any(expected in line for line in lines):
                lines.append(process.stdout.readline())
                assert lines[-1], lines
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["frames"], summary["evaluation"]) == ("finished", 20_000, None)
    assert summary["restarts"] == 0
    assert checkpoint.load(tmp_path / "run").manifest["frames"] == 20_000


# Other environments, and episodes that do not end


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Return the folder of a small run on an environment with a setting, whose episodes have 20 steps of reward 1."""
    folder = tmp_path_factory.mktemp("odd")
    cfg = compose_run(folder, *ODD, "env.max_frame=80")
    build.make_trial(cfg, folder).run()
    return folder


ODD = ["algo=a3c", "env=gym", "env.id=odd_envs:Twenty-v0", "env.num_envs=2", "env.torso.hidden=[8]",
       "algo.memory.horizon=8", "distributed.max_session=1"]  # fmt: skip


def test_an_episode_without_an_end_is_cut_and_counts_with_what_it_has(odd, tmp_path):
    played = evaluate(odd, 3, changes={"id": "odd_envs:Endless-v0"}, max_episode_steps=37, results=tmp_path)
    assert (played.returns, played.lengths, played.cut) == ([37.0] * 3, [37] * 3, 3)
    assert "in odd_envs:Endless-v0; 3 cut after 37 steps" in played.sentence()
    content = json.loads(played.file.read_text())
    assert (content["env"], content["cut"], content["max_episode_steps"]) == ("odd_envs:Endless-v0", 3, 37)
    assert content["changes"] == {"id": "odd_envs:Endless-v0"}


def test_a_limit_that_is_not_reached_changes_nothing(run):
    plain, cut = evaluate(run, 4), evaluate(run, 4, max_episode_steps=14)
    assert plain.cut == 0
    assert evaluate(run, 4, max_episode_steps=max(plain.lengths)).returns == plain.returns
    assert cut.lengths == [min(length, 14) for length in plain.lengths]
    assert cut.cut == sum(length > 14 for length in plain.lengths) > 0


def test_settings_of_the_environment_may_be_others_than_in_training(odd):
    assert evaluate(odd, 2, changes={"steps": 7}).lengths == [7, 7]
    assert evaluate(odd, 2, changes={"id": "odd_envs:OneStep-v0"}).lengths == [1, 1]
    assert evaluate(odd, 2, changes={"max_episode_steps": 5}).lengths == [5, 5]  # gymnasium's own, a truncation


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "CartPole-v1"}, r"id=CartPole-v1 gives Box\(4,\) of float32 and Discrete\(2\), and the agent was"),
        ({"id": "Nowhere-v0"}, "^id=Nowhere-v0 is not a registered environment .*; set id to one that is$"),
        ({"stebs": 3}, "cannot be made .*stebs.* mend make$"),
        ({"num_envs": 3}, "make.num_envs is no setting of an environment"),
        ({"wrappers": [{"_target_": "x"}]}, "make.wrappers is no setting of an environment"),
        ({"normalize_obs": "no"}, "^make.normalize_obs=no must be true or false"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(odd, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(odd, 1, changes=changes)


def test_a_limit_must_be_a_number_of_steps(run):
    with pytest.raises(ValueError, match="max_episode_steps=0 must be a whole number of 1 or more"):
        evaluate(run, 1, max_episode_steps=0)


@pytest.mark.medium
def test_evaluations_of_a_run_that_trains_are_cut_and_play_elsewhere(tmp_path):
    cfg = compose_run(
        tmp_path, *ODD, "env.max_frame=400", "eval.every=400", "eval.episodes=2", "eval.id=odd_envs:Endless-v0",
        "eval.max_episode_steps=30", "+eval.make.steps=3",
    )  # fmt: skip
    build.make_trial(cfg, tmp_path).run()
    (line,) = evaluations(tmp_path)
    assert line["returns"] == line["lengths"] == [30, 30]
    cfg = compose_run(tmp_path, *ODD, "eval.every=400", "eval.id=CartPole-v1")
    with pytest.raises(CompactHydraException, match=r"eval.id=CartPole-v1 gives Box\(4,\)"):
        build.make_trial(cfg, tmp_path / "other")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["make=1"], r"make=1 must be settings of the environment, such as \+make\.g=3\.0"),
        (["run={run}/checkpoints/latest"], r"is a checkpoint; set run=\S+ and checkpoint=latest"),
    ],
)
@pytest.mark.medium
def test_the_command_names_what_was_meant(run, tmp_path, typed, message):
    command = [f"run={run}", "episodes=1", f"out={tmp_path}", *(word.format(run=run) for word in typed)]
    process = commands.run("scripts/evaluate.py", *command)
    assert (process.returncode, "Traceback" in process.stderr) == (1, False)
    assert re.search(message, process.stderr), process.stderr
    process = commands.run("scripts/evaluate.py", *command[:3], "+make.wrappers=[]")
    assert process.returncode == 0, process.stderr
    process = commands.run("scripts/evaluate.py", *command[:3], "make=null")
    assert process.returncode == 0, process.stderr


@pytest.mark.medium
def test_an_evaluation_that_is_ended_leaves_nothing_half_done(run, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "evaluate.py", f"run={run}", "episodes=100000", "video=true"]
    process = subprocess.Popen([*command, f"out={tmp_path}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    try:
        while not list(tmp_path.glob("videos/*.mp4")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()  # which SDL, with which CartPole is drawn, would take for itself
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "Traceback" not in told
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.medium
def test_the_command_plays_elsewhere_and_cuts(odd, tmp_path):
    command = [
        sys.executable, ROOT / "scripts" / "evaluate.py", f"run={odd}", "episodes=2", "id=odd_envs:Endless-v0",
        "+make.steps=3", "max_episode_steps=9", f"out={tmp_path}",
    ]  # fmt: skip
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert process.stdout.startswith("return 9.00"), process.stderr
    assert "in odd_envs:Endless-v0 with steps=3; 2 cut after 9 steps (max_episode_steps)" in process.stdout
