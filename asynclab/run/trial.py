"""The parent of a run: launches the sessions, records, checkpoints, and ends."""

import json
import logging
import math
import multiprocessing as mp
import signal
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from asynclab import console, flat
from asynclab.cluster.exchange import Exchanges
from asynclab.config.schema import Config
from asynclab.distributed import Cluster, Mode, Store
from asynclab.envs import spaces
from asynclab.evaluation.evaluator import Evaluator, Schedule
from asynclab.processes.control import Control
from asynclab.processes.launch import Failure, SessionError, Started, end_helpers, launch
from asynclab.run import trackers
from asynclab.run.ending import Ending, Stop, end_on_signals, hand_on
from asynclab.run.initial import Initial
from asynclab.run.preflight import check_run
from asynclab.run.recorder import Listener, Recorder
from asynclab.run.snapshots import Snapshot, Snapshots
from asynclab.run.stores import make_stores, network_of, restore
from asynclab.run.tensorboard import hparams
from asynclab.run.trackers import Tracker
from asynclab.simulation.clock import Clock
from asynclab.simulation.simulator import simulate
from asynclab.simulation.tape import Tape
from asynclab.storage.checkpoint import Checkpoint, Checkpoints
from asynclab.storage.names import CHECKPOINTS, RECORD, SUMMARY
from asynclab.text import override
from asynclab.training.learner import Rules
from asynclab.training.messages import Complaint, Record, Saved
from asynclab.training.session import Session
from asynclab.training.state import Start

log = logging.getLogger(__name__)


class TrialError(RuntimeError):
    """A run could not go on; the message says why."""


