"""What a run will take of the machine, compared with what there is, before it starts."""

import os
import resource
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from asynclab import machine
from asynclab.distributed import Mode

PROCESS_BYTES = 150 * 10**6  # of a session besides its memory; measured with 16 sessions on Pong: 128 MiB
SESSION_BYTES = 10**6  # of one more session in a process; measured with 1,024 on CartPole: 0.35 MiB
SESSION_COPIES = 3  # of its weights: these and their gradient, and both in bf16
# Of its weights, by a node: theta, two moments, the server's theta, what is sent and answered, and all of it twice more
# while a checkpoint is written; measured with 40 nodes of 866,439 weights each: 22
NODE_COPIES, NODE_COPIES_ON_DISK = 22, 7
OWN_DESCRIPTORS, SESSION_DESCRIPTORS, STORE_DESCRIPTORS, EVALUATOR_DESCRIPTORS = 38, 5, 10, 15  # of the parent
LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")  # 107: of a Unix socket's name
WEIGHTS_PER_THREAD = 100_000  # with fewer, threads of an update wait for each other for longer than they gain
MOST_THREADS = 8  # on 16 cores 16 made two thirds of the frames that 8 made (docs/performance.md)


def available_memory() -> int:
    """Return the bytes that can be had: of the machine, or of the container if it has a limit."""
    return machine.memory().available


def choose_threads(asked: int | None, sessions: int, weights: int) -> int:
    """Return the threads of each session.

    Args:
        asked: As configured; None for the session's share of the cores, as far as the network is large enough to gain,
            at most 8.
        sessions: Their number.
        weights: Of a session's networks.
    """
    if asked is not None:
        return asked
    cores = min(machine.cores(), thread_limit() or machine.cores())
    return max(1, min(cores // sessions, weights // WEIGHTS_PER_THREAD, MOST_THREADS))


def thread_limit() -> int | None:
    """Return what OMP_NUM_THREADS says, which joblib sets for jobs that run side by side; None if it says nothing."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


def core_seconds() -> float:
    """Return for how long cores have run this process and all that it has started, also what has ended."""
    total, here = 0.0, psutil.Process()
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def check_memory(mode: Mode, each: int, weights: int) -> None:
    """Refuse to start if what sessions and nodes will have cannot fit.

    Args:
        mode: How many there are.
        each: Bytes of one session's memory.
        weights: Bytes of a session's networks.
    """
    available, sessions, nodes = available_memory(), mode.on_this_machine, mode.nodes_here
    more = sessions - mode.processes
    processes = mode.processes * PROCESS_BYTES + more * (SESSION_BYTES + SESSION_COPIES * weights)
    networks = nodes * NODE_COPIES * weights
    total = each * sessions
    if total + processes + networks > available:
        raise ValueError(
            f"the sessions' memories need {size(total)} ({size(each)} each), their processes about {size(processes)},"
            + f" the networks of {nodes:,} nodes about {size(networks)} ({size(NODE_COPIES * weights)} each with"
            " optimizer, messages and checkpoint),"
            * bool(nodes)
            + f" and {size(available)} are available; lower "
            + "distributed.nodes, " * (nodes > 1)
            + "algo.memory.capacity, env.num_envs or distributed.max_session"
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


def check_descriptors(processes: int, stores: int, evaluates: bool = False) -> None:
    """Refuse to start if the limit on open files is too low for the plan."""
    if processes == 1:
        return
    needed = OWN_DESCRIPTORS + SESSION_DESCRIPTORS * processes + STORE_DESCRIPTORS * stores
    needed += EVALUATOR_DESCRIPTORS * evaluates
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # the soft limit has been raised to it (server.py)
    if needed > limit:
        raise ValueError(
            f"{processes} sessions need about {needed} open files and the limit is {limit}; raise it"
            f" (ulimit -n {needed}) or lower distributed.max_session"
        )


def check_sockets() -> None:
    """Refuse a folder for temporary files below which Python cannot have the sockets of its processes."""
    folder = tempfile.gettempdir()
    if (length := len(os.fsencode(folder))) > LONGEST_FOLDER:
        raise ValueError(
            f"TMPDIR={folder} has {length} bytes, and sockets below it have room for {LONGEST_FOLDER}; set it to a"
            " shorter folder (export TMPDIR=/tmp)"
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
    return available < 0.03 * machine.memory().total
