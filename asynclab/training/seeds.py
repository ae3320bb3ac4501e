"""Random streams that no two sessions share, and that are the same in every run."""

import numpy as np

Life = tuple[int, int]  # how often the trial has been resumed, and the session restarted since


class Seeds:
    """Distinct, reproducible random streams for every session and environment of a trial.

    Args:
        seed: Of the trial, below 2**32: a larger one takes two words of entropy, and may be another's with its rank.
        rank: Of the session.
        life: Of the session: what begins again must not repeat the same episodes.
    """

    def __init__(self, seed: int, rank: int, life: Life = (0, 0)) -> None:
        again = list(life) if any(life) else []
        streams = np.random.SeedSequence([seed, rank, *again]).spawn(4)
        self.weights, self.torch, self.memory, self.timing = (int(s.generate_state(1)[0]) for s in streams)
        self._rank = rank
        self._first_env = int(np.random.SeedSequence([seed, *again]).generate_state(1)[0])

    def envs(self, num_envs: int) -> list[int]:
        """Return one seed per environment, in 0..2^31-1: consecutive over the ranks, so no two can be equal."""
        return [(self._first_env + self._rank * num_envs + i) % 2**31 for i in range(num_envs)]
