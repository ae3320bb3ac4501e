"""Reading and drawing the curves of runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

AXES = {
    "total_frames": "frames of all sessions",
    "session_frames": "frames per session",
    "seconds": "wall-clock time (s)",
}


def read(run: Path, x: str) -> tuple[list[float], list[float]]:
    """Return x and the trial's mean return over 100 episodes at every progress line.

    Args:
        run: Output folder.
        x: A key of ``AXES``.

    Raises:
        ValueError: The folder has no metrics, or none with a finished episode.
    """
    if x not in AXES:
        raise ValueError(f"x={x} is unknown; use one of {', '.join(AXES)}")
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"{run} is not an output folder: it has no metrics.jsonl")
    # of a run that is still writing, or was killed, the last line may be half a line
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines(True) if line[-1] == "\n"]
    sessions = len({line["rank"] for line in lines if line["kind"] == "session"})
    points = [line for line in lines if line["kind"] == "trial" and "train/return_100" in line["metrics"]]
    if not points:
        raise ValueError(f"{run} has no finished episode yet")
    xs = [line["total_frames"] / sessions if x == "session_frames" else line[x] for line in points]
    return xs, [line["metrics"]["train/return_100"] for line in points]


def plot(runs: Sequence[Path], labels: Sequence[str], x: str, out: Path) -> None:
    """Draw the mean return over 100 episodes of several runs into one figure."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    if len(runs) != len(labels):
        raise ValueError(f"there are {len(runs)} runs and {len(labels)} labels; give one label per run")
    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for run, label in zip(runs, labels, strict=True):
        axes.plot(*read(run, x), label=label)
    axes.set(xlabel=AXES.get(x, x), ylabel="mean return of the last 100 episodes")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise ValueError(f"out={out} cannot be written: {error.strerror}; set out to another file") from error
