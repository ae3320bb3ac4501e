"""How an episode came about, so that a resumed run can go on with it."""

import json
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray


class Traced(gym.Wrapper):
    """Remembers how its present episode came about: the state of its random numbers, and the actions since."""

    LIMIT = 50_000  # actions; a longer episode is not remembered

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._seed: int | None = None
        self._rng: Mapping[str, Any] | None = None  # before the episode's reset; None if the seed says it
        self._known = True  # whether the random numbers are of a kind that we can keep
        self._actions: list[NDArray[Any]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        if seed is None:
            try:
                self._rng = self.unwrapped.np_random.bit_generator.state
                json.dumps(self._rng)
            except (AttributeError, TypeError):  # not numpy's default generator
                self._known = False
        else:
            self._seed, self._rng = seed, None
        self._actions = []
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, _needed(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; an episode's last observation is a copy, which the next reset cannot change."""
        if len(self._actions) <= self.LIMIT:
            self._actions.append(np.array(action))
        obs, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            obs = np.array(obs)
        return obs, reward, terminated, truncated, _needed(info)

    def state_dict(self) -> dict[str, Any]:
        """Return what ``retrace`` needs; empty if it is not known."""
        if not self._known or len(self._actions) > self.LIMIT:
            return {}
        actions = torch.from_numpy(np.array(self._actions)) if self._actions else None
        return {"seed": self._seed, "rng": self._rng, "actions": actions}

    def retrace(self, state: Mapping[str, Any]) -> Any:
        """Repeat the episode and return its last observation; None if that is not possible."""
        if not state:
            return None
        obs, _ = self.reset(seed=state["seed"])
        if state["rng"] is not None:
            self.unwrapped.np_random.bit_generator.state = state["rng"]
            obs, _ = self.reset()
        actions = [] if state["actions"] is None else list(state["actions"].numpy())
        for action in actions:
            obs, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                return None
        return obs


def _needed(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what training needs of an info, the lives of an Atari game: vectors of gymnasium would gather the rest."""
    lives = info.get("lives")
    return {"lives": int(lives)} if isinstance(lives, (int, np.integer)) else {}
