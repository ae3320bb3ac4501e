"""What became of runs and of the jobs of sweeps, also of those that never got so far, and how to run them again."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from asynclab import progress, text
from asynclab.analysis import runs
from asynclab.analysis.runs import Run
from asynclab.storage.folder import is_locked
from asynclab.storage.names import BEST, CONFIG, FAILURE, HYDRA, METRICS, RUN, SWEEP
from asynclab.sweeps.watch import planned

# where a run is kept, not what it is
PLACES = ("resume=", "hydra.run.dir=", "hydra.sweep.dir=", "hydra.sweep.subdir=", "hydra.mode=")


class Job(NamedTuple):
    """A run, or a job of a sweep that did not become one.

    Attributes:
        name: Short, and no other job has it.
        run: What is known.
        problems: What is not as it should be, as parts of sentences.
        status: ``finished``, ``interrupted``, ``failed``, ``killed`` or ``running``.
    """

    name: str
    run: Run
    problems: list[str]
    status: str

    @property
    def typed(self) -> list[str]:
        """What was typed, or is of the sweep, but for the output folder."""
        return _typed(self.run.folder, self.run.overrides)

    @property
    def command(self) -> str:
        """What makes the run again, for a shell; on a machine with another number of cores, too."""
        typed = self.typed
        mode = _part(_read_yaml(self.run.folder / CONFIG), "distributed") or {}
        for key in ("max_session", "num_threads"):
            if mode.get(key, 0) is None and key in self.run.made:  # null: by the cores
                typed.append(f"distributed.{key}={self.run.made[key]}")
        return shlex.join([*program(self.run), *typed])


class Sweep(NamedTuple):
    """A sweep.

    Attributes:
        folder: That has its jobs.
        typed: On its command line, but for the folder.
        missing: What each job that has not begun would have been.  Known only of Hydra's own sweeper: others decide as
            they go.
        results: ``optimization_results.yaml``, which Optuna leaves.
        is_running: Whether it goes on.
    """

    folder: Path
    typed: list[str]
    missing: list[list[str]]
    results: dict[str, Any]
    is_running: bool


def find(folders: Sequence[Path]) -> tuple[list[Job], list[str]]:
    """Return all jobs in folders, and a sentence on every folder without any.

    Raises:
        ValueError: There is none.
    """
    paths, notes = runs.find_all(folders)
    jobs = []
    for name, path in progress.counted(paths.items(), "runs read"):
        run, problems = runs.look(path)
        jobs.append(Job(name, run, problems, _status(run)))
    if not jobs:
        raise ValueError(" ".join(["there is no run to report.", *notes]))
    return jobs, notes


def _status(run: Run) -> str:
    if run.summary.get("status"):
        return str(run.summary["status"])
    if is_locked(run.folder):
        return "running"
    began = (run.folder / METRICS).exists() and not (run.folder / FAILURE).exists()
    return "killed" if began else "failed"


def sweeps(jobs: Sequence[Job], folders: Sequence[Path]) -> list[Sweep]:
    """Return the sweeps in folders that jobs are of."""
    tops = [folder.resolve() for folder in folders]
    parents = dict.fromkeys(parent for job in jobs for parent in job.run.folder.resolve().parents)
    inside = [parent for parent in parents if any(parent.is_relative_to(top) for top in tops)]
    return [_read_sweep(parent, jobs) for parent in inside if any((parent / name).is_file() for name in (SWEEP, BEST))]


def program(run: Run) -> list[str]:
    """Return what is typed before the settings of a run."""
    command = run.made.get("command")
    for word in map(str, command if isinstance(command, list) else []):
        if (called := text.program(word)) in (["asynclab", "train"], ["python", "-m", "asynclab", "train"]):
            return called
    return text.program("train.py")


def _read_sweep(folder: Path, jobs: Sequence[Job]) -> Sweep:
    config = _read_yaml(folder / SWEEP)
    given = [_part(config, "hydra", "overrides", key) or [] for key in ("hydra", "task")]
    hydra, task = ([str(o) for o in overrides if not str(o).startswith(PLACES)] for overrides in given)
    if not config:  # Optuna's sweeper notes nothing, but its jobs have the command
        commands = [job.run.made.get("command") for job in jobs if folder in job.run.folder.resolve().parents]
        words = next((c for c in commands if isinstance(c, list) and {"-m", "--multirun"} & set(map(str, c))), [])
        task = [str(word) for word in words[2:] if not str(word).startswith(("-m", "--multirun", *PLACES))]
    results = _read_yaml(folder / BEST)
    return Sweep(folder, hydra + task, _missing(folder, config, task), results, is_locked(folder))


def _missing(folder: Path, config: dict[str, Any], task: list[str]) -> list[list[str]]:
    if not str(_part(config, "hydra", "sweeper", "_target_")).endswith(".BasicSweeper"):
        return []
    try:
        jobs = planned(_part(config, "hydra", "sweeper", "params"), task)
    except (HydraException, AttributeError):  # glob(*) needs the configs
        return []
    begun = set()
    for path in runs.find_all([folder])[0].values():
        made = _read_yaml(path / RUN).get("overrides") or []  # JSON is YAML; a run that goes on may have others
        for overrides in (made, *(_read_yaml(noted, []) for noted in _noted(path))):
            begun.add(frozenset(str(o) for o in overrides if not str(o).startswith(("hydra.", *PLACES))))
    return [job for job in jobs if frozenset(job) not in begun]


def _typed(folder: Path, overrides: Sequence[Any]) -> list[str]:
    """Return the overrides that a run has noted or, before there is one, Hydra."""
    found = list(overrides)
    if not found:
        for path in _noted(folder):
            found = found or list(_read_yaml(path, []))
    return [str(o) for o in found if not str(o).startswith(PLACES)]


def _noted(folder: Path) -> list[Path]:
    """Return where Hydra has noted the overrides of a run's commands, the first one first."""
    return [folder / HYDRA / "overrides.yaml", *sorted((folder / HYDRA).glob("*/overrides.yaml"))]


def _part(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _read_yaml(path: Path, default: Any = None) -> Any:
    """Return what a file has, unresolved; the default ({} for None) where that is unreadable or of another type."""
    default = {} if default is None else default
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException):
        return default
    return found if isinstance(found, type(default)) else default
