"""What the parent asks of its sessions, and their signs of life.  S: sessions."""

import math
import time
from collections.abc import Collection

import torch


class Control:
    """Shared numbers, each with one writer: the parent asks, a session beats.

    A snapshot is a moment in which all sessions stand still: the parent asks for one, every session saves its state
    and waits until it is released.  The last snapshot is not released; sessions end after it.

    Args:
        sessions: S.
        max_restarts: Of each session, before its next failure ends the trial.
        hang_after: Seconds without a sign of life after which a session counts as hung.
        restart_delay: Seconds before a session's first restart; twice as many before each further one.
        stop_seconds: In which a session that is told to end must save its state.
    """

    def __init__(
        self,
        sessions: int,
        max_restarts: int = 0,
        hang_after: float = math.inf,
        restart_delay: float = 1.0,
        stop_seconds: float = 6.0,
    ) -> None:
        self.sessions = sessions
        self.max_restarts = max_restarts
        self.hang_after = hang_after
        self.restart_delay = restart_delay
        self.stop_seconds = stop_seconds
        self._beats = torch.zeros(sessions, dtype=torch.int64).share_memory_()
        self._slow = torch.ones(sessions, dtype=torch.int64).share_memory_()
        self._restarts = torch.zeros(sessions, dtype=torch.int64).share_memory_()
        self._awaited = torch.zeros(sessions, dtype=torch.bool).share_memory_()
        self._asked = torch.zeros((), dtype=torch.int64).share_memory_()
        self._released = torch.zeros((), dtype=torch.int64).share_memory_()
        self._end = torch.zeros((), dtype=torch.bool).share_memory_()
        self.deadline = math.inf  # for the parent: when sessions that have not ended are killed

    # The parent's side

    def ask(self, ranks: Collection[int]) -> None:
        """Ask for a snapshot.  All sessions wait until it is released, those of these ranks after they have saved."""
        if not self.ending():
            for rank in range(len(self._awaited)):
                self._awaited[rank] = rank in ranks
            self._asked += 1

    def is_pending(self) -> bool:
        """Return whether sessions stand still, or are about to, for a snapshot that has not been released."""
        return self.asked() > int(self._released) and not self.ending()

    def release(self, number: int) -> None:
        """Let the sessions go on after a snapshot."""
        self._released.fill_(number)

    def finish(self, seconds: float | None = None) -> None:
        """Ask for the last snapshot, after which the sessions end; may be called by a signal handler.

        Args:
            seconds: After which sessions that have not ended are killed; None for ``stop_seconds``.
        """
        self.deadline = min(self.deadline, time.monotonic() + (self.stop_seconds if seconds is None else seconds))
        if self.ending():
            return
        self._awaited.fill_(True)  # before a session can see the number
        self._asked += 1
        self._end.fill_(True)

    def beats(self, rank: int) -> int:
        """Return a number that changes as long as the session lives."""
        return int(self._beats[rank])

    def patience(self, rank: int) -> float:
        """Return after how many seconds without a beat the session counts as hung: longer while it starts or saves."""
        return self.hang_after * (10 if self._slow[rank] else 1)

    def count_restart(self, rank: int) -> int:
        """Count a restart and return how many the session has had; it is in its slow phase again."""
        self._slow[rank] = 1
        self._restarts[rank] += 1
        return self.restarts(rank)

    # Both sides

    def asked(self) -> int:
        """Return the number of the last snapshot that was asked for."""
        return int(self._asked)

    def ending(self) -> bool:
        """Return whether the last snapshot has been asked for."""
        return bool(self._end)

    def restarts(self, rank: int) -> int:
        """Return how often a session has been restarted since the command began."""
        return int(self._restarts[rank])

    # A session's side

    def beat(self, rank: int, slow: bool = False) -> None:
        """Give a sign of life.

        Args:
            rank: Of the session.
            slow: Whether what comes now may take much longer than a step.
        """
        self._beats[rank] += 1
        self._slow[rank] = slow

    def is_awaited(self, rank: int) -> bool:
        """Return whether a session must save its state for the snapshot that was asked for."""
        return self.ending() or bool(self._awaited[rank])

    def is_released(self, number: int) -> bool:
        """Return whether a session may go on after it has saved this snapshot."""
        return int(self._released) >= number or self.ending() or self.asked() > number

    def is_last(self, number: int) -> bool:
        """Return whether a session ends after it has saved this snapshot."""
        return self.ending() and self.asked() == number
