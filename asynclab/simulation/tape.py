"""What a session saw of the others, update by update: with it a run is repeated to the bit (``distributed.record``).

Sessions meet in two places: theta, which each steps and copies, and the global clock.  So a line has whose update it
was, which version of theta its gradient was of, and every value of the clock that the session read since its last one.
"""

import os
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from torch import Tensor

from asynclab.distributed.lock import ProcessLock

HEADER = "update,rank,pulled,clocks,sum\n"


class Line(NamedTuple):
    """An update of theta.

    Attributes:
        update: Its number, from 1, which is the version of theta that it made.
        rank: Of the session.
        pulled: Version of theta that the gradient was of.
        clocks: Frames of all sessions, whenever the session has looked since its last update.
    """

    update: int
    rank: int
    pulled: int
    clocks: tuple[int, ...]

    def written(self, theta: Tensor) -> str:
        """Return the line as it is written, with a checksum of itself and of what theta was after the update."""
        text = f"{self.update},{self.rank},{self.pulled},{' '.join(map(str, self.clocks))}"
        return f"{text},{crc32(text.encode(), crc32(theta.numpy().data)):08x}\n"


class Tape:
    """A session's record; the parent makes one, of which each session has its own copy.

    Args:
        path: Of the file that all sessions write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = ProcessLock()
        self._clocks: list[int] = []

    def begin(self) -> None:
        """Begin a new file."""
        self._path.write_text(HEADER)

    def for_session(self, rank: int) -> "Tape":
        """Return a session's own."""
        return self

    def clock(self, frames: int) -> int:
        """Take note of what the clock shows, and return it."""
        self._clocks.append(frames)
        return frames

    def alone(self) -> AbstractContextManager[None]:
        """Return a context in which no other session pushes or pulls."""
        return self._lock

    def pushed(self, rank: int, update: int, pulled: int, theta: Tensor) -> None:
        """Write what the session has just done; it must still be alone."""
        line = Line(update, rank, pulled, tuple(self._clocks))
        self._clocks.clear()
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, line.written(theta).encode())
        finally:
            os.close(file)


class DiffersError(ValueError):
    """A run and its record are not the same."""

    def __init__(self, update: int, what: str) -> None:
        super().__init__(f"the record differs from update {update} on: {what}")


class Playback:
    """A session's part of a record, in place of its tape: the clock shows it what it showed then.

    Args:
        lines: All that were written, as they are.
        rank: Of the session.
    """

    def __init__(self, lines: Sequence[str], rank: int = 0) -> None:
        self._lines = lines
        self.pending = deque(line for line in map(read, range(1, len(lines) + 1), lines) if line.rank == rank)
        self._read = 0

    def for_session(self, rank: int) -> "Playback":
        """Return a session's own."""
        return Playback(self._lines, rank)

    def clock(self, frames: int) -> int:
        """Return what the clock showed; beyond the last update that was recorded what it shows."""
        if not self.pending:
            return frames
        line = self.pending[0]
        if self._read == len(line.clocks):
            raise DiffersError(line.update, f"session {line.rank} looks at the clock once more")
        self._read += 1
        return line.clocks[self._read - 1]

    def alone(self) -> AbstractContextManager[None]:
        """Return a context in which no other session pushes or pulls, as ever."""
        return nullcontext()

    def pushed(self, rank: int, update: int, pulled: int, theta: Tensor) -> None:
        """Compare what the session has just done with what it did then.

        Raises:
            DiffersError: It is not the same.
        """
        then = self.pending.popleft()
        now = Line(update, rank, pulled, then.clocks[: self._read])
        self._read = 0
        if now.written(theta) != self._lines[update - 1]:
            what = "theta is another one" if now == then else f"it was {then} and is {now}"
            raise DiffersError(update, what)


def read(update: int, text: str) -> Line:
    """Return what a line says.

    Args:
        update: That it must be of.
        text: Of the line.

    Raises:
        DiffersError: It is no line of a record, or of another update.
    """
    try:
        number, rank, pulled, clocks, _ = text.split(",")
        line = Line(int(number), int(rank), int(pulled), tuple(map(int, clocks.split())))
    except ValueError:
        raise DiffersError(update, f"its line cannot be read: {text.strip()[:60]}") from None
    if line.update != update or not 0 <= line.pulled < update:
        raise DiffersError(update, f"its line is of update {line.update}, with weights of version {line.pulled}")
    return line
