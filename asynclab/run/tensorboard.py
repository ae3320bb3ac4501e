"""What TensorBoard shows of a run: curves, charts side by side, a row of a table, and what the run is.

The trial and every session are runs of TensorBoard with the curves; one more, ``summary``,
tells the Custom Scalars page which charts to draw, is the run's row on the HParams page, and has the config as text.
"""

import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from google.protobuf.json_format import ParseDict
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from asynclab.config.settings import CHANGEABLE, settings
from asynclab.run.statistics import Statistics
from asynclab.storage.names import CONFIG, RUN, TENSORBOARD
from asynclab.text import program
from asynclab.training.messages import Record

# category, title, and tags: a regular expression, or value and bounds; without a title every tag has a chart of its own
CHARTS: list[tuple[str, str | None, str | list[str]]] = [
    ("trial", "mean and range of the sessions' mean returns", [f"sessions/return_{x}" for x in ("mean", "min", "max")]),
    ("trial", "mean return by frames of all sessions", "by_total_frames/return_100|eval/return"),
    ("evaluation", "mean and range of the episodes' returns", ["eval/return", "eval/return_min", "eval/return_max"]),
    ("evaluation", None, "eval/(?!return).*"),
    ("sessions", "mean return by frames of each session", "by_session_frames/return_100"),
    ("sessions", "return of every episode", "by_total_frames/return"),
    ("losses", None, "loss/.*"),
    ("losses", "gradient norms before clipping", "grad_norm/.*"),
    ("losses", None, "train/(?!return).*"),
    ("hogwild", "staleness: mean and median", "hogwild/staleness_(mean|p50)"),
    ("hogwild", "staleness: 95th percentile and maximum", "hogwild/staleness_(p95|max)"),
    ("hogwild", None, "hogwild/(?!staleness).*"),
    ("cluster", "staleness between nodes: mean and median", "cluster/staleness_(mean|p50)"),
    ("cluster", None, "cluster/(?!staleness_(mean|p50)).*"),
    ("performance", None, "perf/.*"),
    ("performance", "share of the time by phase", "profile/.*"),
    ("other", None, "(?!(by_|sessions/|eval/|train/|loss/|grad_norm/|hogwild/|cluster/|perf/|profile/)).*"),
]

SHOWN = 64  # sessions that have curves of their own: each costs a thread and an open file

# what says the same as another setting, unless somebody has set it to something else
COPIES = {"algo.agent.torso": "env.torso", "env.make": "env"}
OMITTED = CHANGEABLE - {
    "device", "distributed.diagnostics", "distributed.nodes", "distributed.num_threads", "env.max_frame",
}  # fmt: skip
RESULTS = {"staleness_mean": "hogwild/staleness_mean", "eval_return": "eval/return"}  # of the trial, by tag
STATUS = {"finished": "STATUS_SUCCESS", "interrupted": "STATUS_UNKNOWN", "failed": "STATUS_FAILURE"}


