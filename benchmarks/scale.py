"""What a simulation costs, by its number of sessions: updates per second of processor time, and memory.

Example: ``python benchmarks/scale.py algo=a3c env=cartpole distributed=simulated sessions=[1,1024]``
"""

import resource
import tempfile
import time
from contextlib import closing
from pathlib import Path

import measure
import torch
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from asynclab import build, config
from asynclab.config.command import configured
from asynclab.simulation.simulator import simulate

config.register()


@configured("throughput")
def main(cfg: DictConfig) -> None:
    """Simulate each number of sessions for a while, one after the other, and print a line for each."""
    for sessions in sorted(cfg.sessions):
        OmegaConf.update(cfg, "distributed.max_session", sessions)
        OmegaConf.update(cfg, "env.max_frame", measure.MAX_FRAME)  # so that it does not end before the time is over
        print(f"{sessions:,} sessions: {_measure(cfg, sessions, cfg.seconds)}", flush=True)


def _measure(cfg: DictConfig, sessions: int, seconds: float) -> str:
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trial = build.make_trial(cfg, Path(folder))
        torch.set_num_threads(trial.probe.num_threads)
        if trial.clock is None:
            raise CompactHydraException("distributed.timing is missing: set distributed=simulated")
        (store,) = trial.stores
        with closing(simulate(trial.session, store, trial.control, trial.clock)) as events:
            while int(store.updates.min()) < 1:  # until every session has made an update
                next(events)
            ready, before = time.process_time(), store.total_updates()
            # whole rounds: sessions that begin together step together for a while, and then all learn
            while time.process_time() - ready < seconds or store.total_updates() < before + sessions:
                next(events)
            updates = (store.total_updates() - before) / (time.process_time() - ready)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"{updates:,.1f} updates per second of processor time, {memory:.2f} GiB, ready after {ready - began:.1f} s"


if __name__ == "__main__":
    main()
