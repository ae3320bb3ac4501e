"""A lock between processes that the kernel takes back when its holder dies."""

import fcntl
import os
from multiprocessing import reduction
from types import TracebackType
from typing import Any


class ProcessLock:
    """Mutual exclusion of processes, not of threads; as a context manager.

    A semaphore would stay locked for ever if its holder were killed.  This is a POSIX record lock on a file without a
    name, which belongs to a process and ends with it.
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("asynclab_lock")

    def __enter__(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._fd)  # only while a process is being started

    def __setstate__(self, state: Any) -> None:
        self._fd = state.detach()

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)
