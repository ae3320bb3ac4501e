"""The fork server from which sessions start: it imports what they need once, instead of each of them.

Importing this file imports nothing else, so that the server can start before the command has imported torch itself.
"""

import multiprocessing as mp
import resource
import signal
from multiprocessing import forkserver, resource_tracker

# Importing these runs no torch operator: a process forked after one can hang in its first parallel region.
MODULES = ["torch", "hydra", "gymnasium.wrappers.vector", "ale_py", "asynclab.training.session"]

# that ask a run to end; SIGUSR2 is submitit's, before a job's time is over
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


def start_server() -> None:
    """Start the fork server, with as many open files as we may have; do nothing if it runs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    mp.set_forkserver_preload(MODULES)
    if mp.get_start_method(allow_none=True) not in mp.get_all_start_methods():
        mp.set_start_method("forkserver", force=True)  # joblib's own, which processes of the server could not take over
    # Inherited: what is sent to the whole group to end a run must not hit the server, on which the sessions depend.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    resource_tracker.ensure_running()  # or the server would start it; unblocks some
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
