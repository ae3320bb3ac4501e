"""How old gradients are when they are applied: statistics of counts {staleness: how often}."""

from collections.abc import Mapping

import numpy as np


def summary(counts: Mapping[int, int]) -> dict[str, float] | None:
    """Return mean, median, 95th percentile and maximum; None if nothing was counted.

    Percentiles are values that occurred: the smallest one that at least that share does not exceed.
    """
    if not counts:
        return None
    values, times = (np.array(x) for x in zip(*sorted(counts.items()), strict=True))
    share = times.cumsum() / times.sum()
    p50, p95 = (int(values[np.searchsorted(share, q)]) for q in (0.5, 0.95))
    return {"mean": float((values * times).sum() / times.sum()), "p50": p50, "p95": p95, "max": int(values[-1])}
