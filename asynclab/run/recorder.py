"""The one writer of a run: progress lines, what the live table shows, TensorBoard, metrics file and summary.

Curves can be drawn against frames of a session, frames of the whole trial, or wall-clock time (which TensorBoard
keeps with every point).  In TensorBoard the trial and every session are runs of their own beside each other, with the
same tags.
"""

import json
import logging
import math
import os
import statistics
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from asynclab.analysis.curves import WINDOW
from asynclab.console.table import SessionStatus, Status
from asynclab.distributed import Mode, Store
from asynclab.evaluation.evaluator import Evaluated
from asynclab.processes.launch import Failure
from asynclab.run import resources, tensorboard
from asynclab.storage import metrics
from asynclab.storage.folder import whole
from asynclab.storage.metrics import finite
from asynclab.storage.names import METRICS, SUMMARY, TENSORBOARD
from asynclab.text import duration
from asynclab.training import staleness
from asynclab.training.session import Record

log = logging.getLogger(__name__)


class Recorder:
    """Writes what sessions report.

    Files in ``folder``: ``metrics.jsonl`` (a line for every record of a session, for the trial at every progress line,
    and for the start and failure of every session's process), ``tensorboard/`` and, at the end, ``summary.json``.

    Attributes:
        status: What a terminal shows.
        evaluation: Mean return, frames and updates of the last evaluation, and the best one; None before the first.

    Args:
        folder: Output folder of the run.
        mode: Tells which sessions share a clock.
        stores: Their counters are the truth about frames and updates.
        every: Seconds between two progress lines.
        state: What ``state_dict`` returned when the run that goes on was saved.  Whatever was logged later is cut
            off, so that nothing is there twice.
        config: The resolved config, shown in TensorBoard.
    """

    def __init__(
        self,
        folder: Path,
        mode: Mode,
        stores: Sequence[Store],
        every: float,
        state: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.mode = mode
        self.stores = stores
        self.every = every
        sessions = mode.max_session
        self._start = self._last_time = time.monotonic()
        self._next_time = self._start + every
        self._session_clock = [(self._start, 0)] * sessions
        self._recent: list[tuple[float, float]] = []  # when an episode of any session ended, and its return
        self._session_returns: list[deque[float]] = [deque(maxlen=WINDOW) for _ in range(sessions)]
        self._latest: list[Mapping[str, float]] = [{} for _ in range(sessions)]
        self._profile: list[dict[str, float]] = [{} for _ in range(sessions)]  # seconds by phase
        self._staleness: list[Counter[int]] = [Counter() for _ in range(sessions)]
        self._episodes = 0
        self.evaluation: dict[str, Any] | None = None
        self._next_warning = 0.0  # of little memory
        self._failures: list[dict[str, Any]] = []
        self.status = Status(
            sum(store.max_frame for store in stores),
            lambda: [int(n) for store in stores for n in store.frames],
            lambda: sum(store.total_updates() for store in stores),
            [SessionStatus() for _ in range(sessions)],
        )
        if state is not None:
            self._load_state_dict(state)
        self._began_frames = self._last_frames = self.total_frames()
        self._began = self._last_time
        self.status.began = self._start
        self._stopped: float | None = None
        self._log = metrics.Log(folder)
        board = folder / TENSORBOARD
        self._trial = tensorboard.Writer(board / "trial", every)
        self._sessions = [tensorboard.Writer(board / f"session_{rank:02d}", every) for rank in range(sessions)]
        if state is not None:
            self._trial.last.update({tag: _number(value) for tag, value in state.get("scalars", {}).items()})
        self._overview = tensorboard.Overview(folder, config or {}, sessions, every)

    def state_dict(self) -> dict[str, Any]:
        """Return what the logs hold now, as JSON: how long each file is, and what moving averages are made of."""
        for writer in (self._trial, *self._sessions):
            writer.flush()
        logs = _logs(self.folder)
        for path in logs:
            with path.open("rb") as file:
                os.fsync(file.fileno())  # a checkpoint must not know of lines that a crash of the machine takes away
        return {
            "seconds": time.monotonic() - self._start,
            "episodes": self._episodes,
            "session_episodes": [session.episodes for session in self.status.sessions],
            "best": finite(self.status.best),
            "scalars": finite(self._scalars()),
            "recent": finite([[seconds - self._start, ret] for seconds, ret in self._recent]),
            "session_returns": finite([list(returns) for returns in self._session_returns]),
            "failures": self._failures,
            "evaluation": finite(self.evaluation),
            "staleness": [sorted(counts.items()) for counts in self._staleness],
            "logs": {str(path.relative_to(self.folder)): path.stat().st_size for path in logs},
        }

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start = time.monotonic() - state["seconds"]
        self._episodes = state["episodes"]
        self._recent = [(self._start + seconds, _number(ret)) for seconds, ret in state["recent"]]
        for returns, saved in zip(self._session_returns, state["session_returns"], strict=True):
            returns.extend(map(_number, saved))
        slots = [int(n) for store in self.stores for n in store.frames]
        self._session_clock = [(time.monotonic(), frames) for frames in slots]
        self._failures = list(state["failures"])
        self.evaluation = state.get("evaluation")
        self._staleness = [Counter(dict(counts)) for counts in state["staleness"]]
        self.status.mean_return = self.mean_return
        self.status.best = -math.inf if state.get("best") is None else state["best"]
        for rank, session in enumerate(self.status.sessions):
            session.episodes = state.get("session_episodes", [0] * self.mode.max_session)[rank]
            session.mean_return = _mean_return(self._session_returns[rank])
            session.restarts = sum(f["rank"] == rank and f["restarted"] for f in self._failures)
        for path in _logs(self.folder):
            length = state["logs"].get(str(path.relative_to(self.folder)), 0)
            os.truncate(path, min(length, path.stat().st_size))

    @property
    def window_is_full(self) -> bool:
        """Return whether the mean return is one of 100 episodes."""
        return len(self._recent) == WINDOW

    @property
    def mean_return(self) -> float:
        """Mean raw return of the last 100 episodes of the trial; nan before the first."""
        return _mean_return([ret for _, ret in self._recent])

    def write(self, record: Record) -> None:
        """Take one session's report, and print the progress line when it is time."""
        rank, now = record.rank, time.monotonic()
        total = self.total_frames()
        writer, returns = self._sessions[rank], self._session_returns[rank]
        for episode in record.episodes:
            returns.append(episode.ret)
            writer.add_scalar("train/return", episode.ret, episode.frame)
            writer.add_scalar("by_total_frames/return", episode.ret, episode.total_frame)
            self._trial.add_scalar("train/return", episode.ret, episode.total_frame)
        # by the time of their ends: sessions report whole batches, and in order of arrival one would crowd out the rest
        self._recent = sorted(self._recent + [(e.seconds, e.ret) for e in record.episodes])[-WINDOW:]
        self._episodes += len(record.episodes)
        before, frames = self._session_clock[rank]
        self._session_clock[rank] = (now, record.frames)
        for phase, seconds in record.profile.items():
            self._profile[rank][phase] = self._profile[rank].get(phase, 0.0) + seconds
        profile = {f"profile/{phase}": share for phase, share in _shares(record.profile).items()}
        scalars = {**record.metrics, **profile}
        if record.staleness:
            self._staleness[rank].update(record.staleness)
            scalars |= _staleness_scalars(record.staleness)
            _add_histogram(writer, "hogwild/staleness", record.staleness, record.frames)
        if now > before:
            scalars["perf/fps"] = (record.frames - frames) / (now - before)
        if returns:
            scalars["train/return_100"] = statistics.fmean(returns)
            writer.add_scalar("by_total_frames/return_100", scalars["train/return_100"], total)
            writer.add_scalar("by_session_frames/return_100", scalars["train/return_100"], record.frames)
        for name, value in scalars.items():
            writer.add_scalar(name, value, record.frames)
        self._latest[rank] = {**self._latest[rank], **record.metrics, **profile}
        self._show(record, scalars)
        self._log.write(
            metrics.SESSION, rank=rank, frames=record.frames, total_frames=total, updates=record.updates,
            seconds=now - self._start, metrics=scalars,
            episodes=[e._replace(seconds=e.seconds - self._start)._asdict() for e in record.episodes],
        )  # fmt: skip
        if now >= self._next_time:
            # on a fixed grid: counted from the last line, a record that comes a moment early would skip a whole turn
            self._next_time += self.every * ((now - self._next_time) // self.every + 1)
            self.progress()

    def _show(self, record: Record, scalars: Mapping[str, float]) -> None:
        """Let the live table have what a session reports."""
        session = self.status.sessions[record.rank]
        session.state = "resting" if self.stores[self.mode.store_index(record.rank)].is_complete() else "running"
        session.episodes += len(record.episodes)
        session.mean_return = _mean_return(self._session_returns[record.rank])
        session.staleness = scalars.get("hogwild/staleness_mean", session.staleness)
        self.status.mean_return = self.mean_return
        if self.window_is_full:
            self.status.best = max(self.status.best, self.mean_return)

    def process(self, rank: int, pid: int) -> None:
        """Note which process a session runs in."""
        session = self.status.sessions[rank]
        session.state = "restarting" if session.state in ("hung", "dead") else "starting"
        self._log.write(metrics.PROCESS, rank=rank, pid=pid, seconds=time.monotonic() - self._start)

    def failure(self, failure: Failure) -> None:
        """Take note of a session that failed."""
        session = self.status.sessions[failure.rank]
        session.state = "hung" if failure.cause.startswith("hung") else "dead"
        session.restarts += failure.delay is not None
        if failure.delay is None:
            log.warning("session %d %s; it is not restarted", failure.rank, failure.cause)
        else:
            log.warning(
                "session %d %s; restart %d in %.0f s%s",
                failure.rank, failure.cause, failure.restarts, failure.delay, f"\n{failure.details}".rstrip(),
            )  # fmt: skip
        frames = self.total_frames()
        what = {
            "rank": failure.rank,
            "total_frames": frames,
            "cause": failure.cause,
            "exitcode": failure.exitcode,
            "restarted": failure.delay is not None,
        }
        self._failures.append(what)
        self._log.write(metrics.FAILURE, **what, seconds=time.monotonic() - self._start, details=failure.details)
        self._trial.add_scalar("perf/restarts", self.restarts, frames)

    def evaluated(self, result: Evaluated) -> None:
        """Take note of an evaluation, which may have begun a while ago."""
        now = time.monotonic()
        mean = statistics.fmean(result.returns)
        best = (self.evaluation or {}).get("best")
        this = {"mean_return": mean, "frames": result.frames}
        if math.isfinite(mean) and (best is None or mean > best["mean_return"]):
            best = this
        self.evaluation = this | {"updates": result.updates, "best": best}
        self.status.evaluation = f"{mean:.2f} at {result.frames:,} frames"
        scalars = {
            "eval/return": mean,
            "eval/return_min": min(result.returns),
            "eval/return_max": max(result.returns),
            "eval/length": statistics.fmean(result.lengths),
        }
        for name, value in scalars.items():
            self._trial.add_scalar(name, value, result.frames, walltime=time.time() - (now - result.seconds))
        self._log.write(
            metrics.EVALUATION, total_frames=result.frames, updates=result.updates,
            seconds=result.seconds - self._start, returns=result.returns, lengths=result.lengths,
        )  # fmt: skip

    @property
    def restarts(self) -> int:
        """Number of restarts of sessions since the run began."""
        return sum(failure["restarted"] for failure in self._failures)

    def progress(self, final: bool = False) -> None:
        """Write the trial's scalars and its progress line; ``final`` gives the speed since the start."""
        now, frames = self._now(), self.total_frames()
        budget = sum(store.max_frame for store in self.stores)
        sessions = self.mode.max_session
        since, before = (self._began, self._began_frames) if final else (self._last_time, self._last_frames)
        fps = (frames - before) / max(now - since, 1e-9)
        self._last_time, self._last_frames = now, frames
        updates = sum(store.total_updates() for store in self.stores)
        dropped = sum(int(store.dropped.sum()) for store in self.stores)
        scalars = _mean(self._latest) | {
            "perf/fps": fps,
            "perf/updates": float(updates),
            "train/dropped": float(dropped),
        }
        if any(self._staleness):
            scalars |= _staleness_scalars(self._all_staleness())
            _add_histogram(self._trial, "hogwild/staleness", self._all_staleness(), frames)
        lost = [share for store in self.stores if (share := store.lost_updates()) is not None]
        if lost:
            scalars["hogwild/lost_updates"] = statistics.fmean(lost)
        available = resources.available_memory()
        scalars["perf/memory_available_mib"] = available / 2**20
        if resources.is_low(available) and now >= self._next_warning:
            self._next_warning = now + 600
            log.warning(
                "memory is running out: %s left, sessions have up to %.0f MiB each; the kernel may soon kill one. Lower"
                " algo.memory.capacity or distributed.max_session",
                resources.size(available), max((m.get("perf/memory_mib", 0.0) for m in self._latest), default=0.0),
            )  # fmt: skip
        if self._recent:
            scalars["train/return_100"] = self.mean_return
            self._trial.add_scalar("by_total_frames/return_100", self.mean_return, frames)
            self._trial.add_scalar("by_session_frames/return_100", self.mean_return, frames // sessions)
            means = [statistics.fmean(returns) for returns in self._session_returns if returns]
            for name, of in (("mean", statistics.fmean), ("min", min), ("max", max)):
                self._trial.add_scalar(f"sessions/return_{name}", of(means), frames)
        for name, value in scalars.items():
            self._trial.add_scalar(name, value, frames)
        self._overview.update(self._results(), self._scalars(), frames)
        self._log.write(metrics.TRIAL, total_frames=frames, updates=updates, seconds=now - self._start, metrics=scalars)
        left = max(budget - frames, 0) / fps if fps > 0 else math.inf
        evaluation = f"  evaluation {self.evaluation['mean_return']:.2f}" if self.evaluation else ""
        log.info(
            "frames %s/%s (%.1f%%)  per session %s  fps %s  return %.2f%s  updates %s  left %s",
            f"{frames:,}", f"{budget:,}", 100 * frames / budget, f"{frames // sessions:,}", f"{fps:,.0f}",
            self.mean_return, evaluation, f"{updates:,}", duration(left), extra={"live": True},
        )  # fmt: skip

    def stop(self) -> None:
        """Stop the run's clock: what follows is not training."""
        self._stopped = time.monotonic()

    def _now(self) -> float:
        return self._stopped or time.monotonic()

    def total_frames(self) -> int:
        """Return the frames of all sessions."""
        return sum(store.total_frames() for store in self.stores)

    def close(self, status: str) -> dict[str, Any]:
        """Write the last progress line and the summary, and return it; ``screens.last`` tells of it.

        Args:
            status: ``finished``, ``interrupted`` or ``failed``.  The summary is written whole or not at all.
        """
        self.progress(final=True)
        seconds = self._now() - self._start
        frames = self.total_frames()
        session_frames = [int(n) for store in self.stores for n in store.frames]
        session_updates = [int(n) for store in self.stores for n in store.updates]
        summary: dict[str, Any] = {
            "status": status,
            "mean_return": self.mean_return,
            "best_return": self.status.best,
            "episodes": self._episodes,
            "frames": frames,
            "updates": sum(session_updates),
            "dropped_updates": sum(int(store.dropped.sum()) for store in self.stores),
            "restarts": self.restarts,
            "failures": self._failures,
            "evaluation": self.evaluation,
            "staleness": staleness.summary(self._all_staleness()),
            "lost_updates": [store.lost_updates() for store in self.stores] if self.mode.diagnostics else None,
            "step_error": [store.step_error() for store in self.stores],
            "staleness_counts": sorted(self._all_staleness().items()),
            "session_staleness": [staleness.summary(counts) for counts in self._staleness],
            "seconds": round(seconds, 3),
            "fps": round((frames - self._began_frames) / max(self._now() - self._began, 1e-9), 1),
            "session_frames": session_frames,
            "session_updates": session_updates,
            "session_mean_return": [statistics.fmean(r) if r else None for r in self._session_returns],
        }
        if any(self._profile):
            summary["profile"] = [_shares(seconds) for seconds in self._profile]
        with whole(self.folder / SUMMARY) as file:
            file.write_text(json.dumps(finite(summary), indent=2, allow_nan=False) + "\n")
        self._log.close()
        self._overview.close(status)
        for writer in (self._trial, *self._sessions):
            writer.close()
        self.status.end()
        for line in _profile_table(summary.get("profile", [])):
            log.info(line)
        return summary

    def _scalars(self) -> dict[str, float]:
        """Return the last value of every scalar, the trial's where the sessions have it, too."""
        return {tag: value for writer in (*self._sessions, self._trial) for tag, value in writer.last.items()}

    def _results(self) -> dict[str, float]:
        """Return by what runs are compared; what is not known is not finite."""
        now, frames = self._now(), self.total_frames()
        lost = [share for store in self.stores if (share := store.lost_updates()) is not None]
        return {
            "mean_return": self.mean_return,
            "best_return": self.status.best,
            "frames": frames,
            "updates": sum(store.total_updates() for store in self.stores),
            "seconds": now - self._start,
            "fps": (frames - self._began_frames) / max(now - self._began, 1e-9),
            "restarts": self.restarts,
            "staleness_mean": self._trial.last.get("hogwild/staleness_mean", math.nan),
            "lost_updates": statistics.fmean(lost) if lost else math.nan,
            "eval_return": self._trial.last.get("eval/return", math.nan),
        }

    def _all_staleness(self) -> Counter[int]:
        return sum(self._staleness, Counter())


def _logs(folder: Path) -> list[Path]:
    """Return the files to which a run only appends."""
    return [path for path in (folder / METRICS, *folder.glob(f"{TENSORBOARD}/*/*")) if path.is_file()]


def _mean_return(returns: Collection[float]) -> float:
    return statistics.fmean(returns) if returns else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _staleness_scalars(counts: Mapping[int, int]) -> dict[str, float]:
    return {f"hogwild/staleness_{name}": value for name, value in (staleness.summary(counts) or {}).items()}


def _add_histogram(writer: tensorboard.Writer, tag: str, counts: Mapping[int, int], step: int) -> None:
    """Write whole numbers and how often each occurred, one bucket for each."""
    values, times = zip(*sorted(counts.items()), strict=True)
    number, total, squares = (sum(n * v**k for v, n in zip(values, times, strict=True)) for k in range(3))
    limits = [value + 0.5 for value in values]
    writer.add_histogram_raw(tag, values[0], values[-1], number, total, squares, limits, times, step)


def _mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over the sessions that report each metric."""
    names = dict.fromkeys(name for m in metrics for name in m)
    return {name: statistics.fmean(m[name] for m in metrics if name in m) for name in names}


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    total = max(sum(seconds.values()), 1e-9)
    return {phase: round(value / total, 4) for phase, value in seconds.items()}


def _profile_table(profile: Sequence[Mapping[str, float]]) -> list[str]:
    """Return a line per session and their mean: how many percent of its time went to each phase."""
    if not profile:
        return []
    mean = _mean(profile)
    rows = [(f"session {rank:02d}", shares) for rank, shares in enumerate(profile)] + [("mean", mean)]
    head = "time in %    " + "".join(f"{phase:>10}" for phase in mean)
    return [head] + [f"{name:<13}" + "".join(f"{100 * shares.get(p, 0):10.1f}" for p in mean) for name, shares in rows]
