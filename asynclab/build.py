"""Config -> Trial."""

import re
from pathlib import Path

from hydra.errors import CompactHydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asynclab import text
from asynclab.config import refuse_unknown_keys, targets
from asynclab.evaluation.evaluator import Schedule
from asynclab.run import initial
from asynclab.run.trial import Stop, Trial
from asynclab.storage.checkpoint import Checkpoint


def _initial(folder: str | None, networks: list[str] | None) -> initial.Initial | None:
    if folder is None and networks is not None:
        raise ValueError(f"init_networks={networks} needs init_from: the folder that they are taken from")
    return None if folder is None else initial.read(text.located(Path(folder)), networks)


def make_trial(cfg: DictConfig, folder: Path, checkpoint: Checkpoint | None = None) -> Trial:
    """Instantiate what the config's groups hold and put it together.

    Args:
        cfg: The composed config.
        folder: Output folder.
        checkpoint: Where the run goes on; None for a new one.

    Raises:
        CompactHydraException: A setting cannot work; Hydra prints its message without a traceback, and with one if
            HYDRA_FULL_ERROR=1.
    """
    try:
        refuse_unknown_keys(cfg)
        targets.check(cfg)
        parts = instantiate(cfg, _convert_="object")
        return Trial(
            make_envs=parts.env.make,
            make_agent=parts.algo.agent,
            make_memory=parts.algo.memory,
            make_optimizer=parts.algo.optimizer,
            lr_schedule=parts.algo.lr_schedule,
            mode=parts.distributed,
            max_frame=parts.env.max_frame,
            max_grad_norm=parts.algo.max_grad_norm,
            max_dropped=parts.max_dropped,
            precision=parts.algo.precision,
            device=parts.device,
            seed=parts.seed,
            log_every=parts.log_every,
            checkpoint_every=parts.checkpoint_every,
            checkpoint_keep=parts.checkpoint_keep,
            checkpoint_memory=parts.checkpoint_memory,
            profile=parts.profile,
            folder=folder,
            initial=_initial(parts.init_from, parts.init_networks) if checkpoint is None else None,
            stop=Stop(parts.stop_at, parts.patience),
            schedule=Schedule(**vars(parts.eval)),
            config=OmegaConf.to_container(cfg, resolve=True),
            checkpoint=checkpoint,
        )
    except InstantiationException as error:
        message = str(error.__cause__ or error)
        if isinstance(error.__cause__, TypeError) and (found := re.search(r"full_key: (\S+)", str(error))):
            key = found[1]
            message += f"; {key}._target_ is given all that stands beside it, and ~{key}.<name> leaves one out"
        raise CompactHydraException(message) from error
    except (ValueError, TypeError, LookupError, OmegaConfBaseException) as error:
        raise CompactHydraException(str(error)) from error
