"""Environments that gymnasium allows, or that users have; each is 20 steps of reward 1, unless it says otherwise."""

import os

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Sequence, Space, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

CAMERA = Box(0, 255, (16, 16, 3), np.uint8)


class Base(gym.Env):
    space: Space = Box(-1, 1, (3,), np.float32)
    actions: Space = Discrete(2)
    length = 20

    def __init__(self, render_mode=None):
        self.observation_space, self.action_space, self.render_mode = self.space, self.actions, render_mode

    def obs(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.t += 1
        return self.obs(), 1.0, self.t >= self.length, False, {}


class InPlace(Base):
    """One array, changed in place; the observation is the step."""

    space = Box(0, 100, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.state = getattr(self, "state", np.zeros(1, np.float32))
        self.state[:] = 0
        return super().reset(seed=seed)

    def obs(self):
        self.state[:] = self.t
        return self.state

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated, info


class InPlaceDict(InPlace):
    space = Dict(x=Box(0, 100, (1,), np.float32), y=Discrete(2))

    def obs(self):
        return {"x": super().obs(), "y": 0}


class Bright(Base):
    """What is bright is the right action: random gets a third of 20, best 20; as bytes or as floats from 0 to 1."""

    actions = Discrete(3)
    as_floats = False

    def picture(self):
        self.right = int(self.np_random.integers(3))
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[..., self.right] = 255
        return picture

    def obs(self):
        picture = self.picture()
        return self.show((picture / 255).astype(np.float32) if self.as_floats else picture)

    def step(self, action):
        reward = float(action == self.right)
        obs, _, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, info


class BrightDict(Bright):
    space = Dict(cam=CAMERA, vel=Box(-1, 1, (2,)))

    def show(self, picture):
        return {"cam": picture, "vel": self.np_random.uniform(-1, 1, 2).astype(np.float32)}


class BrightTuple(Bright):
    """Only images, of which one is [H, W]."""

    space = Tuple([CAMERA, Box(0, 255, (16, 16), np.uint8)])

    def show(self, picture):
        return picture, picture[..., 0]


class BrightRows(Bright):
    """[H, W]: which third of the rows."""

    space = Box(0, 255, (18, 16), np.uint8)

    def show(self, picture):
        return np.repeat(picture[0, 0], 6)[:, None].repeat(16, 1)


class BrightStack(Bright):
    space = Box(0, 255, (2, 16, 16, 3), np.uint8)

    def show(self, picture):
        return np.stack([np.zeros_like(picture), picture])


class BrightBytes(Bright):
    """A vector of bytes."""

    space = Box(0, 255, (3,), np.uint8)

    def show(self, picture):
        return picture[0, 0]


class BrightBits(Bright):
    """Bytes of 0 and 1."""

    space = Box(0, 1, (3,), np.uint8)

    def show(self, picture):
        return picture[0, 0] // 255


class BrightTiny(Bright):
    """An image that is too small for convolutions."""

    space = Box(0, 255, (2, 2, 3), np.uint8)

    def show(self, picture):
        return picture[:2, :2]


class NanReward(Base):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float("nan") if self.t == 10 else 1.0, *rest


class InfReward(Base):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float("-inf") if self.t == 3 else 1.0, *rest


class NanObs(Base):
    def obs(self):
        return np.array([1, np.nan if self.t == 7 else 2, 3], np.float32)


class NanStart(Base):
    def obs(self):
        return np.array([1, 2, np.inf if self.t == 0 else 3], np.float32)


class NanEnd(Base):
    """Cut short with an observation that is not finite."""

    def obs(self):
        return np.array([np.nan if self.t == self.length else 1, 2, 3], np.float32)

    def step(self, action):
        obs, reward, end, _, info = super().step(action)
        return obs, reward, False, end, info


class NanAlways(Base):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float("nan"), *rest


class Text(Space):
    """Of a kind that gymnasium does not know, as MiniGrid's missions are."""

    def __init__(self):
        super().__init__(dtype=str)

    def __repr__(self):
        return "Text()"

    def sample(self, mask=None, probability=None):
        return "go"

    def contains(self, x):
        return True


class KeyErrorInit(Base):
    def __init__(self, **settings):
        {}["mapname"]


class SilentInit(Base):
    def __init__(self, **settings):
        raise AssertionError


class Raises(Base):
    def step(self, action):
        raise RuntimeError("the simulator is gone")


class WrongShape(Base):
    def obs(self):
        return np.zeros(4, np.float32)


class Doubles(Base):
    """Changes the action that it is given."""

    actions = Box(-np.inf, np.inf, (2,), np.float32)

    def step(self, action):
        action *= 2
        return super().step(action)


class Pairs(Base):
    """Two numbers are shown, and an action of two numbers should repeat them: random 7 of 40, best 40."""

    space = MultiDiscrete([3, 5])
    actions = MultiDiscrete([3, 5])

    def obs(self):
        self.right = self.np_random.integers([3, 5])
        return self.right

    def step(self, action):
        reward = float((action == self.right).sum())
        obs, _, *rest = super().step(action)
        return obs, reward, *rest


class Bits(Pairs):
    """The same with MultiBinary: random 40 of 80, best 80."""

    space = MultiBinary(4)
    actions = MultiBinary(4)

    def obs(self):
        self.right = self.np_random.integers(2, size=4).astype(np.int8)
        return self.right


class Slow(Base):
    """Its observation has the process that it is in."""

    space = Box(0, 2**31, (1,), np.float64)

    def obs(self):
        return np.array([float(os.getpid())])


class SameStep(SyncVectorEnv):
    def __init__(self, num_envs, autoreset_mode=AutoresetMode.NEXT_STEP, **kwargs):
        super().__init__([lambda: InPlaceEnds()] * num_envs, autoreset_mode=autoreset_mode)


class Fours(SameStep):
    def __init__(self, num_envs, autoreset_mode=AutoresetMode.NEXT_STEP):
        if num_envs % 4:
            raise ValueError(f"num_envs={num_envs} must be a multiple of 4")
        super().__init__(num_envs, autoreset_mode)


class Players(SameStep):
    """Two players of each game."""

    def __init__(self, num_envs, autoreset_mode=AutoresetMode.NEXT_STEP):
        super().__init__(2 * num_envs, autoreset_mode)


class Disabled(SyncVectorEnv):
    def __init__(self, num_envs, max_episode_steps=None):
        super().__init__([lambda: InPlaceEnds()] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


class NextStep(SyncVectorEnv):
    def __init__(self, num_envs, max_episode_steps=None):
        super().__init__([lambda: InPlaceEnds()] * num_envs)


class Numbers(gym.Env):
    observation_space = Discrete(5)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        return 3, {}


class NumbersVector(SyncVectorEnv):
    def __init__(self, num_envs):
        super().__init__([Numbers] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


class InPlaceEnds(InPlace):
    """Cut short by itself."""

    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs.copy(), reward, False, self.t >= 10, {}


ACTIONS = {  # name -> space
    "Half": Box(0, np.inf, (2,)),
    "HalfAbove": Box(-np.inf, np.array([1, 50], np.float32)),
    "Bytes": Box(-128, 127, (2,), np.int8),
    "Longs": Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    "Unsigned": Box(0, np.iinfo(np.uint64).max, (1,), np.uint64),
    "Huge": Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (2,)),
    "Mixed": Box(np.array([-1, -np.inf, 0, 5], np.float32), np.array([3, np.inf, np.inf, 5], np.float32)),
    "Matrix": Box(-2, 2, (2, 3)),
    "Scalar": Box(-2, 2, ()),
    "Half16": Box(-0.3, 0.3, (2,), np.float16),
    "Double": Box(-1e-3, 7.0, (2,), np.float64),
    "Start": Discrete(3, start=5),
    "Multi": MultiDiscrete([2, 3, 4]),
    "MultiMatrix": MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]),
    "Binary": MultiBinary(3),
    "BinaryMatrix": MultiBinary((2, 2)),
}
OBSERVATIONS = {  # name -> space, shape and type that the agent sees
    "Number": (Box(-1, 1, ()), (1,), np.float32),
    "Rows": (Box(0, 255, (20, 30), np.uint8), (1, 20, 30), np.uint8),
    "Colours": (CAMERA, (3, 16, 16), np.uint8),
    "First": (Box(0, 255, (2, 16, 16), np.uint8), (2, 16, 16), np.uint8),
    "Deep": (Box(0, 255, (7, 7, 20), np.uint8), (20, 7, 7), np.uint8),
    "Wide": (Box(0, 255, (20, 30, 6), np.uint8), (6, 20, 30), np.uint8),
    "Stack": (Box(0, 255, (4, 16, 16, 3), np.uint8), (12, 16, 16), np.uint8),
    "OnlyCamera": (Dict(cam=CAMERA), (3, 16, 16), np.uint8),
    "Cameras": (Dict(a=CAMERA, b=Box(0, 255, (16, 16), np.uint8)), (1024,), np.uint8),
    "CameraAndMore": (Dict(cam=CAMERA, at=Discrete(4), deep=Dict(x=Box(-1, 1, (2,)))), (774,), np.float32),
    "Floats": (Dict(b=Box(-1, 1, (2, 2)), a=Discrete(3)), (7,), np.float32),
    "ByteVector": (Box(0, 255, (128,), np.uint8), (128,), np.uint8),
    "Multi": (MultiDiscrete([2, 3]), (5,), np.float32),
}
REFUSED = {  # name -> space of observations and what is said of it
    "Sequence": (Sequence(Box(-1, 1, (2,))), r"Sequence .*which are not a fixed number"),
    "Graph": (Graph(Box(-1, 1, (2,)), None), r"Graph .*which are not a fixed number"),
    "Mission": (Dict(image=CAMERA, mission=Text()), r"Text Text\(\) in Dict\(.*which are not a fixed number"),
    "Empty": (Box(-1, 1, (0,)), r"Box .*which are not a fixed number"),
}
REFUSED_ACTIONS = {
    "Tuple": Tuple([Discrete(2), Discrete(3)]),
    "Dict": Dict(a=Discrete(2)),
    "Nothing": Box(-1, 1, (0,)),
}

for name, space in ACTIONS.items():
    gym.register(f"Actions{name}-v0", type(f"Actions{name}", (Base,), {"actions": space}))
for name, (space, *_) in OBSERVATIONS.items():
    gym.register(f"Shows{name}-v0", type(f"Shows{name}", (Base,), {"space": space}))
for name, (space, _) in REFUSED.items():
    gym.register(f"Refused{name}-v0", type(f"Refused{name}", (Base,), {"space": space}))
for name, space in REFUSED_ACTIONS.items():
    gym.register(f"RefusedActions{name}-v0", type(f"RefusedActions{name}", (Base,), {"actions": space}))
for kind in (
    InPlace, InPlaceDict, BrightDict, BrightTuple, BrightRows, BrightStack, BrightBytes, BrightBits, BrightTiny,
    NanReward, InfReward, NanObs, NanStart, NanEnd, NanAlways, KeyErrorInit, SilentInit, Raises, WrongShape, Doubles,
    Pairs, Bits, Slow,
):  # fmt: skip
    gym.register(f"{kind.__name__}-v0", kind, max_episode_steps=10 if issubclass(kind, InPlace) else None)
gym.register("Numbers-v0", Numbers, vector_entry_point=NumbersVector)
for vector in (SameStep, Fours, Players, Disabled, NextStep):
    gym.register(f"{vector.__name__}-v0", InPlaceEnds, vector_entry_point=vector)
