"""Values as histograms, which a network learns by classification.  K: bins."""

from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from asynclab import check

SPREAD = 0.75  # standard deviation of the Gaussian in bins, as in the paper's experiments


class Histogram:
    """HL-Gauss (Imani & White, 2018) for values, as in Farebrother et al. (2024), section 3.1.

    A number becomes a Gaussian around it, cut into bins of the same width; the network's logits are fitted to that by
    cross entropy, and the mean of their probabilities is the value.  Gradients do not depend on the scale of rewards.

    Args:
        bins: K.
        value_range: Values lie from minus this to this; those beyond are taken for the nearest.
    """

    def __init__(self, bins: int, value_range: float) -> None:
        self.bins = check.count("algo.agent.bins", bins)
        if bins < 2:
            raise ValueError(f"algo.agent.bins={bins} must be at least 2, or null to learn values by their errors")
        self.value_range = check.positive("algo.agent.value_range", value_range)

    def mean(self, logits: Tensor) -> Tensor:
        """Return the values [...] of logits [..., K]."""
        return logits.softmax(-1) @ (self._edges(logits)[1:] - self._width / 2)

    def project(self, value: Tensor) -> Tensor:
        """Return the probabilities [..., K] for values [...]; their mean is the value, away from the range's ends."""
        value = value.clamp(-self.value_range, self.value_range).unsqueeze(-1)
        below = torch.erf((self._edges(value) - value) / (sqrt(2) * SPREAD * self._width))
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])

    def loss(self, logits: Tensor, value: Tensor) -> Tensor:
        """Return the mean cross entropy of logits [N, K] and the histograms of values [N]."""
        return cross_entropy(logits, self.project(value))

    @property
    def _width(self) -> float:
        return 2 * self.value_range / self.bins

    def _edges(self, like: Tensor) -> Tensor:
        ends = -self.value_range, self.value_range
        return torch.linspace(*ends, self.bins + 1, device=like.device, dtype=like.dtype)
