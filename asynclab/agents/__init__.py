"""Agents: batch in, losses out.  They see no process and no optimizer."""

from asynclab.agents.a3c import A3C
from asynclab.agents.base import Agent
from asynclab.agents.sac import SAC

__all__ = ["A3C", "SAC", "Agent"]
