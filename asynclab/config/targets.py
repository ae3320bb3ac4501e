"""What configs may make.  A ``_target_`` can name any callable, and a config may come from somebody else."""

import copy
import os
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, OmegaConf

ALLOWED = (
    "asynclab.agents",
    "asynclab.distributed.exchange",
    "asynclab.distributed.modes",
    "asynclab.distributed.timing",
    "asynclab.envs.make",
    "asynclab.memory",
    "asynclab.nets",
    "asynclab.optim",
    "asynclab.schedules",
    *(
        f"gymnasium.wrappers.{module}"  # not those that write files, open windows or call what they are given
        for module in (
            "atari_preprocessing",
            "common",
            "stateful_action",
            "stateful_observation",
            "stateful_reward",
            "transform_action",
            "transform_observation",
            "transform_reward",
        )
    ),
    "torch.optim",
    "torch.nn.modules",
)
VARIABLE = "ASYNCLAB_TARGETS"  # not a setting: the config that is checked could set it


def check(cfg: DictConfig) -> None:
    """Refuse a config that would make something outside the packages that are meant for it.

    Args:
        cfg: Every ``_target_`` in it is looked at.

    Raises:
        ValueError: One is not defined in ``ALLOWED`` or in the packages that the variable ASYNCLAB_TARGETS names.
    """
    allowed = (*ALLOWED, *filter(None, os.environ.get(VARIABLE, "").split(",")))
    for key, target in _targets(OmegaConf.to_container(cfg, resolve=True)):
        if not (
            _is_in(target, ("asynclab", "gymnasium.wrappers", "torch", *allowed))
            and _is_in(_origin(key, target), allowed)
        ):
            key = key.replace("env.make.wrappers", "env.wrappers")  # which is what is set
            raise ValueError(
                f"{key}={target} is not in a package that configs may use ({', '.join(allowed)}); if you trust it, add"
                f" its package to the environment variable: export {VARIABLE}={target.split('.')[0]}"
            )


def waiting(cfg: DictConfig) -> DictConfig:
    """Return a config whose ``env.wrappers`` wait for the environment that each is put around.

    Raises:
        ValueError: They are no list of targets.
    """
    cfg = copy.deepcopy(cfg)
    for key in ("env.wrappers", "env.make.wrappers"):
        found: Any = OmegaConf.select(cfg, key)
        if found is None:  # of a run of an older version, or an environment that is made in another way
            continue
        wrappers = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
        if not isinstance(wrappers, list) or not all(isinstance(one, dict) and "_target_" in one for one in wrappers):
            raise ValueError(
                f"env.wrappers={wrappers} must be a list such as"
                " [{_target_: gymnasium.wrappers.FrameStackObservation, stack_size: 4}]"
            )
        OmegaConf.update(cfg, key, [{"_partial_": True, **one} for one in wrappers], force_add=True)
    return cfg


def _origin(key: str, target: str) -> str:
    """Return the module in which a target is defined, which its name need not tell: modules hold what they import."""
    try:
        return str(resolve_name(target).__module__)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{key}={target} does not exist ({error}); use the dotted name of a class or function"
        ) from None


def _is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _targets(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place and the value of every ``_target_``."""
    pairs: Any = (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    )
    for key, value in pairs:
        place = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            yield place, str(value)
        else:
            yield from _targets(value, place)
