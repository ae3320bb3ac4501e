"""Schedules on the global clock.  progress: fraction of the frame budget that all sessions together have used."""

from dataclasses import dataclass
from typing import Protocol

from asynclab import check


class Schedule(Protocol):
    """A factor on a hyperparameter's first value."""

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""


@dataclass(frozen=True)
class Constant:
    """Never changes."""

    def __call__(self, progress: float) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Linear:
    """Stays at 1 until ``begin``, a share of the budget, goes to ``final`` at its end, and stays there."""

    final: float = 0.0
    begin: float = 0.0

    def __post_init__(self) -> None:
        check.number("final", self.final)
        if not 0 <= check.number("begin", self.begin) < 1:
            raise ValueError(f"begin={self.begin} of a linear schedule must be a number from 0 to below 1")

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""
        return 1.0 + (self.final - 1.0) * min(max((progress - self.begin) / (1.0 - self.begin), 0.0), 1.0)
