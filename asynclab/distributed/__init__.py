"""The parallel machinery: who owns theta, in which memory, and which process applies a gradient."""

from asynclab.distributed.control import Control
from asynclab.distributed.launch import Failure, FatalError, SessionError, Started, launch, settle
from asynclab.distributed.modes import Mode, Off, Shared, Synced
from asynclab.distributed.store import Store

__all__ = [
    "Control",
    "Failure",
    "FatalError",
    "Mode",
    "Off",
    "SessionError",
    "Shared",
    "Started",
    "Store",
    "Synced",
    "launch",
    "settle",
]
