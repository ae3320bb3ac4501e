"""A sweep in one table and one figure: interquartile means over seeds, with bootstrap confidence intervals.

Runs are grouped into *arms*: all that differs between them except the seed.  Arms are compared after the same frames
(the budget) and at the same wall-clock time: that of the run which ended first, but for those that ``stop_at`` or
``patience`` stopped.  Where arms have budgets of their own (``equal="time"``), only the time is the same.
"""

import csv
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from asynclab import check, progress
from asynclab.analysis import curves, plots
from asynclab.analysis.curves import step
from asynclab.analysis.estimates import CONFIDENCE, Estimate, band, estimate, iqm
from asynclab.analysis.runs import Run, find, group, read_json, read_settings, relevant, subfolders
from asynclab.storage.names import RUN, SUMMARY
from asynclab.text import markdown

Value = TypeVar("Value")
EQUAL = ("frames", "time")  # what the arms of a study have in common
OWN_BUDGETS = "equal=time compares arms with budgets of their own"


class Arm(NamedTuple):
    """A row of the table.

    Attributes:
        label: What sets it apart.
        runs: One per seed.
        sessions: Processes.
        envs: Environments of all sessions.
        cores: That the sessions could keep busy.
        frames: IQM over the runs, as are seconds, fps, staleness and lost.
        at_frames: Return at the end of the budget.
        at_seconds: Return at the common wall-clock time.
        reached: How many runs reached the threshold.
        frames_to: Median over all runs of the frames to the threshold; inf unless most reached it.
        seconds_to: The same in seconds.
        fps: Frames per second.
        staleness: Mean staleness of the gradients.
        lost: Share of lost updates; None where it was not measured.
        agreement: Cosine between stale gradients and fresh ones; None where it was not measured.
    """

    label: str
    runs: list[Run]
    sessions: int
    envs: int
    cores: int
    frames: float
    seconds: float
    at_frames: Estimate
    at_seconds: Estimate
    reached: int
    frames_to: float
    seconds_to: float
    fps: float
    staleness: float | None
    lost: float | None
    agreement: float | None


class Study(NamedTuple):
    """What a sweep says.

    Attributes:
        arms: In the order in which they were begun.
        env: Id of the environment.
        budget: Frames of all sessions together; None where arms have budgets of their own.
        seconds: The common wall-clock time.
        threshold: A return; None for none.
        x: Key of a setting with numbers that the figure is drawn against; None for frames and seconds.
        notes: What a reader has to know about runs that are missing or special.
        names: Of the runs by their folders: those in the sweep's.
    """

    arms: list[Arm]
    env: str
    budget: int | None
    seconds: float
    threshold: float | None
    x: str | None
    notes: list[str]
    names: dict[Path, str]


def load(sweep: Path) -> tuple[list[Run], list[str]]:
    """Return the finished runs of a sweep in the order in which they were begun, and a sentence on every other one.

    Raises:
        ValueError: This is not the folder of a sweep, or has no finished run.
    """
    if not sweep.is_dir():
        raise ValueError(f"sweep={sweep} is not a folder")
    if (sweep / RUN).exists():
        raise ValueError(f"sweep={sweep} is a run; set sweep to the folder of a sweep, hydra.sweep.dir")
    try:
        folders, notes = find(sweep)  # a job's folder may be some folders deep: algo/optimizer=adam
    except ValueError:
        folders, notes = [], []
    folders += [path for path in subfolders(sweep) if not any(folder.is_relative_to(path) for folder in folders)]
    runs = []
    for folder in progress.counted(sorted(folders), "runs read"):
        try:
            runs.append(_read(folder))
        except (ValueError, OSError) as error:
            notes.append(f"{folder.relative_to(sweep)} is left out: {error}.")
    if not runs:
        raise ValueError(" ".join([f"sweep={sweep} has no finished run to evaluate.", *notes]))
    return sorted(runs, key=lambda run: run.made["started"]), notes


