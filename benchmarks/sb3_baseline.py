"""Throughput of stable-baselines3 on one of our configurations; ``benchmarks/throughput.py sb3=true`` calls it.

Its argument is JSON (see there); it prints JSON with frames and updates per second.  PPO where our agent has epochs,
else A2C where our memory is a rollout, and SAC where it is a replay; the environment, the layers, the batch and the
updates per frame are ours, the rest is theirs.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv
from torch import Tensor, nn

from asynclab.envs import is_atari, make_envs

WARM_UP = 2.0  # seconds after the first update that do not count


class Adapter(VecEnv):
    """Our vector environment as stable-baselines3 wants it.

    Args:
        first_seed: Of the first environment; the others have those that follow.
        make: Arguments of ``make_envs``.
    """

    def __init__(self, first_seed: int = 0, **make: Any) -> None:
        self.first_seed = first_seed
        self.envs = make_envs(**make)
        super().__init__(self.envs.num_envs, self.envs.obs_space, self.envs.action_space)

    def reset(self) -> np.ndarray:
        """Return first observations [B, ...]."""
        return self.envs.reset([self.first_seed + b for b in range(self.num_envs)]).copy(order="C")

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions."""
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        """Return observations, rewards, ends and what else there is to say of each environment."""
        step = self.envs.step(self.actions)
        infos: list[dict] = [{} for _ in range(self.num_envs)]
        done = step.terminated | step.truncated
        for b in np.flatnonzero(done):
            last = step.final_obs.get(int(b), step.obs[b])  # a terminal state's observation is never looked at
            infos[b] = {"terminal_observation": last, "TimeLimit.truncated": bool(step.truncated[b])}
        for episode in step.episodes:
            infos[episode.env]["episode"] = {"r": episode.ret, "l": episode.length}  # what their Monitor would say
        return step.obs.copy(order="C"), step.reward, done, infos

    def close(self) -> None:
        """Free the emulators."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of each environment; they have none but the render mode."""
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Do nothing."""

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Do nothing."""
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False for each environment."""
        return [False] * self.num_envs


class Layers(BaseFeaturesExtractor):
    """Convolutions and dense layers as in our configuration, in plain torch."""

    def __init__(self, space: Box, conv: list[list[int]], hidden: list[int]) -> None:
        super().__init__(space, hidden[-1])
        layers: list[nn.Module] = []
        channels = space.shape[0]
        for out, kernel, stride in conv:
            layers += [nn.Conv2d(channels, out, kernel, stride), nn.ReLU()]
            channels = out
        layers.append(nn.Flatten())
        width = nn.Sequential(*layers)(torch.zeros(1, *space.shape)).numel()
        for out in hidden:
            layers += [nn.Linear(width, out), nn.ReLU()]
            width = out
        self.layers = nn.Sequential(*layers)

    def forward(self, obs: Tensor) -> Tensor:
        """Return features [N, F]; stable-baselines3 has scaled pixels to 0..1."""
        return self.layers(obs)


class Stopwatch(BaseCallback):
    """Ends the training when the time is up, and knows what was done in it: whole rounds of steps and updates.

    Args:
        seconds: At least so long.
        updates: To each that the model counts: PPO counts epochs.
    """

    def __init__(self, seconds: float, updates: float = 1.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.updates = updates
        self.last = 0
        self.first_update: float | None = None
        self.start: tuple[float, int, int] | None = None
        self.rates: dict[str, float] = {}

    def _on_step(self) -> bool:
        now, frames, updates = time.perf_counter(), self.model.num_timesteps, self.model._n_updates
        if updates == self.last:
            return True
        self.last = updates
        if self.first_update is None:
            self.first_update = now
        if now - self.first_update < WARM_UP:
            return True
        if self.start is None:
            self.start = (now, frames, updates)
        passed, frames, updates = now - self.start[0], frames - self.start[1], updates - self.start[2]
        if passed < self.seconds:
            return True
        self.rates = {"frames": frames / passed, "updates": self.updates * updates / passed}
        return False


def main(settings: dict[str, Any]) -> dict[str, float]:
    """Train for some seconds and return frames and updates per second."""
    torch.set_num_threads(settings["threads"])
    make = {k: v for k, v in settings["env"].items() if not k.startswith("_")}
    memory, torso, agent = settings["memory"], settings["torso"], settings["agent"]
    if is_atari(make["id"]):
        make["num_threads"] = settings["threads"]
    env = Adapter(**make)
    images = len(env.observation_space.shape or ()) == 3
    on_policy = "horizon" in memory
    policy: dict[str, Any] = {"activation_fn": nn.ReLU}
    if images or on_policy:  # one torso for actor and critic, as ours; SAC's networks have one each
        layers = {"conv": torso["conv"] if images else [], "hidden": torso["hidden"]}
        policy |= {"features_extractor_class": Layers, "features_extractor_kwargs": layers, "net_arch": []}
    else:
        policy["net_arch"] = torso["hidden"]
    if on_policy:
        policy["optimizer_class"] = torch.optim.Adam
    common = {"env": env, "policy_kwargs": policy, "seed": settings["seed"], "device": settings["device"]}
    name = "CnnPolicy" if images else "MlpPolicy"
    minibatches = 1.0
    if "epochs" in agent:
        minibatches = memory["horizon"] * env.num_envs / agent["minibatch_size"]
        model: Any = PPO(
            name, n_steps=memory["horizon"], batch_size=agent["minibatch_size"], n_epochs=agent["epochs"], **common
        )
    elif on_policy:
        model = A2C(name, n_steps=memory["horizon"], use_rms_prop=False, **common)
    else:
        per_step = memory["updates_per_frame"] * env.num_envs
        every = max(1, round(1 / per_step))
        model = SAC(
            name, buffer_size=memory["capacity"], batch_size=memory["batch_size"], learning_starts=memory["start"],
            train_freq=every, gradient_steps=max(1, round(per_step * every)), **common,
        )  # fmt: skip
    stopwatch = Stopwatch(settings["seconds"], minibatches)
    model.learn(total_timesteps=10**9, callback=stopwatch)
    return stopwatch.rates


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
