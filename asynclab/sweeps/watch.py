"""Sweeps (``-m``): their jobs have a folder each, and those that fail are listed with their reason."""

import json
import logging
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import psutil
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException, HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asynclab import signals
from asynclab.config import AUTO, DATABASE, PLUGINS, check_writable, is_installed, lock, subfolder
from asynclab.storage import folder
from asynclab.storage.names import FAILURE, JOBS, RUN
from asynclab.text import count, override

log = logging.getLogger(__name__)

SHOWN = 10  # names of runs in a message
SECONDS_TO_SAVE = 10.0  # of joblib's workers at an end that somebody asked for
FULL_ERROR = "HYDRA_FULL_ERROR"  # makes Hydra raise instead of printing a traceback

_running: DictConfig | None = None  # the sweep of this process
_is_wrapped = False  # by ``in_words``


class Outcome(NamedTuple):
    """What is known of a job of the last command.

    Attributes:
        name: Of its folder.
        overrides: Which the sweep gave it.
        ended: Whether it came to an end, good or bad.
        error: Why it failed; None if it did not.
    """

    name: str
    overrides: list[str]
    ended: bool = False
    error: str | None = None


class SweepWatch(Callback):
    """Looks after a sweep: before its first job, around each in the process in which it runs, and after the last."""

    _was_finished = False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check what would otherwise only be found by jobs; let a study go on."""
        global _running
        HydraConfig.instance().set_config(config)
        try:
            _prepare(config)
        except ValueError as error:
            sys.exit(f"{error}.")
        except Exception:  # Hydra would make a warning of it and start the jobs
            traceback.print_exc()
            sys.exit(1)
        _running = config
        if _is_wrapped:
            os.environ[FULL_ERROR] = "1"
        if config.hydra.launcher._target_.endswith(".JoblibLauncher"):
            _end_workers_on_signals(config)

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        """Note that a job has begun; what it says of an earlier failure no longer holds."""
        run = Path(config.hydra.runtime.output_dir)
        self._was_finished = folder.status(run) == "finished"
        sweeps = config.hydra.mode == RunMode.MULTIRUN
        if sweeps:
            _note(config)
        if not sweeps or not folder.is_locked(run):  # of a single run the lock is ours
            (run / FAILURE).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Leave ``failure.json`` in the folder of a job that failed, and remove it from that of one that did not."""
        run, sweeps = Path(config.hydra.runtime.output_dir), config.hydra.mode == RunMode.MULTIRUN
        error: Any = job_return._return_value if job_return.status is JobStatus.FAILED else None
        if error is None and sweeps and _is_tuned(config) and math.isnan(job_return.return_value):
            error = ValueError(
                f"no episode has ended within env.max_frame={config.env.max_frame}, so there is no return to compare;"
                " set env.max_frame higher"
            )
        with suppress(OSError):  # the disk may be full
            _leave(run, error, self._was_finished)
            if sweeps:
                _note(config, error)
        if error is None or not sweeps:
            return
        log.error("job %s failed: %s", _name(config), sentence(error))
        if not isinstance(error, HydraException):
            log.error("its traceback", exc_info=error, extra={"console": False})
        if _is_tuned(config):  # which notes that the trial failed; in words, as not every exception can be sent
            job_return.status, job_return.return_value = JobStatus.FAILED, CompactHydraException(sentence(error))
        else:  # the basic sweeper would raise the first one and forget the others
            job_return.status, job_return.return_value = JobStatus.COMPLETED, math.nan

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say how the jobs ended; exit with status 1 if one failed."""
        global _running
        _running = None
        text, good = report(config)
        if not good:
            sys.exit(text)
        print(text)


@contextmanager
def in_words() -> Iterator[None]:
    """Let a sweep that is cut short say why in a sentence, and how its jobs ended, instead of a traceback."""
    global _is_wrapped
    _is_wrapped = os.environ.get(FULL_ERROR) != "1"
    try:
        yield
    except SystemExit:  # a signal, while a job ran in this process
        if _running is not None:
            print(report(_running)[0], file=sys.stderr)
        raise
    except Exception as error:
        if _running is None or not _is_wrapped:
            raise
        jobs = _jobs(Path(_running.hydra.sweep.dir))
        if not jobs and isinstance(error, HydraException):  # a choice that does not exist, and the like
            sys.exit("\n".join(map(str, [error, *[error.__cause__] * (error.__cause__ is not None)])))
        reason = sentence(error)
        if _is_tuned(_running) and jobs and all(job.error for job in jobs):
            reason = "no trial has returned anything that could be compared"
        sys.exit(f"{report(_running)[0]}\nThe sweep has ended early: {reason}")


def _end_workers_on_signals(config: DictConfig) -> None:
    """Let a signal end joblib's workers with us, once their jobs have saved; they would go on without us."""

    def end(number: int, frame: FrameType | None) -> None:
        for other in mine:
            signal.signal(other, signal.SIG_DFL)  # the second one ends at once
        workers = [process for process in psutil.Process().children() if _is_worker(process)]
        time.sleep(0.2)  # Ctrl-C reaches them, too, and should be there first
        for worker in workers:
            with suppress(psutil.Error):  # it has ended
                worker.terminate()
        path, deadline = Path(config.hydra.sweep.dir), time.monotonic() + SECONDS_TO_SAVE
        while time.monotonic() < deadline and any(folder.is_locked(path / job.name) for job in _jobs(path)):
            time.sleep(0.1)
        for worker in workers:
            with suppress(psutil.Error):
                worker.kill()
        print(f"\n{report(config)[0]}", file=sys.stderr, flush=True)
        os._exit(128 + number)

    mine = signals.handle(signals.ENDING, end)


