"""Train: the command, a run or a sweep of them."""

import signal

if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends us without a traceback until there is something to save

from omegaconf import DictConfig

from asynclab import job, sweeps
from asynclab.config.command import configured


@configured("config")
def train(cfg: DictConfig) -> float:
    """Run one trial and return its final mean return, for sweepers to maximise."""
    return job.run(cfg)


def main() -> None:
    """Train; a sweep that is cut short says why, and how its jobs ended."""
    with sweeps.in_words():
        train()
