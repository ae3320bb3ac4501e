"""The one writer of a run's logs: tells the metrics file, TensorBoard, the live table and the console what happened."""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from asynclab import machine
from asynclab.cluster.exchange import Exchanges
from asynclab.console.table import SessionStatus, Status
from asynclab.distributed import Mode, Store
from asynclab.evaluation.evaluator import Evaluated
from asynclab.processes.launch import Failure
from asynclab.run import resources
from asynclab.run.statistics import Statistics, mean_return, number, profile_table
from asynclab.run.tensorboard import Board
from asynclab.run.trackers import Tracker
from asynclab.storage import metrics
from asynclab.storage.folder import whole
from asynclab.storage.metrics import finite
from asynclab.storage.names import METRICS, SUMMARY, TENSORBOARD
from asynclab.text import duration
from asynclab.training.messages import Record

log = logging.getLogger(__name__)

Listener = Callable[[metrics.Line], object]


class Moment(NamedTuple):
    """How far a run was at some time: frames, and for how long cores had run its processes."""

    seconds: float
    frames: int
    core_seconds: float

    def fps(self, later: "Moment") -> float:
        """Return the frames per second from here to a later moment."""
        return (later.frames - self.frames) / max(later.seconds - self.seconds, 1e-9)

    def cores(self, later: "Moment") -> float:
        """Return how many cores were busy from here to a later moment."""
        return (later.core_seconds - self.core_seconds) / max(later.seconds - self.seconds, 1e-9)


