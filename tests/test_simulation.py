"""Many sessions in one process and in virtual time: the same to the bit in every run, and as stale as processes."""

import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import torch
from conftest import ALGOS, run_session
from runs import stop_after

from asynclab.distributed import Off, Simulated, Synced
from asynclab.distributed.exchange import Outer
from asynclab.distributed.timing import Constant, Lognormal
from asynclab.nets import MLPTorso
from asynclab.optim import GlobalRMSprop
from asynclab.run.trial import Trial, TrialError
from asynclab.simulation.simulator import simulate
from asynclab.storage import checkpoint
from asynclab.training.messages import Record

pytestmark = pytest.mark.medium

SMALL = ["env.torso.hidden=[16,16]", "env.num_envs=2", "algo.precision=fp32", "device=cpu"]


def run(trial):
    """Simulate a trial to the end of its budget; return its records."""
    records = []
    for event in simulate(trial.session, trial.stores[0], trial.control, trial.clock):
        if isinstance(event, Record):
            records.append(event)
        if trial.stores[0].is_complete():
            trial.control.finish(trial.mode.grace)
    return records


def staleness(records):
    return sum((Counter(record.staleness) for record in records), Counter())


@pytest.mark.parametrize("placement", ["synced", "shared"])
@pytest.mark.parametrize("algo", ALGOS)
def test_one_simulated_session_equals_off_bit_for_bit(make_trial, algo, placement):
    alone = make_trial(algo, mode=Off(1), max_frame=250)
    run_session(alone.session, 0, alone.stores[0])
    trial = make_trial(algo, mode=Simulated(1, placement, Lognormal()), max_frame=250)
    run(trial)
    assert trial.stores[0].total_updates() == alone.stores[0].total_updates() > 0
    assert torch.equal(trial.stores[0].theta, alone.stores[0].theta)


@pytest.mark.parametrize("placement", ["synced", "shared"])
@pytest.mark.parametrize("algo", ["a3c", "sac"])
def test_a_simulation_is_repeated_to_the_bit_and_another_seed_is_another_one(make_trial, algo, placement):
    thetas, told = [], []
    for seed in (0, 0, 1):
        trial = make_trial(algo, mode=Simulated(3, placement, Lognormal()), max_frame=300, seed=seed)
        records = run(trial)
        thetas.append(trial.stores[0].theta)
        for record in records:
            record.metrics.pop("perf/memory_mib")
        told.append([str(record) for record in records])
    assert torch.equal(thetas[0], thetas[1])
    assert told[0] == told[1]
    assert not torch.equal(thetas[0], thetas[2])


def test_two_equal_sessions_have_a_staleness_of_exactly_one_once_they_have_begun(make_trial):
    trial = make_trial("a3c", mode=Simulated(2), max_frame=2_000)
    counts = staleness(run(trial))
    assert counts == {0: 1, 1: 99}  # 2,000 frames in rollouts of 20; only the very first gradient was fresh


@pytest.mark.parametrize("timing", [pytest.param(Constant(), marks=pytest.mark.slow), Lognormal(0.5)])
def test_the_staleness_of_n_equal_sessions_is_n_minus_1_in_the_mean(make_trial, timing):
    trial = make_trial("a3c", mode=Simulated(8, timing=timing), max_frame=16_000)
    counts = staleness(run(trial))
    pushes = counts.total()
    assert (
        790 < pushes == trial.stores[0].total_updates() <= 800
    )  # a rollout that the budget cuts short is not learned from
    mean = sum(stale * times for stale, times in counts.items()) / pushes
    # exact but for both ends: the first round is 0 to 7 updates old
    assert mean == pytest.approx(7, abs=0.15)
    assert (max(counts) == 7) == (type(timing) is Constant)


def test_a_session_that_is_ten_times_slower_makes_a_tenth_of_the_updates(make_trial):
    trial = make_trial("a3c", mode=Simulated(4, timing=Constant(slow=0.25, slowdown=10.0)), max_frame=8_000)
    run(trial)
    *fast, slow = trial.stores[0].updates.tolist()
    assert max(fast) - min(fast) <= 1
    assert slow == pytest.approx(fast[0] / 10, abs=1)


def test_frames_and_pushes_are_conserved(make_trial):
    trial = make_trial("sac", mode=Simulated(3, "shared", Lognormal()), max_frame=500)
    records = run(trial)
    assert trial.stores[0].total_frames() == 500
    last = {record.rank: record for record in records}
    assert sum(record.frames for record in last.values()) == 500
    assert sum(record.updates for record in last.values()) == trial.stores[0].total_updates()
    assert staleness(records).total() == trial.stores[0].total_updates()
    # one per frame, from when the global clock shows 100, which up to three sessions see after they have stepped
    assert 400 <= trial.stores[0].total_updates() <= 406


