"""What a run will take of the machine, compared with what there is, before it starts."""

import resource
import shutil
from pathlib import Path

import psutil

PROCESS_BYTES = 150 * 10**6  # of a session besides its memory; measured with 16 sessions on Pong: 128 MiB
SESSION_BYTES = 10**6  # of one more session in a process; measured with 1,024 on CartPole: 0.35 MiB
OWN_DESCRIPTORS, SESSION_DESCRIPTORS, STORE_DESCRIPTORS = 38, 5, 10  # of the parent
CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return the bytes that can be had: of the machine, or of the container if it has a limit."""
    return _memory()[0]


def _memory() -> tuple[int, int]:
    """Return the bytes that can be had, and those that there are at all."""
    available, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    v1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat")
    for limit, usage, stat in (("memory.max", "memory.current", "memory.stat"), v1):
        try:
            maximum = int((CGROUP / limit).read_text())
            left = maximum - int((CGROUP / usage).read_text())
            numbers = dict(line.split() for line in (CGROUP / stat).read_text().splitlines())
        except (OSError, ValueError):  # no such limit, or "max"
            continue
        available = min(available, max(0, left + int(numbers.get("inactive_file", 0))))  # files that it can forget
        total = min(total, maximum)
    return available, total


def check_memory(sessions: int, each: int, processes: int) -> None:
    """Refuse to start if what the sessions will remember cannot fit.

    Args:
        sessions: Their number.
        each: Bytes of one session's memory.
        processes: In which they are.
    """
    available = available_memory()
    processes = processes * PROCESS_BYTES + (sessions - processes) * SESSION_BYTES
    total = each * sessions
    if total + processes > available:
        raise ValueError(
            f"the sessions' memories need {size(total)} ({size(each)} each), their processes about"
            f" {size(processes)}, and {size(available)} are available; lower algo.memory.capacity, env.num_envs or"
            " distributed.max_session"
        )


def check_shared_memory(needed: int) -> None:
    """Refuse stores that do not fit into shared memory, where writing to them would kill the process."""
    available = shutil.disk_usage("/dev/shm").free
    if needed > available:
        raise ValueError(
            f"the weights and the optimizer's state need {size(needed)} of shared memory and /dev/shm has"
            f" {size(available)}; make it larger (docker run --shm-size=...), or lower distributed.max_session in"
            " distributed=off"
        )


def check_descriptors(processes: int, stores: int) -> None:
    """Refuse to start if the limit on open files is too low for the plan."""
    if processes == 1:
        return
    needed = OWN_DESCRIPTORS + SESSION_DESCRIPTORS * processes + STORE_DESCRIPTORS * stores
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # the soft limit has been raised to it (preload.py)
    if needed > limit:
        raise ValueError(
            f"{processes} sessions need about {needed} open files and the limit is {limit}; raise it"
            f" (ulimit -n {needed}) or lower distributed.max_session"
        )


def available_disk(folder: Path) -> int:
    """Return the bytes that can be written."""
    return shutil.disk_usage(folder).free


def check_disk(folder: Path, checkpoint: int, count: int, memories: int) -> None:
    """Refuse a folder in which the checkpoints do not fit.

    Args:
        folder: Of the run.
        checkpoint: Bytes of one checkpoint, without the sessions' memories.
        count: How many there will be beside those that are there, with the best and the one that is being written.
        memories: Bytes that all checkpoints have of the sessions' memories.
    """
    available = available_disk(folder)
    needed = checkpoint * count + memories
    if needed > available:
        more = f", and the sessions' memories {size(memories)}" * bool(memories)
        raise ValueError(
            f"{count} checkpoints, with the best and one being written, need {size(checkpoint * count)}"
            f" ({size(checkpoint)} each){more}, and {folder} has {size(available)}; free some, set hydra.run.dir to"
            " another disk, or lower checkpoint_keep or checkpoint_memory"
        )


def size(nbytes: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def is_low(available: int) -> bool:
    """Return whether so little memory is left that the kernel may soon kill a session."""
    return available < 0.03 * _memory()[1]