def _is_worker(process: psutil.Process) -> bool:
    """Return whether a process is one of joblib's; those that have ended are not."""
    with suppress(psutil.Error):
        return any("popen_loky" in part for part in process.cmdline())
    return False


def report(config: DictConfig) -> tuple[str, bool]:
    """Return how the jobs of a sweep ended, in words, and whether all of them finished.

    Args:
        config: Of the sweep.
    """
    path = Path(config.hydra.sweep.dir)
    jobs = _jobs(path)
    failed = [job for job in jobs if job.error is not None]
    left = [job for job in jobs if not job.ended]
    counts = [f"{len(jobs) - len(failed) - len(left)} finished"]
    counts += [f"{len(failed)} failed"] * bool(failed) + [f"{len(left)} not finished"] * bool(left)
    lines = [f"{count(len(jobs), 'job')} in {path}: {', '.join(counts)}"] if jobs else []
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    for job in jobs:
        if reason := job.error or (None if job.ended else _whereabouts(path / job.name)):
            own = [o for o in job.overrides if o not in common]
            lines.append(f"  {' '.join([job.name, *own])}: {reason}")
    if left or (failed and not _is_tuned(config)):
        lines.append(f"To go on with these: the same command with {override('hydra.sweep.dir', path)} resume={AUTO}")
    if _is_tuned(config) and "storage" in config.hydra.sweeper:
        from asynclab.sweeps import tuning

        lines += filter(None, [tuning.best(config)])
    return "\n".join(lines), len(jobs) == len([job for job in jobs if job.ended and job.error is None])


def sentence(error: BaseException) -> str:
    """Return what an exception says in one line, without the traceback that some have in them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines)
    if "Traceback (most recent call last):" in lines:
        text = f"{lines[0]}: {lines[-1]}"
    return text if isinstance(error, (HydraException, ValueError)) else f"{type(error).__name__}: {text}"


def _leave(run: Path, error: BaseException | None, was_finished: bool) -> None:
    """Write or remove ``failure.json``, unless the folder is of a run with which the job had nothing to do."""
    if folder.is_locked(run):
        return
    if error is None:
        (run / FAILURE).unlink(missing_ok=True)
    elif not was_finished:
        cause = error
        while isinstance(cause, HydraException) and cause.__cause__ is not None:
            cause = cause.__cause__
        with folder.whole(run / FAILURE) as file:
            file.write_text(json.dumps({"error": sentence(error), "type": type(cause).__name__}, indent=2) + "\n")


def _note(config: DictConfig, *errors: BaseException | None) -> None:
    """Note that a job has begun or, with what it raised or None, that it has ended."""
    job = Outcome(_name(config), list(config.hydra.overrides.task))
    for error in errors:
        job = job._replace(ended=True, error=None if error is None else sentence(error))
    with folder.whole(Path(config.hydra.sweep.dir) / JOBS / f"{config.hydra.job.num}.json") as file:
        file.write_text(json.dumps(job._asdict()))


def _jobs(path: Path) -> list[Outcome]:
    """Return the jobs of the last command in their order."""
    files = sorted((path / JOBS).glob("*.json"), key=lambda file: int(file.stem))
    return [Outcome(**json.loads(file.read_text())) for file in files]


def _name(config: DictConfig) -> str:
    return os.path.relpath(config.hydra.runtime.output_dir, config.hydra.sweep.dir)


def _whereabouts(run: Path) -> str:
    return "it still runs" if folder.is_locked(run) else folder.status(run) or "it was killed"


def _is_tuned(config: DictConfig) -> bool:
    """Return whether a sweep's jobs are chosen by what those before returned."""
    return not str(config.hydra.sweeper._target_).endswith(".BasicSweeper")


