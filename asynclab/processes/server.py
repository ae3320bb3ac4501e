"""The fork server from which sessions start: it imports what they need once, instead of each of them.

Importing this file imports nothing large, so that the server can start before the command has imported torch itself.
"""

import multiprocessing as mp
import resource
from multiprocessing import forkserver, resource_tracker

from asynclab import signals

# Importing these runs no torch operator: a process forked after one can hang in its first parallel region.
MODULES = ["torch", "hydra", "gymnasium.wrappers.vector", "ale_py", "asynclab.training.session"]


def start_server() -> None:
    """Start the fork server, with as many open files as we may have; do nothing if it runs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    mp.set_forkserver_preload(MODULES)
    if mp.get_start_method(allow_none=True) not in mp.get_all_start_methods():
        mp.set_start_method("forkserver", force=True)  # joblib's own, which processes of the server could not take over
    with signals.blocked():  # sessions depend on the server
        resource_tracker.ensure_running()  # or the server would start it; unblocks some
        with signals.blocked():
            forkserver.ensure_running()