def test_virtual_seconds_are_those_of_the_timing(make_trial):
    # one session: 100 rollouts of 10 steps, each followed by one update
    timing = Constant(act=0.25, step=0.5, gradient=2.0, push=0.5, pull=1.0)
    trial = make_trial("a3c", mode=Simulated(1, timing=timing), max_frame=2_000)
    run(trial)
    assert trial.clock() == 100 * (10 * 0.75 + 3.5)


def test_another_machine_is_as_far_away_as_its_latency_and_bandwidth(make_trial):
    timing = Constant(machines=2, latency=0.5, bandwidth=1_000.0)
    assert [timing.transfer(rank, 4, 2_000) for rank in range(4)] == [0, 0, 2.5, 2.5]
    assert Constant(machines=2).transfer(3, 4, 2_000) == 0


def test_sessions_have_statistics_of_their_own_if_processes_would(make_trial):
    thetas = []
    for shared in (True, False):
        trial = make_trial("a3c", mode=Simulated(2), max_frame=400, optimizer=GlobalRMSprop)
        trial.stores[0].optimizer.shared = shared
        run(trial)
        thetas.append(trial.stores[0].theta)
        step = next(iter(trial.stores[0].optimizer.state.values()))["step"]
        assert float(step) == (20 if shared else 0)
    assert not torch.equal(*thetas)


CASES = [  # algorithm, frames, turns after which it is stopped, placement
    *[("a3c", 600, turns, "synced") for turns in (50, 101, 102, 103, 104, 105)],  # in whatever the sessions are
    *[("pqn", 300, turns, "synced") for turns in (100, 132)],  # the second leaves minibatches
    ("a3c", 600, 50, "shared"), ("lstm", 600, 150, "synced"), ("ppo", 300, 100, "synced"),
    ("ppo_normalized", 300, 100, "shared"), ("nstep_q", 600, 150, "shared"), ("dqn", 300, 300, "synced"),
    ("sac", 300, 300, "shared"), ("sac_normalized", 300, 301, "synced"), ("discrete_sac", 300, 302, "shared"),
]  # fmt: skip
ELSEWHERE = [(*case, {"synced": "shared", "shared": "synced"}[placement]) for *case, placement in CASES]
OTHERS = [pytest.param(*case, marks=pytest.mark.slow) for case in ELSEWHERE if case not in CASES]


@pytest.mark.parametrize(("algo", "max_frame", "turns", "placement"), CASES + OTHERS)
def test_a_stopped_simulation_goes_on_as_if_it_had_not(make_trial, tmp_path, algo, max_frame, turns, placement):
    def make(**settings):
        return make_trial(algo, mode=Simulated(3, placement, Lognormal()), max_frame=max_frame, **settings)

    whole = make()
    run(whole)
    first = make()
    stop_after(first, turns)
    with pytest.raises(TrialError, match="asked to end"):
        first.run()
    assert 0 < first.stores[0].total_frames() < max_frame
    second = make(checkpoint=checkpoint.load(tmp_path))
    second.run()
    assert torch.equal(second.stores[0].theta, whole.stores[0].theta)
    assert second.stores[0].updates.tolist() == whole.stores[0].updates.tolist()
    assert second.clock() == whole.clock()


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["a3c", "ppo_normalized"])  # whose batches are views, and copies
def test_checkpoints_leave_no_trace_in_what_a_simulation_learns_and_tells(make_trial, tmp_path, algo):
    lines = []
    for every in (1000.0, 0.001):
        mode = Simulated(3, timing=Lognormal(), diagnostics=True)
        trial = make_trial(algo, mode=mode, max_frame=300)
        trial.cfg.checkpoint_every = every
        trial.run()
        text = (tmp_path / "metrics.jsonl").read_text()
        lines.append([told(line) for line in text.splitlines()][-10:])
        (tmp_path / "metrics.jsonl").unlink()
    assert len(list((tmp_path / "checkpoints").glob("[0-9]*"))) > 1
    assert lines[0] == lines[1]


def test_new_weights_are_the_same_to_the_bit_with_any_number_of_threads(make_trial):
    thetas = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            trial = make_trial(
                torso=partial(MLPTorso, hidden=[64, 64])
            )  # what CartPole has; smaller layers never differ
            thetas.append(trial.stores[0].theta.clone())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert torch.equal(thetas[0], thetas[1])
    assert torch.equal(thetas[0], thetas[2])