def _prepare(config: DictConfig) -> None:
    _check_plugins(config)
    path = Path(config.hydra.sweep.dir)
    check_writable(str(path), "hydra.sweep.dir")
    lock(path)
    resumes = OmegaConf.select(config, "resume") == AUTO
    if not resumes and (found := _holds(path)):
        raise ValueError(
            f"The folder hydra.sweep.dir={path} holds {found}. Set hydra.sweep.dir to another folder, or resume={AUTO}"
            " to go on with it"
        )
    if not _is_tuned(config):
        _refuse_shared_folders(config)
    elif "storage" in config.hydra.sweeper:
        from asynclab.sweeps import tuning

        tuning.go_on(config)
    if "submitit" in config.hydra.launcher._target_ and not resumes:
        log.warning("without resume=%s, a job that is requeued cannot go on and fails", AUTO)
    shutil.rmtree(path / JOBS, ignore_errors=True)


def _check_plugins(config: DictConfig) -> None:
    """Exit if a plugin of Hydra is missing that the sweep needs."""
    for package, (choices, extra) in PLUGINS.items():
        for choice in choices:
            group, _, name = choice.rpartition("/")
            if config.hydra.runtime.choices.get(group) == name and not is_installed(package):
                sys.exit(f"{group}={name} needs a package that is not installed: pip install 'asynclab[{extra}]'")


def _holds(path: Path) -> str | None:
    """Return what a sweep's folder has of an earlier one, in words."""
    runs = sorted(str(file.parent.relative_to(path)) for file in path.rglob(RUN))
    if runs:
        return f"runs already ({', '.join([*runs[:SHOWN], *['...'] * (len(runs) > SHOWN)])})"
    return "a study already" if (path / DATABASE).exists() else None


def _refuse_shared_folders(config: DictConfig) -> None:
    """Raise ValueError if two jobs of a basic sweep would have the same folder.

    They have none in common if the folders have the jobs' numbers.
    """
    subdir = subfolder(config)
    if any(own in subdir for own in ("hydra.job.num", "hydra.job.id", "override_dirname")):
        return
    loader = GlobalHydra.instance().config_loader()
    seen: dict[str, list[str]] = {}
    try:
        for overrides in planned(config.hydra.sweeper.params, config.hydra.overrides.task, loader):
            cfg = loader.load_sweep_config(config, overrides)
            HydraConfig.instance().set_config(cfg)
            name = str(cfg.hydra.sweep.subdir)
            if name in seen:
                raise ValueError(_shared(subdir, name, seen[name], overrides, cfg.hydra.runtime.choices))
            seen[name] = overrides
    except (HydraException, OmegaConfBaseException):  # the sweeper says it
        return
    finally:
        HydraConfig.instance().set_config(config)


def planned(
    params: Mapping[str, Any] | None, task: Sequence[str], loader: ConfigLoader | None = None
) -> list[list[str]]:
    """Return the overrides of each job that Hydra's own sweeper makes.

    Args:
        params: ``hydra.sweeper.params``.
        task: Overrides of the command line.
        loader: Of configs; without it ``glob(*)`` cannot be read.

    Raises:
        HydraException: They cannot be read.
    """
    given = [f"{key}={value}" for key, value in (params or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*given, *task])
    return BasicSweeper.split_arguments(parsed, None)[0]


def _shared(
    subdir: str, name: str, first: Sequence[str], second: Sequence[str], choices: Mapping[str, str | None]
) -> str:
    keys = [override.partition("=")[0] for override in second if override not in first]
    if not keys:
        return f"two jobs of the sweep are the same ({' '.join(first)}); leave one out"
    mine = " ".join(override for override in first if override.partition("=")[0] in keys)
    other = " ".join(override for override in second if override not in first)
    plain = [key.lstrip("+") for key in keys]
    values = {key: f"hydra.runtime.choices.{key}" if key in choices else key for key in plain}  # of a group, its file
    advice = "_".join([subdir, *(f"{key.split('.')[-1].replace('/', '_')}_${{{values[key]}}}" for key in plain)])
    return (
        f"hydra.sweep.subdir={subdir} gives the jobs with {mine} and with {other} the same folder, {name}; set"
        f" 'hydra.sweep.subdir={advice}'"
    )
