"""Torsos and heads.  N: batch, F: features.

A torso turns observations [N, ...] into features [N, F]; it belongs to the environment.  The heads belong to the
agent.  Both are initialised orthogonally (Saxe et al., 2014).  A torso may compute in bfloat16 (``bind``); its
features are float32 in any case.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, relu

from asynclab import check, flat, precision
from asynclab.layout import Image, Joined, is_image, scale

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
ONEDNN_BATCH = 64  # rows; acting has fewer, and is then as in an evaluation
ONEDNN_PRODUCTS = 2**23  # in a layer; with fewer, oneDNN gains less than its call costs (docs/performance.md)


class Torso(Protocol):
    """Builds a torso for an observation space and, for a critic Q(s, a), an action of ``action_dim`` numbers."""

    def __call__(self, space: Box, action_dim: int = 0) -> "TorsoModule":
        """Return a new torso."""


class TorsoModule(nn.Module, ABC):
    """A torso in two steps, so that what depends on the observation alone is computed once for several actions.

    Attributes:
        features: F.
        dense: The last layers; what has no such layers has a ``join`` of its own.
        has_numbers: Whether there are some beside images, which eight bits would round.
    """

    features: int
    has_numbers = False
    dense: "Dense"

    @abstractmethod
    def encode(self, obs: Tensor) -> Tensor:
        """Return [N, H] for observations [N, ...], as ``join`` takes it."""

    def join(self, encoded: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features [N, F] float32 for encoded observations and, for a critic Q(s, a), actions [N, A]."""
        return self.dense.join(encoded, action)

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
    """Return whether there are torsos in ``module``, with convolutions in each and no numbers beside their images."""
    torsos = [torso for torso in module.modules() if isinstance(torso, TorsoModule)]
    kinds = nn.Conv1d, nn.Conv2d, nn.Conv3d
    if any(torso.has_numbers for torso in torsos):
        return False
    return bool(torsos) and all(any(isinstance(layer, kinds) for layer in torso.modules()) for torso in torsos)


class Linear(nn.Linear):
    """A dense layer.  Where oneDNN is faster, it multiplies what is learned from: smaller batches are acted on."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, O] for x [N, I]."""
        large = self.training and len(x) * self.weight.numel() >= ONEDNN_PRODUCTS and len(x) >= ONEDNN_BATCH
        if large and x.is_cpu and x.dtype is torch.float32 and precision.is_onednn_faster():
            return OneDnn.apply(x, self.weight, self.bias)
        return super().forward(x)


