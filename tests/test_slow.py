"""Long proofs: it learns, and 16 sessions run.  make test-slow"""

import json
import re

import psutil
import pytest

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
    assert re.search(r"^memory: .* per session, .* in all, .* available", process.stdout, re.MULTILINE)
    assert not [p for p in psutil.Process().children(recursive=True) if "train.py" in " ".join(p.cmdline())]
