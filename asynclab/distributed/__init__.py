"""Whose memory and who applies: where theta lies, and which process applies a gradient to it."""

from asynclab.distributed.modes import Mode, Off, Shared, Synced
from asynclab.distributed.store import Store

__all__ = ["Mode", "Off", "Shared", "Store", "Synced"]
