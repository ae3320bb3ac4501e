"""Figures of runs: the sessions of one, the trials of several, and groups of runs with a band over seeds.

matplotlib and scipy are imported where something is drawn: training imports this module, and must not pay for them.
"""

import logging
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asynclab.analysis import runs
from asynclab.analysis.curves import (
    AXES,
    WINDOW,
    Array,
    Curve,
    NoEpisodeError,
    check_axis,
    moving_average,
    over_sessions,
)
from asynclab.analysis.runs import Run
from asynclab.storage.folder import whole
from asynclab.storage.names import CURVE_IMAGE, SESSIONS_IMAGE
from asynclab.text import count

log = logging.getLogger(__name__)

# Okabe & Ito (2008): told apart by colour-blind readers too; line styles tell them apart without any colour
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#D55E00", "#56B4E9"]
LINES = ["-", "--", "-.", (0, (1, 1))]
KINDS = ("trial", "sessions", "runs", "staleness")
SUFFIXES = (".png", ".svg")
RETURN = f"mean return of the last {WINDOW} episodes"
SEEDS = "interquartile mean over seeds; bands: {:.0%} bootstrap interval"
SESSIONS = f"each session: {RETURN}; bands: standard deviation over the sessions"
PANELS = 25  # of a session graph; more would be too small to read
STALENESS = "staleness: updates by other sessions between pull and push"
UNMEASURED = "its staleness is not on record"
RARE = 0.001  # a share of updates that would not be seen
FEW, LINE = 4, 0.2  # lines of a legend for which there is room, and inches of one more
DOTS = 1_000  # of a session's episodes; more would hide each other


