"""Reading and drawing the curves of runs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

AXES = {
    "total_frames": "frames of all sessions",
    "session_frames": "frames per session",
    "seconds": "wall-clock time (s)",
}
# Okabe & Ito (2008): told apart by colour-blind readers too; line styles tell them apart without any colour
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#D55E00", "#56B4E9"]
LINES = ["-", "--", "-.", (0, (1, 1))]


def read(run: Path, x: str) -> tuple[list[float], list[float]]:
    """Return x and the trial's mean return over 100 episodes at every progress line.

    Args:
        run: Output folder.
        x: A key of ``AXES``.

    Raises:
        ValueError: The folder has no metrics, damaged ones, or none with a finished episode.
    """
    if x not in AXES:
        raise ValueError(f"x={x} is unknown; use one of {', '.join(AXES)}")
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"{run} is not an output folder: it has no metrics.jsonl")
    # of a run that is still writing, or was killed, the last line may be half a line
    text = [line for line in file.read_text().splitlines(True) if line[-1] == "\n"]
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in text]
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    sessions = len({line["rank"] for line in lines if line["kind"] == "session"})
    points = [line for line in lines if line["kind"] == "trial" and "train/return_100" in line["metrics"]]
    if not points:
        raise ValueError(f"{run} has no finished episode yet")
    xs = [line["total_frames"] / sessions if x == "session_frames" else line[x] for line in points]
    returns = [line["metrics"]["train/return_100"] for line in points]
    return xs, [math.nan if ret is None else ret for ret in returns]  # null: it was not finite


def plot(runs: Sequence[Path], labels: Sequence[str], x: str, out: Path) -> None:
    """Draw the mean return over 100 episodes of several runs into one figure."""
    if len(runs) != len(labels):
        raise ValueError(f"there are {len(runs)} runs and {len(labels)} labels; give one label per run")
    figure, (axes,) = panels([x], (8, 4.5))
    for run, label in zip(runs, labels, strict=True):
        axes.plot(*read(run, x), label=label)
    axes.legend(frameon=False)
    save(figure, [out])


def panels(xs: Sequence[str], size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    """Return a figure and its axes: the mean return against every x, beside each other.

    Args:
        xs: Keys of ``AXES``.
        size: Inches.
    """
    import matplotlib

    matplotlib.use("agg")
    from cycler import cycler
    from matplotlib import pyplot as plt

    lines = cycler(linestyle=LINES * len(COLOURS)) + cycler(color=COLOURS * len(LINES))
    with plt.rc_context({"axes.prop_cycle": lines}):
        figure, (axes,) = plt.subplots(1, len(xs), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for panel, x in zip(axes, xs, strict=True):
        panel.set(xlabel=AXES.get(x, x))
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.locator_params(axis="x", integer=True, nbins=6)
        panel.grid(alpha=0.3)
    axes[0].set(ylabel="mean return of the last 100 episodes")
    return figure, axes


def save(figure: Any, outs: Sequence[Path]) -> None:
    """Write a figure into files.

    Raises:
        ValueError: One cannot be written, or has an unknown suffix.
    """
    for out in outs:
        try:
            figure.savefig(out, dpi=120)
        except OSError as error:
            raise ValueError(f"out={out} cannot be written: {error.strerror}; set out to another file") from error
