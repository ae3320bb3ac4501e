"""Runs that are ended and go on."""

import json
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import copy_checkout
from drill import SMALL, Run

from asynclab.storage import checkpoint, metrics, snapshot

pytestmark = pytest.mark.medium

SAC = ["algo=sac", "env=pendulum", "algo.memory.start=400", "log_every=0.5"]

# Halves and whole have different budgets, so nothing may follow the progress.
FLAT = ["env=cartpole", "algo.lr_schedule.final=1.0"]
Q = ["algo=nstep_q", *FLAT, "algo.optimizer.shared=false", "algo.agent.target_every=500", "algo.agent.anneal=1e-9"]
DQN = ["algo=dqn", *FLAT, "algo.memory.start=400", "algo.agent.target_every=300", "algo.agent.anneal=1e-9"]
LSTM = [
    "algo=ppo",
    *FLAT,
    "algo.agent.shared=true",
    "algo.agent.lstm=8",
    "algo.memory.horizon=24",
    "algo.agent.minibatch_size=48",
]
NORMALIZED = ["env.make.normalize_obs=true", "env.make.scale_reward=0.9"]
PPO = ["algo=ppo", "env=pendulum", "algo.lr_schedule.final=1.0", "algo.agent.shared=false", *NORMALIZED]
DISCRETE = ["algo=sac", "env=cartpole", "algo.agent.shared_temperature=false", "algo.agent.shared_targets=true",
            "algo.memory.start=400"]  # fmt: skip

HUMANOID = ["algo=sac", "env=humanoid", "algo.memory.start=100", "algo.memory.capacity=300"]


def state(run):
    """Return everything that a run's last checkpoint has of the first store and its session, as comparable text."""
    found = checkpoint.load(run)
    (store,) = found.stores()
    session = snapshot.read_tensors(found.path / "session_00.pt")
    own = {name: session[name] for name in ("agent", "optimizer", "torch")}
    arrays = {path.name: snapshot.read_arrays(path) for path in found.path.glob("session_00*.npz")}
    return store, own, {(file, name): a.tobytes() for file, content in arrays.items() for name, a in content.items()}


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize(
    ("settings", "half"),
    [
        (["algo=a3c", *FLAT, "algo.memory.horizon=24"], 3_000),  # ends within a rollout
        pytest.param([*SAC, "distributed=shared"], 700, marks=pytest.mark.slow),
        pytest.param([*SAC, "distributed=shared", *NORMALIZED], 700, marks=pytest.mark.slow),
        pytest.param(HUMANOID, 240, marks=pytest.mark.slow),
        pytest.param(Q, 3_000, marks=pytest.mark.slow),
        pytest.param(DQN, 1_200, marks=pytest.mark.slow),
        pytest.param(PPO, 3_000, marks=pytest.mark.slow),
        pytest.param(LSTM, 3_000, marks=pytest.mark.slow),
        pytest.param([*DISCRETE, "distributed=shared"], 700, marks=pytest.mark.slow),
    ],
    ids=[
        "a3c-synced",
        "sac-shared",
        "sac-normalized",
        "sac-humanoid",
        "nstep-q",
        "dqn",
        "ppo-normalized",
        "ppo-lstm",
        "discrete-sac",
    ],
)
def test_one_session_with_n_plus_n_frames_equals_2n_bit_for_bit(train, tmp_path, settings, half):
    settings = [*settings, "distributed.max_session=1"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for command, folder in (
        ([*settings, f"env.max_frame={2 * half}"], whole),
        ([*settings, f"env.max_frame={half}"], halves),
        ([f"resume={halves}", f"env.max_frame={2 * half}"], False),
    ):
        process = train(*command, folder=folder)
        assert process.returncode == 0, process.stdout + process.stderr
    assert f"changed settings: env.max_frame: {half} -> {2 * half}" in process.stdout
    assert_equal(state(whole), state(halves))
    episodes = [[(e["frame"], e["ret"]) for line in metrics.read(run) if line["kind"] == metrics.SESSION
                 for e in line["episodes"]] for run in (whole, halves)]  # fmt: skip
    assert episodes[0] == episodes[1]
    means = [json.loads((run / "summary.json").read_text())["mean_return"] for run in (whole, halves)]
    assert means[0] == means[1]


@pytest.mark.slow
def test_one_session_that_was_interrupted_anywhere_ends_as_if_it_had_not_been(tmp_path):
    settings = ["algo=a3c", "env=cartpole", "env.max_frame=40_000", "distributed.max_session=1", "log_every=0.1",
                "algo.lr_schedule._target_=asynclab.schedules.Linear"]  # fmt: skip
    whole = Run(tmp_path / "whole", *settings)
    assert whole.wait() == 0, whole.text()
    run = Run(tmp_path / "run", *settings)
    run.until_running(1)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 143, run.text()
    assert run.summary()["frames"] < 40_000
    run = Run(tmp_path / "run", f"resume={tmp_path / 'run'}")
    assert run.wait() == 0, run.text()
    assert_equal(state(whole.folder), state(run.folder))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["synced", "shared", "off"])
