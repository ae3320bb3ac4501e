"""The report: what ran, how it went, how to do it again, on one page that needs nothing but a browser."""

import logging
import math
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

from asynclab.analysis import jobs as jobs_of
from asynclab.analysis import page, plots, runs
from asynclab.analysis.curves import WINDOW
from asynclab.analysis.jobs import Job, Sweep
from asynclab.analysis.page import NONE, Badge, Bar, Column, Figure, Line, Table, count, setting
from asynclab.analysis.ranking import METRICS, Estimate, Group, number, or_nan, rank, score
from asynclab.analysis.runs import Run
from asynclab.storage.folder import whole
from asynclab.storage.names import REPORT
from asynclab.text import duration

log = logging.getLogger(__name__)

DRAWN = len(plots.COLOURS)  # groups in a figure; more lines could not be told apart
EXTRA = "pip install 'asynclab[plot]'"
UNKNOWN = "Unknown environment"
LABEL = 80  # characters of a group's name; longer ones are replaced
PROSE = 40  # characters of a setting that stay on one line


class Section(NamedTuple):
    """What is said of one environment."""

    env: str
    results: Table | None
    figures: list[Figure]
    tables: list[Table]


def write(folders: Sequence[Path], out: Path, group: Sequence[str] | None = None, metric: str = "final") -> list[str]:
    """Write the report on all runs in folders, and return what in it is not as it should be.

    Args:
        folders: Of runs, or with runs in them.
        out: An .html file; one that is there is replaced.
        group: Keys of the config that make groups; None: all that differs except the seed.
        metric: A key of ``METRICS``, by which groups are ranked.

    Raises:
        ValueError: There is no run, or a setting makes no sense.
        ImportError: jinja2 is not installed.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric} is unknown; use one of {', '.join(METRICS)}")
    if out.suffix not in (".html", ".htm"):
        raise ValueError(f"out={out} must end in .html")
    jobs, notes = jobs_of.find(folders)
    text, notes = _render(jobs, folders, notes, group, metric)
    try:
        with whole(out) as new:
            new.write_text(text)
    except OSError as error:
        raise ValueError(f"out={out} cannot be written: {error.strerror}; set out to another file") from error
    return notes


def write_at_end(folder: Path) -> None:
    """Write the report on the run that just ended into its folder; whatever goes wrong is only logged.

    Args:
        folder: Output folder.
    """
    try:
        write([folder], folder / REPORT)
        log.info("report: %s", folder / REPORT, extra={"console": False})
    except ImportError as error:
        log.info("no report.html: %s is not installed (%s)", str(error.name).split(".")[0], EXTRA)
    except Exception as error:  # a run that has ended well must not fail because of a page
        log.warning("no report.html: %s: %s", type(error).__name__, " ".join(str(error).split()))


def _render(
    jobs: Sequence[Job], folders: Sequence[Path], notes: Sequence[str], keys: Sequence[str] | None, metric: str
) -> tuple[str, list[str]]:
    known = {job.run.folder: job for job in jobs if job.run.settings or len(job.run.curve.returns)}
    groups, more = runs.groups_of([job.run for job in known.values()], keys)
    notices = [*notes, *_absent_packages(len(jobs) > 1), *more, *_differences(jobs)]
    by_env: dict[str, dict[str, list[Job]]] = defaultdict(dict)
    for label, members in groups.items():
        by_env[_env(members[0])][label] = [known[run.folder] for run in members]
    sections = []
    for env, labelled in by_env.items():
        section, more = _section(env, rank(labelled, metric), metric)
        sections.append(section)
        notices += more
    sweeps = jobs_of.sweeps(jobs, folders)
    notices += [_pending(sweep) for sweep in sweeps if sweep.missing]
    unfinished = [job for job in jobs if job.status != "finished"]
    notices += [f"{job.name}: {_sentence(job.problems)}" for job in jobs if job.problems and job not in unfinished]
    typed = [job.typed for job in jobs if job.typed]
    common = [o for o in typed[0] if all(o in other for other in typed)] if typed else []
    envs = [env for env in by_env if env != UNKNOWN]
    several = len(jobs) > 1
    text = page.render(
        "template.html",
        title=" and ".join(envs) if 0 < len(envs) < 3 else f"{len(envs)} environments" if envs else "Runs",
        name=", ".join(map(str, folders)) if several else str(jobs[0].run.folder),
        stats=_stats(jobs, sections, metric) if several else _stats_of_run(jobs[0]),
        facts=[*_facts(jobs), *[("Typed", [(" ".join(common), "")])] * bool(common)],
        notices=list(dict.fromkeys(notices)),
        sections=sections,
        optima=[table for sweep in sweeps if (table := _optimum(sweep))],
        unfinished=_unfinished(unfinished, common) if unfinished else None,
        failures=_failures(jobs),
        runs=_runs(jobs) if several else None,
        sweeps=[(sweep.folder, _sweep_command(sweep, jobs)) for sweep in sweeps if sweep.typed],
        revisions=_commands(jobs),
        settings=_common(list(known.values())),
        now=f"{datetime.now(UTC):%-d %B %Y, %H:%M} UTC",
    )
    notices += [f"{job.name}: {_sentence(job.problems)}" for job in unfinished if job.problems]
    return text, list(dict.fromkeys(notices))


def _absent_packages(several: bool) -> list[str]:
    notes = []
    if find_spec("matplotlib") is None:
        notes.append(f"No curves are drawn: matplotlib is not installed ({EXTRA}).")
    if several and find_spec("scipy") is None:
        notes.append(
            f"Returns are plain means, without intervals, and have no curves: scipy is not installed ({EXTRA})."
        )
    return notes


def _section(env: str, ranked: list[Group], metric: str) -> tuple[Section, list[str]]:
    """Return what is said of the groups of one environment, and sentences on what is not in it."""
    alone = len(ranked) == 1 and len(ranked[0].jobs) == 1
    job = ranked[0].jobs[0]
    if is_long := not alone and max(len(group.label) for group in ranked) > LABEL:
        names = [f"run {g.jobs[0].name}" if len(g.jobs) == 1 else f"group {i}" for i, g in enumerate(ranked, 1)]
        ranked = [group._replace(label=name) for group, name in zip(ranked, names, strict=True)]
    try:
        figures, notes = _figures_of_run(job) if alone else _figures(ranked)
    except ImportError:  # the page says so at its beginning
        figures, notes = [], []
    tables = [
        _settings(ranked),
        _speed([ranked[0]._replace(label=job.name)] if alone else ranked),
        _sessions(job) if alone else None,
    ]
    results = None if alone else _results(ranked, metric)
    if results is not None and is_long:
        results = results._replace(notes=[*results.notes, "What the groups are is below: settings that differ."])
    return Section(env, results, figures, [table for table in tables if table is not None]), notes


def _results(ranked: Sequence[Group], metric: str) -> Table:
    shown = [metric, *(name for name in METRICS if name != metric)]
    ends = [v for group in ranked for v in group.estimates[metric] if math.isfinite(v)]
    columns = [Column("rank"), Column("group", "text"), Column("", "bar"), *(Column(METRICS[m][0]) for m in shown)]
    columns += [Column("runs"), Column("frames"), Column("time")]
    texts = {m: page.cells([group.estimates[m] for group in ranked]) for m in shown}
    rows, frames = [], []
    for i, group in enumerate(ranked):
        number = str(i + 1) if math.isfinite(group.estimates[metric][0]) else NONE
        used, of = len(group.used), len(group.jobs)
        mean_frames, seconds = (_mean(_known(job.run, key) for job in group.used) for key in ("frames", "seconds"))
        frames.append(mean_frames)
        rows.append(
            [
                number,
                group.label,
                _bar(group.estimates[metric], ends),
                *(texts[m][i] for m in shown),
                str(of) if used == of else f"{used} of {of}",
                count(mean_frames),
                duration(seconds),
            ]
        )
    table = Table(f"Results, best {METRICS[metric][0]} first" if len(ranked) > 1 else "Results", columns, rows)
    unknown = {METRICS[m][0] for m in shown if not any(math.isfinite(g.estimates[m][0]) for g in ranked)}
    notes = ["; ".join(f"{METRICS[m][0]}: {METRICS[m][1]}" for m in shown if METRICS[m][0] not in unknown) + "."]
    if any(len(group.used) > 1 for group in ranked):
        notes.append(
            "Interquartile means over the runs of a group, with 95 % bootstrap intervals. Where intervals overlap, the"
            " order may be chance."
        )
    if (trained := [value for value in frames if value]) and max(trained) > 1.01 * min(trained):
        notes.append("The groups have trained for different numbers of frames.")
    without = [g.label for g in ranked if any(math.isnan(score(job.run, "best")) for job in g.used)]
    if without and (metric == "best" or METRICS["best"][0] not in unknown):
        notes.append(
            f"The best return needs {WINDOW} episodes, which are not on record of all runs of {_some(without)}."
        )
    partly = [
        g.label
        for g in ranked
        if math.isfinite(g.estimates["evaluation"][0]) and any(math.isnan(score(j.run, "evaluation")) for j in g.used)
    ]
    if partly:
        notes.append(f"Evaluations are those of some runs only of {_some(partly)}: the others have none.")
    titles = [column.title for column in columns]
    has_bars = len(set(ends)) > 1
    return page.keep(
        table._replace(notes=[note[0].upper() + note[1:] for note in notes if note != "."]),
        lambda i: titles[i] not in unknown and (i > 0 or len(ranked) > 1) and (titles[i] != "" or has_bars),
    )


def _bar(value: Estimate, ends: Sequence[float]) -> Bar | str:
    if math.isnan(value[0]) or max(ends) == min(ends):
        return ""
    middle, low, high = ((v - min(ends)) / (max(ends) - min(ends)) for v in value)
    return Bar(middle if math.isnan(low) else low, middle, middle if math.isnan(high) else high)


def _figures(ranked: Sequence[Group]) -> tuple[list[Figure], list[str]]:
    """Return the curves of the first groups, and sentences on what is not drawn."""
    drawable = {g.label: [job.run for job in g.used if len(job.run.curve.returns)] for g in ranked}
    labels = [label for label, members in drawable.items() if members]
    if not labels:
        return [], ["There are no curves: no run has a finished episode."]
    notes: list[str] = []
    drawings: dict[tuple[str, ...], list[str]] = {}  # by the labels of their lines: what overlaps may differ
    for x in ("total_frames", "seconds"):
        try:
            figure, more = plots.draw_groups({label: drawable[label] for label in labels[:DRAWN]}, x)
        except ValueError as error:
            notes.append(f"There is no curve against {x.replace('_', ' ')}: {error}")
            continue
        notes += [note for note in more if not note.endswith("has one run, so no band.")]
        drawn = tuple(label.replace(r"\$", "$") for label in figure.axes[0].get_legend_handles_labels()[1])
        what = f"Mean return against {x.replace('_', ' ')} of {len(drawn)} groups of runs"
        drawings.setdefault(drawn, []).append(page.svg(figure, what))
    if labels[DRAWN:]:
        notes.append(f"More lines could not be told apart; not drawn are {'; '.join(labels[DRAWN:])}.")
    caption = (
        f"Lines: interquartile mean over the runs of their mean return of {WINDOW} episodes. Bands: 95 % bootstrap"
        " interval, of groups with several runs."
    )
    text = " ".join([caption, *dict.fromkeys(notes)])
    figures = [Figure(same, list(starmap(Line, enumerate(drawn))), text) for drawn, same in drawings.items()]
    return figures, [] if figures else notes


def _figures_of_run(job: Job) -> tuple[list[Figure], list[str]]:
    """Return the curves of the trial and of its sessions, and sentences on what is not drawn."""
    run = job.run
    if not len(run.curve.returns):
        return [], []
    sessions = len(run.curves.sessions)
    drawings = []
    for x in ("total_frames", "seconds"):
        drawings.append(page.svg(plots.draw_run(job.name, run, x), f"Mean return against {x.replace('_', ' ')}"))
    caption = f"Mean return of {WINDOW} episodes" + "; of the sessions mean and standard deviation" * (sessions > 1)
    lines = [Line(0, "training"), Line(0, "evaluation", has_dots=True)] if len(run.curves.evaluation.returns) else []
    figures = [Figure(drawings, lines, f"{caption}.")]
    try:
        figure, notes = plots.draw_sessions(run, "total_frames", "")
    except ValueError as error:
        return figures, [f"There is no graph of the sessions: {error}."]
    drawing = page.svg(figure, "Returns of episodes against frames, a panel for each session", legend=True)
    caption = " ".join(
        ["Every session: its episodes and their moving average.", *(f"{note[0].upper()}{note[1:]}" for note in notes)]
    )
    return [*figures, Figure([drawing], [], caption)], []


def _settings(ranked: Sequence[Group]) -> Table | None:
    """Return what differs between the groups, a column for each setting."""

    def value(group: Group, key: str) -> str:
        found = [job.run.settings.get(key) for job in group.jobs]
        values = list(dict.fromkeys(f"{v:.6g}" if isinstance(v, float) else setting(v) for v in found))
        return ", ".join(values[:3]) + ", ..." * (len(values) > 3)

    keys = _differing([job.run for group in ranked for job in group.jobs])
    table = {key: [value(group, key) for group in ranked] for key in keys}
    table = {key: values for key, values in table.items() if len(set(values)) > 1}
    if not table:
        return None
    columns = [Column("group", "text")]
    for key, values in table.items():
        group, _, name = key.rpartition(".")
        is_number = all(_is_number(v) for v in values)
        kind = "number" if is_number else "prose" if max(map(len, values)) > PROSE else "text"
        columns.append(Column(name, kind, f"{group}." if group else ""))
    rows = [[group.label, *(values[i] for values in table.values())] for i, group in enumerate(ranked)]
    return Table("Settings that differ", columns, rows)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == NONE
    return True


def _differing(found: Sequence[Run]) -> list[str]:
    """Return the settings that are not the same in all runs, but for those that only say how a run is kept."""
    ignored = runs.IRRELEVANT - {"env.max_frame", runs.EVALUATED}
    keys = dict.fromkeys(key for run in found for key in run.settings)
    return [key for key in keys if key not in ignored and len({setting(run.settings.get(key)) for run in found}) > 1]


def _known(run: Run, *keys: str) -> float | None:
    """Return a number of the summary or, for frames and seconds without one, what the curve says of them."""
    value = number(run.summary, *keys)
    curve = {"frames": run.curve.total_frames, "seconds": run.curve.seconds}.get(keys[0])
    return float(curve[-1]) if value is None and curve is not None and len(curve) else value


def _fps(run: Run) -> float | None:
    return _ratio(_known(run, "frames"), _known(run, "seconds"))


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _lost(run: Run) -> float | None:
    return _mean(number({"share": share}, "share") for share in _list(run.summary, "lost_updates"))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _stale(name: str) -> Callable[[Run], float | None]:
    return lambda run: number(run.summary, "staleness", name)


# title, the number of a run, that of a group, how it is written, what it means
MEASURES: list[
    tuple[str, Callable[[Run], float | None], Callable[[list[float]], float], Callable[[float], str], str]
] = [
    ("frames/s", _fps, statistics.fmean, count, ""),
    (
        "updates/s", lambda run: _ratio(number(run.summary, "updates"), number(run.summary, "seconds")),
        statistics.fmean, "{:,.1f}".format, "",
    ),
    (
        "mean staleness", _stale("mean"), statistics.fmean, "{:,.2f}".format,
        "Staleness: how many updates of other sessions came between the moment from which a gradient's weights are and"
        " its own push.",
    ),
    ("95th percentile", _stale("p95"), statistics.fmean, "{:,.1f}".format, ""),
    ("highest", _stale("max"), max, count, ""),
    ("lost updates", _lost, statistics.fmean, "{:.2%}".format, "Lost updates: writes that another session overwrote."),
    (
        "dropped updates", lambda run: number(run.summary, "dropped_updates"), sum, count,
        "Dropped updates: their loss or gradient was not finite.",
    ),
    (
        "restarts", lambda run: number(run.summary, "restarts"), sum, count,
        "Restarts: of sessions that were killed, raised or hung.",
    ),
]  # fmt: skip


def _speed(ranked: Sequence[Group]) -> Table | None:
    """Return throughput and what asynchrony did, a row for each group."""
    columns, rows, notes = [Column("group", "text")], [[group.label] for group in ranked], []
    for title, of, over, form, meaning in MEASURES:
        values = [[v for job in group.used if (v := of(job.run)) is not None] for group in ranked]
        if any(values):
            columns.append(Column(title))
            for row, known in zip(rows, values, strict=True):
                row.append(form(over(known)) if known else NONE)
            notes += [meaning] * bool(meaning)
    return Table("Speed and asynchrony", columns, rows, [" ".join(notes)]) if len(columns) > 1 else None


def _sessions(job: Job) -> Table | None:
    """Return what each session of a run did."""
    summary = job.run.summary
    frames, updates, returns, stale = (
        _list(summary, f"session_{name}") for name in ("frames", "updates", "mean_return", "staleness")
    )
    sessions = range(max(map(len, (frames, updates, returns, stale))))
    if len(sessions) < 2:
        return None

    def column(values: list[Any], *keys: str) -> list[float | None]:
        return [number(values[i] if i < len(values) else None, *keys) for i in sessions]

    names = [f"session {i}" for i in sessions]
    texts = [
        names,
        map(count, column(frames)),
        map(count, column(updates)),
        page.numbers([or_nan(v) for v in column(returns)]),
        page.numbers([or_nan(v) for v in column(stale, "mean")]),
        map(count, column(stale, "p95")),
        map(count, column(stale, "max")),
    ]
    heads = ("frames", "updates", "final return", "mean staleness", "95th percentile", "highest")
    columns = [Column("session", "text"), *map(Column, heads)]
    return page.without_empty(Table("Sessions", columns, [list(row) for row in zip(*texts, strict=True)]))


def _runs(jobs: Sequence[Job]) -> Table:
    """Return a row for each run."""
    titles = [*(METRICS[m][0] for m in METRICS), "frames", "time", "frames/s", "mean staleness", "restarts"]
    columns = [Column("run", "text"), Column("status", "text"), Column("seed"), *map(Column, titles)]
    scores = [page.numbers([score(job.run, m) for job in jobs]) for m in METRICS]
    stale = page.numbers([or_nan(_stale("mean")(job.run)) for job in jobs])
    rows: list[list[Any]] = []
    for i, job in enumerate(jobs):
        began = _time(job.run.made.get("started"))
        rows.append(
            [
                job.name,
                Badge(job.status),
                setting(job.run.settings.get("seed")),
                *(column[i] for column in scores),
                count(_known(job.run, "frames")),
                duration(_known(job.run, "seconds")),
                count(_fps(job.run)),
                stale[i],
                count(number(job.run.summary, "restarts")),
                f"{began:%Y-%m-%d %H:%M}" if began else NONE,
            ]
        )
    return page.without_empty(Table("Every run", [*columns, Column("started (UTC)", "text")], rows))


def _unfinished(jobs: Sequence[Job], common: Sequence[str]) -> Table:
    columns = [Column("run", "text"), Column("status", "text"), Column("why", "prose"), Column("settings", "prose")]
    rows: list[list[Any]] = []
    for job in jobs:
        last = [f for f in _list(job.run.summary, "failures") if isinstance(f, dict) and not f.get("restarted")]
        has_reason = any(problem.startswith("it failed") for problem in job.problems)
        why = [f"session {f.get('rank')} {f.get('cause')}" for f in last if job.status == "failed" and not has_reason]
        mine = " ".join(o for o in job.typed if o not in common) or NONE
        rows.append([job.name, Badge(job.status), _sentence([*why, *job.problems]), mine])
    return Table("Runs that did not finish", columns, rows)


def _failures(jobs: Sequence[Job]) -> Table | None:
    """Return all failures of sessions, a row for each."""
    rows = [
        [
            job.name,
            setting(f.get("rank")),
            count(number(f, "total_frames")),
            setting(f.get("cause")),
            "yes" if f.get("restarted") else "no",
        ]
        for job in jobs
        for f in _list(job.run.summary, "failures")
        if isinstance(f, dict)
    ]
    columns = [Column("run", "text"), Column("session"), Column("at frames"), Column("what happened", "prose")]
    return Table("Failures of sessions", [*columns, Column("restarted", "text")], rows) if rows else None


def _stats(jobs: Sequence[Job], sections: Sequence[Section], metric: str) -> list[tuple[str, str, str]]:
    """Return the few numbers at the top: what, how much, and a remark."""
    stats = []
    if len(sections) == 1 and (table := sections[0].results) and len(table.rows) > 1:
        titles = [column.title for column in table.columns]
        if METRICS[metric][0] in titles:
            best, label = (table.rows[0][titles.index(title)] for title in (METRICS[metric][0], "group"))
            stats.append((f"Best {METRICS[metric][0].removeprefix('best ')}", best.text, label))
    finished = sum(job.status == "finished" for job in jobs)
    groups = sum(len(section.results.rows) for section in sections if section.results)
    stats.append(("Runs", str(len(jobs)), f"{finished} finished, {groups} group{'s' * (groups != 1)}"))
    for title, key, form in (("Frames", "frames", _short), ("Time", "seconds", duration)):
        if known := [value for job in jobs if (value := _known(job.run, key)) is not None]:
            stats.append((title, form(sum(known)), "of all runs"))
    return stats


def _stats_of_run(job: Job) -> list[tuple[str, str, str]]:
    run, played = job.run, number(job.run.summary, "evaluation", "mean_return")
    try:
        budget = f"of {run.budget[1]:,}"
    except (KeyError, TypeError, AttributeError):  # of another version
        budget = ""
    stats = [("Return", page.numbers([score(run, "final")])[0], f"mean of the last {WINDOW} episodes")]
    if played is not None:
        stats.append(("Evaluation", page.numbers([played])[0], METRICS["evaluation"][1]))
    stats.append(("Frames", count(_known(run, "frames")), budget))
    stats.append(("Time", duration(_known(run, "seconds")), job.status))
    return [*stats, ("Speed", count(_fps(run)), "frames per second")]


def _facts(jobs: Sequence[Job]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return when, where and with what the runs were made: every value that there is and, of several, whose it is."""
    facts = []
    spans = [(start, _ended(job, start)) for job in jobs if (start := _time(job.run.made.get("started")))]
    if spans:
        first, last = min(start for start, _ in spans), max(end for _, end in spans)
        end = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%-d %B %Y, %H:%M}"
        facts.append(("When", [(f"{first:%-d %B %Y, %H:%M} to {end} UTC", "")]))
    for term, what in (("Machine", _machine), ("Revision", _revision), ("Software", _software)):
        values: dict[str, dict[str, None]] = defaultdict(dict)  # names of jobs, in order
        for job in jobs:
            for part in job.run.parts:
                values[what(part) or "not known"][job.name] = None
        if set(values) - {"not known"}:
            facts.append((term, [(v, _some([*names]) if len(values) > 1 else "") for v, names in values.items()]))
    return facts


