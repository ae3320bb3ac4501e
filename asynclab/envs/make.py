"""Gymnasium id -> Envs."""

import multiprocessing as mp
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from asynclab import check, layout, script, signals
from asynclab.adapters import atari, native, video
from asynclab.adapters.actions import Actions
from asynclab.adapters.ids import Wrapper, is_atari, plain, remedy, resolve, why
from asynclab.adapters.plain import UnfitSpace, box_observation, observations
from asynclab.adapters.retrace import Traced
from asynclab.envs.vector import Envs, Shaping, Vector

MODES = ("sync", "async", "vector_entry_point")
PLAIN_ONLY = ("mode", "difficulty", "obs_type")  # settings of Atari that ale-py's vector environment does not have
FOR_EACH = "set env.make.vectorization_mode to sync or async"
# Settings that would make wrong transitions or returns, and what to do instead
OURS = {
    "autoreset_mode": "leave it out",
    "batch_size": "set env.num_envs",
    "life_loss_info": "set env.make.episodic_life=true",
    "render_mode": "set video=true in scripts/evaluate.py",
    "reward_clipping": "set env.make.clip_reward=true",
    "vector_kwargs": "leave it out",
}


def make_envs(
    id: str,
    num_envs: int,
    clip_reward: bool = False,
    normalize_obs: bool = False,
    scale_reward: float | None = None,
    wrappers: Sequence[Wrapper] = (),
    vectorization_mode: str | None = None,
    episodic_life: bool = False,
    record: Path | None = None,
    **kwargs: Any,
) -> Envs:
    """Make B copies of a registered environment.

    Args:
        id: Gymnasium id, e.g. ``ALE/Pong-v5``; ``module:Name-v0`` imports the module first.
        num_envs: B.
        clip_reward: Train on the sign of the reward, as usual for Atari (Mnih et al., 2015); episode returns stay raw.
        normalize_obs: Give observations a mean of 0 and a variance of 1, over all that the sessions have seen.
        scale_reward: Discount of the returns by whose standard deviation rewards are divided, as usual for PPO on
            MuJoCo; None to leave them.  Episode returns stay raw.
        wrappers: Put around each environment, the first innermost.
        vectorization_mode: ``sync`` steps one environment after the other, ``async`` each in a process of its own,
            ``vector_entry_point`` takes the environment's own vector form; None takes that for Atari, else ``sync``.
        episodic_life: Let every life of an Atari game be an episode for training; returns are of whole games.
        record: Folder for videos (``video.make``), which must not be there yet; None for none.  B must be 1.
        kwargs: For the environment's own constructor.

    Raises:
        ValueError: The id is unknown, the environment cannot be made or recorded, or its spaces are of an unsupported
            kind.
    """
    check.count("env.num_envs", num_envs)
    check.flag("env.make.clip_reward", clip_reward)
    check.flag("env.make.normalize_obs", normalize_obs)
    check.flag("env.make.episodic_life", episodic_life)
    if scale_reward is not None:
        check.fraction("env.make.scale_reward", scale_reward)
    if vectorization_mode not in (None, *MODES):
        raise ValueError(f"env.make.vectorization_mode={vectorization_mode} must be {', '.join(MODES)} or null")
    for name in OURS.keys() & kwargs.keys():
        raise ValueError(f"env.make.{name}={kwargs[name]} is no setting of an environment; {OURS[name]}")
    spec = resolve(id)
    if is_atari(id):
        atari.check_settings(kwargs)
    elif episodic_life:
        raise ValueError(f"env.make.episodic_life=true is for Atari games, and env.id={id} is none; set it to false")
    is_native = has_own_vector(id, wrappers, vectorization_mode, kwargs)
    try:
        if record is not None:
            assert num_envs == 1, "a video shows one environment"
            env = _recorded(spec, record, wrappers, is_native, kwargs)
        elif is_native:
            env = native.make(spec, num_envs, **kwargs)
        else:
            mode = "async" if vectorization_mode == "async" and num_envs > 1 else "sync"
            with script.starting() if mode == "async" else nullcontext():
                env = _vectorized(spec, num_envs, wrappers, mode, kwargs)
        actions = Actions(env.single_action_space)
        # of single environments, box_observation has made them what the agent sees
        is_plain = is_native and record is None
        seen: Any = env.single_observation_space
        if is_plain and not (isinstance(seen, Box) and seen.shape):
            raise UnfitSpace(f"a vector of its own whose observations, {seen}, are no arrays: {FOR_EACH}")
        space, convert = observations(seen) if is_plain else (seen, None)
    except UnfitSpace as error:
        raise ValueError(f"env.id={id} has {error}") from None
    except video.CannotRender:
        raise
    except Exception as error:  # whatever the environment raises
        raise ValueError(f"env.id={id} cannot be made ({why(error)}); {remedy(spec)}") from error
    # gymnasium's own vectors take one seed, and make the others of it
    pack: Callable[[list[int]], Any] = list if not is_plain else np.asarray if is_atari(id) else itemgetter(0)
    vector = Vector(id, RecordEpisodeStatistics(env), space, actions, convert, pack, wrappers)
    return Envs(vector, Shaping(clip_reward, episodic_life, normalize_obs, scale_reward))