def test_four_sessions_go_on_where_they_were(tmp_path, mode):
    budget = 40_000 if mode == "off" else 160_000
    settings = ["distributed.max_session=4", f"distributed={mode}", f"env.max_frame={budget}"]
    run = Run(tmp_path / "run", *SMALL, *settings)
    run.until_running(4)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 143, run.text()
    before, found = run.summary(), checkpoint.load(run.folder)
    assert found.manifest["frames"] == before["frames"] > 0
    lines = len((run.folder / "metrics.jsonl").read_text().splitlines())

    run = Run(run.folder, f"resume={run.folder}")
    assert run.wait() == 0, run.text()
    after = run.summary()
    assert after["frames"] == 160_000
    assert after["updates"] > before["updates"]
    assert after["episodes"] > before["episodes"]
    for rank in range(4):
        counts = [line["frames"] for line in run.lines("session") if line["rank"] == rank]
        assert counts == sorted(counts)
        assert counts[-1] == after["session_frames"][rank] >= before["session_frames"][rank]
        ends = [e["frame"] for line in run.lines("session") if line["rank"] == rank for e in line["episodes"]]
        assert ends == sorted(ends)
    seconds = [line["seconds"] for line in run.lines("trial")]
    assert seconds == sorted(seconds)
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) > lines
    assert len(json.loads((run.folder / "run.json").read_text())["resumes"]) == 1
    overrides = sorted((run.folder / ".hydra").rglob("overrides.yaml"))
    assert len(overrides) == 2  # those of the beginning are still there
    assert (run.folder / ".hydra" / "overrides.yaml").read_text().startswith("- algo=a3c")


@pytest.mark.slow
def test_logs_that_are_newer_than_the_checkpoint_are_cut_off(tmp_path):
    run = Run(tmp_path / "run", *SMALL, "env.max_frame=20_000", "log_every=0.1")
    assert run.wait() == 0, run.text()
    run = Run(run.folder, f"resume={run.folder}", "env.max_frame=100_000_000")
    run.until(lambda: run.frames() > 30_000)
    run.process.kill()
    run.wait()
    assert checkpoint.load(run.folder).manifest["frames"] == 20_000
    run = Run(run.folder, f"resume={run.folder}", "env.max_frame=50_000")
    assert run.wait() == 0, run.text()
    totals = [line["total_frames"] for line in run.lines("trial")]
    assert totals == sorted(totals)
    assert run.summary()["frames"] == 50_000
    episodes = [(line["rank"], e["frame"], e["seconds"]) for line in run.lines("session") for e in line["episodes"]]
    assert len(episodes) == len(set(episodes)) == run.summary()["episodes"]
    points = tensorboard_steps(run.folder / "tensorboard" / "trial", "train/return_100")
    assert points == sorted(points)


def tensorboard_steps(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), purge_orphaned_data=False)
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


@pytest.mark.slow
def test_sac_does_not_warm_up_again_and_keeps_replay_targets_and_temperature(tmp_path):
    run = Run(tmp_path / "run", *SAC, "distributed=shared", "distributed.max_session=2", "env.max_frame=4_000")
    assert run.wait() == 0, run.text()
    before = run.summary()
    old = checkpoint.load(run.folder)
    arrays = [snapshot.read_arrays(old.path / f"session_0{rank}_000000.npz") for rank in (0, 1)]
    run = Run(run.folder, f"resume={run.folder}", "env.max_frame=6_000")
    assert run.wait() == 0, run.text()
    after = run.summary()
    # one update per frame from the first one on: no frame of a second warm-up is without
    assert after["updates"] - before["updates"] == pytest.approx(2_000, abs=16)
    new = checkpoint.load(run.folder)
    for rank in (0, 1):
        filled = snapshot.read_arrays(new.path / f"session_0{rank}_000000.npz")
        rows = len(arrays[rank]["reward"])
        assert len(filled["reward"]) > rows
        assert (filled["reward"][:rows] == arrays[rank]["reward"][:rows]).all()
        targets = [snapshot.read_tensors(c.path / f"session_0{rank}.pt")["agent"]["targets"] for c in (old, new)]
        assert torch.nn.functional.cosine_similarity(*targets, dim=0) > 0.9


