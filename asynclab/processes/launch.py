"""Runs sessions in processes, hands their records to the parent, and restarts those that fail."""

import ctypes
import faulthandler
import multiprocessing as mp
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

import psutil
import torch

from asynclab import script, signals
from asynclab.processes.control import Control
from asynclab.processes.server import start_server

Item = TypeVar("Item")

ENDS = 5.0  # seconds in which processes end that have nothing left to do
TICK = 0.5  # seconds between two looks at the sessions
MAX_DELAY = 60.0  # seconds before a restart, at most
MAIN_GUARD = (
    "a script that starts several sessions is imported by each of them, so it must be a file, and its code stand under"
    ' if __name__ == "__main__":'
)
HELPER_SECONDS = 2.0  # in which a process of an environment ends when told to


class SessionError(RuntimeError):
    """A session failed for good; the message has its rank and its traceback or signal."""


class FatalError(RuntimeError):
    """Raised by a session whose failure a restart would not mend."""


class Started(NamedTuple):
    """A session's process has been started."""

    rank: int
    pid: int


class Failure(NamedTuple):
    """A session failed; it is restarted, unless it was its last chance or the trial is ending.

    Attributes:
        rank: Of the session.
        cause: In words, such as "was killed by SIGKILL".
        exitcode: Of its process, negative for a signal; None if it had none of its own.
        details: Traceback, stacks of all threads, or empty.
        restarts: How many restarts the session has had, with the one that follows.
        delay: Seconds until it is restarted; None if it is not.
    """

    rank: int
    cause: str
    exitcode: int | None
    details: str
    restarts: int
    delay: float | None


class _End(NamedTuple):
    """A session's last message: the traceback of what it raised, None if it came to its end."""

    traceback: str | None = None
    fatal: bool = False


def launch(
    runs: Sequence[Callable[[], Iterator[Item]]],
    num_threads: int,
    control: Control | None = None,
    first: int | None = None,
) -> Generator[Item | Started | Failure | None]:
    """Run all sessions to their end and yield what they yield, as it comes.

    One session runs in this process, where a debugger reaches it; more run in a process each, started by a fork
    server.  A session that raises, dies or hangs is started again, up to the limit of ``control``.  Closing the
    iterator, or an exception in the caller, ends all of them.

    Args:
        runs: One per rank; picklable.
        num_threads: Torch threads of each session.
        control: Seen by the sessions, too, if they are to be watched or asked to end; None for no restarts.
        first: Rank of the first; then one alone has a process of its own, too.

    Yields:
        The sessions' items, what happens to their processes, and None every now and then.

    Raises:
        SessionError: A session failed for good.  The others have been asked to end, and those that did not are dead.
    """
    control = control or Control(len(runs), stop_seconds=0.0)
    failed: list[str] = []
    if len(runs) == 1 and first is None:
        yield from _run_here(runs[0], num_threads, control, failed)
    else:
        crew = _Crew(dict(enumerate(runs, first or 0)), num_threads, control, failed)
        try:
            yield from crew.events()
        finally:
            crew.kill()
    if failed:
        raise SessionError(failed[0])


def _judge(
    control: Control, failed: list[str], rank: int, cause: str, exitcode: int | None, details: str, fatal: bool
) -> Failure:
    """Decide what follows from a failure; if it is the end, ask the others to end."""
    if control.ending():
        return Failure(rank, cause, exitcode, details, control.restarts(rank), None)
    if fatal or control.restarts(rank) >= control.max_restarts:
        again = "" if fatal or not control.max_restarts else f" after {control.max_restarts} restarts"
        failed.append(f"session {rank} {cause}{again}; the trial was stopped" + f"\n{details}" * bool(details))
        control.finish()
        return Failure(rank, cause, exitcode, details, control.restarts(rank), None)
    count = control.count_restart(rank)
    return Failure(rank, cause, exitcode, details, count, min(control.restart_delay * 2 ** (count - 1), MAX_DELAY))


def _run_here(
    run: Callable[[], Iterator[Item]], num_threads: int, control: Control, failed: list[str]
) -> Iterator[Any]:
    """Run the only session in this process; what kills or stops it does so to all."""
    _prepare_process(num_threads)
    while True:
        yield Started(0, os.getpid())
        ran = False
        try:
            for item in run():
                ran = True
                yield item
            return
        except (Exception, SystemExit) as error:
            fatal = isinstance(error, FatalError) or not (ran or control.restarts(0))
            failure = _judge(control, failed, 0, "raised", None, traceback.format_exc(), fatal)
        yield failure
        if failure.delay is None:
            return
        due = time.monotonic() + failure.delay
        while time.monotonic() < due and not control.ending():
            time.sleep(0.05)


class _Begun(NamedTuple):
    """The first message of a process: it has imported what it needs."""


class _Gone(NamedTuple):
    """The last message of a process that has closed its pipe, alive or not."""


