"""Whose memory and who applies: where theta lies, and which process applies a gradient to it."""

from asynclab.distributed.modes import Mode, Off, Shared, Synced
from asynclab.distributed.store import Network, Store

__all__ = ["Mode", "Network", "Off", "Shared", "Store", "Synced"]