def test_checkpoints_do_not_say_when_a_simulation_tells(make_trial, tmp_path):
    for mode, every in ((Simulated(2), 0.2), (Synced(2), 0.01)):
        cfg = make_trial(mode=mode).cfg
        cfg.checkpoint_every = 0.01
        assert Trial(cfg, tmp_path).session.log_every == every


def told(line):
    """Return a line of metrics without what it says of the machine."""
    line = json.loads(line)
    line.get("metrics", {}).pop("perf/memory_mib", None)
    line.get("metrics", {}).pop("perf/memory_available_mib", None)
    return line if line["kind"] != "process" else {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_is_repeated_to_the_bit_on_one_core_and_on_a_busy_machine(train, tmp_path):
    settings = ["algo=a3c", "env=cartpole", "distributed=simulated", "distributed/timing=lognormal",
                "distributed.max_session=4", "env.max_frame=4_000", "log_every=0.1", *SMALL]  # fmt: skip
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        train(*settings, folder=tmp_path / "busy").check_returncode()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    core = min(os.sched_getaffinity(0))
    train(*settings, folder=tmp_path / "core", preexec_fn=lambda: os.sched_setaffinity(0, {core})).check_returncode()
    train(*settings, "seed=1", folder=tmp_path / "other").check_returncode()
    summaries = {name: json.loads((tmp_path / name / "summary.json").read_text()) for name in ("busy", "core", "other")}
    assert summaries["busy"]["theta"] == summaries["core"]["theta"] != summaries["other"]["theta"]
    assert summaries["busy"]["seconds"] == summaries["core"]["seconds"] < 10  # virtual
    texts = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("busy", "core")]
    assert [told(line) for line in texts[0]] == [told(line) for line in texts[1]]
    assert len(texts[0]) > 10


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Simulated(2, "elsewhere"), "distributed.placement=elsewhere is unknown; use one of synced, shared"),
        (lambda: Simulated(2, timing="fast"), "distributed.timing=fast is unknown; use distributed/timing=constant"),
        (lambda: Simulated(0), "distributed.max_session=0"),
        (lambda: Simulated(2, "shared", Constant(machines=2)), "machines=2 cannot compute with the same memory"),
        (lambda: Constant(act=0.0), "distributed.timing.act=0.0 must be a number above 0"),
        (lambda: Constant(gradient=-1), "distributed.timing.gradient=-1 must be a number above 0"),
        (lambda: Constant(push=float("inf")), "distributed.timing.push=inf must be a number"),
        (lambda: Constant(slow=2.0), "distributed.timing.slow=2.0 must be a number from 0 to 1"),
        (lambda: Constant(latency=-0.1), "distributed.timing.latency=-0.1 must be a number of 0 or more"),
        (lambda: Constant(slowdown=float("inf")), "distributed.timing.slowdown=inf must be a number"),
        (lambda: Lognormal(spread=0.0), "distributed.timing.spread=0.0 must be a number above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"outer": Outer(0.7, 0.9)}, "distributed.outer does nothing without distributed.nodes"),
        ({"exchange_every": 50}, "distributed.exchange_every does nothing without distributed.nodes"),
        ({"timing": Constant(exchange=0.1)}, "distributed.timing.exchange does nothing without distributed.nodes"),
        ({"timing": Constant(machines=2)}, "distributed.timing.machines=2 does nothing: nothing takes time between"),
        ({"timing": Constant(latency=1.0)}, "distributed.timing.latency and bandwidth do nothing"),
        ({"timing": Constant(slow=0.1, slowdown=5.0)}, "no session is slow: distributed.timing.slow=0.1 of 4 sessions"),
        ({"timing": Constant(slowdown=5.0)}, "no session is slow"),
        ({"timing": Constant(slow=0.25, slowdown=5.0, machines=2, latency=1.0)}, None),
        ({"nodes": 2, "outer": Outer(0.7, 0.9), "timing": Constant(latency=1.0)}, None),
    ],
)
def test_what_changes_nothing_is_told(make_trial, caplog, settings, words):
    make_trial(mode=Simulated(4, **settings))
    said = " ".join(record.message for record in caplog.records if record.name == "asynclab.run.preflight")
    assert words in said if words else not said


def test_what_a_simulation_cannot_do_is_refused_in_a_sentence(train):
    for typed, words in [
        ("distributed/timing=hourly", "hourly"),
        ("profile=true", "profile=true measures real time"),
        ("distributed.lock=update", "lock"),
        ("device=cuda", "device=cuda cannot hold the weights in distributed=simulated"),
    ]:
        done = train("algo=a3c", "env=cartpole", "distributed=simulated", typed, folder=False)
        assert done.returncode
        assert words in done.stderr
        assert "Traceback" not in done.stderr
