"""Whose memory and who applies: where theta lies, and which process applies a gradient to it."""

from asynclab.distributed.modes import Cluster, Mode, Off, Shared, Simulated, Synced
from asynclab.distributed.store import Network, Store

__all__ = ["Cluster", "Mode", "Network", "Off", "Shared", "Simulated", "Store", "Synced"]
