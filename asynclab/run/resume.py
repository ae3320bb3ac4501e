"""Which run goes on, with which settings."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from asynclab.config import AUTO
from asynclab.config.settings import CHANGEABLE, compare, config_of, in_words, key_of, settings
from asynclab.storage import checkpoint
from asynclab.storage.checkpoint import Checkpoint
from asynclab.storage.names import RUN
from asynclab.text import override

log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What a command does.

    Attributes:
        cfg: With which settings.
        overrides: That make them.
        checkpoint: From where; None for a new run.
        resumed: For ``provenance.write``; None for a new run.
    """

    cfg: DictConfig
    overrides: list[str]
    checkpoint: Checkpoint | None = None
    resumed: dict[str, Any] | None = None


def _is_new_each_time() -> bool:
    """Return whether the output folder is named by the time."""
    hydra = HydraConfig.get()
    return hydra.mode is RunMode.RUN and "${now:" in str(OmegaConf.to_container(hydra.run))


def plan(cfg: DictConfig, folder: Path) -> Plan:
    """Find out what a command goes on with, if ``resume`` is set.

    With ``resume=<folder>`` the settings are the run's, changed by what was typed beside it; with ``resume=auto`` the
    command is the whole one, as it was typed for the first time.  Defaults that have changed since the run began do not
    touch it.

    Args:
        cfg: As composed from the command line.
        folder: Output folder.

    Raises:
        ValueError: There is nothing to resume, or a setting differs that must not.
    """
    typed = _search_path() + [o for o in HydraConfig.get().overrides.task if key_of(o) != "resume"]
    if cfg.resume is None or (cfg.resume == AUTO and not checkpoint.exists(folder)):
        if cfg.resume == AUTO and _is_new_each_time():
            raise ValueError(
                f"resume=auto finds nothing in {folder}, a folder of this moment; set hydra.run.dir to one that stays,"
                " or resume=<folder of a run>"
            )
        return Plan(cfg, typed)
    found = checkpoint.load(folder)
    saved = found.trial()
    name = HydraConfig.get().job.config_name
    recorded = _saved_overrides(folder)
    if cfg.resume != AUTO:
        if recorded is None:
            raise ValueError(
                f"{folder / RUN} is damaged; resume with the whole command, {override('hydra.run.dir', folder)}"
                " and resume=auto"
            )
        typed = _merge(recorded, typed)
        cfg = compose(name, typed)
    # Defaults may have changed since the run began, and it keeps its own: what counts is what was typed differently.
    before = dict(settings(saved["config"]))
    then = saved["config"] if recorded is None else _resolved(compose(name, recorded))
    changes = {key: (before.get(key), new) for key, (_, new) in compare(then, _resolved(cfg)).items()}
    changes = {key: change for key, change in changes.items() if change[0] != change[1]}
    if wrong := {k: c for k, c in changes.items() if not is_changeable(k) and not _follows_another(cfg, k)}:
        raise ValueError(
            f"the run in {folder} was made with other settings ({in_words(wrong)}); leave them as they were, or begin a"
            " new run in another hydra.run.dir"
        )
    after = before | {key: new for key, (_, new) in changes.items()}
    if after["distributed.max_session"] is None:  # one per core then, but on which machine?
        after["distributed.max_session"] = len(saved["recorder"]["session_returns"])
    changes.pop("resume", None)
    if changes:
        log.info("changed settings: %s", in_words(changes))
    return Plan(config_of(after), typed, found, {"frames": found.manifest["frames"], "changes": changes})


def is_changeable(key: str) -> bool:
    """Return whether a setting does not change what is learned from a frame, but for rounding."""
    return key in CHANGEABLE or key.startswith("eval.make.")


def _search_path() -> list[str]:
    """Return the override that finds the configs that others name, also those of ``--config-dir``; [] for none."""
    given = HydraConfig.get()
    sources = [source for source in given.runtime.config_sources if "command-line" in source.provider]
    if any(source.provider == "command-line" for source in sources):
        paths = ",".join(f"'{source.schema}://{source.path}'" for source in sources)
        return [f"hydra.searchpath=[{paths}]"]
    # unresolved, as a folder may be named by what need not be an override
    overrides: Any = OmegaConf.to_container(given.overrides.hydra, resolve=False)
    return [o for o in overrides if key_of(o) == "hydra.searchpath"]


def _resolved(cfg: DictConfig) -> Any:
    return json.loads(json.dumps(OmegaConf.to_container(cfg, resolve=True)))


def _follows_another(cfg: DictConfig, key: str) -> bool:
    """Return whether a setting, or what it is in, is an interpolation of others."""
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return False
        if OmegaConf.is_interpolation(node, part):
            return True
        node = node._get_node(part)
    return False


def _saved_overrides(folder: Path) -> list[str] | None:
    """Return what was typed when the run began; None if that can no longer be read."""
    try:
        return list(json.loads((folder / RUN).read_text())["overrides"])
    except (OSError, ValueError, KeyError):
        return None


def _merge(saved: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Return the overrides that made a run, but for those that were typed anew."""
    keys = {key_of(override) for override in typed}
    return [override for override in saved if key_of(override) not in keys] + list(typed)
