"""Long proofs: it learns, and 16 sessions run.  make test-slow"""

import json
import re
import statistics
from pathlib import Path

import psutil
import pytest

from asynclab.evaluation import evaluate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_000)]


def best_return(run):
    """Return the highest mean return over 100 episodes that a run has shown."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    returns = [line["metrics"].get("train/return_100") for line in lines if line["kind"] == "trial"]
    return max(ret for ret in returns if ret is not None)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a3c_synced_solves_cartpole(train, tmp_path, seed):
    command = ["algo=a3c", "env=cartpole", "distributed=synced", "distributed.max_session=4", f"seed={seed}"]
    process = train(*command, "env.max_frame=2_000_000", "log_every=1", timeout=1_200)
    assert process.returncode == 0, process.stderr
    assert best_return(tmp_path / "run") >= 475


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sac_shared_solves_pendulum(train, tmp_path, seed):
    command = ["algo=sac", "env=pendulum", "distributed=shared", "distributed.max_session=2", f"seed={seed}"]
    process = train(*command, "env.max_frame=80_000", "log_every=1", timeout=1_800)
    assert process.returncode == 0, process.stderr
    assert best_return(tmp_path / "run") >= -200


CARTPOLE_PPO = ["algo=ppo", "env=cartpole", "algo.agent.shared=false", "algo.agent.clip=0.2",
                "algo.memory.horizon=64", "algo.agent.minibatch_size=128", "algo.optimizer.lr=1e-3"]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mode", [["off"], ["synced", "distributed.max_session=2"]], ids=["off", "synced"])
def test_ppo_solves_cartpole(train, tmp_path, mode, seed):
    process = train(
        *CARTPOLE_PPO, f"distributed={mode[0]}", *mode[1:], "env.max_frame=250_000", "log_every=1", f"seed={seed}",
        timeout=1_200,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert best_return(tmp_path / "run") >= 475


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_solves_pendulum(train, tmp_path, seed):
    numbers = ["shared=false", "gamma=0.9", "clip=0.2", "epochs=10", "minibatch_size=128", "entropy_coef=0.0"]
    process = train(
        "algo=ppo", "env=pendulum", "env.num_envs=8", "env.max_frame=150_000", "algo.memory.horizon=256",
        "algo.optimizer.lr=1e-3", "env.make.normalize_obs=true", "env.make.scale_reward=0.9", "log_every=1",
        *(f"algo.agent.{number}" for number in numbers), f"seed={seed}", timeout=1_200,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert best_return(tmp_path / "run") >= -200


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nstep_q_solves_cartpole(train, tmp_path, seed):
    process = train(
        "algo=nstep_q", "env=cartpole", "env.max_frame=600_000", "distributed.max_session=3",
        "algo.agent.target_every=2_000", "algo.agent.anneal=0.2", "log_every=1", f"seed={seed}", timeout=1_200,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    greedy = evaluate(tmp_path / "run", episodes=20, deterministic=True).returns
    assert statistics.fmean(greedy) >= 475
    returns = json.loads((tmp_path / "run" / "summary.json").read_text())["session_mean_return"]
    assert returns[1] > 400 > returns[2]  # they explore with 0.01 and 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dqn_shared_solves_cartpole(train, tmp_path, seed):
    process = train(
        "algo=dqn", "env=cartpole", "env.max_frame=100_000", "distributed.max_session=2", "log_every=1", f"seed={seed}",
        "algo.agent.target_every=500", "algo.optimizer.lr=1e-3", "algo.lr_schedule.final=0.0", timeout=1_200,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert statistics.fmean(evaluate(tmp_path / "run", episodes=20, deterministic=True).returns) >= 475


DISCRETE_SAC = [
    "env.max_frame=90_000", "env.make.normalize_obs=true", "algo.agent.target_entropy=0.3", "algo.agent.gamma=0.98",
    "algo.agent.polyak=0.02", "algo.max_grad_norm=null", "algo.optimizer.lr=1e-3", "algo.memory.batch_size=128",
    "algo.memory.updates_per_frame=0.5", "algo.lr_schedule.final=0.0",
]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_discrete_sac_shared_solves_cartpole(train, tmp_path, seed):
    common = ["algo=sac", "env=cartpole", "distributed=shared", "distributed.max_session=2", "log_every=1"]
    process = train(*common, *DISCRETE_SAC, f"seed={seed}", timeout=1_800)
    assert process.returncode == 0, process.stderr
    assert statistics.fmean(evaluate(tmp_path / "run", episodes=20, deterministic=False).returns) >= 475


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("algo", ["a3c", "ppo"])
def test_an_lstm_solves_what_a_policy_without_memory_cannot(train, tmp_path, algo, seed):
    common = [f"algo={algo}", "env=gym", "env.id=recall_env:Recall-v0", "env.torso.hidden=[32]",
              "algo.agent.shared=true", "algo.optimizer.lr=3e-3", "algo.memory.horizon=32", "env.max_frame=100_000",
              "log_every=1", f"seed={seed}"]  # fmt: skip
    if algo == "a3c":
        common += ["distributed.max_session=2"]
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    for lstm in (16, 0):
        folder = tmp_path / str(lstm)
        process = train(*common, f"algo.agent.lstm={lstm}", folder=folder, env=path, timeout=1_200)
        assert process.returncode == 0, process.stderr
        ret = json.loads((folder / "summary.json").read_text())["mean_return"]
        assert ret >= 0.9 if lstm else abs(ret) <= 0.4  # of a policy that guesses, 100 returns have a mean of 0 +- 0.1


@pytest.mark.parametrize(
    "overrides",
    [
        ["algo=a3c", "env=pong", "distributed.max_session=16", "env.max_frame=40_000"],
        ["+experiment=async_sac_humanoid", "distributed.max_session=16", "env.max_frame=40_000"],
    ],
    ids=["a3c-pong", "async-sac-humanoid"],
)
def test_16_sessions_start_train_and_all_contribute(train, tmp_path, overrides):
    process = train(*overrides, timeout=2_400)
    assert process.returncode == 0, process.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["session_updates"]) == 16
    assert min(summary["session_updates"]) > 0
    assert 40_000 <= summary["frames"] < 40_000 + 16 * 8
    assert re.search(r"^  memory +.* per session, .* in all, .* available", process.stdout, re.MULTILINE)
    assert not [p for p in psutil.Process().children(recursive=True) if "train.py" in " ".join(p.cmdline())]
