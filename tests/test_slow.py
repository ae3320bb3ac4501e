"""Long proofs: it learns, and 16 sessions run.  make test-slow"""

import json
import re
import statistics
from pathlib import Path

import psutil
import pytest

from asynclab.evaluation.play import evaluate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_000)]


def best_return(run):
    """Return the highest mean return over 100 episodes that a run has shown."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    returns = [line["metrics"].get("train/return_100") for line in lines if line["kind"] == "trial"]
    return max(ret for ret in returns if ret is not None)


SMALL_TASKS = {  # mean return of 30 episodes with the final weights, or of the last 100 in training (docs/results.md)
    "a3c_cartpole": 475, "a2c_cartpole": 475, "ppo_cartpole": 475, "sac_cartpole": 475, "nstep_q_cartpole": 475,
    "a3c_pendulum": -200, "ppo_pendulum": -200, "sac_pendulum": -200,
    "ppo_lunarlander": 200, "sac_lunarlander": 200,
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("pair", "goal"), SMALL_TASKS.items())
def test_plain_defaults_learn(train, tmp_path, pair, goal, seed):
    process = train("+experiment=defaults", f"pair={pair}", f"seed={seed}", timeout=2_800)
    assert process.returncode == 0, process.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert max(summary["evaluation"]["mean_return"], summary["mean_return"]) >= goal


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_synced_solves_cartpole(train, tmp_path, seed):
    command = ["algo=ppo", "env=cartpole", "distributed=synced", "distributed.max_session=2", f"seed={seed}"]
    process = train(*command, "log_every=1", timeout=1_200)
    assert process.returncode == 0, process.stderr
    assert best_return(tmp_path / "run") >= 475


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dqn_shared_solves_cartpole(train, tmp_path, seed):
    settings = ["algo=dqn", "env=cartpole", "env.max_frame=200_000", "distributed.max_session=2", "log_every=1"]
    process = train(*settings, f"seed={seed}", timeout=1_200)
    assert process.returncode == 0, process.stderr
    assert statistics.fmean(evaluate(tmp_path / "run", episodes=20, deterministic=True).returns) >= 475


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
