"""Moments in which all sessions stand still, and the checkpoints that are made of them."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from asynclab.distributed import Store
from asynclab.processes.control import Control
from asynclab.storage.checkpoint import Checkpoints
from asynclab.storage.snapshot import File
from asynclab.training.messages import Saved

log = logging.getLogger(__name__)


class Snapshot:
    """What the sessions have saved of one moment.

    Args:
        number: That the sessions were asked for; 0 before they have begun.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.saved: dict[int, Saved] = {}

    def check(self) -> None:
        """Raise OSError if a session could not save its state."""
        for saved in self.saved.values():
            if saved.files is None:
                raise OSError(f"session {saved.rank} could not save its state: {saved.error}")

    def files(self) -> dict[str, File]:
        """Return what was written, by name."""
        return {name: file for saved in self.saved.values() for name, file in (saved.files or {}).items()}


class Snapshots:
    """Asks for snapshots when they are due, and makes checkpoints of them.

    Attributes:
        last: When the last checkpoint was made, on the machine's monotonic clock; nan for none.

    Args:
        control: Of the sessions.
        stores: That they train.
        checkpoints: Writes them.
        every: Seconds between two.
        state: () -> what the trial as a whole has to remember, and the mean return that it would be the best for; -inf
            if it has none yet.
        best: The best mean return that a checkpoint has been made for; -inf for none.
        awaits_all: Ask for none before all sessions have begun: until then they may be reading the last checkpoint.
    """

    def __init__(
        self,
        control: Control,
        stores: Sequence[Store],
        checkpoints: Checkpoints,
        every: float,
        state: Callable[[], tuple[dict[str, Any], float]],
        best: float,
        awaits_all: bool = True,
    ) -> None:
        self.control = control
        self.stores = stores
        self.checkpoints = checkpoints
        self.every = every
        self._state = state
        self._best = best
        self._awaits_all = awaits_all
        self._snapshot = Snapshot(0)
        self._next = math.inf
        self.last = math.nan
        self._joined: set[int] = set()  # sessions that have ever run

    def begin(self) -> None:
        """Count the time to the next one from now on."""
        self._next = time.monotonic() + self.every

    def add(self, saved: Saved) -> None:
        """Take what a session has saved, if it is of the snapshot that was asked for last."""
        if saved.number == self.control.asked():
            self._of(saved.number).saved[saved.rank] = saved

    def attend(self) -> None:
        """Ask for a snapshot that is due, and release one for which nobody is awaited any more."""
        running = self.control.running()
        self._joined |= running
        if self.control.is_pending():
            snapshot = self._of(self.control.asked())
            if running <= set(snapshot.saved):  # the others are dead, or wait before their first step
                try:
                    snapshot.check()
                    self.commit(snapshot)
                except OSError as error:  # perhaps there is room again when the next one is due
                    log.error("no checkpoint was written: %s; those before are untouched", error)
                    self.checkpoints.clean(snapshot.number)  # on a disk that is full already
                self.control.release(snapshot.number)
                self.begin()
        elif time.monotonic() >= self._next and running and self._may_ask():
            self.control.ask()

    def _may_ask(self) -> bool:
        return len(self._joined) == self.control.sessions or not self._awaits_all

    def commit_last(self) -> None:
        """Make a checkpoint of the last snapshot, with what there is of it.

        Raises:
            OSError: It could not be written.
        """
        self.commit(self._of(self.control.asked()))

    def commit(self, snapshot: Snapshot) -> None:
        """Make a checkpoint of what the sessions have saved.

        Raises:
            OSError: It could not be written, or is not worth it: the weights are not finite.
        """
        if not all(store.is_finite() for store in self.stores):
            raise OSError("the weights are not finite; lower algo.optimizer.lr")
        trial, mean_return = self._state()
        is_best, best = mean_return > self._best, max(mean_return, self._best)
        trial["best"] = best if best > -math.inf else None
        complete = all(saved.files is not None for saved in snapshot.saved.values())
        complete &= len(snapshot.saved) == self.control.sessions or snapshot.number == 0
        self.checkpoints.commit(snapshot.number, self.stores, trial, snapshot.files(), is_best, complete)
        self._best, self.last = best, time.monotonic()

    def _of(self, number: int) -> Snapshot:
        if self._snapshot.number != number:
            self._snapshot = Snapshot(number)
        return self._snapshot
