"""Schedules on the global clock.  progress: fraction of the frame budget that all sessions together have used."""

from dataclasses import dataclass
from typing import Protocol


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
    """Goes from 1 at the start to ``final`` at the end of the budget, and stays there."""

    final: float = 0.0

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""
        return 1.0 + (self.final - 1.0) * min(max(progress, 0.0), 1.0)