class _Worker:
    """A session's process, as the parent sees it.

    A thread receives its messages: one that is never finished, because the session was stopped while it sent it, must
    not hold up the parent.
    """

    def __init__(
        self, context: Any, run: Callable[[], Iterator[Any]], num_threads: int, rank: int, inbox: "_Inbox"
    ) -> None:
        self.rank = rank
        self.receiver, sender = context.Pipe(duplex=False)
        self.stacks, stacks = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_child, args=(run, num_threads, sender, stacks), name=f"session-{rank}", daemon=True
        )
        with script.starting():
            self.process.start()
        sender.close()  # only the session holds it now, so its death, even in the middle of a message, is an EOF
        stacks.close()
        self.begun = False  # whether it has come as far as our own code
        self.ran = False  # whether it has sent anything
        self.beats = -1
        self.silent = 0.0  # seconds in which it has given no sign of life
        self.was_slow = True  # at the last look: starting or saving
        self.dead = 0  # looks at which its process was dead and its pipe still open
        self.reader = threading.Thread(target=self._read, args=(inbox,), daemon=True)
        self.reader.start()

    def _read(self, inbox: "_Inbox") -> None:
        try:
            while True:
                inbox.put((self, self.receiver.recv()))
        except (EOFError, OSError):
            inbox.put((self, _Gone()))

    def is_stopped(self) -> bool:
        """Return whether its process was stopped by a signal."""
        with suppress(psutil.NoSuchProcess):
            return self.process.is_alive() and psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED
        return False

    def dump_stacks(self) -> str:
        """Return the stacks of all threads of a hung session."""
        text = "its process was stopped by a signal\n" if self.is_stopped() else ""
        with suppress(ProcessLookupError):
            for number in (signal.SIGUSR1, signal.SIGCONT):
                os.kill(self.process.pid, number)
        chunks = []
        while self.stacks.poll(1.0):
            if not (chunk := os.read(self.stacks.fileno(), 65536)):
                break
            chunks.append(chunk)
        return text + b"".join(chunks).decode(errors="replace")

    def kill(self) -> None:
        """End the process at once, and with it those that its environments have started and that are still its own."""
        family: list[psutil.Process] = []
        with suppress(psutil.Error):
            family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in family:
            with suppress(psutil.Error):
                process.kill()

    def close(self, seconds: float = ENDS) -> int | None:
        """Make sure that the process is dead, within so many seconds, and return its exit code."""
        self.process.join(max(0.0, seconds))
        if self.process.is_alive():  # its number may be another's by now
            self.kill()
            self.process.join()
        code: int | None = self.process.exitcode
        self.process.close()
        self.stacks.close()
        self.reader.join(1)
        if not self.reader.is_alive():  # it reads on if a process that the session has started holds the pipe
            self.receiver.close()
        return code


_Inbox = queue.SimpleQueue[tuple[_Worker, Any]]