def _read(folder: Path) -> Run:
    if not (folder / RUN).is_file():
        raise ValueError("it has no run.json, so no run began here")
    if not (folder / SUMMARY).is_file():
        raise ValueError("it has no summary.json, so it still runs or was killed (resume=auto continues it)")
    made, summary = read_json(folder / RUN), read_json(folder / SUMMARY)
    if summary.get("status") != "finished":
        raise ValueError(f"its status is {summary.get('status')} (resume=auto continues it)")
    found = curves.read(folder)
    try:
        config = read_settings(folder, made)
        run = Run(folder, config, made["overrides"], made, summary, found)
        _ = run.budget, run.cores, made["started"], config["seed"], summary["seconds"], summary["frames"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"config.yaml, run.json or summary.json is damaged or of another version ({error})") from None
    return run


def _comparable(runs: Sequence[Run], names: Mapping[Path, str], equal: str) -> tuple[list[Run], list[str]]:
    """Return the runs of the most frequent environment and budget without repetitions, and sentences on the others.

    Args:
        runs: In the order in which they were begun.
        names: By folder.
        equal: ``frames``: all have one budget; ``time``: all of an arm have.
    """
    alike = [relevant(run) if equal == "time" else "" for run in runs]  # those that must have one budget
    budgets = {name: _most(r.budget for r, a in zip(runs, alike, strict=True) if a == name) for name in set(alike)}
    env = budgets[""][0] if equal == "frames" else _most(run.budget[0] for run in runs)
    whose, advice = ("most of its arm are", "") if equal == "time" else ("most others are", f"; {OWN_BUDGETS}")
    kept: dict[Any, Run] = {}
    notes = []
    for run, arm in zip(runs, alike, strict=True):
        key, (found, frames) = (relevant(run), run.settings["seed"]), run.budget
        if found != env:
            notes.append(f"{names[run.folder]} is left out: it is {found}, and most others are {env}.")
        elif frames != (common := budgets[arm][1]):
            notes.append(
                f"{names[run.folder]} is left out: it has {frames:,} frames, and {whose} of {common:,}{advice}."
            )
        elif key in kept:
            notes.append(f"{names[run.folder]} is left out: it repeats {names[kept[key].folder]}.")
        else:
            kept[key] = run
    return list(kept.values()), notes


def _most(values: Iterable[Value]) -> Value:
    """Return the most frequent; of equally many, the one that comes first."""
    counts = Counter(values)
    return max(counts, key=lambda value: counts[value])


def analyse(
    sweep: Path,
    threshold: float | None = None,
    seconds: float | None = None,
    x: str | None = None,
    equal: str = EQUAL[0],
) -> Study:
    """Evaluate a sweep.

    Args:
        sweep: Its folder.
        threshold: A return; the table says when it was reached.
        seconds: Wall-clock time at which arms are compared, a run that has ended with its last return; None: when the
            first run ended that was not stopped.
        x: Key of a setting with numbers that the figure is drawn against.
        equal: What arms have in common: ``frames``, or only the ``time``, where each has a budget of its own.

    Raises:
        ValueError: There is nothing to evaluate, or a setting makes no sense.
    """
    if threshold is not None:
        threshold = check.number("threshold", threshold)
    if seconds is not None:
        seconds = check.positive("seconds", check.number("seconds", seconds))
    if equal not in EQUAL:
        raise ValueError(f"equal={equal} is unknown; use one of {', '.join(EQUAL)}")
    runs, notes = load(sweep)
    names = {run.folder: str(run.folder.relative_to(sweep)) for run in runs}
    runs, more = _comparable(runs, names, equal)
    arms = group(runs)
    seeds = sorted({run.settings["seed"] for run in runs})
    for label, members in arms.items():
        missing = [str(seed) for seed in seeds if seed not in {run.settings["seed"] for run in members}]
        if missing:
            more.append(f"{label} has no finished run with seed {', '.join(missing)}.")
        if len(members) < 2:
            more.append(f"{label} has one run, so no interval.")
    for run in runs:
        if stopped := run.summary.get("stopped_by"):
            last = f"{run.summary['frames']:,} frames and {run.summary['seconds']:,.1f} s"
            more.append(
                f"{names[run.folder]} was stopped by {stopped} after {last}; its last return stands for later ones."
            )
        if run.made.get("resumes"):
            more.append(f"{names[run.folder]} was interrupted and resumed; its seconds have two starts.")
        if run.summary["restarts"]:
            more.append(f"{names[run.folder]} had sessions that failed and were started again.")
    if x is not None and not all(type(run.settings.get(x)) in (int, float) for run in runs):
        raise ValueError(f"x={x} is not a setting that has a number in every run, such as distributed.max_session")
    if seconds is None:
        seconds = _first_end(runs)
    env, budget = runs[0].budget
    counted = progress.counted(arms.items(), "arms")
    rows = [_arm(label, members, seconds, threshold) for label, members in counted]
    return Study(rows, env, budget if equal == "frames" else None, float(seconds), threshold, x, notes + more, names)


