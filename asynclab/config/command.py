"""What the command lines of scripts/ share: settings that are lists, and errors of users in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf


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