def has_own_vector(
    id: str, wrappers: Sequence[Wrapper], vectorization_mode: str | None, settings: Mapping[str, Any]
) -> bool:
    """Return whether environments are stepped by a vector of their own: asked for, or Atari with no need of another.

    Raises:
        ValueError: There is to be one, and wrappers around each environment.
    """
    if vectorization_mode is None:
        plain = wrappers or any(name in settings for name in PLAIN_ONLY)
        return resolve(id).vector_entry_point == native.ATARI and not plain
    if vectorization_mode == "vector_entry_point" and wrappers:
        raise ValueError(
            "env.wrappers are put around single environments, which env.make.vectorization_mode=vector_entry_point does"
            f" not have; {FOR_EACH}"
        )
    return vectorization_mode == "vector_entry_point"


def _vectorized(
    spec: EnvSpec, num_envs: int, wrappers: Sequence[Wrapper], mode: str, kwargs: Mapping[str, Any]
) -> VectorEnv:
    """Step environments one by one, in this process or in one for each."""
    settings: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}
    if mode == "async":
        # a fork of a process that has run a torch operator could hang; what the server has imported, all share
        mp.set_forkserver_preload(["asynclab.envs"])
        settings["context"] = "forkserver"
        wrappers = [_shield, *wrappers]
    around: Any = [*wrappers, box_observation, Traced]
    if spec.entry_point != native.EMULATOR:
        return gym.make_vec(
            spec.id, num_envs=num_envs, vectorization_mode=mode, vector_kwargs=settings, wrappers=around, **kwargs
        )
    make = partial(_boxed, spec.id, wrappers, dict(kwargs))
    kind: Any = gym.vector.AsyncVectorEnv if mode == "async" else gym.vector.SyncVectorEnv
    return kind([make] * num_envs, **settings)


def _shield(env: gym.Env) -> gym.Env:
    """Let a process that steps one environment outlive signals to the whole group; its session saves, then ends it.

    An environment is made in the session's process, too, to look at its spaces; that has handlers of its own.
    """
    if mp.current_process().name.startswith("Worker<AsyncVectorEnv>"):
        signals.handle(signals.ENDING, lambda *_: None)
    return env


def _boxed(id: str, wrappers: Sequence[Wrapper], kwargs: Mapping[str, Any]) -> gym.Env:
    return Traced(box_observation(plain(id, wrappers, **kwargs)))


def _recorded(
    spec: EnvSpec, record: Path, wrappers: Sequence[Wrapper], is_native: bool, kwargs: Mapping[str, Any]
) -> VectorEnv:
    """Record one environment."""
    if is_native and spec.vector_entry_point == native.ATARI:
        emulator = {"reward_clipping": False, "num_threads": 1} | dict(kwargs)
        make: Callable[[], gym.Env] = partial(video.Screen, spec.id, **emulator)
    else:
        make = partial(plain, spec.id, wrappers, **(dict(kwargs) | {"render_mode": "rgb_array"}))
    return video.make(spec.id, record, make, lambda env: Traced(box_observation(env)))


def spaces(envs: Envs) -> str:
    """Return which of ``conf/spaces`` the environments have: ``pixels``, ``discrete`` or ``continuous``."""
    if layout.is_image(envs.obs_space) or isinstance(envs.obs_space, layout.Joined):
        return "pixels"
    return "continuous" if isinstance(envs.action_space, Box) else "discrete"
