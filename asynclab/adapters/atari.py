"""One Atari game of the plain emulator, prepared as ale-py's vector environment prepares it (Machado et al., 2018).

For what that does not have: modes and difficulties of a game, wrappers, processes.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from asynclab import check

FRAMESKIP = 4  # unless a setting says otherwise
NO_LIMIT = -1  # gymnasium's, of steps
COUNTS = ("frameskip", "stack_num", "img_height", "img_width", "max_episode_steps")


class Prepared(gym.Wrapper):
    """Repeats actions, takes the larger of the last two screens, makes them small, and stacks the last ones.

    Args:
        env: Of ``ale_py``, with frameskip 1 and observations of screens.
        frameskip: Frames of one step.
        stack_num: Screens of an observation; before an episode's first there are black ones.
        img_height: Of a screen in an observation.
        img_width: Likewise.
        maxpool: Take the larger of the last two screens of a step, as games draw some things in every other one only.
        noop_max: An episode begins with up to so many frames without an action.
        use_fire_reset: Then press FIRE, where the game has that.
    """

    def __init__(
        self,
        env: gym.Env,
        frameskip: int = FRAMESKIP,
        stack_num: int = 4,
        img_height: int = 84,
        img_width: int = 84,
        maxpool: bool = True,
        noop_max: int = 30,
        use_fire_reset: bool = True,
    ) -> None:
        super().__init__(env)
        self._frameskip, self._maxpool, self._noop_max = frameskip, maxpool, noop_max
        meanings: list[str] = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        self._fires = use_fire_reset and "FIRE" in meanings
        self._idle: Any = 0
        self._fire: Any = meanings.index("FIRE") if self._fires else None
        if isinstance(env.action_space, Box):  # radius, angle and FIRE
            self._idle, self._fire = np.zeros(3, np.float32), np.array([0, 0, 1], np.float32)
        assert env.observation_space.shape is not None
        height, width, *colours = env.observation_space.shape
        self._rows, self._columns = _shares(height, img_height), _shares(width, img_width).T
        self._stack = np.zeros((stack_num, img_height, img_width, *colours), np.uint8)
        self.observation_space = Box(0, 255, self._stack.shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        screen, info = self.env.reset(seed=seed, options=options)
        idle = int(self.np_random.integers(self._noop_max + 1)) - self._fires if self._noop_max else 0
        for action in [self._idle] * idle + [self._fire] * self._fires:
            screen, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                screen, info = self.env.reset(options=options)
        self._stack[:] = 0
        return self._add(screen), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Repeat an action."""
        total, screens = 0.0, []
        for _ in range(self._frameskip):
            screen, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            screens.append(screen)
            if terminated or truncated:
                break
        shown = np.maximum(*screens[-2:]) if self._maxpool and len(screens) > 1 else screens[-1]
        return self._add(shown), total, terminated, truncated, info

    def _add(self, screen: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self._stack[:-1] = self._stack[1:]
        planes = np.moveaxis(screen, -1, 0) if screen.ndim == 3 else screen
        small = np.rint(self._rows @ planes.astype(np.float32) @ self._columns).astype(np.uint8)
        self._stack[-1] = np.moveaxis(small, 0, -1) if screen.ndim == 3 else small
        return self._stack.copy()


def _shares(size: int, small: int) -> NDArray[np.float32]:
    """Return how much each of ``size`` pixels counts in each of ``small`` larger ones: by area."""
    edges = np.arange(small + 1) * (size / small)
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(overlap, 0) * (small / size)).astype(np.float32)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a number that the emulator would take and that cannot be meant."""
    for name, value in settings.items():
        if value is None or (name, value) == ("max_episode_steps", NO_LIMIT):
            continue
        key = f"env.make.{name}"
        if name in COUNTS and not (name == "frameskip" and settings.get("obs_type") == "ram"):  # which takes a range
            check.count(key, value)
        elif name in ("noop_max", "max_num_frames_per_episode"):
            check.whole(key, value)
        elif name == "repeat_action_probability":
            check.fraction(key, value)


def make(
    id: str,
    grayscale: bool = True,
    obs_type: str | None = None,
    max_episode_steps: int | None = None,
    max_num_frames_per_episode: int | None = None,
    **kwargs: Any,
) -> gym.Env:
    """Make a game, with the settings of ale-py's plain and of its vector environment.

    Args:
        id: Such as ``ALE/Pong-v5``.
        grayscale: Show grey screens, else colours.
        obs_type: ``ram`` shows the 128 bytes of the game's memory, from the first frame of an episode on; None its
            screens.
        max_episode_steps: After which an episode is truncated; -1 for no limit, None for what is registered.
        max_num_frames_per_episode: The same in frames of the emulator, of which a step has ``frameskip``; those without
            an action before the first step are not counted.  0 for no limit, None for what is registered.
        kwargs: Of ``Prepared`` and of the emulator.
    """
    gym.register_envs(ale_py)
    spec, frames = gym.spec(id), max_num_frames_per_episode
    if frames is None:
        frames = spec.kwargs.get("max_num_frames_per_episode") or 0
    if obs_type == "ram":
        limits: dict[str, Any] = {"max_episode_steps": max_episode_steps, "max_num_frames_per_episode": frames}
        return gym.make(id, obs_type="ram", **limits, **kwargs)
    if obs_type is not None:
        raise ValueError(f"obs_type={obs_type} must be ram; set env.make.grayscale=false for colours")
    names = ("frameskip", "stack_num", "img_height", "img_width", "maxpool", "noop_max", "use_fire_reset")
    ours = {name: kwargs.pop(name) for name in names if name in kwargs}
    emulator: dict[str, Any] = {"frameskip": 1, "max_num_frames_per_episode": 0, "max_episode_steps": NO_LIMIT} | kwargs
    env = Prepared(gym.make(id, obs_type="grayscale" if grayscale else "rgb", **emulator), **ours)
    given = spec.max_episode_steps if max_episode_steps is None else max_episode_steps
    steps = [limit for limit in (given, ceil(frames / ours.get("frameskip", FRAMESKIP))) if limit and limit > 0]
    return TimeLimit(env, min(steps)) if steps else env