@pytest.mark.slow
def test_without_its_replay_sac_collects_a_warm_up_first(tmp_path):
    settings = [*SAC, "distributed=shared", "distributed.max_session=2", "checkpoint_memory=0"]
    run = Run(tmp_path / "run", *settings, "env.max_frame=2_000")
    assert run.wait() == 0, run.text()
    lost = (
        "checkpoints will lack the sessions' memories, 8.8 MB in all: a session of a resumed run, or one that is"
        " restarted, first collects up to 400 transitions before it learns again. checkpoint_memory=1 keeps them"
    )
    assert lost in run.text().replace("\n", " ")
    assert "has no memory of" not in run.text()
    before = run.summary()
    assert not list((run.folder / "checkpoints" / "latest").glob("*.npz"))
    run = Run(run.folder, f"resume={run.folder}", "env.max_frame=4_000")
    assert run.wait() == 0, run.text()
    assert (
        "has no memory of 2 sessions: each first collects a tenth of what it held, or algo.memory.start" in run.text()
    )
    # each of the two first collects 400 transitions of its own
    assert run.summary()["updates"] - before["updates"] == pytest.approx(2_000 - 2 * 400, abs=40)


@pytest.mark.slow
@pytest.mark.timeout(2_000)
def test_the_return_of_sac_does_not_collapse(tmp_path):
    settings = ["algo=sac", "env=pendulum", "distributed=shared", "distributed.max_session=2", "log_every=1"]
    run = Run(tmp_path / "run", *settings, "env.max_frame=40_000")
    assert run.wait(900) == 0, run.text()
    ended = [e for line in run.lines("session") for e in line["episodes"]]
    before = sum(e["ret"] for e in ended[-16:]) / 16
    assert before > -400  # it has learned; a random policy is at -1200
    run = Run(run.folder, f"resume={run.folder}", "env.max_frame=48_000")
    assert run.wait(600) == 0, run.text()
    later = [e for line in run.lines("session") for e in line["episodes"]][len(ended) :]
    assert len(later) >= 32
    assert sum(e["ret"] for e in later[:16]) / 16 > before - 150
    assert sum(e["ret"] for e in later[-16:]) / 16 > before - 150


@pytest.mark.slow
def test_what_must_not_change_is_named_setting_by_setting(tmp_path):
    run = Run(tmp_path / "run", *SMALL, "env.max_frame=3_000")
    assert run.wait() == 0, run.text()
    before = (run.folder / "metrics.jsonl").read_bytes()
    refused = Run(
        run.folder, f"resume={run.folder}", "algo.optimizer.lr=0.1", "distributed.max_session=3", "log_every=9"
    )
    assert refused.wait() == 1
    assert "distributed.max_session: 2 -> 3" in refused.text()
    assert re.search(r"algo\.optimizer\.lr: 0\.0007 -> 0\.1", refused.text())
    assert "log_every: " not in refused.text()
    refused = Run(run.folder, f"resume={run.folder}", "env=pendulum")
    assert refused.wait() == 1
    assert "env.id: CartPole-v1 -> Pendulum-v1" in refused.text()
    assert (run.folder / "metrics.jsonl").read_bytes() == before
    assert "Traceback" not in refused.text()


@pytest.mark.slow
def test_precision_changes_only_if_somebody_says_so(tmp_path):
    run = Run(tmp_path / "run", *SMALL, "env.max_frame=3_000", "algo.precision=bf16")
    assert run.wait() == 0, run.text()
    for typed, expected in (("auto", "bf16"), ("fp32", "fp32"), ("auto", "fp32")):
        budget = 3_000 + 1_000 * (1 + len(json.loads((run.folder / "run.json").read_text())["resumes"]))
        run = Run(run.folder, f"resume={run.folder}", f"algo.precision={typed}", f"env.max_frame={budget}")
        assert run.wait() == 0, run.text()
        made = json.loads((run.folder / "run.json").read_text())
        assert (made["precision"], made["resumes"][-1]["precision"]) == ("bf16", expected)
    assert made["resumes"][1]["changes"]["algo.precision"] == ["auto", "fp32"]
    assert "the run has computed in bf16, and algo.precision=auto would now choose fp32" in run.text()


@pytest.mark.slow
def test_a_run_with_as_many_sessions_as_cores_is_resumed_twice(tmp_path):
    settings = ["algo=a3c", "env=cartpole", "log_every=0.5"]  # and no distributed.max_session
    run = Run(tmp_path / "run", *settings, "env.max_frame=20_000")
    assert run.wait() == 0, run.text()
    for frames in (30_000, 40_000):
        run = Run(run.folder, f"resume={run.folder}", f"env.max_frame={frames}")
        assert run.wait() == 0, run.text()
        assert run.summary()["frames"] == frames
    run = Run(run.folder, *settings, "env.max_frame=50_000", "resume=auto")
    assert run.wait() == 0, run.text()
    assert run.summary()["frames"] == 50_000


