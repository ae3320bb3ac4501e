"""The parent of a run: makes the stores, launches the sessions, records and checkpoints."""

import json
import logging
import math
import multiprocessing as mp
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from asynclab import check, console, flat, nets
from asynclab.agents import Agent
from asynclab.console.table import Status
from asynclab.distributed import Mode, Store
from asynclab.envs import Envs, spaces
from asynclab.evaluation.evaluator import Evaluator, Schedule
from asynclab.evaluation.play import check_changes
from asynclab.memory import Memory
from asynclab.precision import choose, is_native
from asynclab.processes import signals
from asynclab.processes.control import Control
from asynclab.processes.launch import Failure, SessionError, Started, end_helpers, launch
from asynclab.processes.server import SIGNALS
from asynclab.run import resources
from asynclab.run.initial import Initial
from asynclab.run.recorder import Recorder
from asynclab.storage.checkpoint import Checkpoint, Checkpoints
from asynclab.storage.folder import holds_run
from asynclab.storage.names import CHECKPOINTS, SUMMARY
from asynclab.storage.snapshot import File
from asynclab.text import override
from asynclab.training.learner import Rules
from asynclab.training.messages import Record, Saved
from asynclab.training.seeds import Seeds
from asynclab.training.session import Session
from asynclab.training.state import Start

log = logging.getLogger(__name__)

CHECKPOINT_MEMORY = 10.0  # GB, unless checkpoint_memory says something else


class TrialError(RuntimeError):
    """A run could not go on; the message says why."""


@dataclass(frozen=True)
class Stop:
    """When a run is finished before its budget is used up.

    Attributes:
        at: Mean return of the last 100 episodes; None for none.
        patience: Frames without a better one; None for any number.

    Raises:
        ValueError: A setting makes no sense.
    """

    at: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.at is not None:
            check.number("stop_at", self.at)
        if self.patience is not None:
            check.count("patience", self.patience)

    def reason(self, mean_return: float, frames: int, best_frame: int) -> str | None:
        """Return why a run is finished; None if it is not.

        Args:
            mean_return: Of the last 100 episodes; nan if there were fewer.
            frames: Of the trial.
            best_frame: When the best mean return so far was reached, or the first 100 episodes had ended.
        """
        if self.at is not None and mean_return >= self.at:
            return f"stop_at={self.at:g}"
        if self.patience is not None and not math.isnan(mean_return) and frames - best_frame >= self.patience:
            return f"patience={self.patience:,}"
        return None


