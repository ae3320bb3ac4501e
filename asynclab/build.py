"""Config -> Trial."""

import re
from pathlib import Path

from hydra.errors import CompactHydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asynclab.config import refuse_unknown_keys, targets
from asynclab.run import initial
from asynclab.run.trial import Trial
from asynclab.storage.checkpoint import Checkpoint


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
        _check_id(cfg)
        targets.check(cfg)
        parts = instantiate(targets.waiting(cfg), _convert_="object")
        begun = initial.begin(parts.init_from, parts.init_networks) if checkpoint is None else None
        return Trial(parts, folder, checkpoint, begun, OmegaConf.to_container(cfg, resolve=True))
    except InstantiationException as error:
        message = str(error.__cause__ or error)
        if isinstance(error.__cause__, TypeError) and (found := re.search(r"full_key: (\S+)", str(error))):
            key = found[1]
            message += f"; {key}._target_ is given all that stands beside it, and ~{key}.<name> leaves one out"
        raise CompactHydraException(message) from error
    except (ValueError, TypeError, LookupError, OmegaConfBaseException) as error:
        raise CompactHydraException(str(error)) from error


def _check_id(cfg: DictConfig) -> None:
    """Refuse an environment without a name, or with two."""
    if OmegaConf.is_missing(cfg.env, "id"):
        raise ValueError(
            "env.id is missing: set it to an environment of gymnasium, such as Acrobot-v1 or ALE/Seaquest-v5"
        )
    if (made := cfg.env.make.get("id", cfg.env.id)) != cfg.env.id:
        raise ValueError(f"env.make.id={made} would be trained under the name env.id={cfg.env.id}; set env.id={made}")
