"""Environments: what reaches the agent is what a plain environment, reset by hand, would have given it."""

from asynclab.envs.make import is_atari, make_envs, plain, spaces
from asynclab.envs.retrace import Traced
from asynclab.envs.vector import Envs, Episode, Raw, Step

__all__ = ["Envs", "Episode", "Raw", "Step", "Traced", "is_atari", "make_envs", "plain", "spaces"]
