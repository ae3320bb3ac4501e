"""Runs sessions in processes and hands their records to the parent."""

import ctypes
import multiprocessing as mp
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

import torch

from asynclab.preload import start_server

Item = TypeVar("Item")


class SessionError(RuntimeError):
    """A session raised or died; the message has its rank and its traceback or signal."""


class _End(NamedTuple):
    """A session's last message: the traceback of what it raised, None if it came to its end."""

    traceback: str | None


def launch(runs: Sequence[Callable[[], Iterator[Item]]], num_threads: int) -> Iterator[Item]:
    """Run all sessions to their end and yield what they yield, as it comes.

    One session runs in this process, where a debugger reaches it; more run in a process each, started by a fork
    server.  Closing the iterator, or an exception in the caller, ends all of them.

    Args:
        runs: One per rank; picklable.
        num_threads: Torch threads of each session.

    Raises:
        SessionError: A session raised or died.  The others have been stopped.
    """
    if len(runs) == 1:
        _prepare_process(num_threads)
        try:
            yield from runs[0]()
        except Exception as error:
            raise SessionError(f"session 0 raised\n{traceback.format_exc()}") from error
        return
    context = mp.get_context("forkserver")
    start_server()
    processes: list[Any] = []
    ranks: dict[Any, int] = {}  # of the sessions that have not ended, by the connection that we read
    try:
        for rank, run in enumerate(runs):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_child, args=(run, num_threads, sender), name=f"session-{rank}", daemon=True
            )
            process.start()
            sender.close()  # only the session holds it now, so its death, even in the middle of a message, is an EOF
            processes.append(process)
            ranks[receiver] = rank
        while ranks:
            for ready in wait(list(ranks)):
                assert isinstance(ready, Connection)
                rank = ranks[ready]
                try:
                    item = ready.recv()
                except (EOFError, OSError):
                    raise SessionError(f"session {rank} {_reason(processes[rank])}; all were stopped") from None
                if not isinstance(item, _End):
                    yield item
                elif item.traceback:
                    raise SessionError(f"session {rank} raised; all were stopped\n{item.traceback}")
                else:
                    del ranks[ready]
    finally:
        _stop(processes)


def _reason(process: Any) -> str:
    process.join(5)
    code = process.exitcode
    return f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"exited with code {code}"


def _stop(processes: Sequence[Any]) -> None:
    """End exactly these processes: politely, then for sure."""
    deadline = time.monotonic() + 5
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _child(run: Callable[[], Iterator[Any]], num_threads: int, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops us
    threading.Thread(target=_follow_parent, daemon=True).start()
    _prepare_process(num_threads)
    # Sending waits when the parent is busy and the pipe is full; the session must not.
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    postman = threading.Thread(target=_deliver, args=(outbox, sender))
    postman.start()
    end = _End(None)
    try:
        for item in run():
            outbox.put(item)
    except Exception:
        end = _End(traceback.format_exc())
    outbox.put(end)
    postman.join()


def _prepare_process(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    # By default glibc gives the large tensors of an update back to the kernel and takes them again for the next one:
    # a fifth of an update on Pong was spent on page faults (docs/performance.md).  Replay memories stay above the first
    # threshold, so that they still take memory only as they fill.
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
    if hasattr(libc, "mallopt") and libc.mallopt(m_mmap_threshold, 32 * 2**20):
        libc.mallopt(m_trim_threshold, 2**30)


def _deliver(outbox: "queue.SimpleQueue[Any]", sender: Connection) -> None:
    item = None
    while not isinstance(item, _End):
        item = outbox.get()
        sender.send(item)


def _follow_parent() -> None:
    """Die with the parent, however it died: sessions are the fork server's children, not its."""
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
