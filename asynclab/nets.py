"""Torsos and heads.  N: batch, F: features.

A torso turns observations [N, ...] into features [N, F]; it belongs to the environment.  The heads belong to the
agent.  Both are initialised orthogonally (Saxe et al., 2014).  A torso may compute in bfloat16 (``bind``); its
features are float32 in any case.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt
from typing import Protocol, TypeVar

import torch
from gymnasium.spaces import Box
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu

from asynclab import check, flat
from asynclab.layout import is_image

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Torso(Protocol):
    """Builds a torso for an observation space and, for a critic Q(s, a), an action of ``action_dim`` numbers."""

    def __call__(self, space: Box, action_dim: int = 0) -> "TorsoModule":
        """Return a new torso."""


class TorsoModule(nn.Module, ABC):
    """A torso in two steps, so that what depends on the observation alone is computed once for several actions.

    Attributes:
        features: F.
    """

    features: int

    @abstractmethod
    def encode(self, obs: Tensor) -> Tensor:
        """Return [N, H] for observations [N, ...], as ``join`` takes it."""

    @abstractmethod
    def join(self, encoded: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features [N, F] float32 for encoded observations and, for a critic Q(s, a), actions [N, A]."""

    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features [N, F] float32 for observations [N, ...] and actions [N, A]."""
        return self.join(self.encode(obs), action)


def bind(module: nn.Module, weights: flat.Vector, grad: flat.Vector | None = None) -> None:
    """Bind as ``flat.bind``; the torsos in ``module`` compute in bfloat16 if the weights come in it too."""
    if weights.low is not None:
        for torso in module.modules():
            if isinstance(torso, TorsoModule):
                torso.to(torch.bfloat16)
    flat.bind(module, weights, grad)


def is_convolutional(module: nn.Module) -> bool:
    """Return whether there are torsos in ``module``, and convolutions in each of them."""
    torsos = [torso for torso in module.modules() if isinstance(torso, TorsoModule)]
    kinds = nn.Conv1d, nn.Conv2d, nn.Conv3d
    return bool(torsos) and all(any(isinstance(layer, kinds) for layer in torso.modules()) for torso in torsos)


def linear(inputs: int, outputs: int, gain: float = sqrt(2)) -> nn.Linear:
    """Return a dense layer with orthogonal weights and zero bias; the gain fits a following ReLU by default."""
    return _orthogonal(nn.Linear(inputs, outputs), gain)


class Dense(nn.Module):
    """Dense layers, each followed by a ReLU, on inputs [N, I] and an action that is joined to them.

    The first layer is kept in two parts, for inputs and action, but initialised as one.

    Args:
        inputs: I.
        action_dim: Numbers of an action, 0 for none.
        hidden: Width of each layer.
        layer_norm: Normalise what each layer gives before the ReLU (Ba et al., 2016).
    """

    def __init__(self, inputs: int, action_dim: int, hidden: Sequence[int], layer_norm: bool = False) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("env.torso.hidden=[] must have the width of at least one dense layer")
        check.flag("env.torso.layer_norm", layer_norm)
        joint = linear(inputs + action_dim, hidden[0])
        self.first = nn.Linear(inputs, hidden[0])
        self.first.load_state_dict({"weight": joint.weight[:, :inputs], "bias": joint.bias})
        self.action = None
        if action_dim:
            self.action = nn.Linear(action_dim, hidden[0], bias=False)
            self.action.load_state_dict({"weight": joint.weight[:, inputs:]})
        self.norm = nn.LayerNorm(hidden[0]) if layer_norm else nn.Identity()
        rest: list[nn.Module] = []
        for i, o in pairwise(hidden):
            rest += [linear(i, o), *([nn.LayerNorm(o)] if layer_norm else []), nn.ReLU(inplace=True)]
        self.rest = nn.Sequential(*rest)

    def encode(self, x: Tensor) -> Tensor:
        """Return the part of the first layer that does not depend on the action, [N, H]."""
        return self.first(x)

    def join(self, encoded: Tensor, action: Tensor | None) -> Tensor:
        """Return the output of the last layer, float32."""
        if self.action is not None:
            assert action is not None
            encoded = encoded + self.action(action.to(encoded.dtype))
        return self.rest(relu(self.norm(encoded))).float()


class MLPTorso(TorsoModule):
    """Dense layers on a flat observation (and action)."""

    def __init__(self, space: Box, action_dim: int = 0, *, hidden: Sequence[int], layer_norm: bool = False) -> None:
        super().__init__()
        self.dense = Dense(prod(space.shape), action_dim, hidden, layer_norm)
        self.features = hidden[-1]

    def encode(self, obs: Tensor) -> Tensor:
        """Return [N, H]."""
        return self.dense.encode(obs.flatten(1).to(self.dense.first.weight.dtype))

    def join(self, encoded: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features [N, F]."""
        return self.dense.join(encoded, action)


