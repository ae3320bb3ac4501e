"""Train: compose -> instantiate -> Trial.run().  The only file that shows how everything is wired.

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
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    from asynclab import provenance
    from asynclab.distributed import SessionError
    from asynclab.trial import Trial

    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        config.refuse_unknown_keys(cfg)
        parts = hydra.utils.instantiate(cfg, _convert_="object")
        trial = Trial(
            make_envs=parts.env.make,
            make_agent=parts.algo.agent,
            make_memory=parts.algo.memory,
            make_optimizer=parts.algo.optimizer,
            lr_schedule=parts.algo.lr_schedule,
            mode=parts.distributed,
            max_frame=parts.env.max_frame,
            max_grad_norm=parts.algo.max_grad_norm,
            precision=parts.algo.precision,
            device=parts.device,
            seed=parts.seed,
            log_every=parts.log_every,
            checkpoint_every=parts.checkpoint_every,
            profile=parts.profile,
            folder=folder,
        )
    except InstantiationException as error:
        raise CompactHydraException(str(error.__cause__ or error)) from error
    except (ValueError, TypeError, LookupError, OmegaConfBaseException) as error:
        # a setting; HYDRA_FULL_ERROR=1 shows where it hurt
        raise CompactHydraException(str(error)) from error
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
