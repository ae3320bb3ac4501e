"""What the parent asks of its sessions, and their signs of life.  S: sessions."""

import math
import time
from typing import NamedTuple

import torch


class Orders(NamedTuple):
    """What the parent asks, for sessions on other machines.

    Attributes:
        asked: Number of the last snapshot that was asked for.
        released: Number of the last one that is over.
        is_ending: Whether the last one has been asked for.
        late: Seconds until updates that are due are left.
        deadline: Seconds until sessions that have not ended are killed.
    """

    asked: int
    released: int
    is_ending: bool
    late: float
    deadline: float


class Report(NamedTuple):
    """What is known on another machine.

    Attributes:
        asked: Number of the last snapshot that its sessions know of.
        running: Ranks of those that step or stand still.
        slowest: The longest time between two signs of life of one that steps.
    """

    asked: int
    running: frozenset[int]
    slowest: float


class Control:
    """Shared numbers, each with one writer at a time: the parent asks, a session beats.

    A snapshot is a moment in which all sessions stand still: the parent asks for one, every session that runs saves
    its state and waits until it is released.  The last snapshot is not released; sessions end after it.

    Whether a session runs is decided here and not by what the parent has heard of it.  A session joins before its
    first step, and looks for a snapshot after that; the parent asks, and looks later who runs.  So either the parent
    finds the session here and waits for it, or the session finds the snapshot and has not stepped.

    Args:
        sessions: S.
        max_restarts: Of each session, before its next failure ends the trial.
        hang_after: Seconds without a sign of life after which a session counts as hung.
        restart_delay: Seconds before a session's first restart; twice as many before each further one.
        stop_seconds: In which a session that is told to end must save its state; half of it is for saving.

    Attributes:
        deadline: For the parent: when sessions that have not ended are killed, on the machine's monotonic clock.
        slowest: For the parent: the longest time between two signs of life of a session that steps.
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
        self._running = torch.zeros(sessions, dtype=torch.bool).share_memory_()
        self._asked = torch.zeros((), dtype=torch.int64).share_memory_()
        self._released = torch.zeros((), dtype=torch.int64).share_memory_()
        self._end = torch.zeros((), dtype=torch.bool).share_memory_()
        self._late = torch.full((), math.inf, dtype=torch.float64).share_memory_()
        self.deadline = math.inf
        self.slowest = 0.0

    # The parent's side

    def ask(self) -> None:
        """Ask for a snapshot: sessions that run save, and all wait until it is released."""
        if not self.ending():
            self._asked += 1

    def running(self) -> set[int]:
        """Return the sessions that step, or stand still in a snapshot; not to be asked in the moment of ``ask``."""
        return {rank for rank, running in enumerate(self._running.tolist()) if running}

    def is_pending(self) -> bool:
        """Return whether sessions stand still, or are about to, for a snapshot that has not been released."""
        return self.asked() > int(self._released) and not self.ending()

    def release(self, number: int) -> None:
        """Let the sessions go on after a snapshot."""
        self._released.fill_(number)

    def finish(self, seconds: float | None = None) -> None:
        """Ask for the last snapshot, after which the sessions end; may be called by a signal handler.

        Updates that are due are still made, but for no longer than half of the time.  If somebody waits for the end
        (``seconds`` is None), several sessions leave them at once: none may hold up the others' end.

        Args:
            seconds: After which sessions that have not ended are killed; None for ``stop_seconds``, or longer if a
                session may be within a step or an update that leaves less than half of it for saving.
        """
        now, is_urgent = time.monotonic(), seconds is None
        if seconds is None:
            seconds = max(self.stop_seconds, self.slowest + self.stop_seconds / 2)
        self.deadline = min(self.deadline, now + seconds)
        late = now if is_urgent and self.sessions > 1 else now + seconds / 2
        self._late.fill_(min(float(self._late), late))
        if self.ending():
            return
        self._asked += 1
        self._end.fill_(True)

    def beats(self, rank: int) -> int:
        """Return a number that changes as long as the session lives."""
        return int(self._beats[rank])

    def is_slow(self, rank: int) -> bool:
        """Return whether the session starts or saves, which may take much longer than a step."""
        return bool(self._slow[rank])

    def patience(self, rank: int) -> float:
        """Return after how many seconds without a beat the session counts as hung."""
        return self.hang_after * (10 if self.is_slow(rank) else 1)

    def count_restart(self, rank: int) -> int:
        """Count a restart and return how many the session has had; it has died, and begins in its slow phase again."""
        self._running[rank] = False
        self._slow[rank] = 1
        self._restarts[rank] += 1
        return self.restarts(rank)

    def orders(self) -> Orders:
        """Return what sessions on other machines are asked for."""
        now = time.monotonic()
        return Orders(self.asked(), int(self._released), self.ending(), float(self._late) - now, self.deadline - now)

    def hear(self, report: Report, ranks: range) -> None:
        """Take note of the sessions of another machine, once it knows what was asked last."""
        if report.asked == self.asked():
            for rank in ranks:
                self._running[rank] = rank in report.running
        self.slowest = max(self.slowest, report.slowest)

    def lose(self, ranks: range) -> None:
        """Take note that there is no session on another machine any more, or not yet."""
        for rank in ranks:
            self._running[rank] = False

    # Another machine's side

    def obey(self, orders: Orders) -> None:
        """Let the sessions of this machine know what is asked, unless one of them has failed for good."""
        if self.ending() and not orders.is_ending:
            return
        now = time.monotonic()
        self._late.fill_(now + orders.late)
        self.deadline = now + orders.deadline
        self._released.fill_(orders.released)
        if orders.is_ending or not self.ending():  # an end of this machine's own is not taken back
            self._asked.fill_(orders.asked)
        if orders.is_ending:
            self._end.fill_(True)

    def report(self) -> Report:
        """Return what the parent is to know."""
        asked = self.asked()  # first: who has not joined by now will see it before the first step
        return Report(asked, frozenset(self.running()), self.slowest)

    def begin(self, rank: int, restarts: int) -> None:
        """Take note of how often a session has been restarted on other machines."""
        self._restarts[rank] = restarts

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

    def join(self, rank: int) -> int:
        """Say that the session is about to step; return the last snapshot that it has nothing to do with."""
        self._running[rank] = True
        return int(self._released)

    def is_late(self) -> bool:
        """Return whether a session that is told to end must leave updates that are due."""
        return time.monotonic() >= float(self._late)

    def is_released(self, number: int) -> bool:
        """Return whether a session may go on after it has saved this snapshot."""
        return int(self._released) >= number or self.ending() or self.asked() > number

    def is_last(self, number: int) -> bool:
        """Return whether a session ends after it has saved this snapshot."""
        return self.ending() and self.asked() == number
