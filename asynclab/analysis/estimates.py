"""Estimates over seeds: interquartile means with bootstrap confidence intervals (Agarwal et al., 2021)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from asynclab.analysis.curves import GRID, Array, align

CONFIDENCE = 0.95
RESAMPLES = 9_999


class Estimate(NamedTuple):
    """An interquartile mean and its confidence interval, nan without a second value."""

    iqm: float
    low: float = math.nan
    high: float = math.nan


def iqm(values: ArrayLike, axis: int = 0) -> Any:
    """Return the interquartile mean: of what is left without the lowest and the highest quarter.

    Of n values, the whole part of n/4 is cut at each end: nothing of 3, one each of 5.  Of a nan it is nan.
    """
    middle = stats.trim_mean(values, 0.25, axis=axis)
    return np.where(np.isnan(values).any(axis=axis), math.nan, middle)[()]  # trimming would cut a nan off


def interval(values: ArrayLike, resamples: int = RESAMPLES) -> tuple[Any, Any]:
    """Return both ends of the percentile bootstrap's confidence interval of the interquartile mean over axis 0.

    Resampling is seeded, so the same runs give the same table.  Of fewer than two values, or with a nan among them,
    both ends are nan.
    """
    values = np.asarray(values, float)
    ends = np.full((2, *values.shape[1:]), math.nan)
    known = ~np.isnan(values).any(axis=0)
    if len(values) > 1 and known.any():
        found = stats.bootstrap(
            (values[:, known],), iqm, axis=0, n_resamples=resamples, confidence_level=CONFIDENCE, method="percentile",
            batch=100, rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        ends[:, known] = found.low, found.high
    return ends[0], ends[1]


def estimate(values: ArrayLike) -> Estimate:
    """Return the interquartile mean of one number per run, and its interval."""
    return Estimate(float(iqm(values)), *map(float, interval(values)))


def band(curves: Sequence[tuple[Array, Array]], points: int = GRID) -> tuple[Array, ...]:
    """Return a grid and the interquartile mean, the lower and the upper end of its interval there.

    Args:
        curves: x and returns of each seed.
        points: Of the grid, ``curves.align``.

    Raises:
        ValueError: One curve ends before another one begins.
    """
    grid, values = align(curves, points)  # [seeds, points]
    return grid, iqm(values), *interval(values, resamples=2_000)