def _first_end(runs: Sequence[Run]) -> float:
    """Return the seconds after which the first run ended; one that ``stop_at`` or ``patience`` stopped is no limit."""
    return min(run.curve.seconds[-1] for run in [r for r in runs if not r.summary.get("stopped_by")] or runs)


def _arm(label: str, runs: list[Run], seconds: float, threshold: float | None) -> Arm:
    def over_runs(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(iqm(known)) if known else None

    def number(values: Iterable[float]) -> float:
        return float(iqm(list(values)))

    def first(x: str) -> list[float]:
        goal = math.inf if threshold is None else threshold
        reached = [(run.curve.returns >= goal) & _is_full(run) for run in runs]
        return [
            float(getattr(run.curve, x)[hit][0]) if hit.any() else math.inf
            for run, hit in zip(runs, reached, strict=True)
        ]

    made, config, summaries = runs[0].made, runs[0].settings, [run.summary for run in runs]
    return Arm(
        label=label,
        runs=runs,
        sessions=made["max_session"],
        envs=made["max_session"] * config["env.num_envs"],
        cores=runs[0].cores,
        frames=number(s["frames"] for s in summaries),
        seconds=number(s["seconds"] for s in summaries),
        at_frames=estimate([run.curve.returns[-1] for run in runs]),
        at_seconds=estimate([float(step(run.curve.seconds, run.curve.returns, seconds)) for run in runs]),
        reached=sum(math.isfinite(x) for x in first("total_frames")),
        frames_to=statistics.median(first("total_frames")),
        seconds_to=statistics.median(first("seconds")),
        fps=number(s["frames"] / s["seconds"] for s in summaries),
        staleness=over_runs((s.get("staleness") or {}).get("mean") for s in summaries),
        lost=over_runs(statistics.fmean(s["lost_updates"]) if s.get("lost_updates") else None for s in summaries),
        agreement=over_runs(s.get("agreement") for s in summaries),
    )


def _is_full(run: Run) -> Any:
    """Return where a run's returns are means of 100 episodes; everywhere if its metrics have no episodes."""
    ended = run.curves.ended
    return ended >= curves.WINDOW if ended.any() else np.full(len(ended), True)


def table(study: Study) -> str:
    """Return the study as markdown: the table, how to read it, and what is missing."""
    arms, threshold = study.arms, study.threshold
    measured, compared = (any(getattr(arm, name) is not None for arm in arms) for name in ("lost", "agreement"))
    head = ["arm", "sessions", "environments", "seeds", "frames", "seconds"]
    head += [f"return {_end(study)}", f"return at {study.seconds:,.1f} s"]
    if threshold is not None:
        head += [f"reached {threshold:g}", f"frames to {threshold:g}", f"seconds to {threshold:g}"]
    head += ["frames/s", "frames/s per core", "mean staleness"] + ["lost updates"] * measured + ["agreement"] * compared
    rows = []
    for arm in arms:
        row = [arm.label, str(arm.sessions), str(arm.envs), str(len(arm.runs)), f"{arm.frames:,.0f}"]
        row += [f"{arm.seconds:,.1f}", _interval(arm.at_frames), _interval(arm.at_seconds)]
        if threshold is not None:
            row += [
                f"{arm.reached} of {len(arm.runs)}",
                _number(arm.frames_to, ",.0f"),
                _number(arm.seconds_to, ",.1f"),
            ]
        row += [f"{arm.fps:,.0f}", f"{arm.fps / arm.cores:,.0f}", _number(arm.staleness, ".2f")]
        rows.append(row + [_number(arm.lost, ".2%")] * measured + [_number(arm.agreement, ".2f")] * compared)
    return "\n".join([markdown(head, rows, numbers=True), "", *_explain(study)]) + "\n"


def _end(study: Study) -> str:
    return "at the end" if study.budget is None else f"at {study.budget:,} frames"


def _interval(value: Estimate) -> str:
    text = _number(value.iqm, ".1f")
    return text if math.isnan(value.low) else f"{text} [{value.low:.1f}, {value.high:.1f}]"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def _explain(study: Study) -> list[str]:
    runs = [run for arm in study.arms for run in arm.runs]
    text = [
        f"{study.env}. Return: mean of the last 100 episodes. All numbers are interquartile means over the seeds,"
        f" returns with [{CONFIDENCE:.0%} bootstrap interval]; at {study.seconds:,.1f} s"
        f"{_when(study, runs)}."
        f" {_clock(runs, study.names)} A core counts if a session's thread could have it."
    ]
    if study.threshold is not None:
        text[0] += (
            f" Frames and seconds to {study.threshold:g}: medians over all seeds, - unless most of them reached it."
        )
    text += ["", *(f"- {line}" for line in _origins(runs, study.names))]
    return text + [f"- {note}" for note in study.notes]


def _when(study: Study, runs: Sequence[Run]) -> str:
    if study.seconds != _first_end(runs):
        return ""
    return f" the first run{' that was not stopped' * any(r.summary.get('stopped_by') for r in runs)} ended"


def _clock(runs: Sequence[Run], names: Mapping[Path, str]) -> str:
    simulated = [names[run.folder] for run in runs if run.is_simulated]
    if not simulated:
        return "Seconds include the start of the sessions' processes."
    return "Seconds are virtual." if len(simulated) == len(runs) else f"Seconds of {', '.join(simulated)} are virtual."


def _origins(runs: Sequence[Run], names: Mapping[Path, str]) -> list[str]:
    """Return what the runs were made of: revisions and machines, one line for each that there is."""
    whose: dict[str, dict[str, None]] = {}
    for run in runs:
        for part in (part for part in run.parts if "machine" in part):
            whose.setdefault(_origin(part), {})[names[run.folder]] = None
    return list(whose) if len(whose) == 1 else [f"{line}: {', '.join(mine)}" for line, mine in whose.items()]


def _origin(made: dict[str, Any]) -> str:
    git, machine = made["git"], made["machine"]
    revision = f"commit {git['revision'][:7]}{' with changes' * git['dirty']}" if git else "no checkout"
    return (
        f"{revision}; {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
        f" {machine['platform'].split('-')[0]}; Python {made['packages']['python']}, torch {made['packages']['torch']}"
    )


def write(study: Study, out: Path) -> tuple[list[Path], list[str]]:
    """Write the table (``_table.md``, ``_table.csv``) and the figure (``.png``, ``.svg``).

    Return the files, and sentences on what is not drawn.

    Args:
        study: What ``analyse`` returned.
        out: What the files' names begin with.

    Raises:
        ValueError: They cannot be written.
    """
    text, numbers = (out.with_name(f"{out.name}_table.{suffix}") for suffix in ("md", "csv"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(table(study))
        with numbers.open("w", newline="") as file:
            rows = [_row(arm, study) for arm in study.arms]
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise ValueError(f"out={out} cannot be written: {error.strerror}; set out to another place") from error
    pictures = [out.with_name(f"{out.name}.{suffix}") for suffix in ("png", "svg")]
    notes: list[str] = []
    if study.x is None:
        notes = draw(study, pictures)
    else:
        draw_against(study, study.x, pictures)
    return [text, numbers, *pictures], notes


def _row(arm: Arm, study: Study) -> dict[str, Any]:
    """Return an arm's numbers in full; empty where there is none."""
    row = {
        "arm": arm.label, "sessions": arm.sessions, "envs": arm.envs, "cores": arm.cores,
        "seeds": " ".join(str(run.settings["seed"]) for run in arm.runs),
        "frames": arm.frames, "seconds": arm.seconds,
        "return_at_frames": arm.at_frames.iqm, "at_frames_low": arm.at_frames.low, "at_frames_high": arm.at_frames.high,
        "common_seconds": study.seconds,
        "return_at_seconds": arm.at_seconds.iqm, "at_seconds_low": arm.at_seconds.low,
        "at_seconds_high": arm.at_seconds.high,
        "threshold": study.threshold, "reached": None if study.threshold is None else arm.reached,
        "frames_to_threshold": arm.frames_to, "seconds_to_threshold": arm.seconds_to,
        "fps": arm.fps, "fps_per_core": arm.fps / arm.cores, "staleness": arm.staleness, "lost_updates": arm.lost,
        "agreement": arm.agreement,
    }  # fmt: skip
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def draw(study: Study, outs: Sequence[Path]) -> list[str]:
    """Draw the return of every arm against frames and against seconds, with the band of its interval.

    Return sentences on what is left out: short runs may not overlap.
    """
    xs, notes = ["total_frames", "seconds"], []
    figure, axes = plots.panels(xs, (11, 4.8), [run for arm in study.arms for run in arm.runs])
    for panel, x in zip(axes, xs, strict=True):
        for arm in study.arms:
            try:
                values = band([run.curve.along(x) for run in arm.runs])
            except ValueError as error:
                notes.append(f"{arm.label} is not drawn against {curves.AXES[x]}: {error}.")
                values = (np.empty(0),) * 4  # its colour, and its place in the legend
            plots.add_band(panel, arm.label, *values)
        if study.threshold is not None:
            panel.axhline(study.threshold, color="grey", linewidth=0.8)
        panel.set_xlim(left=0)
    axes[1].axvline(study.seconds, color="grey", linewidth=0.8)
    axes[0].set(title=f"{study.env}: {'frames' if study.budget is None else 'equal frames'}")
    axes[1].set(title=f"equal time (the table: at {study.seconds:,.1f} s)")
    plots.add_legend(figure, axes[0], plots.SEEDS.format(CONFIDENCE))
    plots.save(figure, outs)
    return notes


def draw_against(study: Study, x: str, outs: Sequence[Path]) -> None:
    """Draw the return after all frames and, where it was measured, the agreement of gradients against a setting."""
    lines: dict[str, list[Arm]] = {}
    for arm in sorted(study.arms, key=lambda arm: arm.runs[0].settings[x]):
        rest = ", ".join(part for part in arm.label.split(", ") if not part.startswith(f"{x}="))
        lines.setdefault(rest or "all runs", []).append(arm)
    is_measured = any(arm.agreement is not None for arm in study.arms)
    values = [arm.runs[0].settings[x] for arm in study.arms]
    figure, (returns, *others) = plots.panels_against(x, values, (11 if is_measured else 7, 4.8), 1 + is_measured)
    for label, arms in sorted(lines.items()):
        at = np.array([arm.runs[0].settings[x] for arm in arms])
        common = [arm.at_seconds if study.budget is None else arm.at_frames for arm in arms]
        plots.add_band(returns, label, at, *np.array(common).T)
        for agreement in others:
            agreement.plot(at, [math.nan if arm.agreement is None else arm.agreement for arm in arms], marker="o")
    when = f"at {study.seconds:,.1f} s" if study.budget is None else f"after {study.budget:,} frames"
    returns.set(title=f"{study.env}: {when}", ylabel=plots.RETURN)
    for agreement in others:
        agreement.set(title="stale gradients with fresh ones", ylabel="agreement (cosine)")
    plots.add_legend(figure, returns, plots.SEEDS.format(CONFIDENCE))
    plots.save(figure, outs)
