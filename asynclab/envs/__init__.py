"""Environments: what reaches the agent is what a plain environment, reset by hand, would have given it."""

from asynclab.adapters.ids import is_atari, plain
from asynclab.adapters.retrace import Traced
from asynclab.envs.make import make_envs, spaces
from asynclab.envs.vector import Envs, Episode, Raw, Step

__all__ = ["Envs", "Episode", "Raw", "Step", "Traced", "is_atari", "make_envs", "plain", "spaces"]