class Recorder:
    """Writes what sessions report.

    Files in ``folder``: ``metrics.jsonl`` (a line for every record of a session, for the trial at every progress line,
    and for the start and failure of every session's process), ``tensorboard/`` and, at the end, ``summary.json``.

    Attributes:
        statistics: What was reported, in numbers.
        status: What a terminal shows.
        stopped_by: The setting that has ended the run before its budget was used up; None for none.
        listen: Told every line of ``metrics.jsonl`` when it has been written; None for nobody.
        tracker: That is told them, too; None for none.
        raised: By ``listen``, which is told no more then.

    Args:
        folder: Output folder of the run.
        mode: Tells which sessions share a clock.
        stores: Their counters are the truth about frames and updates.
        every: Seconds between two progress lines.
        state: What ``state_dict`` returned when the run that goes on was saved.  Whatever was logged later is cut
            off, so that nothing is there twice.
        config: The resolved config, shown in TensorBoard.
        summary: Of the run that goes on, if it has ended with that state: what was logged later is its end.
        clock: Of a simulation, whose seconds are virtual; None for the machine's own.
    """

    def __init__(
        self,
        folder: Path,
        mode: Mode,
        stores: Sequence[Store],
        every: float,
        state: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.folder = folder
        self.mode = mode
        self.stores = stores
        self.every = every
        self._is_simulated, self._clock = clock is not None, clock or time.monotonic
        now, seconds = self._clock(), state["seconds"] if state else 0.0
        self._start = now - seconds
        self._real_start = time.monotonic() - (state or {}).get("real_seconds", seconds)
        self._stopped: tuple[float, float] | None = None  # when, and the processor time that had been used by then
        self._next_time, self._next_warning = now + every, 0.0  # of a progress line, and of little memory
        self._began = self._moment()  # of this process's training
        self._last = self._began  # of the last line
        self._minute = deque([self._began])
        self._sessions = [(now, int(frames)) for store in stores for frames in store.frames]  # at the last records
        self.stopped_by: str | None = None
        self.listen: Listener | None = None
        self.tracker: Tracker | None = None
        self.raised: Exception | None = None
        self.statistics = Statistics(mode.max_session, state, self.total_frames(), summary)
        self.status = self._status()
        if state is not None:
            _cut(folder, state["logs"], ended=summary is not None)
        self._log = metrics.Log(folder)
        last = {tag: number(value) for tag, value in (state or {}).get("scalars", {}).items()}
        names = [mode.label(rank) for rank in range(mode.max_session)]
        self._board = Board(folder, names, every, config or {}, last, clock or time.time)

    def state_dict(self) -> dict[str, Any]:
        """Return what the logs hold now, as JSON: how long each file is, and what moving averages are made of."""
        self._board.flush()
        logs = _logs(self.folder)
        for path in logs:
            with path.open("rb") as file:
                os.fsync(file.fileno())  # a checkpoint must not know of lines that a crash of the machine takes away
        return self.statistics.state_dict() | {
            "seconds": self._clock() - self._start,
            "real_seconds": time.monotonic() - self._real_start,
            "scalars": finite(self._board.last()),
            "logs": {str(path.relative_to(self.folder)): path.stat().st_size for path in logs},
        }

    def write(self, record: Record) -> None:
        """Take one session's report, and print the progress line when it is time."""
        now, total = self._clock(), self.total_frames()
        scalars = self.statistics.take(record, self._start, total)
        before, frames = self._sessions[record.rank]
        self._sessions[record.rank] = (now, record.frames)
        if now > before:
            scalars["perf/fps"] = (record.frames - frames) / (now - before)
        self._board.session(record, scalars, total)
        self._show(record, scalars)
        self._line(
            metrics.SESSION, rank=record.rank, frames=record.frames, total_frames=total, updates=record.updates,
            seconds=now - self._start, metrics=scalars,
            episodes=[e._replace(seconds=e.seconds - self._start)._asdict() for e in record.episodes],
        )  # fmt: skip
        if now >= self._next_time:
            # on a fixed grid: counted from the last line, a record that comes a moment early would skip a whole turn
            self._next_time += self.every * ((now - self._next_time) // self.every + 1)
            self.progress()

    def process(self, rank: int, pid: int) -> None:
        """Note which process a session runs in."""
        session = self.status.sessions[rank]
        session.state = "restarting" if session.state in ("hung", "dead") else "starting"
        self._line(metrics.PROCESS, rank=rank, pid=pid, seconds=self._clock() - self._start)

    def failure(self, failure: Failure) -> None:
        """Take note of a session that failed."""
        session = self.status.sessions[failure.rank]
        session.state = "hung" if failure.cause.startswith("hung") else "dead"
        session.restarts += failure.delay is not None
        name = self.mode.label(failure.rank)
        if failure.delay is None:
            log.warning("session %s %s; it is not restarted", name, failure.cause)
        else:
            log.warning(
                "session %s %s; restart %d in %.0f s%s",
                name, failure.cause, failure.restarts, failure.delay, f"\n{failure.details}".rstrip(),
            )  # fmt: skip
        frames = self.total_frames()
        what = self.statistics.fail(failure, frames)
        self._line(metrics.FAILURE, **what, seconds=self._clock() - self._start, details=failure.details)
        self._board.add({"perf/restarts": self.statistics.restarts}, frames)

    def exchanged(self, exchanges: Exchanges) -> None:
        """Take note of what a node has told the server, and been told."""
        self.statistics.exchanged(exchanges)

    def evaluated(self, result: Evaluated) -> None:
        """Take note of an evaluation, which may have begun a while ago."""
        if result.cut:
            log.warning(
                "%d of %d episodes of the evaluation at %s frames were cut by eval.max_episode_steps",
                result.cut, len(result.returns), f"{result.frames:,}",
            )  # fmt: skip
        scalars = self.statistics.evaluated(result)
        self.status.evaluation = f"{scalars['eval/return']:.2f} at {result.frames:,} frames"
        seconds = self._clock() if self._is_simulated else result.seconds  # it is played in real time
        self._board.add(scalars, result.frames, self._clock() - seconds)
        self._line(
            metrics.EVALUATION, total_frames=result.frames, updates=result.updates,
            seconds=seconds - self._start, returns=result.returns, lengths=result.lengths,
        )  # fmt: skip

    def progress(self, final: bool = False) -> None:
        """Write the trial's scalars and its progress line, with the speed of the last minute.

        Args:
            final: Give the speed since the start of this process.
        """
        moment = self._moment()
        now, frames = moment.seconds, moment.frames
        before = self._began if final else self._last
        since = self._began if final else a_minute_before(now, self._minute)
        last, self._last = self._last, moment
        self._minute.append(moment)
        updates = sum(store.total_updates() for store in self.stores)
        dropped = sum(int(store.dropped.sum()) for store in self.stores)
        available = resources.available_memory()
        self._warn(now, available)
        scalars = self.statistics.scalars() | {
            "perf/fps": before.fps(moment),
            "perf/updates": float(updates),
            "perf/memory_available_mib": available / 2**20,
            "train/dropped": float(dropped),
        }
        scalars |= self.statistics.exchanges(moment.seconds - last.seconds)
        if not (self._is_simulated or self.mode.is_cluster):  # whose seconds are not those of the cores here
            scalars["perf/cores_busy"] = since.cores(moment) / machine.cores()
        if math.isfinite(lost := self._lost_updates()):
            scalars["hogwild/lost_updates"] = lost
        self._board.trial(scalars, self.statistics, frames)
        self._board.results(self._results(), frames)
        self._line(metrics.TRIAL, total_frames=frames, updates=updates, seconds=now - self._start, metrics=scalars)
        budget, evaluation = self.status.budget, self.statistics.evaluation
        fps, stale = since.fps(moment), scalars.get("hogwild/staleness_mean", math.nan)
        speed = frames / (time.monotonic() - self._real_start) if self._is_simulated else fps
        left = duration(max(budget - frames, 0) / speed if speed else math.inf)
        log.info(
            "frames %s/%s (%.1f%%)  per session %s  fps %s  return %.2f%s  updates %s%s%s%s  left %s",
            f"{frames:,}", f"{budget:,}", 100 * frames / budget, f"{frames // self.mode.max_session:,}", f"{fps:,.0f}",
            self.statistics.mean_return, f"  evaluation {evaluation['mean_return']:.2f}" if evaluation else "",
            f"{updates:,}", f"  dropped {dropped:,}" if dropped else "",
            "" if math.isnan(stale) else f"  staleness {stale:.2f}",
            f"  cores {100 * busy:.0f}%" if (busy := scalars.get("perf/cores_busy")) is not None else "", left,
            extra={"live": True},
        )  # fmt: skip

    def stop(self) -> None:
        """Stop the run's clock: what follows is not training."""
        self._stopped = self._clock(), resources.core_seconds()

    def total_frames(self) -> int:
        """Return the frames of all sessions."""
        return sum(store.total_frames() for store in self.stores)

    def close(self, status: str) -> dict[str, Any]:
        """Write the last progress line and the summary, and return it; ``screens.last`` tells of it.

        Args:
            status: ``finished``, ``interrupted`` or ``failed``.  The summary is written whole or not at all.
        """
        self.progress(final=True)
        updates = [int(n) for store in self.stores for n in store.updates]
        several = self.mode.is_cluster or self.mode.nodes_here > 0  # each node's optimizer has a count of its own
        summary: dict[str, Any] = {
            "status": status,
            "stopped_by": self.stopped_by if status == "finished" else None,
            **self.statistics.summary(),
            "frames": self.total_frames(),
            "updates": sum(updates),
            "dropped_updates": sum(int(store.dropped.sum()) for store in self.stores),
            "lost_updates": [store.lost_updates() for store in self.stores] if self.mode.diagnostics else None,
            "step_error": [None if several else store.step_error() for store in self.stores],
            "seconds": round(self._now() - self._start, 3),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            **({"real_seconds": round(time.monotonic() - self._real_start, 3)} if self._is_simulated else {}),
            "theta": [sha256(store.theta.numpy().tobytes()).hexdigest() for store in self.stores],
            "fps": round(self._fps(), 1),
            "session_frames": [int(n) for store in self.stores for n in store.frames],
            "session_updates": updates,
        }
        with whole(self.folder / SUMMARY) as file:
            file.write_text(json.dumps(finite(summary), indent=2, allow_nan=False) + "\n")
        self._log.close()
        self._board.close(status)
        if self.tracker is not None:
            self.tracker.close(status)
        self.status.end()
        for line in profile_table(summary.get("profile", [])):
            log.info(line)
        return summary

    def _line(self, kind: str, **content: Any) -> None:
        """Write a line of the metrics file, and tell of it."""
        line = self._log.write(kind, **content)
        if self.tracker is not None:
            self.tracker.write(line)
        if self.listen is not None and self.raised is None:
            try:
                self.listen(line)
            except Exception as error:  # whatever it is, the sessions save first
                self.raised = error

    def _status(self) -> Status:
        """Return what the live table shows when the run begins or goes on."""
        found = self.statistics
        sessions = [
            SessionStatus(
                episodes=found.session_episodes[rank],
                mean_return=mean_return(found.session_returns[rank]),
                restarts=sum(f["rank"] == rank and f["restarted"] for f in found.failures),
                name=self.mode.label(rank),
            )
            for rank in range(self.mode.max_session)
        ]
        return Status(
            sum(store.max_frame for store in self.stores),
            lambda: [int(n) for store in self.stores for n in store.frames],
            lambda: sum(store.total_updates() for store in self.stores),
            sessions,
            lambda: sum(int(store.dropped.sum()) for store in self.stores),
            began=self._real_start,
            mean_return=found.mean_return,
            best=found.best,
        )

    def _show(self, record: Record, scalars: Mapping[str, float]) -> None:
        """Let the live table have what a session reports."""
        session = self.status.sessions[record.rank]
        session.state = "resting" if self.stores[self.mode.store_index(record.rank)].is_complete() else "running"
        session.episodes = self.statistics.session_episodes[record.rank]
        session.mean_return = mean_return(self.statistics.session_returns[record.rank])
        session.staleness = scalars.get("hogwild/staleness_mean", session.staleness)
        self.status.mean_return, self.status.best = self.statistics.mean_return, self.statistics.best

    def _warn(self, now: float, available: int) -> None:
        """Say that memory is running out, once in ten minutes."""
        if resources.is_low(available) and now >= self._next_warning:
            self._next_warning = now + 600
            log.warning(
                "memory is running out: %s left, sessions have up to %.0f MiB each; the kernel may soon kill one. Lower"
                " algo.memory.capacity or distributed.max_session",
                resources.size(available), self.statistics.memory,
            )  # fmt: skip

    def _results(self) -> dict[str, float]:
        """Return by what runs are compared, but for what the board knows; what is not known is not finite."""
        return {
            "mean_return": self.statistics.mean_return,
            "best_return": self.statistics.best,
            "frames": self.total_frames(),
            "updates": sum(store.total_updates() for store in self.stores),
            "seconds": self._now() - self._start,
            "fps": self._fps(),
            "restarts": self.statistics.restarts,
            "lost_updates": self._lost_updates(),
        }

    def _lost_updates(self) -> float:
        """Return the mean share of lost updates; nan if it is not measured."""
        return mean_return([lost for store in self.stores if (lost := store.lost_updates()) is not None])

    def _fps(self) -> float:
        """Return the frames per second since the run began, without the time in which it was interrupted."""
        return self.total_frames() / max(self._now() - self._start, 1e-9)

    def _moment(self) -> Moment:
        now, core_seconds = self._stopped or (self._clock(), resources.core_seconds())
        return Moment(now, self.total_frames(), core_seconds)

    def _now(self) -> float:
        return self._clock() if self._stopped is None else self._stopped[0]


def a_minute_before(now: float, moments: deque[Moment]) -> Moment:
    """Return the last moment that is a minute ago, or the first of all; those before it are removed."""
    while len(moments) > 1 and moments[1].seconds <= now - 60.0:
        moments.popleft()
    return moments[0]


def _cut(folder: Path, lengths: Mapping[str, int], ended: bool) -> None:
    """Cut off what was logged after a checkpoint, by file; if the run ended with it, that is its end and stays."""
    for path in _logs(folder):
        if not ended:
            length = lengths.get(str(path.relative_to(folder)), 0)
        elif path.name == METRICS:
            length = path.read_bytes().rfind(b"\n") + 1  # whole lines
        else:
            continue
        os.truncate(path, min(length, path.stat().st_size))


def _logs(folder: Path) -> list[Path]:
    """Return the files to which a run only appends."""
    return [path for path in (folder / METRICS, *folder.glob(f"{TENSORBOARD}/*/*")) if path.is_file()]
