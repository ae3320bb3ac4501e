"""Other people's records of runs, beside TensorBoard: Weights & Biases and MLflow.

A tracker works in a thread of its own, from a queue: whatever becomes of it, of its network or of its server, the run
neither waits for it nor ends.  It has the trial's curves and evaluations, the settings and the end.
"""

import json
import logging
import math
import os
import queue
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from asynclab.storage import metrics
from asynclab.storage.folder import whole
from asynclab.storage.names import TRACKED
from asynclab.text import located

log = logging.getLogger(__name__)

CLOSE_SECONDS = 30.0  # that the end of a run waits for what is left to be handed over
INIT_SECONDS = 20.0  # that Weights & Biases waits for its server
PROJECT = "asynclab"
BATCH = 100  # of settings, which is as many as MLflow takes at once


class Sink(Protocol):
    """What a tracker does; called by its thread alone."""

    def write(self, scalars: Mapping[str, float], frames: int) -> None:
        """Take finite numbers by tag, at so many frames of all sessions."""

    def close(self, status: str) -> None:
        """End with ``finished``, ``interrupted`` or ``failed``."""


class Wandb:
    """A run of Weights & Biases, whose files are in the run's folder.  WANDB_MODE=offline needs no network.

    Args:
        folder: Output folder.
        settings: By dotted key.
        run: The id in its folder, if it goes on; None for a new one.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: str | None) -> None:
        import wandb

        self.id = run or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.id,
            name=folder.name,
            dir=str(folder),
            config=dict(settings),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS),
        )
        self._run.define_metric("*", step_metric="frames")
        self.place = f"{folder / 'wandb'} (wandb sync uploads it)" if self._run.offline else self._run.url

    def write(self, scalars: Mapping[str, float], frames: int) -> None:
        """Log them by frames."""
        self._run.log({**scalars, "frames": frames})

    def close(self, status: str) -> None:
        """Finish; a run that did not is shown as failed."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=int(status == "failed"))


class MLflow:
    """A run of MLflow in ``mlruns``, or where MLFLOW_TRACKING_URI says.

    Args:
        folder: Output folder.
        settings: By dotted key.
        run: The id in its folder, if it goes on; None for a new one.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: str | None) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which newer versions ask for
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # else it tries for minutes
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        uri, local = os.environ.get("MLFLOW_TRACKING_URI"), located(Path("mlruns")).resolve()
        self.place = uri or str(local)
        self._client = MlflowClient(uri or local.as_uri())
        if run is not None:
            self.id = run
            self._client.update_run(run, status="RUNNING")
            data = self._client.get_run(run).data
            for key, value in settings.items():
                if (data.params | data.tags).get(key) != str(value):  # parameters never change
                    self._client.set_tag(run, key, str(value))
            return
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        self.id = self._client.create_run(experiment, run_name=folder.name).info.run_id
        params = [Param(key, str(value)) for key, value in settings.items()]
        for start in range(0, len(params), BATCH):
            self._client.log_batch(self.id, params=params[start : start + BATCH])

    def write(self, scalars: Mapping[str, float], frames: int) -> None:
        """Log them by frames."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[Metric(tag, value, now, frames) for tag, value in scalars.items()])

    def close(self, status: str) -> None:
        """Set the status."""
        known = {"finished": "FINISHED", "interrupted": "KILLED"}
        self._client.set_terminated(self.id, known.get(status, "FAILED"))


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], str | None], Any]] = {"wandb": Wandb, "mlflow": MLflow}


def check(name: str | None) -> None:
    """Raise ValueError if there is no such tracker, or it is not installed."""
    if name is None:
        return
    if name not in TRACKERS:
        raise ValueError(f"track={name} is unknown; use one of {', '.join(TRACKERS)}, or null for none")
    if find_spec(name) is None:
        raise ValueError(f"track={name} needs {name}: pip install 'asynclab[{name}]'")


class Tracker:
    """Hands what a recorder writes to a sink, in the background, until that fails.

    Args:
        name: A key of ``TRACKERS``.
        folder: Output folder; it remembers which tracked run is its own, so that a run that goes on does so there.
        settings: By dotted key.
    """

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self._name, self._folder, self._settings = name, folder, settings
        self._is_alive = True
        self._queue: queue.SimpleQueue[metrics.Line | str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def write(self, line: metrics.Line) -> None:
        """Take a line of ``metrics.jsonl``; never waits."""
        if self._is_alive:
            self._queue.put(line)

    def close(self, status: str) -> None:
        """Say how the run has ended, and wait a little for what is left."""
        self._queue.put(status)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("track=%s has not taken everything within %.0f s", self._name, CLOSE_SECONDS)

    def _work(self) -> None:
        try:
            sink = self._begin()
            while not isinstance(item := self._queue.get(), str):
                if scalars := _scalars(item):
                    sink.write(scalars, item["total_frames"])
            sink.close(item)
        except (Exception, SystemExit) as error:  # whatever it raises, training is not its business
            self._is_alive = False
            reason = " ".join(str(error).split()) or "no reason given"
            log.warning(
                "track=%s failed (%s: %s); the run goes on without it", self._name, type(error).__name__, reason
            )

    def _begin(self) -> Sink:
        file = self._folder / TRACKED
        known: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
        sink = TRACKERS[self._name](self._folder, self._settings, known.get(self._name))
        with whole(file) as new:
            new.write_text(json.dumps(known | {self._name: sink.id}) + "\n")
        log.info("tracked by %s in %s", self._name, sink.place)
        return sink


def _scalars(line: metrics.Line) -> dict[str, float]:
    """Return what a tracker keeps of a line: finite numbers by tag."""
    found: dict[str, float] = {}
    if line["kind"] == metrics.TRIAL:
        found = line["metrics"]
    elif line["kind"] == metrics.EVALUATION:
        found = {"eval/return": statistics.fmean(line["returns"]), "eval/length": statistics.fmean(line["lengths"])}
    return {tag: float(value) for tag, value in found.items() if math.isfinite(value)}
