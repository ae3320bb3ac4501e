"""Batches of literal shapes for agents, and agents bound to vectors of their own."""

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from asynclab import flat
from asynclab.flat import Vector
from asynclab.memory import ReplayBatch, RolloutBatch

OBS = Box(-np.inf, np.inf, (5,), np.float32)
BOX = Box(-1.0, 1.0, (2,), np.float32)
T, B = 6, 4


def bound(agent, bf16=False):
    """Bind the agent to vectors of its own; return weights and gradient [P], and how to complete the gradient."""
    weights = Vector.make(flat.flatten(agent.nets), bf16)
    grad = Vector.make(torch.zeros_like(weights.full), bf16)
    agent.bind(weights, grad)
    agent.start(B)
    return weights.full, grad.full, grad.gather_


def gradient(agent, batch):
    """Return the gradient [P] of the sum of the agent's losses."""
    _, grad, gather = bound(agent)
    sum(agent.loss(batch, 0.0)[0].values()).backward()
    gather()
    return grad


def rollout(action_space):
    """Return T steps of B environments, in which one episode terminates and one is truncated."""
    g = torch.Generator().manual_seed(0)
    done, terminated = torch.zeros(T, B, dtype=torch.bool), torch.zeros(T, B, dtype=torch.bool)
    done[2, 1] = terminated[2, 1] = True
    done[3, 2] = True  # truncated
    discrete = isinstance(action_space, Discrete)
    return RolloutBatch(
        obs=torch.randn(T + 1, B, 5, generator=g),
        action=torch.randint(3, (T, B), generator=g) if discrete else torch.randn(T, B, 2, generator=g),
        reward=torch.randn(T, B, generator=g),
        terminated=terminated,
        done=done,
        final_index=torch.tensor([3 * B + 2]),
        final_obs=torch.randn(1, 5, generator=g),
    )


def replayed(action_space=BOX, n=32, discount=1.0):
    """Return n transitions, a quarter of them terminal."""
    g = torch.Generator().manual_seed(0)
    obs, next_obs = torch.randn(2, n, 5, generator=g)
    if isinstance(action_space, Discrete):
        action = torch.randint(int(action_space.n), (n,), generator=g)
    else:
        action = torch.rand(n, 2, generator=g) * 2 - 1
    terminated = torch.arange(n) % 4 == 0
    return ReplayBatch(obs, action, torch.randn(n, generator=g), next_obs, terminated, discount * ~terminated)
