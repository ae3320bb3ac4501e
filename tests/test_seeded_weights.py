"""A seeded run gives the same weights as before, bit for bit, whatever has been moved or rewritten in between.

The digests were taken at 2b8bcca, before the modules became packages.  To take them anew, on purpose:
``python -m pytest tests/test_seeded_weights.py -s`` prints those that differ.
"""

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir

from asynclab import build, config

config.register()
pytestmark = pytest.mark.medium
TORCH = "2.13.0"


def processor():
    """Return what arithmetic depends on: libraries choose their kernels by it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    vendor = next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")
    return f"{vendor} {torch.backends.cpu.get_cpu_capability()}"


SMALL = ["env.torso.hidden=[16,16]", "env.num_envs=2", "distributed.num_threads=1", "algo.precision=fp32", "device=cpu"]
ONE = ["distributed=off", "distributed.max_session=1"]
RUNS = {
    "a3c": ["algo=a3c", "env=cartpole", "env.max_frame=2_000", *ONE],
    "a3c_two_off": ["algo=a3c", "env=cartpole", "env.max_frame=1_000", "distributed=off", "distributed.max_session=2"],
    "a3c_lstm": ["algo=a3c", "env=cartpole", "env.max_frame=2_000", "algo.agent.lstm=8",
                 "algo.agent.shared=true", *ONE],
    "a3c_diagnostics": ["algo=a3c", "env=cartpole", "env.max_frame=2_000", "distributed=synced",
                        "distributed.max_session=1", "distributed.diagnostics=true"],
    "ppo": ["algo=ppo", "env=pendulum", "env.max_frame=1_000", "algo.memory.horizon=64", *ONE],
    "sac": ["algo=sac", "env=pendulum", "env.max_frame=600", "algo.memory.start=200", *ONE],
    "discrete_sac": ["algo=sac", "env=cartpole", "env.max_frame=1_000", "algo.memory.start=200", *ONE],
    "nstep_q": ["algo=nstep_q", "env=cartpole", "env.max_frame=2_000", *ONE],
    "dqn": ["algo=dqn", "env=cartpole", "env.max_frame=1_000", "algo.memory.start=200", *ONE],
}  # fmt: skip
DIGESTS = {  # of theta, store by store
    "AuthenticAMD AVX512": {
        "a3c": "79e888c378c8e81f",
        "a3c_diagnostics": "79e888c378c8e81f",
        "a3c_lstm": "eb3b1923dd3cabe5",
        "a3c_two_off": "f7144c71ed1f97aa",
        "discrete_sac": "9c87102218ed29c6",
        "dqn": "fe1029bb7bd9179b",
        "nstep_q": "2f7fd5aad7266336",
        "ppo": "87bbd67d8e801e53",
        "sac": "9ec5e946be11498f",
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_weights_are_as_before(name, tmp_path):
    if torch.__version__.split("+")[0] != TORCH or processor() not in DIGESTS:
        pytest.skip(f"digests are of torch {TORCH} on {', '.join(DIGESTS)}: other kernels round differently")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["seed=7", "checkpoint_every=1000", *SMALL, *RUNS[name]])
    build.make_trial(cfg, tmp_path).run()
    stores = torch.load(tmp_path / "checkpoints/latest/stores.pt", weights_only=True)
    digest = sha256(b"".join(store["theta"].numpy().tobytes() for store in stores)).hexdigest()[:16]
    if digest != DIGESTS[processor()].get(name):
        print(f'        "{name}": "{digest}",')
    assert digest == DIGESTS[processor()].get(name)
