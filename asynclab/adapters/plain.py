"""Observations of a plain environment -> one array, as agents see them.

Bytes stay bytes where all of an observation is, and whoever computes with them divides by the space's upper bounds;
among other numbers they are divided here.  Two, three or four dimensions of bytes are an image [H, W], [C, H, W] or
[H, W, C], or a stack of these; they become [C, H, W], with the stack's channels one after the other.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Space, Tuple, flatten, flatten_space
from numpy.typing import NDArray

from asynclab.layout import Image, Joined

Convert = Callable[[Any], Any]  # an observation [*shape] as the environment gives it -> one array


class UnfitSpace(ValueError):  # noqa: N818 - what it is, is said by its message
    """An environment has a space that agents cannot have; the message has it and why."""


class Boxed(gym.wrappers.TransformObservation):
    """Makes the observation one array; images get their channels first, as torch has them."""


def box_observation(env: gym.Env) -> gym.Env:
    """Return the environment with observations of one array.

    Raises:
        UnfitSpace: Its observations are not of a fixed number of numbers.
    """
    space, convert = observations(env.observation_space)
    return env if convert is None else Boxed(env, convert, space)


def observations(space: Space) -> tuple[Box, Convert | None]:
    """Return the space of one array, and what turns observations into it; None if they are.

    Raises:
        UnfitSpace: They are not of a fixed number of numbers.
    """
    leaves = list(_leaves(space))
    for leaf, _ in leaves:
        _check(leaf, space)
    if isinstance(space, Box):
        return _convert_box(space)
    only, take = leaves[0]
    if len(leaves) == 1 and isinstance(only, Box) and _is_picture(only):
        box, convert = _convert_box(only)
        return box, partial(_chain, take, convert)
    if not any(isinstance(leaf, Box) and leaf.dtype == np.uint8 for leaf, _ in leaves):
        flat: Any = flatten_space(space)
        return flat, lambda obs: flatten(space, obs)
    return _join(leaves)


def _chain(take: Convert, convert: Convert | None, obs: Any) -> Any:
    return take(obs) if convert is None else convert(take(obs))


def _leaves(space: Space, path: tuple[Any, ...] = ()) -> Iterator[tuple[Space, Convert]]:
    """Yield the spaces that a Dict or Tuple consists of, and what takes each one's part of an observation."""
    if isinstance(space, (Dict, Tuple)):
        items = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        for key, part in items:
            yield from _leaves(part, (*path, key))
    else:
        yield space, partial(_take, path)


def _take(path: tuple[Any, ...], obs: Any) -> Any:
    for key in path:
        obs = obs[key]
    return obs


def _check(leaf: Space, whole: Space) -> None:
    within = "" if leaf is whole else f" in {whole}"
    try:
        flat = flatten_space(leaf)
    except NotImplementedError:
        flat = None
    if not isinstance(flat, Box) or not prod(flat.shape):
        kind = f"{type(leaf).__name__}{'' if str(leaf).startswith('<') else f' {leaf}'}"
        raise UnfitSpace(f"observations of {kind}{within}, which are not a fixed number of numbers")


def _is_picture(space: Space) -> bool:
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3, 4)


def _convert_box(space: Box) -> tuple[Box, Convert | None]:
    if not space.shape:
        return Box(space.low[None], space.high[None], dtype=space.dtype.type), lambda obs: np.reshape(obs, (1,))
    shape = space.shape
    if not _is_picture(space) or (len(shape) == 3 and not _has_channels_last(shape)):
        return space, None
    low, high = picture(space.low, shape), picture(space.high, shape)
    return Box(low, high, dtype=np.uint8), lambda obs: picture(obs, shape)


def picture(obs: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Return images or stacks of them [..., *shape] as [..., C, H, W]."""
    if len(shape) == 2:
        return obs[..., None, :, :]
    if _has_channels_last(shape):
        obs = np.moveaxis(obs, -1, -3)
    return obs if len(shape) == 3 else obs.reshape(*obs.shape[:-4], -1, *obs.shape[-2:])


def _has_channels_last(shape: tuple[int, ...]) -> bool:
    """Return whether an image is [H, W, C]: colours, what is not equal in a square, or what is least."""
    first, middle, last = shape[-3:]
    if last in (1, 3, 4):
        return True
    if first == middle or middle == last:
        return first == middle != last
    return last < first


def _join(leaves: list[tuple[Space, Convert]]) -> tuple[Box, Convert]:
    """Return one flat space of several, of which some are of bytes, and what joins an observation."""
    dtype: Any = np.uint8 if all(leaf.dtype == np.uint8 for leaf, _ in leaves) else np.float32
    parts, lows, highs, images, at = [], [], [], [], 0
    for leaf, take in leaves:
        space, convert = _part(leaf, dtype)
        if len(space.shape) == 3:
            height, width, channels = space.shape
            images.append(Image(at, (channels, height, width)))
        parts.append((take, convert))
        lows.append(space.low.ravel())
        highs.append(space.high.ravel())
        at += prod(space.shape)

    def join(obs: Any) -> NDArray:
        return np.concatenate([convert(take(obs)).ravel() for take, convert in parts]).astype(dtype, copy=False)

    low, high = (np.concatenate(bounds).astype(dtype) for bounds in (lows, highs))
    return (Joined(low, high, images, dtype) if images else Box(low, high, dtype=dtype)), join


def _part(leaf: Space, dtype: Any) -> tuple[Box, Convert]:
    """Return the space of a leaf, [H, W, C] of images and flat of others, and what converts it; bytes to 0..1."""
    if not isinstance(leaf, Box) or leaf.dtype != np.uint8:
        flat: Any = flatten_space(leaf)
        return flat, lambda obs: flatten(leaf, obs)

    def turn(obs: Any) -> NDArray:
        obs = np.asarray(obs)
        return np.moveaxis(picture(obs, leaf.shape), -3, -1) if _is_picture(leaf) else obs.ravel()

    low, high = turn(leaf.low), turn(leaf.high)
    if dtype == np.uint8:
        return Box(low, high, dtype=np.uint8), turn
    most = np.maximum(high, 1).astype(np.float32)
    return Box(low / most, high / most, dtype=np.float32), lambda obs: turn(obs) / most
