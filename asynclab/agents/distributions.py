"""Policies' distributions.  N: batch, A: numbers of an action."""

from collections.abc import Sequence
from math import inf, log

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal
from torch.nn.functional import softplus


def categorical(logits: Tensor) -> Categorical:
    """Return the distribution of discrete actions [...] with these logits [..., A]."""
    return Categorical(logits=logits, validate_args=False)


def multi_categorical(logits: Tensor, sizes: Sequence[int]) -> Independent:
    """Return independent distributions over the numbers of a discrete action [N, A].

    Args:
        logits: [N, sum of sizes], those of one number after the other.
        sizes: A, how many values each number has.
    """
    most = max(sizes)
    places = [a * most + i for a, size in enumerate(sizes) for i in range(size)]
    batch = logits.shape[0]  # its len() would be a constant of an exported policy
    padded = logits.new_full((batch, len(sizes) * most), -inf)  # what a number does not have is impossible
    padded = padded.index_copy(1, torch.tensor(places, device=logits.device), logits)
    return Independent(categorical(padded.view(batch, len(sizes), most)), 1, validate_args=False)


def diagonal_normal(mean: Tensor, log_std: Tensor) -> Independent:
    """Return independent normals over continuous actions [N, A]; ``log_std`` broadcasts to ``mean`` [N, A]."""
    return Independent(Normal(mean, log_std.exp().expand_as(mean), validate_args=False), 1, validate_args=False)


class SquashedNormal:
    """Actions a = tanh(u) in (-1, 1) with u normal (Haarnoja et al., 2018b, appendix C).

    Args:
        mean: [N, A] mean of u.
        log_std: [N, A] log standard deviation of u.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std

    def rsample(self) -> tuple[Tensor, Tensor]:
        """Return reparameterised actions [N, A] and their log-probabilities [N]."""
        noise = torch.randn_like(self.mean)
        u = self.mean + self.log_std.exp() * noise
        # log pi(a) = log N(u) - sum log(1 - tanh(u)^2), the last in a form that does not overflow:
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))
        log_normal = -0.5 * (noise.square() + log(2 * torch.pi)) - self.log_std
        return torch.tanh(u), (log_normal - 2 * (log(2) - u - softplus(-2 * u))).sum(-1)

    def sample(self) -> Tensor:
        """Return actions [N, A]."""
        return torch.tanh(torch.normal(self.mean, self.log_std.exp()))

    @property
    def mode(self) -> Tensor:
        """Return tanh of the mean, [N, A]: the action without noise."""
        return torch.tanh(self.mean)
