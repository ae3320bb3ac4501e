"""Agents: batch in, losses out.  They see no process and no optimizer."""

from asynclab.agents.a3c import A3C
from asynclab.agents.base import Agent
from asynclab.agents.dqn import DQN
from asynclab.agents.nstep_q import NStepQ
from asynclab.agents.ppo import PPO
from asynclab.agents.q_learning import QLearning
from asynclab.agents.sac import SAC, DiscreteSAC, make_sac

__all__ = ["A3C", "DQN", "PPO", "SAC", "Agent", "DiscreteSAC", "NStepQ", "QLearning", "make_sac"]
