"""Train: compose -> make the trial -> run it.  ``asynclab.build`` shows how everything is wired.

Example: ``python train.py algo=a3c env=pong distributed=synced distributed.max_session=16``
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from asynclab import config

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """Run one trial and return its final mean return, for sweepers to maximise."""
    from asynclab.preload import start_server

    if cfg.distributed.max_session != 1:
        start_server()  # so early that it imports torch while we do

    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException

    from asynclab import build, provenance
    from asynclab.distributed import SessionError

    folder = Path(HydraConfig.get().runtime.output_dir)
    trial = build.make_trial(cfg, folder)
    provenance.write(folder, cfg, HydraConfig.get().overrides.task, trial.mode.max_session, trial.session.devices)
    try:
        return trial.run()
    except SessionError as error:
        raise CompactHydraException(str(error)) from error


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
