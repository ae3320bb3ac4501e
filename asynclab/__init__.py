"""asynclab: asynchronous (Hogwild!) deep reinforcement learning, configured by Hydra."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asynclab.evaluation.policy import Policy
    from asynclab.library import Run

__version__ = "1.0.0"


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


def train(
    overrides: Sequence[str] = (), callback: Callable[[dict[str, Any]], object] | None = None, quiet: bool = False
) -> "Run":
    """Train as ``asynclab train`` does with these settings, to the end, and return the run.

    It may be called in a notebook, in a thread, and in a script without ``if __name__ == "__main__":``: sessions do not
    import the script.  So environments of your own are found by several sessions if they are in a module of their own,
    ``env.id=module:Name-v0``; one session runs in this process and knows what it knows.

    Args:
        overrides: As on the command line: ``["algo=a3c", "env=cartpole", "distributed.max_session=2"]``.
        callback: Told every line of ``metrics.jsonl`` as it is written, a dict.  Its ``kind`` is ``session`` (with the
            episodes that ended), ``trial``, ``evaluation``, ``process`` or ``failure``.  What it raises ends the run
            with a checkpoint, and is raised here.
        quiet: Print nothing; ``train.log`` has it all.

    Raises:
        ValueError: A setting cannot work, or another run trains in this process.
        SessionError: A session failed for good; there is a checkpoint.
        TrialError: The run could not go on.
        OSError: Something could not be written.
        KeyboardInterrupt: Ctrl-C, or the notebook's button; there is a checkpoint, and ``resume=<folder>`` goes on.
    """
    from asynclab import library

    return library.train(overrides, callback, quiet)
