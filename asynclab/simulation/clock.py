"""Virtual time."""


class Clock:
    """Is moved by a simulation, and asked like ``time.monotonic``.

    Args:
        now: Seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the seconds that have passed."""
        return self.now
