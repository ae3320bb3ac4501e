"""Torsos and heads.  N: batch, F: features.

A torso turns observations [N, ...] into features [N, F]; it belongs to the environment.  The heads belong to the
agent.  Both are initialised orthogonally (Saxe et al., 2014).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt
from typing import Protocol, TypeVar

import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Torso(Protocol):
    """Builds a torso for an observation space and, for a critic Q(s, a), an action of ``action_dim`` numbers."""

    def __call__(self, space: Box, action_dim: int = 0) -> "TorsoModule":
        """Return a new torso."""


class TorsoModule(nn.Module):
    """What every torso has: ``features`` and a forward of (obs [N, ...], action [N, A] or None) -> [N, F]."""

    features: int


def linear(inputs: int, outputs: int, gain: float = sqrt(2)) -> nn.Linear:
    """Return a dense layer with orthogonal weights and zero bias; the gain fits a following ReLU by default."""
    return _orthogonal(nn.Linear(inputs, outputs), gain)


def mlp(inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """Return dense layers, each followed by a ReLU."""
    sizes = [inputs, *hidden]
    layers = [(linear(inputs, outputs), nn.ReLU()) for inputs, outputs in pairwise(sizes)]
    return nn.Sequential(*[module for pair in layers for module in pair])


class MLPTorso(TorsoModule):
    """Dense layers on a flat observation (and action)."""

    def __init__(self, space: Box, action_dim: int = 0, *, hidden: Sequence[int]) -> None:
        super().__init__()
        _check_hidden(hidden)
        self.layers = mlp(prod(space.shape) + action_dim, hidden)
        self.features = hidden[-1]

    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features [N, F]."""
        x = obs.flatten(1).float()
        return self.layers(x if action is None else torch.cat([x, action], 1))


class ConvTorso(TorsoModule):
    """Convolutions on a stack of images [N, C, H, W] in 0..255, then dense layers (on which an action is joined).

    Args:
        space: Observation space of shape (C, H, W).
        action_dim: Numbers of an action, 0 for none.
        conv: One [channels, kernel, stride] per layer.
        hidden: Width of each dense layer.
    """

    def __init__(
        self, space: Box, action_dim: int = 0, *, conv: Sequence[Sequence[int]], hidden: Sequence[int]
    ) -> None:
        super().__init__()
        _check_hidden(hidden)
        if len(space.shape) != 3:
            raise ValueError(f"env.torso needs images [C, H, W], and this env shows {space.shape}; use env=gym")
        if any(len(layer) != 3 for layer in conv):
            raise ValueError(f"env.torso.conv={conv} must have [channels, kernel, stride] for each layer")
        layers: list[nn.Module] = []
        channels = space.shape[0]
        for out, kernel, stride in conv:
            layers += [_orthogonal(nn.Conv2d(channels, out, kernel, stride)), nn.ReLU()]
            channels = out
        self.conv = nn.Sequential(*layers)
        try:
            with torch.no_grad():
                flat = self.conv(torch.zeros(1, *space.shape)).numel()
        except RuntimeError as error:
            raise ValueError(f"env.torso.conv={conv} does not fit images of {space.shape}: {error}") from error
        self.dense = mlp(flat + action_dim, hidden)
        self.features = hidden[-1]

    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features [N, F]."""
        x = obs.to(torch.float32, memory_format=torch.channels_last).div_(255)
        x = self.conv(x).flatten(1)
        return self.dense(x if action is None else torch.cat([x, action], 1))


def auto_torso(space: Box, action_dim: int = 0, *, conv: Sequence[Sequence[int]], hidden: Sequence[int]) -> TorsoModule:
    """Return the torso that fits the observation: convolutions for images [C, H, W] of bytes, else dense layers."""
    if len(space.shape) == 3 and space.dtype == "uint8":
        return ConvTorso(space, action_dim, conv=conv, hidden=hidden)
    return MLPTorso(space, action_dim, hidden=hidden)


def _check_hidden(hidden: Sequence[int]) -> None:
    if not hidden:
        raise ValueError("env.torso.hidden=[] must have the width of at least one dense layer")


def _orthogonal(layer: Layer, gain: float = sqrt(2)) -> Layer:
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
