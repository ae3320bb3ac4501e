"""The lines of a run's metrics.jsonl, each a JSON object; ``seconds`` since the start of the run are in all of them.

========== ==========================================================================================================
kind       has, besides ``total_frames`` (but for a process)
========== ==========================================================================================================
session    rank, frames (of the session), updates, metrics by tag, and the episodes that ended: frame, total_frame,
           seconds, ret (None if not finite), length.  Of a zoo's agent an episode may be the mean of ``every`` ones.
trial      updates, metrics by tag, of all sessions
evaluation updates, returns, lengths
process    rank, pid: a session's process has been started
failure    rank, cause, exitcode, restarted, details
========== ==========================================================================================================
"""

import json
import math
from pathlib import Path
from typing import Any

from asynclab.storage.names import METRICS

SESSION, TRIAL, EVALUATION, PROCESS, FAILURE = "session", "trial", "evaluation", "process", "failure"

Line = dict[str, Any]


class Log:
    """Appends to a run's metrics.jsonl; what it was told is in the file.

    Args:
        run: Output folder.
    """

    def __init__(self, run: Path) -> None:
        self._file = (run / METRICS).open("a")

    def write(self, kind: str, **content: Any) -> Line:
        """Add a line and return it."""
        line = {"kind": kind, **content}
        self._file.write(text(line))
        self._file.flush()
        return line

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def text(line: Line) -> str:
    """Return a line as it is written."""
    return json.dumps(finite(line), allow_nan=False) + "\n"


def read(run: Path) -> list[Line]:
    """Return all lines of a run that has ended, still writes or was killed.

    Raises:
        ValueError: The folder has no metrics, or damaged ones.
    """
    file = run / METRICS
    if not file.is_file():
        raise ValueError(f"{run} is not an output folder: it has no {METRICS}")
    try:
        # of a run that is still writing, or was killed, the last line may be half a line
        return [json.loads(line) for line in file.read_text().splitlines(True) if line[-1] == "\n"]
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def finite(content: Any) -> Any:
    """Replace what JSON cannot say, such as the nan of a diverged loss, by None."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
