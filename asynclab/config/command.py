"""What the command lines of scripts/ share: known keys, settings that are lists, errors of users in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from asynclab.config import CONF


def check_keys(cfg: DictConfig) -> None:
    """Refuse keys that the command's file in conf/ does not have, which ``+`` can add and nobody reads."""
    path = Path(CONF) / f"{HydraConfig.get().job.config_name}.yaml"
    if path.is_file():  # else it is somebody's own, by --config-name
        _check_keys(cfg, OmegaConf.to_container(OmegaConf.load(path)), "")


def _check_keys(cfg: Any, known: Any, prefix: str) -> None:
    names = [name for name in known if prefix or name not in ("defaults", "hydra")]
    for key in cfg:
        if key not in names:
            settings = ", ".join(f"{prefix}{name}" for name in names)
            raise CompactHydraException(f"{prefix}{key} is not a setting; use one of {settings}")
        if isinstance(known[key], dict) and known[key]:  # an empty one takes anything
            _check_keys(cfg[key], known[key], f"{prefix}{key}.")


def texts(cfg: DictConfig, key: str) -> list[str] | None:
    """Return a setting that is one text or several; None if it is null."""
    value = cfg[key]
    return None if value is None else [str(v) for v in (value if OmegaConf.is_list(value) else [value])]


def folders(cfg: DictConfig) -> list[Path]:
    """Return the folders in ``runs``, which must be set."""
    found = None if OmegaConf.is_missing(cfg, "runs") else texts(cfg, "runs")
    if found is None:
        raise CompactHydraException("runs is missing: set runs=[<output folder>,...]")
    return [Path(text) for text in found]


@contextmanager
def user_errors(extra: str = "plot") -> Iterator[None]:
    """Turn a ValueError, and a package of an extra that is missing, into a sentence without a traceback."""
    try:
        yield
    except ImportError as error:
        package = str(error.name).split(".")[0]
        raise CompactHydraException(f"{package} is not installed: pip install 'asynclab[{extra}]'") from None
    except ValueError as error:
        raise CompactHydraException(str(error)) from error
