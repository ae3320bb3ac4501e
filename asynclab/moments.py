"""Estimates of mean and variance, as one row of numbers: samples, means [D], sums of squared deviations [D]."""

import numpy as np
from numpy.typing import NDArray


def merge(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one row for several [N, 1 + 2 D] (Chan et al., 1979): what all their samples together would have given."""
    counts = rows[:, :1]
    means, squares = np.split(rows[:, 1:], 2, axis=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / max(total, 1.0)
    return np.concatenate([[total], mean, (squares + counts * (means - mean) ** 2).sum(0)])
