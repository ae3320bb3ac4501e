"""Signals: which ask a run to end, handlers for this process alone, and who dies with whom.

A process that is forked inherits handlers: one that an environment has started would do at SIGTERM what we do.  So it
gets back, at once, what was there before ours.  What it executes starts with the defaults, as ours are no SIG_IGN.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

# that ask a run to end; SIGUSR2 is submitit's, before a job's time is over
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)

Handler = Callable[[int, FrameType | None], object]

_before: dict[int, Any] = {}  # by signal: what was there before any handler of ours


def handle(numbers: Sequence[int], handler: Handler) -> list[int]:
    """Handle signals from now on, but those that are ignored (nohup, a background job), and return the others."""
    own = _ours(numbers)
    for number in own:
        _set(number, handler)
    return own


@contextmanager
def handled(numbers: Sequence[int], handler: Handler) -> Iterator[None]:
    """Handle signals for a while; only the main thread can, in others nothing happens."""
    own = _ours(numbers) if threading.current_thread() is threading.main_thread() else []
    outer = {number: number in _before for number in own}
    before = {number: _set(number, handler) for number in own}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
            if not outer[number]:
                _before.pop(number, None)


@contextmanager
def blocked() -> Iterator[None]:
    """Let processes that are started meanwhile begin with ``ENDING`` blocked: what ends a run hits its whole group."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies: at once, however that dies, even if we are stopped."""
    pr_set_pdeathsig = 1  # of sys/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL))


def _ours(numbers: Sequence[int]) -> list[int]:
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def _set(number: int, handler: Handler) -> Any:
    """Install a handler and return what was there."""
    owner = os.getpid()

    def mine(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            handler(number, frame)
        else:  # in a process that has just been forked
            _forget()
            os.kill(os.getpid(), number)

    previous = signal.signal(number, mine) or signal.SIG_DFL
    _before.setdefault(number, previous)
    return previous


def _forget() -> None:
    for number, previous in _before.items():
        signal.signal(number, previous)
    _before.clear()


os.register_at_fork(after_in_child=_forget)
