"""What is told, where a run is recorded or repeated (``simulation.tape``), of all that sessions see of each other."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor


class Tape(Protocol):
    """A session's own."""

    def for_session(self, rank: int) -> "Tape":
        """Return that of a session."""

    def clock(self, frames: int) -> int:
        """Return what the session is to take for the global clock, which shows ``frames``."""

    def alone(self) -> AbstractContextManager[None]:
        """Return a context in which no other session pushes or pulls."""

    def pushed(self, rank: int, update: int, pulled: int, theta: Tensor) -> None:
        """Take note of an update; the session must still be alone.

        Args:
            rank: Of the session.
            update: Its number, from 1, which is the version of theta that it made.
            pulled: Version of theta that the gradient was of.
            theta: [P] after it.
        """


def alone(tape: Tape | None) -> AbstractContextManager[None]:
    """Return a context in which no other session pushes or pulls, if that is recorded."""
    return nullcontext() if tape is None else tape.alone()
