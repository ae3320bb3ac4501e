"""How long what sessions do takes in virtual time (``distributed=simulated``)."""

import math

import numpy as np

from asynclab import check


class Constant:
    """The same seconds each time.

    Args:
        act: Seconds in which a session chooses the actions of all its environments.
        step: In which it steps them.
        gradient: From a batch to its gradient.
        push: Until theta has been stepped by it.
        pull: Until the session goes on with the new weights.
        slow: Share of the sessions that are slower than the others: the last ones, by rank.
        slowdown: How many times slower these are in all that they do themselves.
        machines: On which the sessions lie, in blocks of equal size; theta lies on the first.
        latency: Seconds from one machine to another.
        bandwidth: Bytes per second from one machine to another, of a server to and from all of its nodes together; None
            for no limit.
        exchange: Seconds in which a server does nothing but take a node's change in.
    """

    def __init__(
        self,
        act: float = 0.0005,
        step: float = 0.0005,
        gradient: float = 0.002,
        push: float = 0.0001,
        pull: float = 0.0001,
        slow: float = 0.0,
        slowdown: float = 1.0,
        machines: int = 1,
        latency: float = 0.0,
        bandwidth: float | None = None,
        exchange: float = 0.0015,
    ) -> None:
        key = "distributed.timing"
        self.act, self.step, self.gradient, self.push, self.pull = (
            check.positive(f"{key}.{name}", check.number(f"{key}.{name}", seconds))
            for name, seconds in (("act", act), ("step", step), ("gradient", gradient), ("push", push), ("pull", pull))
        )
        self.slow = check.fraction(f"{key}.slow", slow)
        self.slowdown = check.positive(f"{key}.slowdown", check.number(f"{key}.slowdown", slowdown))
        self.machines = check.count(f"{key}.machines", machines)
        for name, seconds in (("latency", latency), ("exchange", exchange)):
            check.not_negative(f"{key}.{name}", seconds)
        self.latency, self.exchange = latency, exchange
        self.bandwidth = math.inf if bandwidth is None else check.positive(f"{key}.bandwidth", bandwidth)

    def of_step(self, rng: np.random.Generator) -> float:
        """Return the seconds of acting and stepping once."""
        return self._draw(self.act, rng) + self._draw(self.step, rng)

    def of_gradient(self, rng: np.random.Generator) -> float:
        """Return the seconds from the beginning of a gradient until it has been pushed, without the network."""
        return self._draw(self.gradient, rng) + self._draw(self.push, rng)

    def of_pull(self, rng: np.random.Generator) -> float:
        """Return the seconds of a pull, without the network."""
        return self._draw(self.pull, rng)

    def slowness(self, rank: int, sessions: int) -> float:
        """Return how many times slower than others a session is."""
        return self.slowdown if rank >= sessions - round(self.slow * sessions) else 1.0

    def transfer(self, rank: int, sessions: int, nbytes: int) -> float:
        """Return the seconds in which so many bytes come from a session to theta, or back."""
        return self.latency + nbytes / self.bandwidth if rank * self.machines // sessions else 0.0

    def _draw(self, mean: float, rng: np.random.Generator) -> float:
        return mean


class Lognormal(Constant):
    """Seconds that vary, independently each time: lognormal, with the given means.

    Args:
        spread: Standard deviation as a share of the mean.
        constant: Of ``Constant``.
    """

    def __init__(self, spread: float = 0.3, **constant: float) -> None:
        super().__init__(**constant)  # type: ignore[arg-type]
        self.spread = check.positive("distributed.timing.spread", check.number("distributed.timing.spread", spread))
        self._sigma = math.sqrt(math.log1p(self.spread**2))  # of the logarithm

    def _draw(self, mean: float, rng: np.random.Generator) -> float:
        return mean * math.exp(self._sigma * rng.standard_normal() - self._sigma**2 / 2)
