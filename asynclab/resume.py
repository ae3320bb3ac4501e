"""Which run goes on, with which settings."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from asynclab import checkpoint
from asynclab.checkpoint import Checkpoint
from asynclab.config import AUTO
from asynclab.text import override

log = logging.getLogger(__name__)

# What may differ from the run's settings: it does not change what is learned from a frame, but for rounding.
CHANGEABLE = {
    "algo.precision",
    "checkpoint_every",
    "checkpoint_keep",
    "checkpoint_memory",
    "device",
    "distributed.diagnostics",
    "distributed.hang_after",
    "distributed.max_restarts",
    "distributed.num_threads",
    "env.max_frame",
    "eval.deterministic",
    "eval.episodes",
    "eval.every",
    "eval.nice",
    "eval.wait",
    "log_every",
    "max_dropped",
    "plot",
    "profile",
    "resume",
}


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


def plan(cfg: DictConfig, folder: Path) -> Plan:
    """Find out what a command goes on with, if ``resume`` is set.

    With ``resume=<folder>`` the settings are the run's, changed by what was typed beside it; with ``resume=auto`` the
    command is the whole one, as it was typed for the first time.

    Args:
        cfg: As composed from the command line.
        folder: Output folder.

    Raises:
        ValueError: There is nothing to resume, or a setting differs that must not.
    """
    given = HydraConfig.get().overrides
    typed = [o for o in given.hydra if key_of(o) == "hydra.searchpath"]  # where the configs are that others name
    typed += [o for o in given.task if key_of(o) != "resume"]
    if cfg.resume is None or (cfg.resume == AUTO and not checkpoint.exists(folder)):
        return Plan(cfg, typed)
    found = checkpoint.load(folder)
    saved = found.trial()
    if cfg.resume != AUTO:
        typed = _merge(_saved_overrides(folder), typed)
        cfg = compose(HydraConfig.get().job.config_name, typed)
    if cfg.distributed.get("max_session") is None:  # one per core then, but on which machine?
        with open_dict(cfg):
            cfg.distributed.max_session = len(saved["recorder"]["session_returns"])
        saved["config"]["distributed"]["max_session"] = cfg.distributed.max_session
    changes = compare(saved["config"], json.loads(json.dumps(OmegaConf.to_container(cfg, resolve=True))))
    if wrong := {key: change for key, change in changes.items() if key not in CHANGEABLE}:
        raise ValueError(
            f"the run in {folder} was made with other settings ({in_words(wrong)}); leave them as they were, or begin a"
            " new run in another hydra.run.dir"
        )
    changes.pop("resume", None)
    if changes:
        log.info("changed settings: %s", in_words(changes))
    return Plan(cfg, typed, found, {"frames": found.manifest["frames"], "changes": changes})


def _saved_overrides(folder: Path) -> list[str]:
    path = folder / "run.json"
    try:
        return list(json.loads(path.read_text())["overrides"])
    except (OSError, ValueError, KeyError):
        raise ValueError(
            f"{path} is damaged; resume with the whole command, {override('hydra.run.dir', folder)} and resume=auto"
        ) from None


def _merge(saved: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Return the overrides that made a run, but for those that were typed anew."""
    keys = {key_of(override) for override in typed}
    return [override for override in saved if key_of(override) not in keys] + list(typed)


def key_of(override: str) -> str:
    """Return the setting or the group that an override is about."""
    return OverridesParser.create().parse_override(override).key_or_group


def compare(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two configs, setting by setting."""
    old, new = dict(settings(before)), dict(settings(now))
    keys = dict.fromkeys([*old, *new])
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def settings(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every setting in a config."""
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from settings(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, content


def in_words(changes: dict[str, tuple[Any, Any]]) -> str:
    """Return changes as a list in a sentence."""
    return ", ".join(f"{key}: {old} -> {new}" for key, (old, new) in changes.items())
