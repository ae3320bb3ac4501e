"""The curves of a run, read from its metrics.jsonl: of the trial at its progress lines, of sessions by episode.

Those of a zoo's agent have fewer points (``thin``): one for every so many episodes of a session.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from asynclab.storage import metrics
from asynclab.storage.names import METRICS

AXES = {
    "total_frames": "frames of all sessions",
    "session_frames": "frames per session",
    "seconds": "wall-clock time (s)",
}
WINDOW = 100  # episodes in a moving average
GRID = 200  # points of a drawn curve

Array = NDArray[np.float64]


class NoEpisodeError(ValueError):
    """A run in which no episode has ended yet."""


class Curve(NamedTuple):
    """Returns, and where they are on every axis; nan where a return was not finite.

    Attributes:
        total_frames: [N] of all sessions.
        session_frames: [N] of the session; in the trial's curve their mean.
        seconds: [N] since the start of the run.
        returns: [N] raw.
    """

    total_frames: Array
    session_frames: Array
    seconds: Array
    returns: Array

    def along(self, x: str) -> tuple[Array, Array]:
        """Return the values of an axis, a key of ``AXES``, and the returns there."""
        return getattr(self, check_axis(x)), self.returns


class Curves(NamedTuple):
    """All curves of a run.

    Attributes:
        trial: Mean return over the last 100 episodes of all sessions, at every progress line.
        sessions: By rank: the return of every episode, or the mean return of every so many.
        evaluation: Mean return of every evaluation while the run trained.
        ended: [N] How many episodes of all sessions are on record at every point of the trial's curve, at least.
        every: Episodes that a point of a session's curve is the mean of; divides ``WINDOW``.
    """

    trial: Curve
    sessions: dict[int, Curve]
    evaluation: Curve
    ended: Array
    every: int = 1


def check_axis(x: str) -> str:
    """Return ``x`` if it is a key of ``AXES``, else raise ValueError."""
    if x not in AXES:
        raise ValueError(f"x={x} is unknown; use one of {', '.join(AXES)}")
    return x


def read(run: Path) -> Curves:
    """Return the curves of a run that has ended, still writes or was killed.

    Args:
        run: Output folder.

    Raises:
        NoEpisodeError: The mean return is in no progress line yet.
        ValueError: The folder has no metrics, or damaged ones.
    """
    lines = metrics.read(run)
    try:
        return _curves(lines, run)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{run / METRICS} is of another version of asynclab ({type(error).__name__}: {error})"
        ) from None


def _curves(lines: Sequence[dict[str, Any]], run: Path) -> Curves:
    episodes: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    points, ended, evaluations, clock, every = [], list[int](), [], [(0.0, 0)], 1
    for line in lines:
        if line["kind"] == metrics.SESSION:
            rows, every = line.get("episodes", []), line.get("every", 1)
            episodes[line["rank"]] += [(e["total_frame"], e["frame"], e["seconds"], e["ret"]) for e in rows]
        elif line["kind"] == metrics.TRIAL:
            clock.append((line["seconds"], line["total_frames"]))
            if "train/return_100" in line["metrics"]:
                points.append((line["total_frames"], line["seconds"], line["metrics"]["train/return_100"]))
                # the first mean of a session may be of fewer episodes
                ended.append(sum((len(rows) - 1) * every + 1 for rows in episodes.values() if rows))
        elif line["kind"] == metrics.EVALUATION:
            with suppress(KeyError, TypeError, ValueError):  # one that cannot be read: the rest is still good
                evaluations.append(_evaluation(**{key: line[key] for key in ("total_frames", "seconds", "returns")}))
    if not points:
        raise NoEpisodeError(f"{run} has no finished episode yet")
    trial, evaluation = (
        _curve((total, total / max(len(episodes), 1), seconds, ret) for total, seconds, ret in found)
        for found in (points, evaluations)
    )
    sessions = {rank: _curve(rows) for rank, rows in sorted(episodes.items())}
    if len(sessions) > 1 and all((c.total_frames == c.session_frames).all() for c in sessions.values()):
        # distributed=off: each has a clock of its own; the frames of all are known by time
        seconds, frames = zip(*clock, strict=True)
        sessions = {r: c._replace(total_frames=np.interp(c.seconds, seconds, frames)) for r, c in sessions.items()}
    return Curves(trial, sessions, evaluation, np.array(ended, float), every)


def _evaluation(total_frames: Any, seconds: Any, returns: Any) -> tuple[float, float, float]:
    mean = statistics.fmean(math.nan if ret is None else ret for ret in returns)  # None is what JSON has for nan
    return float(total_frames), float(seconds), mean


def _curve(rows: Iterable[tuple[Any, ...]]) -> Curve:
    table = np.array(list(rows), float).reshape(-1, len(Curve._fields))  # None, what JSON has for nan, becomes nan
    return Curve(*table.T)


def thin(curves: Curves, points: int = 300) -> Iterator[dict[str, Any]]:
    """Yield lines of a metrics.jsonl from which ``read`` makes the same curves with fewer points.

    A point of a session is the mean of so many episodes that 100 is a multiple of them.  So moving averages over 100
    episodes are at these points what they were.

    Args:
        curves: Of a run.
        points: How many each curve has at most; those of sessions have more if 100 times as many episodes are too few.
    """
    assert curves.every == 1, curves.every
    longest = max((len(curve.returns) for curve in curves.sessions.values()), default=0)
    every = next(n for n in range(1, WINDOW + 1) if WINDOW % n == 0 and (n == WINDOW or longest <= n * points))
    sessions = {rank: _means(curve, every) for rank, curve in curves.sessions.items()}
    trial, evaluation = (
        Curve(*(axis[np.linspace(0, len(axis) - 1, min(points, len(axis))).astype(int)] for axis in curve))
        for curve in (curves.trial, curves.evaluation)
    )
    before, last = -math.inf, len(trial.seconds) - 1
    for i, (total, _, seconds, ret) in enumerate(zip(*trial, strict=True)):
        until = math.inf if i == last else seconds
        for rank, curve in sessions.items():
            new = (before < curve.seconds) & (curve.seconds <= until)
            rows = [
                {"frame": int(frame), "total_frame": int(total_frame), "seconds": round(at, 2), "ret": _json(mean)}
                for total_frame, frame, at, mean in zip(*(axis[new] for axis in curve), strict=True)
            ]
            if rows or i == 0:  # once at least: a session without an episode counts, too
                yield {"kind": metrics.SESSION, "rank": rank, "every": every, "episodes": rows}
        point = {"total_frames": int(total), "seconds": round(seconds, 2)}
        yield {"kind": metrics.TRIAL, **point, "metrics": {"train/return_100": _json(ret)}}
        before = until
    for total, _, seconds, ret in zip(*evaluation, strict=True):
        yield {
            "kind": metrics.EVALUATION,
            "total_frames": int(total),
            "seconds": round(seconds, 2),
            "returns": [_json(ret)],
        }


def _means(curve: Curve, every: int) -> Curve:
    """Return the mean return of every so many episodes, where the last of them is; the first mean may be of fewer."""
    ends = np.arange(len(curve.returns), 0, -every)[::-1]
    means = [curve.returns[max(end - every, 0) : end].mean() for end in ends]
    return Curve(*(axis[ends - 1] for axis in curve))._replace(returns=np.array(means))


def _json(ret: float) -> float | None:
    return float(f"{ret:.6g}") if math.isfinite(ret) else None  # JSON has no nan


def moving_average(returns: ArrayLike, window: int = WINDOW) -> Array:
    """Return the mean of every return and those before it, ``window`` at most; nan while one of them is nan.

    Args:
        returns: [N].
        window: Episodes.
    """
    values = np.asarray(returns, float)
    unknown = np.isnan(values)
    # sums of all up to each, with a 0 before the first: the difference of two is the sum of a window
    total, gaps = (np.concatenate([[0], np.cumsum(v)]) for v in (np.where(unknown, 0, values), unknown))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return np.where(gaps[end] > gaps[start], math.nan, (total[end] - total[start]) / (end - start))


def step(x: ArrayLike, y: ArrayLike, at: ArrayLike) -> Array:
    """Return y as it was last known at each point: nan before the first x.

    Args:
        x: [N], rising.
        y: [N].
        at: [M], or one number.
    """
    index = np.searchsorted(np.asarray(x), at, side="right") - 1
    return np.where(index < 0, math.nan, np.asarray(y, float)[index])


def align(curves: Sequence[tuple[Array, Array]], points: int = GRID) -> tuple[Array, Array]:
    """Return a grid [M] and the values of all curves there [curves, M].

    The grid reaches from where every curve has begun to where the first one ends, so that at every point a mean is over
    all of them.

    Args:
        curves: x and y of each; x rises.
        points: M.

    Raises:
        ValueError: One ends before another one begins.
    """
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if last < first:
        raise ValueError(f"one curve ends at {last:,.6g}, before another one begins at {first:,.6g}")
    grid = np.linspace(first, last, points)
    return grid, np.stack([step(x, y, grid) for x, y in curves])


def over_sessions(curves: Curves, x: str) -> tuple[Array, Array, Array]:
    """Return a grid, the mean over the sessions of their moving averages, and their standard deviation (nan of one).

    Args:
        curves: Of a run.
        x: A key of ``AXES``.

    Raises:
        ValueError: No session has an episode, or they do not overlap.
    """
    averages = [
        (curve.along(x)[0], moving_average(curve.returns, WINDOW // curves.every))
        for curve in curves.sessions.values()
        if len(curve.returns)
    ]
    if not averages:
        raise ValueError("its metrics have no episodes of single sessions (of another version of asynclab?)")
    grid, values = align(averages)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(len(grid), math.nan)
    return grid, values.mean(axis=0), spread
