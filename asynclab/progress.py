"""How far something is that takes a while: a bar on a terminal, elsewhere a line every ten seconds; on stderr."""

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from asynclab.text import duration

Item = TypeVar("Item")

EVERY = 10.0  # seconds between two lines; what takes less shows none
DELAY = 1.0  # seconds before there is a bar, which goes when all is done


def counted(items: Collection[Item], what: str) -> Iterator[Item]:
    """Yield items, and show how many have been worked on."""
    with shown(what, len(items)) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def shown(what: str, total: int | None = None, detail: Callable[[], str] = lambda: "") -> Iterator[Callable[[], None]]:
    """Show how far it is while this lasts; call what is yielded whenever one more is done.

    Args:
        what: The things, such as ``episodes``; or what is done, if they cannot be counted.
        total: How many there are; None if nobody knows.
        detail: Returns what to say besides, such as the steps of an episode that has not ended.
    """
    began, done, ended = time.monotonic(), [0], threading.Event()

    def advance() -> None:
        done[0] += 1

    def line() -> str:
        passed = time.monotonic() - began
        if total is None:
            return f"{what}: {duration(passed)}"
        left = f", {duration(passed / done[0] * (total - done[0]))} left" if done[0] else ""
        more = f", {said}" if (said := detail()) else ""
        return f"{done[0]:,} of {total:,} {what}{more} in {duration(passed)}{left}"

    thread = threading.Thread(target=_show, args=(line, lambda: done[0], total, ended), daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()


def _show(line: Callable[[], str], done: Callable[[], int], total: int | None, ended: threading.Event) -> None:
    stream = sys.stderr
    if not stream.isatty() or os.environ.get("TERM", "dumb").lower() in ("dumb", "unknown"):
        while not ended.wait(EVERY):
            print(line(), file=stream, flush=True)
        return
    if ended.wait(DELAY):
        return
    columns = BarColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(file=stream), transient=True, auto_refresh=False) as bar:
        task = bar.add_task(line(), total=total)
        while not ended.wait(0.5):
            bar.update(task, completed=done(), description=line(), refresh=True)
