"""Training from Python: what ``asynclab.train`` does in somebody else's process, and the run that it returns."""

import logging
import multiprocessing as mp
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from numpy.typing import NDArray
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from asynclab import config, job, load, script, sweeps
from asynclab.analysis import curves, plots, runs
from asynclab.analysis.curves import Curve
from asynclab.console import ConsoleHandler
from asynclab.storage.names import SUMMARY, TRAIN_LOG
from asynclab.text import number, set_here, short

if TYPE_CHECKING:
    from asynclab.evaluation.policy import Policy

_training = threading.Lock()


class Run:
    """A run and what it left: what ``asynclab.train`` returns, or any output folder.

    Attributes:
        folder: Its output folder.

    Args:
        folder: Of a run that has ended, goes on or was killed, or of a zoo's agent.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        try:
            found = self.summary
        except ValueError:
            return f"Run({short(self.folder)!r}, not ended)"
        return f"Run({short(self.folder)!r}, {found['status']}, mean return {number(found['mean_return'])})"

    @property
    def summary(self) -> dict[str, Any]:
        """What became of it: status, frames, updates, staleness and more, as in ``summary.json``.

        Raises:
            ValueError: It has not ended.
        """
        return runs.read_json(self.folder / SUMMARY)

    @property
    def mean_return(self) -> float:
        """Mean raw return of the last 100 episodes; nan if none has ended."""
        found = self.summary["mean_return"]
        return float("nan") if found is None else float(found)

    @property
    def returns(self) -> NDArray[np.float64]:
        """Raw returns of all episodes of all sessions, in the order in which they ended.

        Of a zoo's agent, which keeps fewer points, means of as many consecutive episodes of a session as that takes.
        """
        sessions = curves.read(self.folder).sessions.values()
        seconds, returns = (np.concatenate([getattr(c, name) for c in sessions]) for name in ("seconds", "returns"))
        return returns[np.argsort(seconds, kind="stable")]

    @property
    def curve(self) -> Curve:
        """Mean return of the last 100 episodes at every progress line: ``total_frames``, ``seconds``, ``returns``."""
        return curves.read(self.folder).trial

    def plot(self, x: str = "total_frames") -> Any:
        """Return a figure of matplotlib with the curve, by ``total_frames``, ``session_frames`` or ``seconds``."""
        run, _ = runs.read(self.folder)
        return plots.draw_run(self.folder.name, run, x)

    @cached_property
    def policy(self) -> "Policy":
        """The policy that it has trained, by now; ``asynclab.load`` has those of other checkpoints."""
        return load(self.folder)


def train(overrides: Sequence[str], callback: Callable[[dict[str, Any]], object] | None, quiet: bool) -> Run:
    """Train as ``asynclab.train`` says."""
    if isinstance(overrides, str):
        raise ValueError(f"overrides={overrides!r} must be a list of settings, such as ['algo=a3c', 'env=cartpole']")
    if not _training.acquire(blocking=False):
        raise ValueError("a run trains in this process already; wait for it, or start another process")
    out: list[Path] = []
    raised: list[Exception] = []

    def listen(line: dict[str, Any]) -> None:
        try:
            if callback is not None:
                callback(line)
        except Exception as error:
            raised.append(error)
            raise

    def task(cfg: DictConfig) -> float:
        out.append(Path(HydraConfig.get().runtime.output_dir))
        with _logging(out[0], quiet):
            return job.run(cfg, listen, ["asynclab-train", *overrides])

    try:
        with _as_before(), script.hidden(), initialize_config_dir(config.CONF, job_name="train", version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            hydra.run("config", task, list(overrides), with_log_configuration=False)
    except (HydraException, OmegaConfBaseException) as error:
        from asynclab.processes.launch import SessionError
        from asynclab.run.trial import TrialError

        if isinstance(error.__cause__, (OSError, SessionError, TrialError)):
            raise error.__cause__ from None
        raise (raised[0] if raised else ValueError(sweeps.sentence(error))) from None
    except SystemExit as error:
        if isinstance(error.code, str):  # a refusal before there is a run
            raise ValueError(error.code) from None
        if error.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from None
        raise
    finally:
        _training.release()
    return Run(out[0])


@contextmanager
def _as_before() -> Iterator[None]:
    """Leave this process as it was found: what Hydra, multiprocessing and torch are set to."""
    hydra, method, torch = HydraConfig.instance().cfg, mp.get_start_method(allow_none=True), sys.modules.get("torch")
    threads, random = (torch.get_num_threads(), torch.get_rng_state()) if torch else (0, None)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = hydra
        mp.set_start_method(method, force=True)
        set_here(None)
        if torch:
            torch.set_num_threads(threads)
            torch.set_rng_state(random)


@contextmanager
def _logging(folder: Path, quiet: bool) -> Iterator[None]:
    """Write what we log to the run's ``train.log`` and the console, and nothing to the loggers of this process."""
    ours, file = logging.getLogger("asynclab"), logging.FileHandler(folder / TRAIN_LOG)
    file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    handlers = [file, *([] if quiet else [ConsoleHandler(sys.stdout)])]
    before = ours.level, ours.propagate
    ours.setLevel(logging.INFO)
    ours.propagate = False
    for handler in handlers:
        ours.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            ours.removeHandler(handler)
        file.close()
        ours.setLevel(before[0])
        ours.propagate = before[1]
