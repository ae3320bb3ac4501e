"""Running mean and variance, estimated by several processes at once.  W: writers, D: numbers of a sample."""

import numpy as np
import torch
from numpy.typing import NDArray

from asynclab.moments import merge

LARGEST = 1e15  # whose square a float32 still holds, and a sum of many


class Moments:
    """Every writer adds to a slot of its own in shared memory; what is read is the estimate of all.

    Made by the parent and sent to the sessions, like the counters of a store: what a session that has died had seen is
    kept, and no lock is needed.

    Args:
        size: D.
        writers: W.
    """

    def __init__(self, size: int, writers: int = 1) -> None:
        # [W, 1 + 2 D]: number of samples, mean and sum of squared deviations
        self.slots = torch.zeros(writers, 1 + 2 * size, dtype=torch.float64).share_memory_()

    def add(self, slot: int, samples: NDArray) -> None:
        """Take samples [N, D] into account.

        Args:
            slot: Of the writer.
            samples: Those that are not finite are left out: one would spoil the estimate of all sessions, for ever.
        """
        samples = samples[np.isfinite(samples).all(1)]
        if not len(samples):
            return
        mine = self.slots[slot : slot + 1].numpy()
        samples = samples.astype(np.float64) if np.abs(samples).max() > LARGEST else samples
        new = np.concatenate([[len(samples)], samples.mean(0), samples.var(0) * len(samples)])
        mine[0] = merge(np.stack([mine[0], new]))

    def begin(self, slots: torch.Tensor) -> None:
        """Go on from an estimate of others, of any number of writers: [W, 1 + 2 D]."""
        if slots.shape[1] != self.slots.shape[1]:
            raise ValueError(
                f"these are estimates of {slots.shape[1] // 2} numbers, and there are {self.slots.shape[1] // 2} here"
            )
        self.slots.zero_()
        self.slots[0] = torch.from_numpy(merge(slots.numpy()))

    def mean_var(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and variance [D] of all samples; 0 and 1 before there are any."""
        merged = merge(self.slots.numpy())
        mean, squares = np.split(merged[1:], 2)
        return mean, squares / merged[0] if merged[0] else np.ones_like(mean)