class OneDnn(torch.autograd.Function):
    """y = x W^T + b by oneDNN, float32.  N: batch, I: inputs, O: outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return y [N, O] of x [N, I], W [O, I] and b [O]."""
        ctx.save_for_backward(x, weight)
        return _times_transposed(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of those of x, W and b that need one."""
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _times_transposed(grad, weight.t()) if for_x else None,
            _times_transposed(grad.t(), x.t()) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def _times_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(a, b, bias, "none", [], "")


def linear(inputs: int, outputs: int, gain: float = sqrt(2)) -> nn.Linear:
    """Return a dense layer with orthogonal weights and zero bias; the gain fits a following ReLU by default."""
    return _orthogonal(Linear(inputs, outputs), gain)


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
        if not _are_widths(hidden):
            raise ValueError(
                f"env.torso.hidden={hidden} must be a list of the dense layers' widths, at least one, such as [64, 64]"
            )
        check.flag("env.torso.layer_norm", layer_norm)
        joint = linear(inputs + action_dim, hidden[0])
        self.first = Linear(inputs, hidden[0])
        self.first.load_state_dict({"weight": joint.weight[:, :inputs], "bias": joint.bias})
        self.action = None
        if action_dim:
            self.action = Linear(action_dim, hidden[0], bias=False)
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
    """Dense layers on a flat observation (and action).  Bytes are scaled to 0..1, as their space says."""

    def __init__(self, space: Box, action_dim: int = 0, *, hidden: Sequence[int], layer_norm: bool = False) -> None:
        super().__init__()
        self.dense = Dense(prod(space.shape), action_dim, hidden, layer_norm)
        self.features = hidden[-1]
        self.scale: Tensor | None
        bytes_scale = torch.from_numpy(scale(space).ravel()) if space.dtype == np.uint8 else None
        self.register_buffer("scale", bytes_scale, persistent=False)

    def encode(self, obs: Tensor) -> Tensor:
        """Return [N, H]."""
        x = obs.flatten(1).to(self.dense.first.weight.dtype)
        return self.dense.encode(x if self.scale is None else x * self.scale)


class PixelConv(nn.Conv2d):
    """A convolution on bytes, scaled to 0..1: the few weights are scaled instead of the many pixels."""

    high = 255  # the largest

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x / high."""
        return conv2d(x, self.weight * (1 / self.high), self.bias, self.stride)


class ConvTorso(TorsoModule):
    """Convolutions on images [N, C, H, W], then dense layers (on which an action is joined).

    Bytes are scaled to 0..1 by the largest that their space has.

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
        self.conv = convolutions(space, conv, layer_norm)
        inputs = outputs(self.conv, space.shape)
        self.dense = Dense(inputs, action_dim, hidden, layer_norm)
        self.features = hidden[-1]

    def encode(self, obs: Tensor) -> Tensor:
        """Return [N, H]."""
        x = obs.to(self.dense.first.weight.dtype, memory_format=torch.channels_last)
        return self.dense.encode(self.conv(x).flatten(1))


def convolutions(space: Box, conv: Sequence[Sequence[int]], layer_norm: bool) -> nn.Sequential:
    """Return [channels, kernel, stride] convolutions for images of a space (C, H, W), each with what follows it."""
    if not (isinstance(conv, Sequence) and conv and all(_are_widths(layer) and len(layer) == 3 for layer in conv)):
        raise ValueError(f"env.torso.conv={conv} must have [channels, kernel, stride] for each layer")
    layers: list[nn.Module] = []
    channels = space.shape[0]
    for out, kernel, stride in conv:
        make = nn.Conv2d if layers or space.dtype != np.uint8 else PixelConv
        norm = [nn.GroupNorm(1, out)] if layer_norm else []
        layers += [_orthogonal(make(channels, out, kernel, stride)), *norm, nn.ReLU(inplace=True)]
        channels = out
    if isinstance(layers[0], PixelConv):
        layers[0].high = max(int(space.high.max()), 1)
    sequence = nn.Sequential(*layers)
    if not outputs(sequence, space.shape):
        raise ValueError(f"env.torso.conv={conv} does not fit images of {space.shape}, which are too small")
    return sequence


def outputs(layers: nn.Module, shape: Sequence[int]) -> int:
    """Return how many numbers layers make of an image [C, H, W]; 0 if it is too small for them."""
    try:
        with torch.no_grad():
            return layers(torch.zeros(1, *shape)).numel()
    except RuntimeError:
        return 0


class JoinedTorso(TorsoModule):
    """Convolutions on the images of a flat observation, and dense layers on what they make of it and on the numbers.

    Args:
        space: With the images' places.
        action_dim: Numbers of an action, 0 for none.
        conv: One [channels, kernel, stride] per layer; None for what fits each image.
        hidden: Width of each dense layer.
        layer_norm: Normalise what each layer gives before the ReLU.
    """

    def __init__(
        self,
        space: Joined,
        action_dim: int = 0,
        *,
        conv: Sequence[Sequence[int]] | None,
        hidden: Sequence[int],
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.rest: Tensor
        self.rest_scale: Tensor
        self.images = space.images
        spaces = [picture(space, image) for image in space.images]
        self.convs = nn.ModuleList(
            convolutions(one, layers, layer_norm) if (layers := conv or fitting(one)) else nn.Flatten()
            for one in spaces
        )
        rest = np.ones(space.shape, np.bool_)
        for image in space.images:
            rest[image.start : image.stop] = False
        self.register_buffer("rest", torch.from_numpy(np.flatnonzero(rest)), persistent=False)
        self.has_numbers = bool(rest.any()) and space.dtype != np.uint8
        bytes_scale = scale(space) if space.dtype == np.uint8 else np.ones(space.shape, np.float32)
        self.register_buffer("rest_scale", torch.from_numpy(bytes_scale[rest]), persistent=False)
        # an image without convolutions is as flat as the rest, and scaled here
        self.scales = [
            1.0 if isinstance(layers, nn.Sequential) or one.dtype != np.uint8 else 1 / max(int(one.high.max()), 1)
            for layers, one in zip(self.convs, spaces, strict=True)
        ]
        inputs = sum(outputs(layers, one.shape) for layers, one in zip(self.convs, spaces, strict=True))
        self.dense = Dense(inputs + int(rest.sum()), action_dim, hidden, layer_norm)
        self.features = hidden[-1]

    def encode(self, obs: Tensor) -> Tensor:
        """Return [N, H]."""
        x = obs.to(self.dense.first.weight.dtype)
        parts = [x[:, self.rest] * self.rest_scale]
        for image, layers, factor in zip(self.images, self.convs, self.scales, strict=True):
            channels, height, width = image.shape
            pixels = x[:, image.start : image.stop].view(-1, height, width, channels).movedim(-1, 1)
            parts.append(layers(pixels * factor if factor != 1 else pixels).flatten(1))
        return self.dense.encode(torch.cat(parts, 1).to(x.dtype))


def picture(space: Joined, image: Image) -> Box:
    """Return the space (C, H, W) of one image of a flat observation."""
    channels, height, width = image.shape
    low, high = (x[image.start : image.stop].reshape(height, width, channels) for x in (space.low, space.high))
    return Box(np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0), dtype=space.dtype.type)


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


ATARI = ((32, 8, 4), (64, 4, 2), (32, 3, 1))  # [channels, kernel, stride]; for images of 36 x 36 and more
SMALL = ((32, 3, 2), (64, 2, 1))  # for others, of 5 x 5 and more


def fitting(space: Box) -> Sequence[Sequence[int]] | None:
    """Return convolutions for images of a space (C, H, W); None if it is too small for any."""
    least = min(space.shape[1:])
    return ATARI if least >= 36 else SMALL if least >= 5 else None


def auto_torso(
    space: Box,
    action_dim: int = 0,
    *,
    conv: Sequence[Sequence[int]] | None = None,
    hidden: Sequence[int],
    layer_norm: bool = False,
) -> TorsoModule:
    """Return the torso that fits the observation: convolutions for images of bytes, dense layers for all else.

    Args:
        space: Of one observation.
        action_dim: Numbers of an action, 0 for none.
        conv: One [channels, kernel, stride] per layer; None for what fits, which for tiny images is none.
        hidden: Width of each dense layer.
        layer_norm: Normalise what each layer gives before the ReLU.
    """
    if isinstance(space, Joined):
        return JoinedTorso(space, action_dim, conv=conv, hidden=hidden, layer_norm=layer_norm)
    if is_image(space) and (layers := conv if conv is not None else fitting(space)) is not None:
        return ConvTorso(space, action_dim, conv=layers, hidden=hidden, layer_norm=layer_norm)
    return MLPTorso(space, action_dim, hidden=hidden, layer_norm=layer_norm)


def _are_widths(value: object) -> bool:
    """Return whether it is a list of whole numbers above 0, at least one."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return len(value) > 0 and all(isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in value)


def _orthogonal(layer: Layer, gain: float = sqrt(2)) -> Layer:
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