class Trial:
    """One run of all its sessions.

    The constructor checks everything that can be checked before a process starts.

    Args:
        make_envs: () -> Envs.
        make_agent: (obs_space, action_space) -> Agent.
        make_memory: (obs_space, action_space, num_envs, seed) -> Memory.
        make_optimizer: (one parameter group per network) -> Optimizer.
        lr_schedule: Factor on the learning rate by progress.
        mode: Number of sessions and what they share.
        max_frame: Budget of each store.
        max_grad_norm: Bound on each network's gradient norm, None for none.
        max_dropped: Non-finite updates of a session in a row that are dropped; one more ends the trial.
        precision: Of the torsos' arithmetic: auto, fp32 or bf16.
        device: auto, cpu, cuda or cuda:N.
        seed: Of the trial.
        log_every: Seconds between two progress lines.
        checkpoint_every: Seconds between two checkpoints.
        checkpoint_keep: How many of the latest checkpoints are kept, besides the best.
        checkpoint_memory: Checkpoints have the sessions' memories if these are at most so many GB together; None for
            ``CHECKPOINT_MEMORY``, if they also fit into half of the room that the disk has.
        profile: Measure where the sessions' time goes.
        folder: Output folder.
        schedule: Of evaluations.
        stop: When it is finished before its budget is used up.
        initial: Weights of another run to begin with; None for new ones.
        config: Kept in every checkpoint, to be compared when the run is resumed.
        checkpoint: Where the run goes on; None for a new one.

    Raises:
        ValueError: A setting cannot work; the message names it and the fix.
    """

    def __init__(
        self,
        make_envs: Callable[[], Envs],
        make_agent: Callable[..., Agent],
        make_memory: Callable[..., Memory],
        make_optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[float], float],
        mode: Mode,
        max_frame: int,
        max_grad_norm: float | None,
        max_dropped: int,
        precision: str,
        device: str,
        seed: int,
        log_every: float,
        checkpoint_every: float,
        checkpoint_keep: int,
        checkpoint_memory: float | None,
        profile: bool,
        folder: Path,
        schedule: Schedule,
        stop: Stop = Stop(),
        initial: Initial | None = None,
        config: Any = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.mode = mode
        self.folder = folder
        self.schedule = schedule
        self.stop = stop
        self.initial = initial
        self.config = config
        self.checkpoint = checkpoint
        self.log_every = check.positive("log_every", log_every)
        self.checkpoint_every = check.positive("checkpoint_every", checkpoint_every)
        self.checkpoints = Checkpoints(folder, checkpoint_keep)
        check.count("env.max_frame", max_frame)
        if check.whole("seed", seed) >= 2**32 and checkpoint is None:
            raise ValueError(f"seed={seed} must be below 2**32: sessions of others would share their random numbers")
        if max_grad_norm is not None:
            check.positive("algo.max_grad_norm", max_grad_norm)
        if checkpoint is None and holds_run(folder):
            raise ValueError(
                f"the output folder {folder} holds a run already; set hydra.run.dir to another folder, or set"
                f" {override('resume', folder)} to go on with it"
            )
        devices = _devices(device, mode)
        envs = make_envs()
        envs.close()
        if schedule.every is not None and schedule.changes:
            check_changes(make_envs, schedule.changes, "eval.")
        try:
            memory = make_memory(envs.obs_space, envs.action_space, envs.num_envs)
        except MemoryError as error:
            raise ValueError(
                f"one session's memory cannot be allocated ({error}); lower algo.memory.capacity"
            ) from None
        self.num_envs = envs.num_envs
        self.spaces = spaces(envs)
        self.memory_bytes = memory.nbytes()
        memories = mode.max_session * self.memory_bytes
        resources.check_memory(mode.max_session, self.memory_bytes)
        if max_frame < (needed := memory.min_frame(mode.writers)):
            raise ValueError(
                f"env.max_frame={max_frame} ends before every session has learned once; set it to {needed} or more"
            )
        self.refill = memory.refill(max_frame // mode.writers)  # transitions that a lost memory collects, at most
        self.memories_on_disk = memories * self.checkpoints.missing_memories
        if checkpoint_memory is None:
            save_memory = memories <= 1e9 * CHECKPOINT_MEMORY
            save_memory &= 2 * self.memories_on_disk <= resources.available_disk(folder)
        else:
            save_memory = memories <= 1e9 * check.number("checkpoint_memory", checkpoint_memory)
        resources.check_descriptors(mode.max_session, mode.num_stores)
        probe = make_agent(envs.obs_space, envs.action_space)
        self._layout = flat.signature(probe.nets)
        self._own_way = probe.deterministic
        weights = 4 * flat.size(probe.nets) * mode.num_stores
        resources.check_shared_memory(5 * weights)  # theta, two moments, the probe, and a margin
        on_disk = self.memories_on_disk * save_memory
        resources.check_disk(folder, 3 * weights, self.checkpoints.missing + 2, on_disk)

        def make_store(rank: int) -> Store:
            torch.manual_seed(Seeds(seed, rank).weights)
            networks = make_agent(envs.obs_space, envs.action_space).nets
            parts = flat.slices(networks)
            theta = flat.flatten(networks)
            if initial is not None:
                initial.copy_to(theta, flat.signature(networks))
            return Store(
                theta, parts, make_optimizer, max_frame, lr_schedule,
                mode.writers, mode.lock, mode.diagnostics, probe.target_part, envs.moments,
                {name: flat.matrices(net) for name, net in networks.items()},
            )  # fmt: skip

        self.stores = [make_store(rank) for rank in range(mode.num_stores)]
        if initial is not None:
            for store in self.stores:
                initial.copy_moments_to(store.moments)
        if (mode.one_store or mode.max_session > 1) and not self.stores[0].is_global:
            raise ValueError(
                f"algo.optimizer {type(self.stores[0].optimizer).__name__} is not global, so with"
                f" distributed={mode.name} and {mode.max_session} sessions its state would be lost between processes;"
                " set algo.optimizer._target_=asynclab.optim.GlobalAdam or GlobalRMSprop"
            )
        self._trial = {} if checkpoint is None else self._load(checkpoint)
        self.resumes = 0 if checkpoint is None else self._trial["resumes"] + 1
        best = self._trial.get("best")
        self._best = -math.inf if best is None else best
        self.control = Control(mode.max_session, mode.max_restarts, mode.hang_after)
        self.session = Session(
            make_envs,
            make_agent,
            make_memory,
            mode,
            Rules(
                max_grad_norm,
                check.whole("max_dropped", max_dropped),
                self._arithmetic(precision, nets.is_convolutional(probe.nets), devices),
            ),
            devices,
            seed,
            min(log_every, checkpoint_every),
            profile,
            folder / CHECKPOINTS,
            save_memory,
        )
        self._snapshot = _Snapshot(0)
        self._next_checkpoint = math.inf
        self._joined: set[int] = set()  # sessions that have ever run; the others may be reading the last checkpoint

    def _load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Take over a checkpoint's stores and return what the trial has to remember."""
        trial, states = checkpoint.trial(), checkpoint.stores()
        if trial["layout"] != self._layout or len(states) != len(self.stores):
            raise ValueError(
                f"{checkpoint.path} has other networks than this version of asynclab makes of the run's config; resume"
                " it with the revision in its run.json"
            )
        for store, state in zip(self.stores, states, strict=True):
            store.load_state_dict(state)
        return trial

    def _arithmetic(self, precision: str, convolutional: bool, devices: list[str]) -> str:
        """Return in what the torsos compute; with ``auto`` a run goes on in what it began with, on any processor."""
        chosen = choose(precision, convolutional, devices)
        if self.checkpoint is None or precision != "auto":
            return chosen
        begun = self._trial.get("precision")
        if begun is None:  # of an older version, whose auto did not ask what the torsos are
            begun = choose((self._trial["config"] or {"algo": {}})["algo"].get("precision", "auto"), True, devices)
        if begun != chosen:
            slow = "" if is_native(begun, devices) else ", although this processor only emulates it, which is slow"
            log.warning(
                "the run has computed in %s, and algo.precision=auto would now choose %s: it goes on in %s%s;"
                " algo.precision=%s changes that",
                begun, chosen, begun, slow, chosen,
            )  # fmt: skip
        return begun

    def decided(self) -> dict[str, Any]:
        """Return what became of settings that leave it to the machine or the agent."""
        asked = self.schedule.deterministic
        return {
            "max_session": self.mode.max_session,
            "devices": self.session.devices,
            "precision": self.session.rules.precision,
            "deterministic": self._own_way if asked is None else asked,
            "initial": None if self.initial is None else str(self.initial),
        }

    def is_complete(self) -> bool:
        """Return whether the budget is used up, or the run has been stopped for what still is a reason."""
        return all(store.is_complete() for store in self.stores) or self._was_stopped()

    def _was_stopped(self) -> bool:
        """Return whether the run that goes on had been stopped, and nobody has changed when it is to be."""
        return self._trial.get("stopped") == [self.stop.at, self.stop.patience]

    def report(self) -> float:
        """Say that there is nothing left to do and return the mean return that the run ended with."""
        recent = [ret for _, ret in self._trial["recorder"]["recent"] if ret is not None]
        log.info(
            "the run in %s is finished at %s frames; to go on, set %s",
            self.folder, f"{sum(store.total_frames() for store in self.stores):,}",
            "stop_at or patience otherwise" if self._was_stopped() else "env.max_frame higher",
        )  # fmt: skip
        return statistics.fmean(recent) if recent else math.nan

    def run(self) -> float:
        """Train until the budget is used up and return the mean return of the last 100 episodes (nan if none).

        Raises:
            SessionError: A session failed for good; there is a checkpoint.
            TrialError: Something could not be written; the last good checkpoint is untouched.
                Or the run ended before its budget was used up without a signal to it; there is a checkpoint.
            SystemExit: A signal asked us to end; there is a checkpoint.  The code is 128 plus the signal's number.
                When only the final weights are left to be evaluated, Ctrl-C and SIGUSR2 end just that.
        """
        others = mp.active_children()
        try:
            return self._run()
        except OSError as error:
            raise TrialError(
                f"the run had to end: {error} (output folder {self.folder}); its checkpoints are whole, so once that is"
                f" mended, {override('resume', self.folder)} goes on"
            ) from error
        finally:
            end_helpers(others)

    def _run(self) -> float:
        mode = self.mode
        self.checkpoints.clean()
        start, summary = Start(), None
        if self.checkpoint is not None:
            start = Start(self.checkpoint.path, frozenset(self.checkpoint.manifest["files"]), self.resumes)
            summary = self._end_of(self.checkpoint)
            (self.folder / SUMMARY).unlink(missing_ok=True)
            self.checkpoints.set_aside(self.checkpoint)
        recorder = Recorder(
            self.folder, mode, self.stores, self.log_every, self._trial.get("recorder"), self.config, summary
        )
        if self.checkpoint is None:
            self._commit(_Snapshot(0), recorder)  # so that a run can always be resumed, and a full disk shows now
        runs = [partial(self.session.run, rank, self.store_of(rank), self.control, start) for rank in self._ranks]
        status = "failed"
        with (
            _end_on_signals(self.control, recorder.status) as ending,
            self._evaluations(recorder) as evaluator,
            console.show(recorder.status),
        ):
            try:
                self._next_checkpoint = time.monotonic() + self.checkpoint_every
                with closing(launch(runs, mode.num_threads, self.control)) as events:
                    for event in events:
                        self._handle(event, recorder)
                        self._attend(recorder)
                        self._take_evaluations(evaluator, recorder)
                is_finished = recorder.stopped_by or all(store.is_complete() for store in self.stores)
                status = "finished" if is_finished else "interrupted"
            except SessionError as error:
                log.error("%s", error, extra={"console": False})  # whoever calls us shows it
                raise
            finally:
                try:
                    self._take_evaluations(evaluator, recorder)  # what came since the last event
                    # If we do not end, something broke here and the sessions could not save their states; if nothing
                    # has been stepped, what the run began with is better than what sessions had when they were stopped.
                    if self.control.ending() and self._has_stepped():
                        self._commit(self._snapshot_of(self.control.asked()), recorder)
                    self.checkpoints.clean()
                    recorder.stop()
                    ending.is_saved = True
                    if evaluator and status == "finished":
                        log.info("evaluating the final weights for %g s at most; Ctrl-C ends it", self.schedule.wait)
                        for evaluated in evaluator.finish(lambda: ending.is_asked):
                            recorder.evaluated(evaluated)
                except OSError:
                    status = "failed"
                    raise
                finally:
                    recorder.close(status)
        if (number := ending.number) is not None and not (number == signal.SIGUSR2 and status == "finished"):
            _hand_on(number)
            raise SystemExit(128 + number)
        if status == "interrupted":  # a sweep would take a return for a result
            raise TrialError(
                "the run was asked to end before its budget was used up, and not by a signal to it;"
                f" {override('resume', self.folder)} goes on"
            )
        return recorder.statistics.mean_return

    def _end_of(self, checkpoint: Checkpoint) -> dict[str, Any] | None:
        """Return the summary of a run that has ended with this checkpoint; None if it went on, or was killed."""
        try:
            summary: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text())
            return summary if summary["frames"] == checkpoint.manifest["frames"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def _take_evaluations(evaluator: Evaluator | None, recorder: Recorder) -> None:
        for evaluated in evaluator.results() if evaluator else ():
            recorder.evaluated(evaluated)

    @contextmanager
    def _evaluations(self, recorder: Recorder) -> Iterator[Evaluator | None]:
        """Yield what evaluates the run while it trains, if anything does."""
        if self.schedule.every is None:
            yield None
            return
        last = recorder.statistics.evaluation or {"frames": 0, "updates": 0}
        evaluator = Evaluator(
            self.schedule, partial(self.session.make_envs, **self.schedule.changes), self.session.make_agent,
            self.stores, 10 * self.mode.hang_after, (last["frames"], last["updates"]),
        )  # fmt: skip
        try:
            yield evaluator
        finally:
            evaluator.close()

    def store_of(self, rank: int) -> Store:
        """Return the store that a session trains."""
        return self.stores[self.mode.store_index(rank)]

    def _has_stepped(self) -> bool:
        """Return whether there are more frames than in the checkpoint that the run goes on from."""
        before = 0 if self.checkpoint is None else self.checkpoint.manifest["frames"]
        return sum(store.total_frames() for store in self.stores) > before

    @property
    def _ranks(self) -> range:
        return range(self.mode.max_session)

    def _handle(self, event: object, recorder: Recorder) -> None:
        """Take what a session reports, or what happened to its process."""
        match event:
            case Record():
                recorder.write(event)
            case Saved(rank=rank, number=number) if number == self.control.asked():
                self._snapshot_of(number).saved[rank] = event
            case Started(rank=rank, pid=pid):
                recorder.process(rank, pid)
            case Failure(rank=rank):
                self.store_of(rank).give_back(self.mode.slot(rank))
                recorder.failure(event)

    def _attend(self, recorder: Recorder) -> None:
        """Do what is due: end, or take a checkpoint in a moment in which all sessions stand still."""
        if self.control.ending():
            return
        running = self.control.running()
        self._joined |= running
        recorder.stopped_by = self._reason(recorder)
        if recorder.stopped_by or all(store.is_complete() for store in self.stores):
            self.control.finish(10 * self.mode.hang_after)  # in which sessions make the updates that are due, and save
        elif self.control.is_pending():
            snapshot = self._snapshot_of(self.control.asked())
            if running <= set(snapshot.saved):  # the others are dead, or wait before their first step
                try:
                    snapshot.check()
                    self._commit(snapshot, recorder)
                except OSError as error:  # perhaps there is room again when the next one is due
                    log.error("no checkpoint was written: %s; those before are untouched", error)
                self.control.release(snapshot.number)
                self._next_checkpoint = time.monotonic() + self.checkpoint_every
        elif time.monotonic() >= self._next_checkpoint and self._joined == set(self._ranks) and running:
            self.control.ask()

    def _reason(self, recorder: Recorder) -> str | None:
        """Return why the run is finished before its budget is used up; None if it is not."""
        found = recorder.statistics
        mean = found.mean_return if found.window_is_full else math.nan
        return self.stop.reason(mean, recorder.total_frames(), found.best_frame)

    def _snapshot_of(self, number: int) -> "_Snapshot":
        if self._snapshot.number != number:
            self._snapshot = _Snapshot(number)
        return self._snapshot

    def _commit(self, snapshot: "_Snapshot", recorder: Recorder) -> None:
        """Make a checkpoint of what the sessions have saved.

        Raises:
            OSError: It could not be written, or is not worth it: the weights are not finite.
        """
        if not all(store.is_finite() for store in self.stores):
            raise OSError("the weights are not finite; lower algo.optimizer.lr")
        best = recorder.statistics.mean_return if recorder.statistics.window_is_full else -math.inf
        is_best = best > self._best
        trial = {
            "config": self.config,
            "layout": self._layout,
            "precision": self.session.rules.precision,
            "resumes": self.resumes,
            "stopped": [self.stop.at, self.stop.patience] if recorder.stopped_by else None,
            "best": max(best, self._best) if max(best, self._best) > -math.inf else None,
            "recorder": recorder.state_dict(),
        }
        complete = all(saved.files is not None for saved in snapshot.saved.values())
        complete &= len(snapshot.saved) == self.mode.max_session or snapshot.number == 0
        self.checkpoints.commit(snapshot.number, self.stores, trial, snapshot.files(), is_best, complete)
        self._best = max(best, self._best)
        recorder.status.checkpoint = time.monotonic()


class _Snapshot:
    """What the sessions have saved of one moment."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.saved: dict[int, Saved] = {}

    def check(self) -> None:
        """Raise OSError if a session could not save its state."""
        for saved in self.saved.values():
            if saved.files is None:
                raise OSError(f"session {saved.rank} could not save its state: {saved.error}")

    def files(self) -> dict[str, File]:
        return {name: file for saved in self.saved.values() for name, file in (saved.files or {}).items()}


class _Ending:
    """What signals have asked for.

    Attributes:
        is_saved: Set by the trial when its last checkpoint is written.
        is_asked: Whether a signal has come.
        number: Of the signal that ends this process when the run has ended; None for none.
    """

    def __init__(self) -> None:
        self.is_saved = False
        self.is_asked = False
        self.number: int | None = None


@contextmanager
def _end_on_signals(control: Control, status: Status) -> Iterator[_Ending]:
    """Let the first signal ask the sessions to save and end, and a second Ctrl-C end everything at once.

    When all is saved, what is left is the evaluation of the final weights: any signal ends it, and the summary, which
    a second Ctrl-C waits for.  Ctrl-C then ends nothing else, so that a sweep goes on with its next job.

    Args:
        control: Of the sessions.
        status: Told what is about to happen.
    """
    ending = _Ending()

    def handle(number: int, frame: FrameType | None) -> None:
        if ending.is_asked and number == signal.SIGINT and not ending.is_saved:
            _say("")
            os._exit(128 + number)  # sessions die with us
        if not ending.is_asked:
            what = "ending without the last evaluation" if ending.is_saved else "saving and ending; Ctrl-C ends at once"
            status.note = f"{signal.Signals(number).name}: {what}"
            if not status.is_shown:
                _say(status.note)
        ending.is_asked = True
        if ending.number is None and not (ending.is_saved and number == signal.SIGINT):
            ending.number = number
        control.finish()

    with signals.handled(SIGNALS, handle):
        yield ending


def _say(text: str) -> None:
    """Write a line from a signal handler, for which logging is not made."""
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"\n{text}\n".encode())


def _hand_on(number: int) -> None:
    """Let submitit have its signal, now that all is saved: it hands the job in again, and ends this process."""
    handler = signal.getsignal(number)
    if number == signal.SIGUSR2 and callable(handler):
        handler(number, None)


def _devices(device: str, mode: Mode) -> list[str]:
    """Return the devices that sessions take in turn."""
    cuda = torch.cuda.is_available()
    if device == "auto":
        if not (cuda and mode.on_gpu):
            return ["cpu"]
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device={device} is not a torch device; use auto, cpu, cuda or cuda:0") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device={device} is not supported; use auto, cpu, cuda or cuda:0")
    if kind == "cpu":
        return ["cpu"]
    if not mode.on_gpu:
        raise ValueError(
            f"device={device} cannot hold the weights in distributed={mode.name}, where they are the global network in"
            " CPU memory; set device=cpu or distributed=synced"
        )
    if not cuda:
        raise ValueError(f"device={device}, but torch finds no CUDA GPU here; set device=cpu or device=auto")
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={device}, but there are {torch.cuda.device_count()} GPUs, counted from cuda:0")
    return [device]  # all sessions on the one that was named; auto spreads them