class Trial:
    """One run of all its sessions.

    The constructor checks everything that can be checked before a process starts.

    Args:
        cfg: The settings; the targets of its groups are instantiated (``build.make_trial``).
        folder: Output folder.
        checkpoint: Where the run goes on; None for a new one.
        initial: Weights of another run to begin with; None for new ones.
        config: The settings as they are kept in every checkpoint, to be compared when the run is resumed.

    Raises:
        ValueError: A setting cannot work; the message names it and the fix.
    """

    def __init__(
        self,
        cfg: Config,
        folder: Path,
        checkpoint: Checkpoint | None = None,
        initial: Initial | None = None,
        config: Any = None,
    ) -> None:
        self.cfg = cfg
        self.mode: Mode = cfg.distributed
        self.folder = folder
        self.checkpoint = checkpoint
        self.initial = initial
        self.config = config
        self.schedule = Schedule(**vars(cfg.eval))
        self.stop = Stop(cfg.stop_at, cfg.patience)
        trackers.check(cfg.track)
        self.probe = check_run(cfg, folder, self.schedule, checkpoint)
        self.spaces = spaces(self.probe.envs)
        self._layout = flat.signature(self.probe.agent.nets)
        self.stores = make_stores(cfg, self.probe, initial)
        self._saved: dict[str, Any] = {}
        if checkpoint is not None:
            restore(self.stores, checkpoint, self._layout)
            self._saved = checkpoint.trial()
        self.resumes = 0 if checkpoint is None else self._saved["resumes"] + 1
        self.clock = Clock(self._saved.get("recorder", {}).get("seconds", 0.0)) if self.mode.is_simulated else None
        self.control = Control(self.mode.max_session, self.mode.max_restarts, self.mode.hang_after)
        self.session = Session(
            make_envs=cfg.env.make,
            make_agent=cfg.algo.agent,
            make_memory=cfg.algo.memory,
            mode=self.mode,
            rules=Rules(cfg.algo.max_grad_norm, cfg.max_dropped, self.probe.precision),
            devices=self.probe.devices,
            seed=cfg.seed,
            # where seconds are virtual, those of checkpoints are not
            log_every=cfg.log_every if self.mode.is_simulated else min(cfg.log_every, cfg.checkpoint_every),
            profile=cfg.profile,
            folder=folder / CHECKPOINTS,
            save_memory=self.probe.save_memory,
            clock=self.clock or time.monotonic,
            tape=Tape(folder / RECORD) if self.mode.record else None,
        )

    def decided(self) -> dict[str, Any]:
        """Return what became of settings that leave it to the machine or the agent."""
        asked = self.schedule.deterministic
        return {
            "max_session": self.mode.max_session,
            **({"nodes": self.mode.nodes} if isinstance(self.mode, Cluster) else {}),
            "num_threads": self.probe.num_threads,
            "networks": self.mode.num_stores,
            "processes": self.mode.processes,
            "devices": self.probe.devices,
            "precision": self.probe.precision,
            "deterministic": self.probe.agent.deterministic if asked is None else asked,
        } | ({"initial": None if self.initial is None else str(self.initial)} if self.checkpoint is None else {})

    def _shown(self) -> dict[str, Any]:
        """Return the settings, with the nodes that a cluster has; empty if they are not known."""
        config = dict(self.config or {})
        if isinstance(self.mode, Cluster) and config:
            config["distributed"] = {**config["distributed"], "nodes": self.mode.nodes}
        return config

    def is_complete(self) -> bool:
        """Return whether the budget is used up, or the run has been stopped for what still is a reason."""
        return self._budget_is_used_up() or self._was_stopped()

    def _budget_is_used_up(self) -> bool:
        return all(store.is_complete() for store in self.stores)

    def _was_stopped(self) -> bool:
        """Return whether the run that goes on had been stopped, and nobody has changed when it is to be."""
        return self._saved.get("stopped") == [self.stop.at, self.stop.patience]

    def report(self) -> float:
        """Say that there is nothing left to do and return the mean return that the run ended with.

        Raises:
            TrialError: It has learned nothing.
        """
        self._check_learned()
        recent = [ret for _, ret in self._saved["recorder"]["recent"] if ret is not None]
        log.info(
            "the run in %s is finished at %s frames; to go on, set %s",
            self.folder, f"{sum(store.total_frames() for store in self.stores):,}",
            "stop_at or patience otherwise" if self._was_stopped() else "env.max_frame higher",
        )  # fmt: skip
        return statistics.fmean(recent) if recent else math.nan

    def store_of(self, rank: int) -> Store:
        """Return the store that a session trains."""
        return self.stores[self.mode.store_index(rank)]

    def run(self, listen: Listener | None = None, is_guest: bool = False) -> float:
        """Train until the budget is used up and return the mean return of the last 100 episodes (nan if none).

        Args:
            listen: Told every line of ``metrics.jsonl``; what it raises ends the run, with a checkpoint.
            is_guest: Whether others work in this process, too: processes that begin meanwhile may be theirs.

        Raises:
            SessionError: A session failed for good; there is a checkpoint.
            TrialError: Something could not be written; the last good checkpoint is untouched.
                Or the run ended before its budget was used up without a signal to it; there is a checkpoint.
            SystemExit: A signal asked us to end; there is a checkpoint.  The code is 128 plus the signal's number.
                When only the final weights are left to be evaluated, Ctrl-C and SIGUSR2 end just that.
        """
        others = mp.active_children()
        try:
            return self._run(listen)
        except OSError as error:
            raise TrialError(
                f"the run had to end: {error} (output folder {self.folder}); its checkpoints are whole, so once that is"
                f" mended, {override('resume', self.folder)} goes on"
            ) from error
        finally:
            if not is_guest:
                end_helpers(others)

    def _run(self, listen: Listener | None) -> float:
        checkpoints = Checkpoints(self.folder, self.cfg.checkpoint_keep)
        checkpoints.clean()
        start, summary = self._start(checkpoints)
        recorder = Recorder(
            self.folder, self.mode, self.stores, self.cfg.log_every, self._saved.get("recorder"), self._shown(),
            summary, self.clock,
        )  # fmt: skip
        recorder.listen = listen
        if self.cfg.track is not None:
            recorder.tracker = Tracker(self.cfg.track, self.folder, hparams(self._shown(), self.mode.max_session))
        snapshots = self.snapshots(checkpoints, recorder)
        if self.checkpoint is None:
            if isinstance(self.session.tape, Tape):
                self.session.tape.begin()
            snapshots.commit(Snapshot(0))  # so that a run can always be resumed, and a full disk shows now
        status, is_over = "failed", self.is_complete()  # it was killed after its last checkpoint, before its summary
        with (
            end_on_signals(self.control, recorder.status) as ending,
            self._evaluations(recorder) as evaluator,
            console.show(recorder.status),
        ):
            try:
                if is_over:
                    recorder.stopped_by = self._reason(recorder)
                else:
                    self._train(start, recorder, snapshots, evaluator)
                self._check_learned()
                is_finished = is_over or recorder.stopped_by or self._budget_is_used_up()
                status = "finished" if is_finished else "interrupted"
            except SessionError as error:
                log.error("%s", error, extra={"console": False})  # whoever calls us shows it
                raise
            finally:
                try:
                    self._save_the_end(recorder, snapshots, evaluator)
                    ending.is_saved = True
                    if evaluator and status == "finished":
                        self._evaluate_the_end(recorder, evaluator, ending)
                except OSError:
                    status = "failed"
                    raise
                finally:
                    recorder.close(status)
        if recorder.raised is not None:
            raise recorder.raised
        self._leave(status, ending.number)
        return recorder.statistics.mean_return

    def _start(self, checkpoints: Checkpoints) -> tuple[Start, dict[str, Any] | None]:
        """Return where the sessions begin, and of a run that had ended there its summary."""
        if self.checkpoint is None:
            return Start(), None
        summary = self._end_of(self.checkpoint)
        (self.folder / SUMMARY).unlink(missing_ok=True)
        checkpoints.set_aside(self.checkpoint)
        return Start(self.checkpoint.path, frozenset(self.checkpoint.manifest["files"]), self.resumes), summary

    def _end_of(self, checkpoint: Checkpoint) -> dict[str, Any] | None:
        """Return the summary of a run that has ended with this checkpoint; None if it went on, or was killed."""
        try:
            summary: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text())
            return summary if summary["frames"] == checkpoint.manifest["frames"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _train(self, start: Start, recorder: Recorder, snapshots: Snapshots, evaluator: Evaluator | None) -> None:
        """Let the sessions train until they end."""
        snapshots.begin()
        with closing(self._launch(start)) as events:
            for event in events:
                self.handle(event, recorder, snapshots)
                _take_evaluations(evaluator, recorder)

    def _launch(self, start: Start) -> Generator[Any]:
        if not self.mode.is_cluster:
            return launch(self._runs(start), self.probe.num_threads, self.control)
        from asynclab.cluster import fleet, node  # which import Ray

        algo, env, (store,) = self.cfg.algo, self.cfg.env, self.stores
        network = network_of(self.probe.agent)._replace(theta=store.theta)
        sizes = self.probe.envs.moments
        plan = node.Plan(
            self.session, network, algo.optimizer, env.max_frame, algo.lr_schedule, sizes,
            num_envs=self.probe.num_envs, num_threads=self.probe.num_threads, resumes=self.resumes,
        )  # fmt: skip
        return fleet.launch(plan, store, self.control, start)

    def _runs(self, start: Start) -> list[Callable[[], Iterator[Any]]]:
        """Return what runs, in a process each."""
        if self.clock is not None:
            return [partial(simulate, self.session, self.stores[0], self.control, self.clock, start)]
        ranks = range(self.mode.max_session)
        return [partial(self.session.run, rank, self.store_of(rank), self.control, start) for rank in ranks]

    def _check_learned(self) -> None:
        """Raise TrialError if the budget is used up without an update."""
        if self._budget_is_used_up() and not any(store.total_updates() for store in self.stores):
            dropped = sum(int(store.dropped.sum()) for store in self.stores)
            why = f"; {dropped} were dropped because they were not finite: the warnings say what the environment gave"
            raise TrialError(f"no update was applied, so nothing was learned{why if dropped else ''}")

    def handle(self, event: object, recorder: Recorder, snapshots: Snapshots) -> None:
        """Take what a session reports, or what became of its process; then do what is due: a checkpoint, the end."""
        match event:
            case Record():
                recorder.write(event)
            case Saved():
                snapshots.add(event)
            case Complaint(rank=rank, text=text):
                log.warning("session %s: %s", self.mode.label(rank), text)
            case Exchanges():
                recorder.exchanged(event)
            case Started(rank=rank, pid=pid):
                recorder.process(rank, pid)
            case Failure(rank=rank):
                if not self.mode.is_cluster:  # whose nodes have the claims
                    self.store_of(rank).give_back(self.mode.slot(rank))
                recorder.failure(event)
        if self.control.ending():
            return
        if recorder.raised is not None:
            self.control.finish()
            return
        recorder.stopped_by = self._reason(recorder)
        if recorder.stopped_by or self._budget_is_used_up():
            self.control.finish(self.mode.grace)  # in which sessions make the updates that are due, and save
        else:
            snapshots.attend()
        recorder.status.checkpoint = snapshots.last

    def _reason(self, recorder: Recorder) -> str | None:
        """Return why the run is finished before its budget is used up; None if it is not."""
        found = recorder.statistics
        mean = found.mean_return if found.window_is_full else math.nan
        return self.stop.reason(mean, recorder.total_frames(), found.best_frame)

    def snapshots(self, checkpoints: Checkpoints, recorder: Recorder) -> Snapshots:
        """Return what makes the run's checkpoints."""

        def state() -> tuple[dict[str, Any], float]:
            found = recorder.statistics
            trial = {
                "config": self.config,
                "layout": self._layout,
                "precision": self.probe.precision,
                "resumes": self.resumes,
                "stopped": [self.stop.at, self.stop.patience] if recorder.stopped_by else None,
                "recorder": recorder.state_dict(),
            }
            return trial, found.mean_return if found.window_is_full else -math.inf

        best = self._saved.get("best") if checkpoints.has_best else None
        return Snapshots(
            self.control,
            self.stores,
            checkpoints,
            self.cfg.checkpoint_every,
            state,
            -math.inf if best is None else best,
            awaits_all=not self.mode.is_cluster,  # its nodes have read the last checkpoint when they begin
        )

    def _save_the_end(self, recorder: Recorder, snapshots: Snapshots, evaluator: Evaluator | None) -> None:
        """Keep what the sessions have saved last, and stop the run's clock."""
        _take_evaluations(evaluator, recorder)  # what came since the last event
        # If we do not end, something broke here and the sessions could not save their states; if nothing has been
        # stepped, what the run began with is better than what sessions had when they were stopped.
        before = 0 if self.checkpoint is None else self.checkpoint.manifest["frames"]
        try:
            if self.control.ending() and recorder.total_frames() > before:
                snapshots.commit_last()
        finally:
            snapshots.checkpoints.clean()
            recorder.stop()

    def _evaluate_the_end(self, recorder: Recorder, evaluator: Evaluator, ending: Ending) -> None:
        log.info("evaluating the final weights for %g s at most; Ctrl-C ends it", self.schedule.wait)
        for evaluated in evaluator.finish(lambda: ending.is_asked):
            recorder.evaluated(evaluated)

    def _leave(self, status: str, number: int | None) -> None:
        """Let a run that was interrupted, by a signal of this number or otherwise, not count as finished."""
        if number is not None and not (number == signal.SIGUSR2 and status == "finished"):
            hand_on(number)
            raise SystemExit(128 + number)
        if status == "interrupted":  # a sweep would take a return for a result
            raise TrialError(
                "the run was asked to end before its budget was used up, and not by a signal to it;"
                f" {override('resume', self.folder)} goes on"
            )

    @contextmanager
    def _evaluations(self, recorder: Recorder) -> Iterator[Evaluator | None]:
        """Yield what evaluates the run while it trains, if anything does."""
        if self.schedule.every is None:
            yield None
            return
        last = recorder.statistics.evaluation or {"frames": 0, "updates": 0}
        evaluator = Evaluator(
            self.schedule, partial(self.cfg.env.make, **self.schedule.changes), self.cfg.algo.agent,
            self.stores, self.mode.hang_after, (last["frames"], last["updates"]),
        )  # fmt: skip
        try:
            yield evaluator
        finally:
            evaluator.close()


def _take_evaluations(evaluator: Evaluator | None, recorder: Recorder) -> None:
    for evaluated in evaluator.results() if evaluator else ():
        recorder.evaluated(evaluated)
