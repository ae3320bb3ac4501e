"""Where the numbers of an observation lie in memory, and what they are.

Images keep their shape [C, H, W], but in memory their channels come last: convolutions are fastest so, and turning
every batch around would cost more than turning every observation once.
"""

from math import prod
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import Tensor


class Image(NamedTuple):
    """An image in a flat observation, with its channels last: where it begins, and its shape [C, H, W]."""

    start: int
    shape: tuple[int, int, int]

    @property
    def stop(self) -> int:
        """Return where it ends."""
        return self.start + prod(self.shape)


class Joined(Box):
    """A flat Box in which some of the numbers are images."""

    def __init__(self, low: NDArray, high: NDArray, images: list[Image], dtype: Any) -> None:
        super().__init__(low, high, dtype=dtype)
        self.images = images


def bounded(space: Box, low: Any, high: Any, dtype: Any) -> Box:
    """Return the space with other bounds and another type."""
    low, high = (np.broadcast_to(bound, space.shape).astype(dtype) for bound in (low, high))
    return Joined(low, high, space.images, dtype) if isinstance(space, Joined) else Box(low, high, dtype=dtype)


def is_image(space: Box) -> bool:
    """Return whether observations are images [C, H, W] of bytes."""
    return len(space.shape) == 3 and space.dtype == np.uint8


def scale(space: Box) -> NDArray[np.float32]:
    """Return by what a network multiplies bytes [*space.shape] to have numbers from 0 to 1."""
    assert space.dtype == np.uint8
    return (1 / np.maximum(space.high, 1)).astype(np.float32)


def zeros(shape: tuple[int, ...], space: Box) -> NDArray:
    """Return an array [*shape, *space.shape] of zeros for observations.

    Memory is taken only once it is written: what is never used of a large array costs nothing.
    """
    if not is_image(space):
        return np.zeros((*shape, *space.shape), space.dtype)
    channels, height, width = space.shape
    return np.moveaxis(np.zeros((*shape, height, width, channels), np.uint8), -1, -3)


def copy_to(target: NDArray, obs: NDArray) -> None:
    """Copy observations [N, ...] into an array of ``zeros``, from any layout."""
    if target.flags.c_contiguous or target.strides == obs.strides:
        target[...] = obs
        return
    for channel in range(target.shape[1]):  # numpy turns whole images around three times slower
        target[:, channel] = obs[:, channel]


def take(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return ``x[..., index, ...]``, indexed along ``dim``; images [..., C, H, W] stay as they lie in memory.

    Torch picks what lies so number by number, 60 times slower than whole images.
    """
    if x.dim() < dim + 4:
        return x.index_select(dim, index)
    return x.movedim(-3, -1).index_select(dim, index).movedim(-1, -3)