@pytest.mark.slow
def test_what_there_is_nothing_of_cannot_be_resumed(tmp_path):
    run = Run(tmp_path / "run", *SMALL, "env.max_frame=3_000")
    assert run.wait() == 0, run.text()
    finished = Run(run.folder, f"resume={run.folder}")
    assert finished.wait() == 0
    assert "is finished at 3,000 frames; to go on, set env.max_frame higher" in finished.text()
    nowhere = Run(tmp_path / "nowhere", f"resume={tmp_path / 'nowhere'}")
    assert nowhere.wait() == 1
    assert re.search(r"resume=.*nowhere is not the output folder of a run", nowhere.text())
    assert not (tmp_path / "nowhere").exists()
    assert "Traceback" not in finished.text() + nowhere.text()


@pytest.mark.slow
def test_the_same_command_again_goes_on_if_asked_to(tmp_path):
    command = [*SMALL, "env.max_frame=40_000", "resume=auto", "checkpoint_every=0.3"]
    run = Run(tmp_path / "run", *command)
    run.until_running()
    run.process.kill()
    run.wait()
    run = Run(tmp_path / "run", *command)
    assert run.wait() == 0, run.text()
    assert "  resumed      from run/checkpoints/" in run.text()
    assert run.summary()["frames"] == 40_000
    again = Run(tmp_path / "run", *command)
    assert again.wait() == 0
    assert "is finished at 40,000 frames" in again.text()


@pytest.mark.parametrize("stop", [[], ["env.max_frame=1_000_000", "stop_at=5", "eval.every=10_000", "eval.episodes=1"]])
def test_a_run_that_was_killed_after_its_last_checkpoint_is_ended(train, tmp_path, stop):
    command = [*SMALL, *(stop or ["env.max_frame=2_000"]), "resume=auto"]
    assert train(*command).returncode == 0
    found = checkpoint.load(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()  # which is written after the final evaluation
    process = train(*command)
    assert process.returncode == 0, process.stdout + process.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["frames"]) == ("finished", found.manifest["frames"])
    assert (summary["frames"] == 2_000) == (not stop)
    assert (summary["evaluation"] is not None) == bool(stop)
    assert checkpoint.load(tmp_path / "run").path == found.path
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "process" for line in lines) == 2  # sessions could learn what is in no checkpoint
    assert "is finished at" in train(*command).stdout


def test_a_damaged_run_json_does_not_keep_the_whole_command_from_going_on(train, tmp_path):
    assert train(*SMALL, "env.max_frame=2_000").returncode == 0
    (tmp_path / "run" / "run.json").write_text('{"seed": 0, "reve')
    process = train(*SMALL, "env.max_frame=3_000", "resume=auto")
    assert process.returncode == 0, process.stdout + process.stderr
    assert "run.json is damaged or gone" in process.stdout
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["resumes"]) == 1


@pytest.mark.slow
def test_a_run_keeps_its_settings_when_defaults_have_changed_since(tmp_path):
    copy_checkout(tmp_path / "copy")
    conf, run = tmp_path / "copy" / "conf", tmp_path / "run"

    def train(*overrides):
        command = [
            sys.executable,
            tmp_path / "copy" / "train.py",
            *overrides,
            "plot=false",
            "distributed.max_session=1",
        ]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)

    first = ["algo=a3c", "env=cartpole", "algo.agent.lam=0.9", f"hydra.run.dir={run}"]
    assert train(*first, "env.max_frame=1_000").returncode == 0
    for path, old, new in [
        (conf / "algo" / "a3c.yaml", "gamma: 0.99 ", "gamma: 0.5 "),
        (conf / "tuned" / "a3c" / "discrete.yaml", "shared: false", "shared: true"),
        (conf / "algo" / "optimizer" / "adam.yaml", "weight_decay: 0.0", "weight_decay: 0.1"),
    ]:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    assert train(f"resume={run}", "env.max_frame=2_000").returncode == 0
    assert train(*first, "env.max_frame=3_000", "resume=auto").returncode == 0
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    agent = cfg["algo"]["agent"]
    assert (agent["gamma"], agent["shared"], agent["lam"], cfg["env"]["max_frame"]) == (0.99, False, 0.9, 3_000)
    assert cfg["algo"]["optimizer"]["weight_decay"] == 0.0
    assert [r["changes"]["env.max_frame"] for r in json.loads((run / "run.json").read_text())["resumes"]] == [
        [1_000, 2_000], [2_000, 3_000],
    ]  # fmt: skip
    refused = train(f"resume={run}", "algo.agent.gamma=0.9", "env.max_frame=4_000")
    assert refused.returncode == 1
    assert "was made with other settings (algo.agent.gamma: 0.99 -> 0.9)" in refused.stdout + refused.stderr