class PixelConv(nn.Conv2d):
    """A convolution on pixels in 0..255, scaled to 0..1: the few weights are scaled instead of the many pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x / 255."""
        return conv2d(x, self.weight * (1 / 255), self.bias, self.stride)


class ConvTorso(TorsoModule):
    """Convolutions on a stack of images [N, C, H, W] in 0..255, then dense layers (on which an action is joined).

    Args:
        space: Observation space of shape (C, H, W).
        action_dim: Numbers of an action, 0 for none.
        conv: One [channels, kernel, stride] per layer.
        hidden: Width of each dense layer.
        layer_norm: Normalise what each layer gives before the ReLU, an image's channels and places together.
    """

    def __init__(
        self,
        space: Box,
        action_dim: int = 0,
        *,
        conv: Sequence[Sequence[int]],
        hidden: Sequence[int],
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if len(space.shape) != 3:
            raise ValueError(f"env.torso needs images [C, H, W], and this env shows {space.shape}; use env=gym")
        if not conv or any(len(layer) != 3 for layer in conv):
            raise ValueError(f"env.torso.conv={conv} must have [channels, kernel, stride] for each layer")
        layers: list[nn.Module] = []
        channels = space.shape[0]
        for out, kernel, stride in conv:
            make = nn.Conv2d if layers else PixelConv
            norm = [nn.GroupNorm(1, out)] if layer_norm else []
            layers += [_orthogonal(make(channels, out, kernel, stride)), *norm, nn.ReLU(inplace=True)]
            channels = out
        self.conv = nn.Sequential(*layers)
        try:
            with torch.no_grad():
                inputs = self.conv(torch.zeros(1, *space.shape)).numel()
        except RuntimeError as error:
            raise ValueError(f"env.torso.conv={conv} does not fit images of {space.shape}: {error}") from error
        self.dense = Dense(inputs, action_dim, hidden, layer_norm)
        self.features = hidden[-1]

    def encode(self, obs: Tensor) -> Tensor:
        """Return [N, H]."""
        x = obs.to(self.dense.first.weight.dtype, memory_format=torch.channels_last)
        return self.dense.encode(self.conv(x).flatten(1))

    def join(self, encoded: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features [N, F]."""
        return self.dense.join(encoded, action)


class LSTM(nn.Module):
    """A layer that remembers (Hochreiter & Schmidhuber, 1997).  H: cells.

    Args:
        features: F.
        cells: H.
    """

    def __init__(self, features: int, cells: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(features, cells)
        for name, p in self.cell.named_parameters():
            nn.init.zeros_(p) if "bias" in name else nn.init.orthogonal_(p)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        """Return the state [2, B, H] after features [B, F]; its first half is the output."""
        return torch.stack(self.cell(features, (state[0], state[1])))


def auto_torso(
    space: Box,
    action_dim: int = 0,
    *,
    conv: Sequence[Sequence[int]],
    hidden: Sequence[int],
    layer_norm: bool = False,
) -> TorsoModule:
    """Return the torso that fits the observation: convolutions for images [C, H, W] of bytes, else dense layers."""
    if is_image(space):
        return ConvTorso(space, action_dim, conv=conv, hidden=hidden, layer_norm=layer_norm)
    return MLPTorso(space, action_dim, hidden=hidden, layer_norm=layer_norm)


def _orthogonal(layer: Layer, gain: float = sqrt(2)) -> Layer:
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