def _differences(jobs: Sequence[Job]) -> list[str]:
    notes = [
        f"The run{'s were' if len(jobs) > 1 else ' was'} made {text}."
        for text, what in (
            ("on different machines", _machine),
            ("from different revisions of the code", _revision),
            ("with different versions of packages", _software),
        )
        if len({what(part) for job in jobs for part in job.run.parts} - {""}) > 1
    ]
    if simulated := [job.name for job in jobs if job.run.is_simulated]:
        of = "" if len(simulated) == len(jobs) else f" of {_some(simulated)}"
        notes.append(f"Times and speeds{of} are virtual, as those of all simulations.")
    if resumed := [job.name for job in jobs if job.run.made.get("resumes")]:
        notes.append(f"Interrupted and resumed: {_some(resumed)}; the time includes several starts.")
    return notes


def _machine(made: Mapping[str, Any]) -> str:
    machine = _dict(made, "machine")
    cores, memory = machine.get("cores"), machine.get("memory_gib")
    parts = [machine.get("processor"), cores and f"{cores} cores", memory and f"{memory} GiB"]
    return ", ".join(str(part) for part in [*parts, str(machine.get("platform", "")).partition("-")[0]] if part)


def _revision(made: Mapping[str, Any]) -> str:
    git = _dict(made, "git")
    return f"{_commit(git)[:10]}{' with uncommitted changes' * bool(git.get('dirty'))}"


