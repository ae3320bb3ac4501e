"""Settings by dotted key: of a config, and where two configs differ."""

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from asynclab.config.schema import Config

# What may differ from the run's settings: it does not change what is learned from a frame, but for rounding.
CHANGEABLE = {
    "algo.precision",
    "checkpoint_every",
    "checkpoint_keep",
    "checkpoint_memory",
    "device",
    "distributed.address",
    "distributed.diagnostics",
    "distributed.elastic",
    "distributed.hang_after",
    "distributed.max_restarts",
    "distributed.nodes",
    "distributed.num_threads",
    "env.max_frame",
    "eval.deterministic",
    "eval.episodes",
    "eval.every",
    "eval.id",
    "eval.make",
    "eval.max_episode_steps",
    "eval.nice",
    "eval.wait",
    "log_every",
    "max_dropped",
    "patience",
    "plot",
    "profile",
    "resume",
    "stop_at",
    "tensorboard",
    "track",
}


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


def config_of(values: Mapping[str, Any]) -> DictConfig:
    """Return the config that has these settings, by dotted key."""
    content: dict[str, Any] = {}
    for key, value in values.items():
        *above, last = key.split(".")
        node = content
        for part in above:
            if not isinstance(node.get(part), dict):
                node[part] = {}  # where there was nothing, such as in eval.make, there is something now
            node = node[part]
        node[last] = value
    cfg = OmegaConf.merge(OmegaConf.structured(Config), content)
    assert isinstance(cfg, DictConfig)
    return cfg
