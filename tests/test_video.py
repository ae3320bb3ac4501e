"""Videos show what was played, wherever there is a way to render."""

import os
import subprocess
import sys

import ale_py
import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from asynclab import build, config
from asynclab.adapters import video
from asynclab.envs import make_envs
from asynclab.evaluation.play import evaluate

config.register()
gym.register_envs(ale_py)
SMALL = ["algo=a3c", "env.num_envs=2", "env.torso.hidden=[8]", "distributed.max_session=1", "device=cpu",
         "algo.precision=fp32", "algo.memory.horizon=5"]  # fmt: skip
RUNS = {
    "cartpole": ["env=cartpole", "env.max_frame=20"],
    "pong": ["env=pong", "env.torso.conv=[[4,8,8]]", "env.max_frame=20", "+env.make.max_num_frames_per_episode=240"],
    "humanoid": ["env=humanoid", "env.max_frame=20", "env.make.normalize_obs=true"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that returns the output folder of one of ``RUNS``, made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp(name)
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                cfg = compose("config", [*SMALL, *RUNS[name]])
            OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
            build.make_trial(cfg, folder).run()
        return made[name]

    return make


def command(*overrides, **env):
    """Run the real command where there is no display and nothing has been said about drivers."""
    clean = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "MUJOCO_GL", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "evaluate.py", *overrides],
        env=clean | env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def frames(path):
    """Return the pictures [T, H, W, 3] of a video, and how many are shown in a second."""
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader]), meta["fps"]


def shrink(size, to):
    """Return the matrix [to, size] that takes means over equal parts of a line of pixels."""
    edges = np.linspace(0, size, to + 1)[:, None]
    pixel = np.arange(size)
    covered = np.clip(np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel), 0, None)
    return covered * to / size


@pytest.mark.parametrize("game", ["Pong", "MsPacman"])
def test_the_screen_shows_what_the_agent_sees_in_the_same_moment(game):
    # The agent sees the larger of two frames at every point, which is not the same in colours as in grey.
    screen = video.Screen(f"ALE/{game}-v5", num_threads=1, reward_clipping=False, maxpool=False)
    rng, seen, shown = np.random.default_rng(0), [], []
    obs, _ = screen.reset(seed=1000)
    for _ in range(60):
        grey = (screen.render() * np.array([0.299, 0.587, 0.114])).sum(-1)
        lower = np.einsum("hi,ij->hj", shrink(210, 84), grey)
        shown.append(np.einsum("hj,wj->hw", lower, shrink(160, 84)))
        seen.append(obs[-1].astype(float))
        obs, *_ = screen.step(rng.integers(screen.action_space.n))
    screen.close()
    seen, shown = np.array(seen), np.array(shown)
    assert np.abs(shown - seen).max() < 1.5  # of 255: rounded before and after
    assert np.abs(shown[:-1] - seen[1:]).max(axis=(1, 2)).mean() > 20  # a step later is another picture


def test_the_game_on_the_screen_is_that_of_training():
    screen = video.Screen("ALE/Pong-v5", num_threads=1, reward_clipping=False)
    envs = make_envs("ALE/Pong-v5", num_envs=1)
    rng = np.random.default_rng(0)
    for seed in (1000, 1001):
        assert np.array_equal(screen.reset(seed=seed)[0], envs.reset([seed])[0])
        for action in rng.integers(6, size=150):
            obs, reward, terminated, truncated, _ = screen.step(action)
            step = envs.step(np.array([action]))
            assert np.array_equal(obs, step.obs[0])
            assert (reward, terminated, truncated) == (step.reward[0], step.terminated[0], step.truncated[0])
    assert screen.metadata["render_fps"] == 15


def test_a_screen_that_goes_astray_is_noticed():
    screen = video.Screen("ALE/Pong-v5", num_threads=1, reward_clipping=False)
    screen.reset(seed=0)
    screen._twin.step(np.array([0]))
    with pytest.raises(AssertionError, match="the game on the screen is not the one that is played"):
        screen.step(0)


