"""Gymnasium id -> what is registered, and one environment of it."""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, parse_env_id

from asynclab.adapters import atari
from asynclab.adapters.native import EMULATOR

Wrapper = Callable[[gym.Env], gym.Env]


def resolve(id: str) -> EnvSpec:
    """Return what gymnasium knows of an id; its module, and ale-py if it is needed, are imported.

    Raises:
        ValueError: It is not registered, or an old one of Atari.
    """
    module, _, name = id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        if name not in gym.registry:
            import ale_py

            gym.register_envs(ale_py)
        game = _new_atari(name)
        if game is None:
            namespace, base, version = parse_env_id(name)
            if version is None:
                version = find_highest_version(namespace, base)
            return gym.spec(get_env_id(namespace, base, version))
    except gym.error.Error as error:
        raise ValueError(f"env.id={id} is not a registered environment ({error}); set env.id to one that is") from error
    except Exception as error:  # whatever the module raises
        raise ValueError(f"env.id={id} cannot be made ({why(error)}); install {module} or mend it") from error
    raise ValueError(f"env.id={id} is an old Atari environment, with other frames and actions; set env.id={game}")


def _new_atari(name: str) -> str | None:
    """Return today's id of an Atari environment of old, such as PongNoFrameskip-v4; None if it is none."""
    found = re.fullmatch(r"(?:ALE/)?([A-Z]\w*?)(-ram)?(?:Deterministic|NoFrameskip)?-v\d+", name)
    known = gym.registry.get(name)
    if found is None or (known and (known.entry_point != EMULATOR or known.namespace == "ALE")):
        return None
    today = f"ALE/{found[1]}-v5"
    if today not in gym.registry or (name.startswith("ALE/") and not found[2]):  # of which gymnasium knows more
        return None
    return today + " +env.make.obs_type=ram" * bool(found[2])


def is_atari(id: str) -> bool:
    """Return whether it is a game of ale-py."""
    return resolve(id).entry_point == EMULATOR


def plain(id: str, wrappers: Sequence[Wrapper] = (), **kwargs: Any) -> gym.Env:
    """Make one environment that is not part of a vector, with its wrappers.

    Args:
        id: Gymnasium id.
        wrappers: Put around it, the first innermost.
        kwargs: For its constructor.
    """
    spec = resolve(id)
    env = atari.make(spec.id, **kwargs) if spec.entry_point == EMULATOR else gym.make(spec.id, **kwargs)
    for wrapper in wrappers:
        env = wrapper(env)
    return env


def remedy(spec: EnvSpec) -> str:
    """Return what to do about an environment that cannot be made."""
    newest = find_highest_version(spec.namespace, spec.name)
    if spec.version is not None and newest is not None and newest > spec.version:
        return f"set env.id={get_env_id(spec.namespace, spec.name, newest)}, which is newer"
    return "install what it needs or mend env.make"


def why(error: Exception) -> str:
    """Return what was raised; its type says more than a text such as ``'mapname'``."""
    text = " ".join(str(error).split())
    if text and isinstance(error, (gym.error.Error, ImportError, TypeError)):
        return text
    return f"{type(error).__name__}{': ' * bool(text)}{text}"