def _commit(git: Mapping[str, Any]) -> str:
    """Return the hash of a revision; nothing if it is anything else, which must not get into a command."""
    revision = str(git.get("revision"))
    return revision if re.fullmatch("[0-9a-f]{7,64}", revision) else ""


def _software(made: Mapping[str, Any]) -> str:
    packages = _dict(made, "packages")
    names = {"asynclab": "asynclab", "python": "Python", "torch": "torch", "gymnasium": "gymnasium"}
    return ", ".join(f"{name} {packages[key]}" for key, name in names.items() if packages.get(key))


def _time(noted: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(noted).astimezone(UTC)
    except (TypeError, ValueError):
        return None


def _ended(job: Job, start: datetime) -> datetime:
    """Return when a run ended; of one that has not, or of an older version, as if it had never been interrupted."""
    seconds = number(job.run.summary, "real_seconds") or _known(job.run, "seconds") or 0
    return _time(job.run.summary.get("ended")) or start + timedelta(seconds=seconds)


def _pending(sweep: Sweep) -> str:
    number = len(sweep.missing)
    what = f"{number} job{'s' * (number > 1)} of the sweep in {sweep.folder}"
    common = set.intersection(*map(set, sweep.missing)) if number > 1 else set()
    jobs = [" ".join(o for o in job if o not in common) for job in sweep.missing]
    state = "not begun yet" if sweep.is_running else "never begun (resume=auto goes on)"
    return f"{what} {'have' if number > 1 else 'has'} {state}: {_some(jobs)}."


def _optimum(sweep: Sweep) -> Table | None:
    """Return what the optimiser of a sweep found best."""
    best, value = _dict(sweep.results, "best_params"), number(sweep.results, "best_value")
    if not best:
        return None
    caption = "Best settings of the sweep" + f", return {page.numbers([or_nan(value)])[0]}" * (value is not None)
    rows = [[key, setting(value)] for key, value in best.items()]
    return Table(caption, [Column("setting", "text"), Column("value", "text")], rows)


def _sweep_command(sweep: Sweep, jobs: Sequence[Job]) -> str:
    mine = [job.run for job in jobs if sweep.folder in job.run.folder.resolve().parents]
    return shlex.join([*jobs_of.program(next((run for run in mine if run.made), mine[0])), "-m", *sweep.typed])


def _commands(jobs: Sequence[Job]) -> list[tuple[str, bool, list[tuple[str, str]]]]:
    """Return by revision whether the code had been changed, and the command of each run."""
    revisions: dict[tuple[str, bool], list[tuple[str, str]]] = defaultdict(list)
    for job in jobs:
        if job.run.made:
            git = _dict(job.run.made, "git")
            revisions[_commit(git), bool(git.get("dirty"))].append((job.name, job.command))
    return [(revision, is_changed, commands) for (revision, is_changed), commands in revisions.items()]


def _common(jobs: Sequence[Job]) -> Table | None:
    """Return the settings that all runs have in common."""
    if not jobs:
        return None
    differ = {*_differing([job.run for job in jobs]), "resume"} | ({"seed"} if len(jobs) > 1 else set())
    first = {key: value for key, value in jobs[0].run.settings.items() if not key.endswith("._partial_")}
    rows = [[key, setting(value)] for key, value in first.items() if key not in differ]
    return Table(f"{len(rows)} settings", [Column("setting", "text"), Column("value", "prose")], rows) if rows else None


def _env(run: Run) -> str:
    return str(run.settings.get("env.id") or UNKNOWN)


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    return value if isinstance(value, list) else []


def _dict(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(dict.fromkeys(part.rstrip(".") for part in parts))
    first = text.partition(" ")[0]
    return f"{first.capitalize() if first.isalpha() else first}{text[len(first) :]}." if text else NONE


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def _short(value: float) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return count(value)
