"""Runs sessions in processes and hands their records to the parent."""

import multiprocessing as mp
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any, NamedTuple, TypeVar

import torch

Item = TypeVar("Item")

# Imported once by the fork server, so that sessions start at once.  Importing runs no torch operator: a process
# forked after one can hang in its first parallel region.
PRELOAD = ["torch", "hydra", "gymnasium.wrappers.vector", "ale_py", "asynclab.session"]


class SessionError(RuntimeError):
    """A session raised or died; the message has its rank and its traceback or signal."""


class _Failure(NamedTuple):
    text: str


def launch(run: Callable[[int], Iterator[Item]], num_sessions: int, num_threads: int) -> Iterator[Item]:
    """Run all sessions to their end and yield what they yield, as it comes.

    One session runs in this process, where a debugger reaches it; more run in a process each, started by a fork
    server.  Closing the iterator, or an exception in the caller, ends all of them.

    Args:
        run: (rank) -> items; picklable.
        num_sessions: Number of ranks.
        num_threads: Torch threads of each session.

    Raises:
        SessionError: A session raised or was killed.  The others have been stopped.
    """
    if num_sessions == 1:
        torch.set_num_threads(num_threads)
        try:
            yield from run(0)
        except Exception as error:
            raise SessionError(f"session 0 raised\n{traceback.format_exc()}") from error
        return
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    # A queue for each session: one that is killed in the middle of a write must not block the others.
    queues: list[Any] = [context.Queue() for _ in range(num_sessions)]
    processes = [
        context.Process(target=_child, args=(run, rank, num_threads, queues[rank]), name=f"session-{rank}", daemon=True)
        for rank in range(num_sessions)
    ]
    try:
        for process in processes:
            process.start()
        running = set(range(num_sessions))
        while running:
            wait([processes[rank].sentinel for rank in running], timeout=0.1)
            ended = {rank for rank in running if not processes[rank].is_alive()}
            for rank in sorted(running):  # a process that has ended has flushed its queue: nothing is lost
                yield from _drain(rank, queues[rank])
            for rank in ended:
                if code := processes[rank].exitcode:
                    raise SessionError(f"session {rank} {_reason(code)}; all sessions were stopped")
            running -= ended
    finally:
        _stop(processes)


def _drain(rank: int, source: Any) -> Iterator[Any]:
    while True:
        try:
            item = source.get_nowait()
        except queue.Empty:
            return
        if isinstance(item, _Failure):
            raise SessionError(f"session {rank} raised; all sessions were stopped\n{item.text}")
        yield item


def _reason(exitcode: int) -> str:
    return f"was killed by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"exited with code {exitcode}"


def _stop(processes: list[Any]) -> None:
    """End exactly these processes: politely, then for sure."""
    started = [p for p in processes if p.pid is not None]
    for process in started:
        if process.is_alive():
            process.terminate()
    deadline = time.monotonic() + 5
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _child(run: Callable[[int], Iterator[Any]], rank: int, num_threads: int, sink: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops us
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(num_threads)
    try:
        for item in run(rank):
            sink.put(item)
    except Exception:
        sink.put(_Failure(traceback.format_exc()))


def _follow_parent() -> None:
    """Die with the parent, however it died: sessions are the fork server's children, not its."""
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
