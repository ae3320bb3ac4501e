"""The parallel machinery: who owns theta, in which memory, and which process applies a gradient."""

from asynclab.distributed.launch import SessionError, launch
from asynclab.distributed.modes import Mode, Off, Shared, Synced
from asynclab.distributed.store import Store

__all__ = ["Mode", "Off", "SessionError", "Shared", "Store", "Synced", "launch"]
