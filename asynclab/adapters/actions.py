"""What the agent does -> what the environment takes, always inside its space.  B: environments, A: numbers.

There is one such mapping, for training, evaluation, videos and ``asynclab.load``.
"""

from math import isfinite
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from numpy.typing import NDArray

from asynclab.adapters.plain import UnfitSpace

HUGE = 1e15  # a bound as large as the largest float or integer means that there is none


class Actions:
    """A space of an environment, and the agent's.

    Attributes:
        plain: The environment's.
        space: The agent's: a Discrete from 0, a MultiDiscrete [A] from 0, or a Box [A] that is [-1, 1] where the
            environment's is bounded, [0, inf) or (-inf, 0] where it has a bound on one side, and all numbers elsewhere.

    Args:
        space: The environment's: Discrete, MultiDiscrete, MultiBinary or a Box, of any shape.

    Raises:
        UnfitSpace: It is of another kind, or has no numbers.
    """

    def __init__(self, space: Space) -> None:
        self.plain: Any = space
        self.space: Box | Discrete | MultiDiscrete
        if isinstance(space, Discrete):
            self._start: Any = int(space.start)
            self.space = Discrete(int(space.n))
        elif isinstance(space, MultiDiscrete) and space.nvec.size:
            self._start = space.start.ravel()
            self.space = MultiDiscrete(space.nvec.ravel())
        elif isinstance(space, MultiBinary) and np.prod(space.shape):
            self._start = 0
            self.space = MultiDiscrete(np.full(int(np.prod(space.shape)), 2))
        elif isinstance(space, Box) and np.prod(space.shape):
            self.space = self._agents_box(space)
        else:
            raise UnfitSpace(f"actions {space}; they must be Discrete, MultiDiscrete, MultiBinary or a Box of numbers")

    def _agents_box(self, space: Box) -> Box:
        """Set how actions are mapped and return the agent's space."""
        # whole and half numbers are computed in float64, which has all of them; others as the environment has them
        dtype: Any = space.dtype if space.dtype in (np.float32, np.float64) else np.float64
        low, high = (bound.ravel().astype(dtype) for bound in (space.low, space.high))
        below, above = low > -HUGE, high < HUGE  # whether there is a bound
        both = below & above
        one = np.ones_like(low)
        limit = HUGE if space.dtype.kind in "iub" else np.inf  # what an integer could not hold
        with np.errstate(over="ignore", invalid="ignore"):  # of what is not chosen
            self._middle = np.where(both, (high + low) / 2, np.where(below, low, np.where(above, high, 0 * one)))
            self._half = np.where(both, (high - low) / 2, one)
        self._low, self._high = (np.where(below, low, -limit).astype(dtype), np.where(above, high, limit).astype(dtype))
        unit_low = np.where(both, -1.0, np.where(below, 0.0, -np.inf)).astype(np.float32)
        unit_high = np.where(both, 1.0, np.where(above, 0.0, np.inf)).astype(np.float32)
        return Box(unit_low, unit_high, dtype=np.float32)

    def __call__(self, action: NDArray[Any]) -> NDArray[Any]:
        """Return actions as the vector environment takes them; never the array that was given.

        Args:
            action: [B] int64, [B, A] int64 or [B, A] float32.  NaN is in the middle of its bounds, what is
                infinite at one.
        """
        space = self.plain
        if isinstance(space, Discrete):
            return action + self._start
        if not isinstance(space, Box):
            return (action + self._start).reshape(-1, *space.shape).astype(space.dtype, copy=False)
        assert isinstance(self.space, Box)
        if not isfinite(np.vdot(action, action)):  # the sum is finite only if all of them are
            action = np.nan_to_num(action)
        unit = np.minimum(np.maximum(action, self.space.low), self.space.high)
        # rescaling can round beyond the bounds
        scaled = np.minimum(np.maximum(self._middle + self._half * unit, self._low), self._high)
        if space.dtype.kind in "iub":
            scaled = np.rint(scaled)
        return scaled.reshape(-1, *space.shape).astype(space.dtype, copy=False)

    def numbers(self) -> dict[str, Any]:
        """Return what actions are mapped by: ``start`` of whole numbers; of a Box what ``__call__`` computes with."""
        if not isinstance(self.plain, Box):
            return {"start": self._start}
        assert isinstance(self.space, Box)
        own = {"middle": self._middle, "half": self._half, "low": self._low, "high": self._high}
        return own | {"unit_low": self.space.low, "unit_high": self.space.high}

    def one(self, action: NDArray[Any]) -> Any:
        """Return one action, [] int64, [A] int64 or [A] float32, as the plain environment takes it."""
        mapped = self(action[None])[0]
        return int(mapped) if isinstance(self.plain, Discrete) else np.asarray(mapped)
