"""Where a session's time goes: wall-clock time by phase, and what the machine made it wait."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

Item = TypeVar("Item")

PHASES = ("env", "act", "remember", "sample", "forward", "backward", "push", "pull", "other", "waiting")


class Profile:
    """Adds up the time of a session's phases, which follow each other and do not nest.

    A phase is charged the time in which the process ran, or with several threads the time that passed; the rest of
    what passed is ``waiting``: for a processor that others use, for memory from the kernel, for a GPU.

    Args:
        enabled: Otherwise nothing is measured.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._ran: dict[str, float] = defaultdict(float)
        self._start = (0.0, 0.0)

    def start(self) -> None:
        """Count the time from now on."""
        self._start = self._now()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Return a context whose time belongs to this phase."""
        return self._measure(name) if self._enabled else _NOTHING

    def each(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items; finding the next one belongs to this phase."""
        iterator, end = iter(items), object()
        while True:
            with self.phase(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, in all what has passed; empty if not enabled."""
        if not self._enabled:
            return {}
        wall, ran = self._since(self._start)  # also between the phases others may have had the processor
        result = dict.fromkeys(PHASES, 0.0) | self._ran
        result["other"] = max(0.0, ran - sum(result.values()))
        result["waiting"] = wall - sum(result.values())
        self._ran.clear()
        self.start()
        return result

    @contextmanager
    def _measure(self, name: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self._ran[name] += self._since(start)[1]

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def _since(self, start: tuple[float, float]) -> tuple[float, float]:
        """Return the seconds that have passed, and in how many of them the process ran."""
        wall, cpu = (now - then for now, then in zip(self._now(), start, strict=True))
        return wall, min(wall, cpu)


_NOTHING: AbstractContextManager[None] = nullcontext()