def plot(
    folders: Sequence[Path],
    out: Path,
    kind: str | None = None,
    x: str = "total_frames",
    group: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[list[Path], list[str]]:
    """Draw all runs in folders and return the files and what a reader has to know about what is not in them.

    Args:
        folders: Of runs, or with runs in them.
        out: With .png or .svg this file, without a suffix both.
        kind: ``sessions`` (every session of each run), ``trial`` (mean over the sessions of each run) or ``runs``
            (interquartile mean over the runs of each group) or ``staleness`` (how old the gradients of each group
            were, without an x); None: the first two of one run, the third of several.
        x: A key of ``AXES``.
        group: Keys of the config that make groups; None: all that differs except the seed.
        labels: Of the runs, for ``trial`` and ``sessions``; None: their folders' names.

    Raises:
        ValueError: Nothing can be drawn, or a setting makes no sense.
        ImportError: The extra ``plot`` is not installed.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"kind={kind} is unknown; use one of {', '.join(KINDS)}")
    check_axis(x)
    outs = _outs(out)
    found, notes = runs.load(folders)
    if kind is None and (len(found) > 1 or group):
        kind = "runs"
    is_grouped = kind in ("runs", "staleness")
    if labels is not None and is_grouped:
        raise ValueError(f"labels name runs, and kind={kind} draws groups of them; add kind=trial, or leave labels out")
    if group and not is_grouped:
        raise ValueError(f"group makes groups of runs, and kind={kind} draws each; add kind=runs, or leave group out")
    if labels is not None and len(set(labels)) < len(labels):
        raise ValueError(f"labels={','.join(labels)} are not all different; give each run one of its own")
    if labels is not None and len(labels) != len(found):
        raise ValueError(f"there are {len(found)} runs and {len(labels)} labels; give one label per run")
    names = list(labels or runs.short_names([run.folder for run in found]))
    files: list[Path] = []
    if kind == "staleness":
        groups, more = runs.groups_of(found, group)
        figure, undrawn = draw_staleness(groups)
        return save(figure, outs), notes + more + undrawn
    if kind == "runs":
        groups, more = runs.groups_of(found, group)
        figure, undrawn = draw_groups(groups, x)
        return save(figure, outs), notes + more + undrawn
    if kind is None:
        files += save(draw_run(names[0], found[0], x), outs)
    if kind == "trial":
        figure, more = draw_trials(dict(zip(names, found, strict=True)), x)
        files, notes = files + save(figure, outs), notes + more
    if kind != "trial":
        drawn = []
        parts = [name.replace("/", "_") for name in names]
        parts = [f"{part}_{i}" if parts.count(part) > 1 else part for i, part in enumerate(parts)]
        for name, part, run in zip(names, parts, found, strict=True):
            ending = "_sessions" * (kind is None) + f"_{part}" * (len(found) > 1)
            try:
                figure, more = draw_sessions(run, x, f"{_env([run])}{name}")
            except ValueError as error:
                notes.append(f"{name} is left out of the session graphs: {error}.")
                continue
            drawn += save(figure, [path.with_name(f"{path.stem}{ending}{path.suffix}") for path in outs])
            notes += [f"{name}: {note}" for note in more]
        if not drawn and kind == "sessions":
            raise ValueError(" ".join(["there is nothing to draw.", *notes]))
        files += drawn
    return files, notes


def write_at_end(folder: Path) -> None:
    """Draw the trial and the sessions of the run that just ended into its folder; whatever goes wrong is only logged.

    Args:
        folder: Output folder.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache
    try:
        run, _ = runs.read(folder)
        (name,) = runs.short_names([folder])
        save(draw_sessions(run, "total_frames", f"{_env([run])}{name}")[0], [folder / SESSIONS_IMAGE])
        save(draw_run(name, run, "total_frames"), [folder / CURVE_IMAGE])
        log.info("drawn: curve.png and sessions.png in %s", folder, extra={"console": False})
    except NoEpisodeError:
        pass
    except ImportError as error:
        log.info("no curve.png: %s is not installed (pip install 'asynclab[plot]')", str(error.name).split(".")[0])
    except Exception as error:  # a run that has ended well must not fail because of a picture
        log.warning("no curve.png: %s: %s", type(error).__name__, " ".join(str(error).split()))


def draw_trials(named: Mapping[str, Run], x: str) -> tuple[Any, list[str]]:
    """Return a figure with the mean over the sessions of every run, and sentences on what is left out.

    Raises:
        ValueError: Nothing can be drawn.
    """
    figure, (axes,) = panels([x], (8, 4.8), list(named.values()))
    notes = []
    for name, run in named.items():
        try:
            grid, mean, spread = over_sessions(run.curves, x)
        except ValueError as error:
            notes.append(f"{name} is left out of the trial graph: {error}.")
            continue
        label = f"{name} ({count(len(run.curves.sessions), 'session')})"
        add_band(axes, label, grid, mean, mean - spread, mean + spread)
        add_evaluation(axes, name, run.curves.evaluation, x)
    if len(notes) == len(named):
        raise ValueError(" ".join(["there is nothing to draw.", *notes]))
    axes.set(title=_env(list(named.values())).removesuffix(": "))
    add_legend(figure, axes, SESSIONS)
    return figure, notes


def draw_run(name: str, run: Run, x: str) -> Any:
    """Return a figure with the mean over the sessions of a run; its progress lines where sessions do not overlap.

    Args:
        name: Of the run.
        run: To be drawn.
        x: A key of ``AXES``.

    Raises:
        ImportError: Only the progress lines can be drawn, and scipy is missing.
    """
    try:
        return draw_trials({name: run}, x)[0]
    except ValueError:
        figure, _ = draw_groups({name: [run]}, x)
        add_evaluation(figure.axes[0], name, run.curves.evaluation, x)
        return figure


def draw_sessions(run: Run, x: str, title: str) -> tuple[Any, list[str]]:
    """Return a figure with a panel for every session: its episodes, their moving average, and the mean of all sessions.

    Args:
        run: Whose.
        x: A key of ``AXES``.
        title: Of the figure.

    Returns:
        The figure, and sentences on what is left out.

    Raises:
        ValueError: No session has an episode.
    """
    sessions, every = run.curves.sessions, run.curves.every
    known = {rank: curve for rank, curve in sessions.items() if len(curve.returns)}
    if not known:
        raise ValueError("its metrics have no episodes of single sessions (of another version of asynclab?)")
    notes = [f"session {rank} has no finished episode." for rank in sessions if rank not in known]
    if len(known) > PANELS:
        notes.append(f"the first {PANELS} of {len(known)} sessions are drawn.")
    drawn = dict(list(known.items())[:PANELS])
    columns = min(len(drawn), 4 if len(drawn) <= 16 else 5)
    rows = math.ceil(len(drawn) / columns)
    size = (8, 4.8) if rows == columns == 1 else (max(8.0, 2.8 * columns), max(4.2, 2.1 * rows + 1.2))
    figure = _figure(size)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    try:
        mean = over_sessions(run.curves, x)[:2] if len(known) > 1 else None
    except ValueError:  # the sessions do not overlap: each is drawn alone
        mean = None
    for axes, (rank, curve) in zip(grid, drawn.items(), strict=False):
        xs, returns = curve.along(x)
        some = np.unique(np.linspace(0, len(xs) - 1, DOTS).astype(int))
        axes.plot(
            xs[some], returns[some], ".", color="#56B4E9", markersize=2.5, alpha=0.5, rasterized=True,
            label="return of an episode" if every == 1 else f"mean return of {every} episodes",
        )  # fmt: skip
        average = moving_average(returns, WINDOW // every)
        axes.plot(xs[some], average[some], "-", color="#0072B2", label=f"moving average over {WINDOW} episodes")
        if mean is not None:
            axes.plot(*mean, "--", color="#000000", linewidth=0.9, label="mean of all sessions")
        axes.set_title(f"session {rank}", fontsize="medium")
        _style(axes, nbins=6 if columns == 1 else 3)
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    for i, axes in enumerate(grid):
        if i >= len(drawn):
            axes.remove()
        elif i + columns >= len(drawn):  # the lowest of its column, though perhaps not in the last row
            axes.set_xlabel(_axis(x, [run]) if columns == 1 or x == "seconds" else AXES[x])
            axes.tick_params(labelbottom=True)
        if i % columns == 0:
            axes.set_ylabel("return")
    figure.suptitle(_plain(title))
    add_legend(figure, grid[0])
    return figure, notes


def draw_groups(groups: Mapping[str, Sequence[Run]], x: str) -> tuple[Any, list[str]]:
    """Return a figure with the interquartile mean over the runs of every group, and sentences on what is left out.

    Args:
        groups: Runs by label; those that are not finished are drawn only if their group has no other.
        x: A key of ``AXES``.

    Raises:
        ValueError: Nothing can be drawn.
    """
    from asynclab.analysis.estimates import CONFIDENCE, band

    found = [run for members in groups.values() for run in members]
    figure, (axes,) = panels([x], (8, 4.8), found)
    complete, notes = _complete(groups, _names(groups))
    nothing = True
    for label, used in complete.items():
        try:
            values = band([run.curve.along(x) for run in used])
        except ValueError as error:
            notes.append(f"{label} is left out: {error}.")
            continue
        add_band(axes, f"{label} ({count(len(used), 'run')})", *values)
        nothing = False
        if len(used) == 1:
            notes.append(f"{label} has one run, so no band.")
    if nothing:
        raise ValueError(" ".join(["there is nothing to draw.", *notes]))
    axes.set(title=_env(found).removesuffix(": "))
    add_legend(figure, axes, SEEDS.format(CONFIDENCE))
    return figure, notes


def draw_staleness(groups: Mapping[str, Sequence[Run]]) -> tuple[Any, list[str]]:
    """Return a figure with the distribution of the staleness of every group's updates, and what is left out of it.

    Args:
        groups: Runs by label.

    Raises:
        ValueError: Nothing can be drawn.
    """
    figure = _figure((8, 4.8))
    axes = figure.subplots()
    names = _names(groups)
    complete, notes = _complete(groups, names)
    drawn: dict[str, dict[int, float]] = {}
    for label, used in complete.items():
        counts: Counter[int] = Counter()
        problems: dict[str, str] = {}
        for run in used:
            try:
                counts += _staleness(run)
            except ValueError as error:
                problems[names[run.folder]] = str(error)
        if counts:
            drawn[label] = _shares(counts)
            notes += [f"{name} is left out of {label}: {problem}." for name, problem in problems.items()]
        else:
            notes.append(f"{label} is left out: {'; '.join(dict.fromkeys(problems.values())) or UNMEASURED}.")
    for i, (label, shares) in enumerate(drawn.items()):
        mean = sum(value * share for value, share in shares.items())
        width = 0.8 / len(drawn)
        places = [value + (i + 0.5) * width - 0.4 for value in shares]
        colour = COLOURS[i % len(COLOURS)]
        axes.bar(places, list(shares.values()), width, color=colour, label=_plain(f"{label} (mean {mean:.2f})"))
    if not drawn:
        raise ValueError(" ".join(["there is nothing to draw.", *notes]))
    found = [run for label in drawn for run in complete[label]]
    axes.set(title=_env(found).removesuffix(": "), ylabel="share of the updates", xlabel=STALENESS)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3, axis="y")
    add_legend(figure, axes)
    return figure, notes


def _names(groups: Mapping[str, Sequence[Run]]) -> dict[Path, str]:
    folders = [run.folder for members in groups.values() for run in members]
    return dict(zip(folders, runs.short_names(folders), strict=True))


def _complete(groups: Mapping[str, Sequence[Run]], names: Mapping[Path, str]) -> tuple[dict[str, list[Run]], list[str]]:
    """Return the runs of every group that say most of it, and sentences on the others."""
    complete = {label: runs.complete(members) for label, members in groups.items()}
    notes = [
        f"{names[run.folder]} is left out of {label}, which has complete runs."
        for label, members in groups.items() for run in members if run not in complete[label]
    ]  # fmt: skip
    return complete, notes


def _staleness(run: Run) -> Counter[int]:
    """Return how many updates of a run had each staleness.

    Raises:
        ValueError: That is not on record, or damaged.
    """
    counts = run.summary.get("staleness_counts")
    if not counts:
        raise ValueError(UNMEASURED)
    try:
        found = Counter({int(value): int(times) for value, times in counts})
    except (TypeError, ValueError, OverflowError):
        raise ValueError("the staleness_counts in its summary.json are damaged") from None
    return found


def _shares(counts: Counter[int]) -> dict[int, float]:
    """Return the share of the updates that had each staleness; rare ones beyond the others are left out."""
    total = counts.total()
    shares = {value: times / total for value, times in sorted(counts.items())}
    last = max((value for value, share in shares.items() if share >= RARE), default=0)
    return {value: share for value, share in shares.items() if value <= last}


def panels(xs: Sequence[str], size: tuple[float, float], found: Sequence[Run]) -> tuple[Any, Sequence[Any]]:
    """Return a figure and its axes: the mean return against every x, beside each other.

    Args:
        xs: Keys of ``AXES``.
        size: Inches.
        found: The runs that will be drawn.
    """
    figure = _figure(size)
    import matplotlib

    with matplotlib.rc_context({"axes.prop_cycle": _cycle()}):
        (axes,) = figure.subplots(1, len(xs), sharey=True, squeeze=False)
    for panel, x in zip(axes, xs, strict=True):
        panel.set(xlabel=_axis(x, found))
        _style(panel, nbins=6)
    axes[0].set(ylabel=RETURN)
    return figure, axes


def panels_against(x: str, values: Sequence[float], size: tuple[float, float], count: int) -> tuple[Any, Sequence[Any]]:
    """Return a figure and its axes beside each other, all against a setting: on a logarithmic scale if that has all.

    Args:
        x: Key of the setting.
        values: That it has.
        size: Inches.
        count: Of the axes.
    """
    figure = _figure(size)
    import matplotlib

    with matplotlib.rc_context({"axes.prop_cycle": _cycle()}):
        axes = figure.subplots(1, count, squeeze=False)[0]
    for panel in axes:
        panel.set(xlabel=x, xscale="log" if min(values) > 0 else "linear")
        panel.xaxis.set_major_formatter("{x:,.10g}")
        panel.grid(alpha=0.3)
    return figure, axes


def _cycle() -> Any:
    from cycler import cycler

    return cycler(linestyle=LINES * len(COLOURS)) + cycler(color=COLOURS * len(LINES))


def _axis(x: str, found: Sequence[Run]) -> str:
    """Return the label of an axis, with what a frame is where that is not one step of the emulator."""
    label = AXES[check_axis(x)]
    if x == "seconds" and (simulated := sum(run.is_simulated for run in found)):
        return "virtual time (s)" if simulated == len(found) else f"{label}, of simulations virtual"
    games = [run for run in found if str(run.settings.get("env.id")).rpartition(":")[2].startswith("ALE/")]
    skips = {run.settings.get("env.make.frameskip", 4) for run in games}
    if x == "seconds" or len(games) < len(found) or len(skips) != 1:
        return label
    return f"{label} (1 frame = {count(skips.pop(), 'emulator frame')})"


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure  # without pyplot: no backend to choose, nothing to close

    return Figure(figsize=size, layout="constrained")


def _style(axes: Any, nbins: int) -> None:
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.locator_params(axis="x", integer=True, nbins=nbins)
    axes.grid(alpha=0.3)


def add_band(axes: Any, label: str, grid: Array, middle: Array, low: Array, high: Array) -> None:
    """Draw a line and the band around it; no band where its ends are nan."""
    (line,) = axes.plot(grid, middle, label=_plain(label))
    axes.fill_between(grid, low, high, color=line.get_color(), alpha=0.08, linewidth=0)
    for edge in (low, high):  # so that bands which lie over each other can be told apart
        axes.plot(grid, edge, color=line.get_color(), alpha=0.5, linewidth=0.5, linestyle="-")


def add_evaluation(axes: Any, label: str, evaluation: Curve, x: str) -> None:
    """Draw the evaluations of the run whose band was drawn last, in its colour; nothing if there is none."""
    if len(evaluation.returns):
        colour = axes.lines[-1].get_color()
        axes.plot(
            *evaluation.along(x), "o:", color=colour, linewidth=0.8, markersize=4, label=_plain(f"{label}: evaluation")
        )


def add_legend(figure: Any, axes: Any, title: str | None = None) -> None:
    """Write the labels of the lines below everything, in as many columns as there is room for.

    The figure grows by what a long legend needs, so that the axes keep their size.
    """
    handles, labels = axes.get_legend_handles_labels()
    room = int(13 * figure.get_figwidth())  # characters
    labels = [textwrap.fill(label, room - 12) for label in labels]
    columns = max(1, room // (10 + max(map(len, labels))))
    per_column = math.ceil(len(labels) / columns)
    lines = max(
        sum(1 + label.count("\n") for label in labels[i : i + per_column]) for i in range(0, len(labels), per_column)
    )
    figure.set_figheight(figure.get_figheight() + LINE * max(lines - FEW, 0))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3, title=title
    )


def save(figure: Any, outs: Sequence[Path]) -> list[Path]:
    """Write a figure into files, each whole or not at all, and return them.

    Raises:
        ValueError: One cannot be written.
    """
    for out in outs:
        try:
            with whole(out) as new:
                figure.savefig(new, dpi=120, format=out.suffix[1:])
        except OSError as error:
            raise ValueError(f"out={out} cannot be written: {error.strerror}; set out to another file") from error
    return list(outs)


def _outs(out: Path) -> list[Path]:
    if out.suffix in SUFFIXES:
        return [out]
    if out.suffix[1:].isalpha():
        raise ValueError(f"out={out} must end in {' or '.join(SUFFIXES)}, or have no suffix for both")
    return [out.with_name(out.name + suffix) for suffix in SUFFIXES]  # not with_suffix: a name can have dots


def _env(found: Sequence[Run]) -> str:
    """Return what a title begins with: the environment, if there is but one."""
    ids = {run.settings.get("env.id") for run in found} - {None}
    return f"{ids.pop()}: " if len(ids) == 1 else ""


def _short(value: float) -> str:
    """Return a number for a narrow axis: 1500000 as 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _plain(text: str) -> str:
    """Return text in which matplotlib sees no mathematics, nor a label that it would leave out."""
    return " " * text.startswith("_") + text.replace("$", r"\$")
