"""asynclab: asynchronous (Hogwild!) deep reinforcement learning, configured by Hydra."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asynclab.evaluation.policy import Policy

__version__ = "0.1.0"


def load(folder: str | Path, checkpoint: str | int = "latest", session: int = 0) -> "Policy":
    """Return the policy that a run has trained; ``policy.act(obs)`` gives an action of ``policy.env_id``.

    Args:
        folder: Output folder.
        checkpoint: ``latest``, ``best`` (by the mean return of 100 episodes) or a number in ``checkpoints/``.
        session: Whose network, where sessions have one each (``distributed=off``).

    Raises:
        ValueError: The folder has no run, the run's config names code that is not allowed, or the run has no such
            checkpoint or session.
    """
    from asynclab.evaluation.policy import Policy

    return Policy(Path(folder), str(checkpoint), session)
