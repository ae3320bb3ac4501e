"""The output folder of a run, and the lock that keeps two runs from writing one."""

import fcntl
import os
from pathlib import Path
from typing import IO

_held: dict[Path, IO[str]] = {}


def holds_run(folder: Path) -> bool:
    """Return whether a run has written here."""
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def lock(folder: Path) -> None:
    """Keep other runs out of a folder until ``unlock``, or until this process ends, however it ends.

    Raises:
        ValueError: Another run has it.
    """
    path = folder.resolve()
    if path in _held:
        return
    file = (path / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise ValueError(f"a run writes into {folder} (process {owner}); set hydra.run.dir to another folder") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _held[path] = file


def unlock(folder: Path) -> None:
    """Let others write here, if we have the lock."""
    if file := _held.pop(folder.resolve(), None):
        file.close()
