"""Config -> Trial."""

import re
from pathlib import Path
from pkgutil import resolve_name

from hydra.errors import CompactHydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asynclab.config import refuse_unknown_keys, targets
from asynclab.run import initial
from asynclab.run.trial import Trial
from asynclab.storage.checkpoint import Checkpoint

MADE = ("env.make", "env.torso", "algo.agent", "algo.memory", "algo.optimizer", "algo.lr_schedule", "distributed")
INSTEAD = {"NormalizeObservation": "env.make.normalize_obs=true", "NormalizeReward": "env.make.scale_reward=0.99"}


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
        _check_targets(cfg)
        _check_env(cfg)
        targets.check(cfg)
        parts = instantiate(targets.waiting(cfg), _convert_="object")
        begun = initial.begin(parts.init_from, parts.init_networks) if checkpoint is None else None
        return Trial(parts, folder, checkpoint, begun, OmegaConf.to_container(cfg, resolve=True))
    except InstantiationException as error:
        message = str(error.__cause__ or error)
        if found := re.search(r"full_key: (\S+)", str(error)):
            key = found[1]
            if isinstance(error.__cause__, TypeError):
                message += f"; {key}._target_ is given all that stands beside it, and ~{key}.<name> leaves one out"
            elif re.match(r"\w+=", message):  # an argument's name, and not yet the setting's
                message = f"{key}.{message}"
        raise CompactHydraException(message) from error
    except TypeError as error:
        raise CompactHydraException(f"{error}{_culprit(cfg, str(error))}") from error
    except (ValueError, LookupError, OmegaConfBaseException) as error:
        raise CompactHydraException(str(error)) from error


def _culprit(cfg: DictConfig, error: str) -> str:
    """Return the end of a sentence: which setting is the argument that a target does not take or misses, if one is."""
    unknown = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", error)
    missing = re.search(r"(\w+)(?:\.__init__)?\(\) missing .* arguments?: '(\w+)'", error)
    if (found := unknown or missing) is None:
        return ""
    owner, name = found.groups()
    for part in MADE:
        if (OmegaConf.select(cfg, f"{part}.{name}") is None) == (unknown is None):
            target = resolve_name(OmegaConf.select(cfg, f"{part}._target_"))
            if owner in [kind.__name__ for kind in getattr(target, "__mro__", [target])]:
                return f"; leave out {part}.{name}" if unknown else f"; set {part}.{name}"
    return ""


def _check_targets(cfg: DictConfig) -> None:
    """Refuse a value where a ``_target_`` and its arguments belong."""
    for key in MADE:
        found = OmegaConf.select(cfg, key, default=MISSING)
        if found != MISSING and (not OmegaConf.is_dict(found) or "_target_" not in found):
            raise ValueError(
                f"{key}={found} must have a _target_ and its arguments; set those one by one, {key}.<name>="
            )


def _check_env(cfg: DictConfig) -> None:
    """Refuse an environment without a name, or with two, and what evaluation would not have."""
    if OmegaConf.is_missing(cfg.env, "id"):
        raise ValueError(
            "env.id is missing: set it to an environment of gymnasium, such as Acrobot-v1 or ALE/Seaquest-v5"
        )
    if (made := cfg.env.make.get("id", cfg.env.id)) != cfg.env.id:
        raise ValueError(f"env.make.id={made} would be trained under the name env.id={cfg.env.id}; set env.id={made}")
    if (made := cfg.env.make.get("num_envs", cfg.env.num_envs)) != cfg.env.num_envs:
        raise ValueError(f"env.make.num_envs={made} is not env.num_envs={cfg.env.num_envs}; set env.num_envs={made}")
    if "record" in cfg.env.make:
        raise ValueError("env.make.record is no setting of training; train, then scripts/evaluate.py ... video=true")
    for wrapper in cfg.env.get("wrappers") or ():
        name = str(wrapper.get("_target_", "")) if OmegaConf.is_dict(wrapper) else ""
        if (instead := INSTEAD.get(name.rpartition(".")[2])) is not None:
            raise ValueError(
                f"env.wrappers has {name}, whose statistics evaluation, resumed runs and other sessions would not"
                f" have; leave it out and set {instead}, which are shared and saved"
            )