@pytest.mark.parametrize(("name", "size", "fps"), [("cartpole", (400, 600), 50), ("pong", (210, 160), 15)])
@pytest.mark.medium
def test_every_episode_is_recorded_whole_and_none_is_overwritten(run, tmp_path, name, size, fps):
    plain = evaluate(run(name), 2)
    first, again = (evaluate(run(name), n, videos=tmp_path) for n in (2, 1))
    assert plain.videos == []
    assert (first.returns, first.lengths, first.seeds) == (plain.returns, plain.lengths, [1000, 1001])
    assert [path.name for path in first.videos] == [
        f"000001_sampled_episode_{i}_seed_{1000 + i}_return_{first.returns[i]:.2f}.mp4" for i in range(2)
    ]
    assert [path.stem for path in again.videos] == [f"{first.videos[0].stem}__2"]
    assert sorted(tmp_path.iterdir()) == sorted(first.videos + again.videos)  # and nothing that was half done
    for path, length in zip(first.videos, first.lengths, strict=True):
        pictures, rate = frames(path)
        assert pictures.shape[1:] == (*size, 3)
        assert abs(len(pictures) - (length + 1)) <= 1  # with the first observation's; moviepy rounds
        assert rate == fps
        assert pictures.std() > 10  # not one colour
        assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 50  # something moves


@pytest.mark.slow
def test_humanoid_is_recorded_without_a_display(run):
    folder = run("humanoid")
    process = command(f"run={folder}", "episodes=1", "video=true")
    assert process.returncode == 0, process.stderr
    (path,) = (folder / "videos").iterdir()
    pictures, rate = frames(path)
    assert pictures.shape[1:] == (480, 480, 3)
    assert rate == 67
    assert len(pictures) > 10
    assert pictures.std() > 10
    assert f"wrote {path}\n" in process.stdout


WALKS_AWAY = """
import sys
from asynclab.adapters import video
video.require()
import gymnasium as gym
name = "HalfCheetah-v5"
envs = video.make(name, sys.argv[1], lambda: gym.make(name, render_mode="rgb_array"), lambda env: env)
envs.reset(seed=0)
env = envs.envs[0].unwrapped
for x in (0.0, 30.0):
    env.set_state(env.init_qpos + [x, *[0.0] * 8], env.init_qvel)
    red, _, blue = env.render().astype(int).transpose(2, 0, 1)
    print(int((red > blue + 30).sum()))  # its skin: the floor is grey, the sky blue
"""


@pytest.mark.medium
def test_who_walks_stays_in_the_picture(tmp_path):
    command = [sys.executable, "-c", WALKS_AWAY, tmp_path / "videos"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    here, far = map(int, done.stdout.split())
    assert here > 500
    assert far == pytest.approx(here, rel=0.1)


@pytest.mark.slow
def test_without_a_driver_the_message_says_what_to_install(run, tmp_path):
    process = command(f"run={run('humanoid')}", "video=true", f"out={tmp_path}", MUJOCO_GL="nonsense")
    assert process.returncode == 1
    assert "env.id=Humanoid-v5 cannot render pictures (RuntimeError: invalid value for environment" in process.stderr
    assert "; install EGL (apt-get install libegl1 libgl1-mesa-dri) and set MUJOCO_GL=egl\n" in process.stderr
    assert "Traceback" not in process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["moviepy", "ffmpeg"])
def test_without_moviepy_or_ffmpeg_nothing_is_played(run, tmp_path, monkeypatch, missing):
    for name in [name for name in sys.modules if name.split(".")[0] == "moviepy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("FFMPEG_BINARY", "/nowhere/ffmpeg")
    if missing == "moviepy":
        monkeypatch.setitem(sys.modules, "moviepy", None)
    with pytest.raises(ValueError, match=r"video=true needs moviepy \(.*\): pip install 'asynclab\[video\]'"):
        evaluate(run("cartpole"), 1, videos=tmp_path)
    assert not list(tmp_path.iterdir())


class Blind(gym.Env):
    """Has no picture: ``mode`` says how it fails to give one."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None, mode="none"):
        self.render_mode, self.mode = render_mode, mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, True, False, {}

    def render(self):
        if self.mode == "raises":
            raise OSError("no\nscreen")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("none", r"env\.id=Blind-v0 cannot render pictures \(its render\(\) returns NoneType\); leave out video=true"),
        ("raises", r"env\.id=Blind-v0 cannot render pictures \(OSError: no screen\); leave out video=true"),
    ],
)
def test_an_environment_that_cannot_render_is_refused(tmp_path, monkeypatch, mode, message):
    monkeypatch.setitem(gym.registry, "Blind-v0", gym.envs.registration.EnvSpec("Blind-v0", entry_point=Blind))
    with pytest.raises(ValueError, match=message):
        make_envs("Blind-v0", num_envs=1, record=tmp_path / "new", mode=mode)
    assert not list(tmp_path.iterdir())
