"""Groups of runs in order of what they reached: interquartile means over seeds, with bootstrap intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from asynclab.analysis import runs
from asynclab.analysis.curves import WINDOW
from asynclab.analysis.jobs import Job
from asynclab.analysis.runs import Run

METRICS = {  # title, and what it is
    "final": ("final return", f"mean return of the last {WINDOW} episodes at the end"),
    "best": ("best return", f"the highest mean return of {WINDOW} episodes during training"),
    "mean": ("mean over training", "that mean return, averaged over the frames (the area under the curve)"),
    "evaluation": ("evaluation", "mean return of the last evaluation"),
}

Estimate = tuple[float, float, float]  # value and both ends of its interval; nan where not known


class Group(NamedTuple):
    """Runs that only differ in their seeds, or have the same value of a setting.

    Attributes:
        label: What sets it apart.
        jobs: All of it.
        used: Those whose numbers count: that are finished or, if none is, all.
        estimates: By metric.
    """

    label: str
    jobs: list[Job]
    used: list[Job]
    estimates: dict[str, Estimate]


def rank(labelled: Mapping[str, list[Job]], metric: str) -> list[Group]:
    """Return the groups, the one with the highest value of a metric first."""
    groups = []
    for label, jobs in labelled.items():
        complete = {run.folder for run in runs.complete([job.run for job in jobs])}
        used = [job for job in jobs if job.run.folder in complete]
        estimates = {name: _estimate([score(job.run, name) for job in used]) for name in METRICS}
        for name, is_undefined in (("final", _has_diverged), ("evaluation", _evaluates_to_nan)):
            if any(is_undefined(job.run) for job in used):  # not the mean of the others
                estimates[name] = (math.nan, math.nan, math.nan)
        groups.append(Group(label, jobs, used, estimates))
    return sorted(groups, key=lambda g: (math.isnan(g.estimates[metric][0]), -g.estimates[metric][0]))


def score(run: Run, metric: str) -> float:
    """Return a run's value of a metric; nan if it is not known."""
    known = np.isfinite(run.curve.returns)
    if metric == "evaluation":
        return or_nan(number(run.summary, "evaluation", "mean_return"))
    if metric == "best":
        if "best_return" in run.summary:
            return or_nan(number(run.summary, "best_return"))
        full = run.curve.returns[known & (run.curves.ended >= WINDOW)]  # of fewer episodes it may be a matter of luck
        return float(full.max()) if len(full) else math.nan
    frames, returns = run.curve.total_frames[known], run.curve.returns[known]
    if not len(returns):
        return or_nan(number(run.summary, "mean_return")) if metric == "final" else math.nan
    if metric == "final" and _has_diverged(run):
        return math.nan
    if metric == "mean" and frames[-1] > frames[0]:
        return float(np.trapezoid(returns, frames) / (frames[-1] - frames[0]))
    return float(returns[-1])


def _has_diverged(run: Run) -> bool:
    """Return whether returns were finite and no longer are: rewards became nan or infinite."""
    returns = run.curve.returns
    return bool(np.isfinite(returns).any()) and not math.isfinite(returns[-1])


def _evaluates_to_nan(run: Run) -> bool:
    """Return whether there is an evaluation whose mean return was not finite."""
    return isinstance(run.summary.get("evaluation"), Mapping) and math.isnan(score(run, "evaluation"))


def _estimate(values: Sequence[float]) -> Estimate:
    """Return the interquartile mean and its interval; the mean alone where scipy is missing."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return known[0] if known else math.nan, math.nan, math.nan
    try:
        from asynclab.analysis.estimates import estimate
    except ImportError:
        return statistics.fmean(known), math.nan, math.nan
    value = estimate(known)
    return value.iqm, value.low, value.high


def number(content: object, *keys: str) -> float | None:
    """Return a number deep in what a file has; None if it is not there, not a number or not finite."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    if isinstance(content, bool) or not isinstance(content, (int, float)) or not math.isfinite(content):
        return None
    return content


def or_nan(value: float | None) -> float:
    """Return nan for None."""
    return math.nan if value is None else value