class _Crew:
    """The sessions' processes."""

    def __init__(
        self, runs: Mapping[int, Callable[[], Iterator[Any]]], num_threads: int, control: Control, failed: list[str]
    ) -> None:
        self.runs = runs
        self.num_threads = num_threads
        self.control = control
        self.failed = failed
        self.context = mp.get_context("forkserver")
        self.workers: dict[int, _Worker] = {}  # by rank
        self.ended: list[_Worker] = []  # those that have done all; Python may still wait for threads of theirs
        self.due = dict.fromkeys(runs, 0.0)  # when a session is to be started, by rank
        self.inbox: _Inbox = queue.SimpleQueue()
        self.looked = self.next_look = time.monotonic()

    def events(self) -> Iterator[Any]:
        """Start the sessions and yield what happens until none is left."""
        while self.workers or self.due:
            yield from self._start_due()
            with suppress(queue.Empty):
                yield from self._receive(*self.inbox.get(timeout=TICK))
            if time.monotonic() >= self.next_look:
                while not self.inbox.empty():  # what has been sent comes before what is thought of the sender
                    yield from self._receive(*self.inbox.get())
                yield from self._look()
                self.next_look = time.monotonic() + TICK
            yield None

    def kill(self) -> None:
        """End exactly these processes."""
        for worker in self.workers.values():
            worker.kill()
        deadline = time.monotonic() + ENDS
        for worker in [*self.workers.values(), *self.ended]:
            worker.close(deadline - time.monotonic())
        self.workers.clear()
        self.ended.clear()

    def _start_due(self) -> Iterator[Any]:
        if self.control.ending():
            self.due.clear()
        for rank in [rank for rank, when in self.due.items() if when <= time.monotonic()]:
            del self.due[rank]
            try:
                start_server()
                worker = _Worker(self.context, self.runs[rank], self.num_threads, rank, self.inbox)
            except (OSError, EOFError) as error:  # no memory, no descriptors, a fork server that has just died
                yield self._judge(rank, f"could not be started ({error or type(error).__name__})", None)
                continue
            self.workers[rank] = worker
            yield Started(rank, worker.process.pid)

    def _receive(self, worker: _Worker, item: Any) -> Iterator[Any]:
        if self.workers.get(worker.rank) is not worker:
            return  # it has been given up
        if isinstance(item, _Gone):
            yield self._fail(worker)
        elif isinstance(item, _Begun):
            worker.begun = True
        elif not isinstance(item, _End):
            worker.ran = True
            yield item
        elif item.traceback:
            # what fails before it has done anything, and for the first time, is a mistake and no accident
            fatal = item.fatal or not (worker.ran or self.control.restarts(worker.rank))
            yield self._fail(worker, "raised", item.traceback, fatal)
        else:
            self.ended.append(self.workers.pop(worker.rank))

    def _look(self) -> Iterator[Failure]:
        """Find dead and hung sessions, and end those that are asked to end and do not."""
        # time in which we did not run ourselves, such as between Ctrl-Z and fg, says nothing about the sessions
        passed, self.looked = min(time.monotonic() - self.looked, 2 * TICK), time.monotonic()
        hung = []
        for worker in list(self.workers.values()):
            beats = self.control.beats(worker.rank)
            if beats == worker.beats:
                worker.silent += passed
            else:
                if not worker.was_slow:  # it has ended a step or an update, up to a look longer at both ends
                    self.control.slowest = max(self.control.slowest, worker.silent + 2 * TICK)
                worker.silent = 0.0
            worker.beats, worker.was_slow = beats, self.control.is_slow(worker.rank)
            worker.dead += not worker.process.is_alive()
            if worker.dead > 1:  # its pipe would have told us, if nobody else held it
                yield self._fail(worker)
            elif time.monotonic() >= self.control.deadline:
                worker.kill()
                yield self._fail(worker, "did not end in time and was killed")
            elif worker.silent >= self.control.patience(worker.rank):
                hung.append(worker)
        if hung:
            # one at a time: the others may only wait for the lock that this one holds
            worker = max(hung, key=lambda worker: (worker.is_stopped(), worker.silent))
            for other in self.workers.values():
                other.silent = 0.0
            details = worker.dump_stacks()
            worker.kill()
            yield self._fail(worker, f"hung for {self.control.patience(worker.rank):.0f} s and was killed", details)

    def _fail(self, worker: _Worker, cause: str | None = None, details: str = "", fatal: bool = False) -> Failure:
        del self.workers[worker.rank]
        code = worker.close()
        if cause is None:
            cause = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"exited with code {code}"
            if code and code > 0 and not worker.begun:  # Python could not import the main module
                cause, fatal = f"{cause} before it began; {MAIN_GUARD}", True
        return self._judge(worker.rank, cause, code, details, fatal)

    def _judge(self, rank: int, cause: str, code: int | None, details: str = "", fatal: bool = False) -> Failure:
        failure = _judge(self.control, self.failed, rank, cause, code, details, fatal)
        if failure.delay is not None:
            self.due[rank] = time.monotonic() + failure.delay
        return failure


def settle(num_threads: int) -> None:
    """Prepare a process that the fork server has just forked: it ends when the parent says so or has died.

    Args:
        num_threads: Of torch.
    """
    mp.current_process().daemon = False  # daemons may start no processes, which an environment may want to
    # What ends a run comes to the whole group (Ctrl-C, a closed terminal, Slurm); the parent tells us what to do.
    signals.handle(signals.ENDING, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.ENDING)  # blocked in the fork server
    _follow_server()
    _prepare_process(num_threads)


def _child(run: Callable[[], Iterator[Any]], num_threads: int, sender: Connection, stacks: Connection) -> None:
    faulthandler.register(signal.SIGUSR1, file=stacks.fileno(), all_threads=True)
    os.register_at_fork(after_in_child=partial(faulthandler.unregister, signal.SIGUSR1))
    settle(num_threads)
    # Sending waits when the parent is busy and the pipe is full; the session must not.
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outbox.put(_Begun())
    postman = threading.Thread(target=_deliver, args=(outbox, sender))
    postman.start()
    end = _End()
    try:
        for item in run():
            outbox.put(item)
    except (Exception, SystemExit) as error:
        end = _End(traceback.format_exc(), isinstance(error, FatalError))
    outbox.put(end)
    postman.join()
    end_helpers()


def end_helpers(others: Sequence[BaseProcess] = ()) -> None:
    """End what environments have started with multiprocessing and left: Python would wait for it at its own end.

    Args:
        others: Processes that are none of theirs.
    """
    helpers = [process for process in mp.active_children() if process not in others]
    for process in helpers:
        process.terminate()
    deadline = time.monotonic() + HELPER_SECONDS
    for process in helpers:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


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


def _follow_server() -> None:
    """Die with the fork server, which dies with the parent."""
    signals.die_with_parent()
    if os.getppid() == 1:  # it has died already
        os._exit(1)
    # The server lives as long as anybody holds the other end of a pipe; it gives every child a copy.
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = None
