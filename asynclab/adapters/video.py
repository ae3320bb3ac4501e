"""Environments whose episodes are recorded with gymnasium's RecordVideo."""

import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import RecordVideo
from numpy.typing import NDArray

from asynclab.adapters.plain import UnfitSpace

EMULATOR_FPS = 60
SCREEN = {"grayscale": False, "img_height": 210, "img_width": 160, "stack_num": 1}  # ale-py's picture of an Atari game


def require() -> None:
    """Let everything that renders do without a display; to be called before an environment is made.

    Raises:
        ValueError: moviepy, which writes the files, is not installed or does not find ffmpeg.
    """
    try:
        import moviepy  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # no moviepy, or no ffmpeg
        raise ValueError(f"video=true needs moviepy ({error}): pip install 'asynclab[video]'") from None
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        for name, value in (("MUJOCO_GL", "egl"), ("SDL_VIDEODRIVER", "dummy")):  # read when they are imported
            os.environ[name] = os.environ.get(name) or value


class CannotRender(ValueError):  # noqa: N818 - what it is, is said by its message
    """An environment has no pictures."""


def make(id: str, folder: Path, create: Callable[[], gym.Env], wrap: Callable[[gym.Env], gym.Env]) -> VectorEnv:
    """Make one environment, as a vector, that writes every other episode into a folder: the first, the third and so on.

    Whoever wants to start an episode from a seed resets between two of them, and the vector resets by itself before.

    Args:
        id: Gymnasium id.
        folder: For the files; must not be there yet.
        create: Makes the environment, such that it renders arrays.
        wrap: Put around what records it.

    Raises:
        CannotRender: It has no pictures.
        gymnasium.error.Error: It cannot be made.
    """
    fix = "leave out video=true"
    try:
        with warnings.catch_warnings(action="ignore"):  # about render modes and pictures: we say it better
            env = create()
            _follow(env)
            env.reset(seed=0)
            frame: Any = env.render()
    except (gym.error.Error, UnfitSpace):
        raise
    except Exception as error:  # without a driver, importing mujoco or rendering raises anything
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if "mujoco" in traceback.format_exc():
            fix = "install EGL (apt-get install libegl1 libgl1-mesa-dri) and set MUJOCO_GL=egl"
        raise CannotRender(f"env.id={id} cannot render pictures ({why}); {fix}") from error
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        why = f"its render() returns {type(frame).__name__}"
        raise CannotRender(f"env.id={id} cannot render pictures ({why}); {fix}")
    recorded = RecordVideo(env, str(folder), episode_trigger=lambda number: number % 2 == 0)
    return SyncVectorEnv([lambda: wrap(recorded)], autoreset_mode=AutoresetMode.SAME_STEP, copy=False)


def _follow(env: gym.Env) -> None:
    """Let MuJoCo's picture be that of the model's camera which follows the body, where gymnasium's own stays behind."""
    renderer: Any = getattr(env.unwrapped, "mujoco_renderer", None)
    if getattr(renderer, "camera_id", None) == -1:  # nobody has chosen one
        cameras = [renderer.model.camera(number).name for number in range(renderer.model.ncam)]
        renderer.camera_id = cameras.index("track") if "track" in cameras else -1


class Screen(gym.Env):
    """An Atari game as training sees it, with the emulator's screen as its picture.

    ale-py's vector environment does not render, and its plain one prepares observations differently.  So two of the
    former play the same game, from the same seed with the same actions: one is asked for observations, the other for
    colours in full size.  Rewards, lives and the emulators' frame numbers are compared in every step.

    Args:
        id: Such as ``ALE/Pong-v5``.
        kwargs: Of ``AtariVectorEnv``.
    """

    render_mode = "rgb_array"

    def __init__(self, id: str, **kwargs: Any) -> None:
        kwargs = kwargs | {"autoreset_mode": AutoresetMode.NEXT_STEP}  # we are reset when an episode is over
        self._game: Any = gym.make_vec(id, num_envs=1, **kwargs)
        self._twin = gym.make_vec(id, num_envs=1, **(kwargs | SCREEN))
        self.observation_space = self._game.single_observation_space
        self.action_space = self._game.single_action_space
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": EMULATOR_FPS / kwargs.get("frameskip", 4)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        seeds: Any = np.array([seed])
        obs, info = self._game.reset(seed=seeds)
        self._pixels, twin = self._twin.reset(seed=seeds)
        self._compare([info], [twin])
        return obs[0], {"lives": int(info["lives"][0])}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step both games."""
        obs, *facts = self._game.step(np.array([action]))
        self._pixels, *twin = self._twin.step(np.array([action]))
        self._compare(facts, twin)
        reward, terminated, truncated, info = facts
        return obs[0], reward[0], bool(terminated[0]), bool(truncated[0]), {"lives": int(info["lives"][0])}

    @staticmethod
    def _compare(facts: list[Any], twin: list[Any]) -> None:
        np.testing.assert_equal(twin, facts, "the game on the screen is not the one that is played")

    def render(self) -> NDArray[np.uint8]:
        """Return the screen [210, 160, 3] of the moment of the last observation."""
        return self._pixels[0, -1].copy()

    def close(self) -> None:
        """Free the emulators."""
        self._game.close()
        self._twin.close()
