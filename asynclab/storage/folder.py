"""The output folder of a run, the lock that keeps two runs from writing one, and files that are whole or not there.

The lock is our own: ``filelock`` tells neither who holds one nor, without taking it, whether anybody does.
"""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from asynclab.storage.names import EVALUATION, LOCK, METRICS, SUMMARY, WEIGHTS

LOOKS = 20  # at a lock that may be free in a moment

_held: dict[Path, IO[str]] = {}


def _let_go() -> None:
    for file in _held.values():
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)  # what an environment forks may live on, and would keep the lock


def holds_run(folder: Path) -> bool:
    """Return whether a run has written here."""
    metrics = folder / METRICS
    return metrics.exists() and metrics.stat().st_size > 0


def status(run: Path) -> str | None:
    """Return how the run in a folder ended; None if it did not, or nobody knows."""
    try:
        return str(json.loads((run / SUMMARY).read_text())["status"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def is_agent(folder: Path) -> bool:
    """Return whether this is the folder of a zoo's agent, whole or not, and not of a run."""
    return any((folder / name).is_file() for name in (WEIGHTS, EVALUATION))


def agents(zoo: Path) -> list[str]:
    """Return the agents in a folder of agents."""
    return sorted(path.name for path in zoo.glob("[!.]*") if is_agent(path))


def instead(folder: Path) -> str:
    """Return, to end a sentence on a folder that is no run, which agents are in it or beside it; nothing if none is."""
    for zoo in (folder, folder.parent):
        if found := agents(zoo):
            return f"; {zoo} has {', '.join(found)}"
    return ""


def require(run: Path) -> None:
    """Raise ValueError if there is no such folder."""
    if not run.is_dir():
        raise ValueError(f"run={run} is not a folder{instead(run)}")


def results(run: Path) -> Path:
    """Return where evaluations and videos of a run are kept: in its folder, but those of a zoo's agent elsewhere."""
    return Path("outputs", "zoo", run.resolve().name) if is_agent(run) else run


def lock(folder: Path) -> None:
    """Keep other runs out of a folder until ``unlock``, or until this process ends, however it ends.

    Raises:
        ValueError: Another run has it.
    """
    path = folder.resolve()
    if path in _held:
        return
    file = (path / LOCK).open("a+")
    try:
        _lock(file)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise ValueError(f"a run writes into {folder} (process {owner}); set hydra.run.dir to another folder") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _held[path] = file


def _lock(file: IO[str]) -> None:
    for _ in range(LOOKS):  # who sees whether it is free has it for a moment (``is_locked``)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)
    raise BlockingIOError


def unlock(folder: Path) -> None:
    """Let others write here, if we have the lock."""
    if file := _held.pop(folder.resolve(), None):
        file.close()


def is_locked(folder: Path) -> bool:
    """Return whether a run writes here now."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # none has been here, or the file system has no locks
        return False
    return False


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file; it gets its name when it is complete, and leaves nothing if that fails.

    Raises:
        OSError: The folder cannot be made, or the file not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to be filled; it gets its name when it is complete, and is removed if that fails.

    Raises:
        OSError: It cannot be made, or something has its name already.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "it exists", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.mkdir()
    try:
        yield new
        new.rename(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
