"""The fork server from which sessions start: it imports what they need once, instead of each of them.

Importing this file imports nothing else, so that the server can start before the command has imported torch itself.
"""

import multiprocessing as mp
import signal
from multiprocessing import forkserver

# Importing these runs no torch operator: a process forked after one can hang in its first parallel region.
# torch._dynamo takes seconds and an optimizer imports it at its first step.
MODULES = ["torch", "torch._dynamo", "hydra", "gymnasium.wrappers.vector", "ale_py", "asynclab.session"]


def start_server() -> None:
    """Start the fork server; do nothing if it runs."""
    mp.set_forkserver_preload(MODULES)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C must not hit the server while it imports
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, handler)