class Writer(SummaryWriter):
    """A writer that remembers the last value of every scalar.

    Args:
        folder: Of the run.
        every: Seconds after which what was written can be seen.
        clock: Returns the time in seconds that is written with a scalar.
    """

    def __init__(self, folder: Path, every: float, clock: Callable[[], float] = time.time) -> None:
        super().__init__(str(folder), flush_secs=math.ceil(min(every, 3_600)))
        self.last: dict[str, float] = {}
        self._clock = clock

    def add_scalar(
        self,
        tag: str,
        scalar_value: float,
        global_step: int | None = None,
        walltime: float | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Write a scalar."""
        self.last[tag] = float(scalar_value)
        walltime = self._clock() if walltime is None else walltime
        super().add_scalar(tag, scalar_value, global_step, walltime, *args, **kwargs)


class Board:
    """The runs ``trial`` and ``session_NN``, with the same tags beside each other, and ``summary``.

    Curves can be drawn against frames of a session, frames of the whole trial, or wall-clock time, which TensorBoard
    keeps with every point.

    Args:
        folder: Output folder.
        names: Of the sessions.
        every: Seconds after which what was written can be seen.
        config: The resolved config; empty if there is none.
        last: The trial's scalars when the run that goes on was saved.
        clock: Returns the time in seconds that is written with the scalars.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        every: float,
        config: Mapping[str, Any],
        last: Mapping[str, float],
        clock: Callable[[], float] = time.time,
    ) -> None:
        board = folder / TENSORBOARD
        self._clock, self._count = clock, len(names)
        self._trial = Writer(board / "trial", every, clock)
        self._trial.last.update(last)
        self._sessions = [Writer(board / f"session_{name:0>2}", every, clock) for name in names[:SHOWN]]
        self._overview = Overview(folder, config, len(names), every)

    def session(self, record: Record, scalars: Mapping[str, float], total: int) -> None:
        """Write what a session reports, with what follows from it by tag, at so many frames of all."""
        for episode in record.episodes:
            self._trial.add_scalar("train/return", episode.ret, episode.total_frame)
        if record.rank >= len(self._sessions):
            return
        writer = self._sessions[record.rank]
        for episode in record.episodes:
            writer.add_scalar("train/return", episode.ret, episode.frame)
            writer.add_scalar("by_total_frames/return", episode.ret, episode.total_frame)
        if record.staleness:
            _add_histogram(writer, "hogwild/staleness", record.staleness, record.frames)
        if (mean := scalars.get("train/return_100")) is not None:
            writer.add_scalar("by_total_frames/return_100", mean, total)
            writer.add_scalar("by_session_frames/return_100", mean, record.frames)
        for name, value in scalars.items():
            writer.add_scalar(name, value, record.frames)

    def trial(self, scalars: Mapping[str, float], statistics: Statistics, frames: int) -> None:
        """Write how the trial stands, by tag, at so many frames of all."""
        if counts := statistics.staleness:
            _add_histogram(self._trial, "hogwild/staleness", counts, frames)
        if (mean := scalars.get("train/return_100")) is not None:
            self._trial.add_scalar("by_total_frames/return_100", mean, frames)
            self._trial.add_scalar("by_session_frames/return_100", mean, frames // self._count)
            means = [fmean(returns) for returns in statistics.session_returns if returns]
            for name, of in (("mean", fmean), ("min", min), ("max", max)):
                self._trial.add_scalar(f"sessions/return_{name}", of(means), frames)
        self.add(scalars, frames)

    def add(self, scalars: Mapping[str, float], frames: int, ago: float = 0.0) -> None:
        """Write numbers of the trial by tag, which were true so many seconds ago."""
        for name, value in scalars.items():
            self._trial.add_scalar(name, value, frames, walltime=self._clock() - ago)

    def results(self, results: Mapping[str, float], frames: int) -> None:
        """Write by what runs are compared; what is not known is not finite."""
        known = {key: self._trial.last.get(tag, math.nan) for key, tag in RESULTS.items()}
        self._overview.update({**results, **known}, self.last(), frames)

    def last(self) -> dict[str, float]:
        """Return the last value of every scalar, the trial's where the sessions have it, too."""
        return {tag: value for writer in (*self._sessions, self._trial) for tag, value in writer.last.items()}

    def flush(self) -> None:
        """Let the files have all that was written."""
        for writer in (self._trial, *self._sessions):
            writer.flush()

    def close(self, status: str) -> None:
        """Say how the run has ended, and write no more."""
        self._overview.close(status)
        for writer in (self._trial, *self._sessions):
            writer.close()


class Overview:
    """Writes the run ``summary``.  It is written anew whenever the run goes on, so nothing is in it twice or outdated.

    Args:
        folder: Output folder; its ``run.json`` and ``config.yaml`` are shown, if it has them.
        config: The resolved config; empty if there is none.
        max_session: What ``distributed.max_session`` became, which may be null in the config.
        every: Seconds after which what was written can be seen.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], max_session: int, every: float) -> None:
        run = folder / TENSORBOARD / "summary"
        for path in run.glob("*"):
            os.truncate(path, 0)  # a TensorBoard that is reading it would not go on if it were removed
        self._writer = Writer(run, every)
        self._layout: dict[str, Any] = {}
        start = {"hparams": hparams(config, max_session), "startTimeSecs": time.time()}
        self._add(metadata.SESSION_START_INFO_TAG, session_start_info=start)
        made, resolved = folder / RUN, folder / CONFIG
        if made.is_file():
            self._writer.add_text("run", describe(json.loads(made.read_text())))
        if resolved.is_file():
            self._writer.add_text("config", f"```yaml\n{resolved.read_text()}```")

    def update(self, results: Mapping[str, float], tags: Iterable[str], step: int) -> None:
        """Write how the run stands, and the layout if there are tags for which it has no chart.

        Args:
            results: The metrics of its row; those that are not finite are left out.
            tags: Of all scalars of the trial and its sessions.
            step: Frames of all sessions.
        """
        for name, value in results.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"summary/{name}", value, step)
        if (charts := layout(tags)) != self._layout:
            self._layout = charts
            self._writer.add_custom_scalars(charts)

    def close(self, status: str) -> None:
        """Say how the run has ended: ``finished``, ``interrupted`` or ``failed``."""
        end = {"status": STATUS[status], "endTimeSecs": time.time()}
        self._add(metadata.SESSION_END_INFO_TAG, session_end_info=end)
        self._writer.close()

    def _add(self, tag: str, **content: Mapping[str, Any]) -> None:
        """Write what the HParams page needs; torch's ``add_hparams`` would make one more run, named by the time."""
        data = metadata.create_summary_metadata(ParseDict(content, plugin_data_pb2.HParamsPluginData()))
        value = Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)
        self._writer._get_file_writer().add_summary(Summary(value=[value]))


