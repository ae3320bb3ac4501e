"""What tests let sessions' processes run.  Light to import: every process does."""

import os
import resource
import runpy
import signal
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import torch

from asynclab.processes.launch import FatalError
from asynclab.signals import ENDING


def minimise(store, target, rank):
    for _ in range(300):
        store.apply(2 * (store.theta - target))
        store.updates[rank] += 1
    yield rank


def fail_in_rank_1(rank):
    yield rank
    if rank == 1:
        raise RuntimeError("a bug in this worker")
    time.sleep(120)


def die_in_rank_2(rank):
    yield rank
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(120)


def die_in_the_middle_of_a_message(rank):
    yield rank
    if rank == 1:
        yield b"x" * 50_000_000  # far more than a pipe holds
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(120)


def leave(rank):
    yield rank
    os._exit(0)


def leave_a_thread(rank):
    threading.Thread(target=time.sleep, args=(120,)).start()  # Python waits for it before it ends
    yield rank


def many_items(rank):
    yield from ((rank, i) for i in range(2_000))


def threads():
    yield torch.get_num_threads()


def push_much(store, rank, pushes):
    for _ in range(pushes):
        store.apply(torch.ones(len(store.theta)))
        store.updates[rank] += 1
    yield rank


def claim_all(store, rank, num_envs):
    while store.claim(rank, num_envs):
        store.frames[rank] += num_envs
    yield rank


def take(lock, flag):
    lock.__enter__()
    flag.fill_(1)
    time.sleep(120)


def fail_twice(control, rank):
    yield (rank, control.restarts(rank))
    if rank == 1 and control.restarts(rank) < 2:
        time.sleep(0.5)  # what was yielded is sent
        os.kill(os.getpid(), signal.SIGKILL)


def raise_soon(control, rank):
    yield rank
    if rank == 0:
        raise RuntimeError("again")
    while not control.ending():  # the others obey
        control.beat(rank)
        time.sleep(0.01)


def diverge(control, rank):
    yield rank
    raise FatalError("a restart would not help")


def hang_once(control, rank):
    control.beat(rank)
    yield (rank, control.restarts(rank))
    while rank == 1 and not control.restarts(rank):
        sleep_on_a_lost_lock()


def sleep_on_a_lost_lock():
    time.sleep(1)


def step_slowly(control, rank, seconds):
    while True:
        control.beat(rank)
        if control.ending():
            yield (rank, "saved")
            return
        yield (rank, "step")
        time.sleep(seconds)


def handles(store):
    """Yield how many descriptors this process has, and how many shared segments."""
    store.apply(torch.ones_like(store.theta))
    maps = (line.split(maxsplit=5) for line in open("/proc/self/maps"))  # noqa: PTH123, SIM115
    yield len(os.listdir("/proc/self/fd")), sum("s" in fields[1] for fields in maps)  # noqa: PTH208


def faults():
    """Yield the page faults of 20 rounds of large tensors, after a first one."""
    for round in range(21):
        if round == 1:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2**20) for _ in range(4)]
        del tensors
    yield resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def command(typed, cwd, env, out, err):
    """Be the Python that runs a script, as far as the script can tell."""
    os.chdir(cwd)
    os.environ.update(env)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # blocked in the fork server
    # Python would start a second server, as the first is no child of ours
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None
    sys.argv[:] = typed
    sys.path.insert(0, str(Path(typed[0]).parent))
    runpy.run_path(typed[0], run_name="__main__")


def stop_after(trial, turns):
    """Let a trial be asked to end, as by a signal, when its sessions and nodes have had so many turns."""
    asked = trial.control.asked

    def count():
        nonlocal turns
        turns -= 1
        if not turns:
            trial.control.finish()
        return asked()

    trial.control.asked = count
