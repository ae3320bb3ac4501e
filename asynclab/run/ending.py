"""Why a run ends before its budget is used up: a signal, or that it is good enough."""

import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from asynclab import check, signals
from asynclab.console.table import Status
from asynclab.processes.control import Control


@dataclass(frozen=True)
class Stop:
    """When a run is finished before its budget is used up.

    Attributes:
        at: Mean return of the last 100 episodes; None for none.
        patience: Frames without a better one; None for any number.

    Raises:
        ValueError: A setting makes no sense.
    """

    at: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.at is not None:
            check.number("stop_at", self.at)
        if self.patience is not None:
            check.count("patience", self.patience)

    def reason(self, mean_return: float, frames: int, best_frame: int) -> str | None:
        """Return why a run is finished; None if it is not.

        Args:
            mean_return: Of the last 100 episodes; nan if there were fewer.
            frames: Of the trial.
            best_frame: When the best mean return so far was reached, or the first 100 episodes had ended.
        """
        if self.at is not None and mean_return >= self.at:
            return f"stop_at={self.at:g}"
        if self.patience is not None and not math.isnan(mean_return) and frames - best_frame >= self.patience:
            return f"patience={self.patience:,}"
        return None


class Ending:
    """What signals have asked for.

    Attributes:
        is_saved: Set by the trial when its last checkpoint is written.
        is_asked: Whether a signal has come.
        number: Of the signal that ends this process when the run has ended; None for none.
    """

    def __init__(self) -> None:
        self.is_saved = False
        self.is_asked = False
        self.number: int | None = None


@contextmanager
def end_on_signals(control: Control, status: Status) -> Iterator[Ending]:
    """Let the first signal ask the sessions to save and end, and a second Ctrl-C end everything at once.

    When all is saved, what is left is the evaluation of the final weights: any signal ends it, and the summary, which
    a second Ctrl-C waits for.  Ctrl-C then ends nothing else, so that a sweep goes on with its next job.

    Args:
        control: Of the sessions.
        status: Told what is about to happen.
    """
    ending = Ending()

    def handle(number: int, frame: FrameType | None) -> None:
        if ending.is_asked and number == signal.SIGINT and not ending.is_saved:
            _say("")
            os._exit(128 + number)  # sessions die with us
        if not ending.is_asked:
            what = "ending without the last evaluation" if ending.is_saved else "saving and ending; Ctrl-C ends at once"
            status.note = f"{signal.Signals(number).name}: {what}"
            if not status.is_shown:
                _say(status.note)
        ending.is_asked = True
        if ending.number is None and not (ending.is_saved and number == signal.SIGINT):
            ending.number = number
        control.finish()

    with signals.handled(signals.ENDING, handle):
        yield ending


def _say(text: str) -> None:
    """Write a line from a signal handler, for which logging is not made."""
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"\n{text}\n".encode())


def hand_on(number: int) -> None:
    """Let submitit have its signal, now that all is saved: it hands the job in again, and ends this process."""
    handler = signal.getsignal(number)
    if number == signal.SIGUSR2 and callable(handler):
        handler(number, None)