def _add_histogram(writer: Writer, tag: str, counts: Mapping[int, int], step: int) -> None:
    """Write whole numbers and how often each occurred, one bucket for each."""
    values, times = zip(*sorted(counts.items()), strict=True)
    number, total, squares = (sum(n * v**k for v, n in zip(values, times, strict=True)) for k in range(3))
    limits = [value + 0.5 for value in values]
    writer.add_histogram_raw(tag, values[0], values[-1], number, total, squares, limits, times, step)


def layout(tags: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of the Custom Scalars page by category and title, as ``add_custom_scalars`` wants them.

    TensorBoard shows each chart once, however many runs have it in their layouts.

    Args:
        tags: Of the scalars; every chart has at least one of them.
    """
    tags = sorted(tags)
    charts: dict[str, dict[str, list[Any]]] = {}
    for category, title, shown in CHARTS:
        new: dict[str, list[Any]] = {}
        if isinstance(shown, list):
            if set(shown) <= set(tags):
                new[str(title)] = ["Margin", shown]
        elif found := [tag for tag in tags if re.fullmatch(shown, tag)]:
            if title is None:
                new = {tag: ["Multiline", [f"{re.escape(tag)}$"]] for tag in found}
            else:
                new[title] = ["Multiline", [f"({shown})$"]]
        if new:
            charts.setdefault(category, {}).update(new)
    return charts


def hparams(config: Mapping[str, Any], max_session: int) -> dict[str, bool | float | str]:
    """Return the settings that change what is learned or how fast, by dotted key.

    What is null is left out, and ``algo.agent._target_: asynclab.agents.A3C`` becomes ``algo.agent: A3C``.

    Args:
        config: The resolved config.
        max_session: What ``distributed.max_session`` became.
    """
    found = dict(settings(config)) if config else {}
    chosen: dict[str, bool | float | str] = {}
    for key, value in found.items():
        copied = [key.replace(copy, of, 1) for copy, of in COPIES.items() if key.startswith(f"{copy}.")]
        if key in OMITTED or value is None or any(found.get(original) == value for original in copied):
            continue
        if key.endswith("._target_"):
            chosen[key.removesuffix("._target_")] = str(value).rpartition(".")[2]
        elif not key.endswith("._partial_"):
            number = isinstance(value, (int, float)) and math.isfinite(value)
            chosen[key] = value if number or isinstance(value, bool) else str(value)
    return chosen | ({"distributed.max_session": max_session} if config else {})


def describe(made: Mapping[str, Any]) -> str:
    """Return what ``run.json`` says of where a run comes from, in Markdown."""
    lines = [_item("overrides", _code(made["overrides"])), *_circumstances(made)]
    for again in made["resumes"]:
        lines += ["", f"### Resumed at {again['frames']:,} frames", ""]
        lines += [_item(key, f"{old} -> {new}") for key, (old, new) in again["changes"].items()]
        lines += _circumstances(again)
    return "\n".join(lines)


def _circumstances(made: Mapping[str, Any]) -> list[str]:
    git, machine = made["git"], made["machine"]
    packages = [f"{name} {version}" for name, version in made["packages"].items() if version]
    return [
        _item("command", _code([*program(made["command"][1]), *made["command"][2:]])),
        _item("started", made["started"]),
        _item("sessions", f"{made['max_session']} on {', '.join(made['devices'])}"),
        _item("revision", git["revision"] + " and changes" * git["dirty"] if git else "unknown"),
        _item("machine", f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB of memory"),
        _item("system", machine["platform"]),
        _item("packages", ", ".join(packages)),
    ]


def _item(name: str, value: str) -> str:
    return f"- **{name}**: {value}"


def _code(words: Sequence[str]) -> str:
    return f"`{shlex.join(words)}`"
