"""Throughput of a configuration, measured beside what limits it.

The parts of the work (environment, acting, updating) are timed alone in one process per core, and the whole with the
real command.  All that is compared is repeated in turn, so that a machine whose speed drifts drifts for all of it.
"""

import ctypes
import json
import multiprocessing as mp
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from asynclab.distributed import Store
from asynclab.processes.launch import launch
from asynclab.profile import Profile
from asynclab.run.trial import Trial
from asynclab.storage import metrics
from asynclab.storage.names import METRICS
from asynclab.text import markdown
from asynclab.training.session import Session

START_TIMEOUT = 900.0  # seconds in which every session must have learned once, or reported again


class Parts(NamedTuple):
    """What one process does alone, in units per second.

    Attributes:
        env: Frames stepped with random actions.
        act: Frames acted on.
        update: Batches of the memory learned from, always the same one; PPO makes several updates of each.
        frames_per_update: Frames to a batch, of the algorithm; no rate.
    """

    env: float
    act: float
    update: float
    frames_per_update: float


def limit(parts: Sequence[Parts]) -> float:
    """Return the frames/s of all processes that would do nothing but step, act and update in turn."""
    env, act, update = (sum(getattr(p, name) for p in parts) for name in ("env", "act", "update"))
    return 1 / (1 / env + 1 / act + 1 / (update * parts[0].frames_per_update))


def measure_parts(trial: Trial, processes: int, seconds: float) -> list[Parts]:
    """Time the parts in so many processes at once, each for some seconds.

    Args:
        trial: Its first store is trained.
        processes: As many as fill the machine.
        seconds: Of each part.
    """
    barrier = mp.get_context("forkserver").Barrier(processes)
    runs = [partial(_parts, trial.session, barrier, seconds, trial.store_of(rank), rank) for rank in range(processes)]
    return [event for event in launch(runs, trial.probe.num_threads) if isinstance(event, Parts)]


def _parts(session: Session, barrier: Any, seconds: float, store: Store, rank: int) -> Iterator[Parts]:
    loop = session.set_up(rank, store, Profile(enabled=False))
    envs, learner, memory, obs = loop.envs, loop.learner, loop.memory, loop.obs
    envs.action_space.seed(rank)
    actions = [np.stack([envs.action_space.sample() for _ in range(envs.num_envs)]) for _ in range(64)]
    batches = 0
    while batches < 2:  # warms everything up
        action = learner.act(obs)
        step = envs.step(action)
        memory.add(action, step)
        for batch in memory.batches(10**9):
            _all(learner.learn(batch))
            batches += 1
    turn = cycle(actions)

    def rate(work: Callable[[], Any]) -> float:
        barrier.wait(START_TIMEOUT)
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            work()
            count += 1
        return count / passed

    env = rate(lambda: envs.step(next(turn))) * envs.num_envs
    act = rate(lambda: learner.act(obs)) * envs.num_envs
    update = rate(lambda: _all(learner.learn(batch)))
    envs.close()
    yield Parts(env, act, update, memory.frames_per_batch)


def _all(updates: Iterator[Any]) -> None:
    for _ in updates:
        pass


@dataclass
class Run:
    """One end-to-end measurement.

    Attributes:
        frames: Per second, all sessions together, after every session has learned once.
        updates: Likewise.
        start: Seconds from the command to the last session's report of its first step.
        memory: Bytes of the process tree, shared pages counted once, and the seconds since the command.
    """

    frames: float
    updates: float
    start: float
    memory: list[tuple[float, int]]

    @property
    def peak(self) -> int:
        """Greatest memory in bytes."""
        return max(size for _, size in self.memory)


def measure_run(train: Path, overrides: Sequence[str], sessions: int, seconds: float) -> Run:
    """Run the real command for some seconds after all its sessions have learned once, and stop it.

    Args:
        train: train.py.
        overrides: Of the command.
        sessions: Number of sessions.
        seconds: Length of the measurement.

    Raises:
        RuntimeError: The command failed, or its sessions did not start; the message has its output.
    """
    with tempfile.TemporaryDirectory(prefix="asynclab_bench_") as folder:
        output = Path(folder) / "run"
        command = [
            sys.executable, str(train), *overrides, f"distributed.max_session={sessions}", "log_every=1",
            "env.max_frame=1_000_000_000", "checkpoint_every=1_000_000", f"hydra.run.dir={output}",
        ]  # fmt: skip
        with (Path(folder) / "log").open("w+") as log:
            began = time.monotonic()
            env = os.environ | {"TMPDIR": folder}  # the fork server's socket is deleted with it
            process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, preexec_fn=end_with_parent)
            try:
                return _observe(process, output / METRICS, sessions, seconds, began)
            except RuntimeError as error:
                log.seek(0)
                raise RuntimeError(f"{error}: {' '.join(command)}\n{log.read()[-3000:]}") from None
            finally:
                _stop(process)


def end_with_parent() -> None:
    """Let the kernel end this process when the benchmark is killed; it would go on for days."""
    pr_set_pdeathsig = 1  # of linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _observe(process: Any, path: Path, sessions: int, seconds: float, began: float) -> Run:
    records: dict[int, list[dict[str, Any]]] = {rank: [] for rank in range(sessions)}
    start = until = None
    memory: list[tuple[float, int]] = []
    next_memory, position = 0.0, 0

    def span(what: str) -> list[float]:
        return [r[-1][what] - r[0][what] for r in records.values()]

    while until is None or time.monotonic() < until or min(span("seconds")) < 0.8 * seconds:
        time.sleep(0.05)
        now = time.monotonic()
        if process.poll() is not None:
            raise RuntimeError("the command ended early")
        if now > (until or began) + START_TIMEOUT:
            raise RuntimeError(f"not every session has learned and reported within {START_TIMEOUT:.0f} seconds")
        if now >= next_memory:
            memory.append((round(now - began, 1), _tree_pss(process)))
            next_memory = now + max(5.0, seconds / 200)  # a look at 19 processes takes an eighth of a second
        if not path.exists():
            continue
        with path.open() as file:
            file.seek(position)
            while (line := file.readline()).endswith("\n"):
                position = file.tell()
                record = json.loads(line)
                if record["kind"] == metrics.SESSION:
                    records[record["rank"]].append(record)
        if start is None and all(records.values()):
            start = now - began
        if until is None and all(r and r[-1]["updates"] for r in records.values()):
            until = now + seconds
            records = {rank: [r[-1]] for rank, r in records.items()}
    memory.append((round(time.monotonic() - began, 1), _tree_pss(process)))
    assert start is not None

    def rate(what: str) -> float:
        return sum(done / passed for done, passed in zip(span(what), span("seconds"), strict=True))

    return Run(rate("frames"), rate("updates"), start, memory)


def _tree_pss(process: Any) -> int:
    """Return the proportional set size of a process and its descendants, in bytes."""
    total = 0
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    for p in tree:
        try:
            lines = Path(f"/proc/{p.pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it ended in between
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def _stop(process: Any) -> None:
    """End the command and its descendants, which end with it."""
    if process.poll() is not None:
        return
    children = process.children(recursive=True)
    process.terminate()
    _, alive = psutil.wait_procs([process, *children], timeout=20)
    for p in alive:
        p.kill()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(
    processes: int, parts: Sequence[Sequence[Parts]], runs: dict[int, list[Run]], sb3: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Return medians and ranges.  Ratios are taken within a repeat, where the machine was most alike."""
    limits = [limit(ps) for ps in parts]
    one = runs.get(1)
    result: dict[str, Any] = {
        "processes": processes,
        "parts": {
            name: spread([sum(getattr(p, name) for p in ps) for ps in parts]) for name in ("env", "act", "update")
        },
        "limit": spread(limits),
        "runs": {},
    }
    for n, measured in runs.items():
        entry = {name: spread([getattr(r, name) for r in measured]) for name in ("frames", "updates", "start", "peak")}
        if n >= processes:  # the limit is that of a busy machine
            entry["fraction"] = spread([r.frames / of for r, of in zip(measured, limits, strict=True)])
        for name, reference in (("over_one", one), ("over_all", runs.get(processes))):
            if reference is not None:
                entry[name] = spread([r.frames / other.frames for r, other in zip(measured, reference, strict=True)])
        if sb3:
            entry["over_sb3"] = spread([r.frames / s["frames"] for r, s in zip(measured, sb3, strict=True)])
        result["runs"][n] = entry
    if sb3:
        result["sb3"] = {name: spread([s[name] for s in sb3]) for name in ("frames", "updates")}
    return result


def table(result: dict[str, Any]) -> str:
    """Return the summary as text in Markdown."""
    processes = result["processes"]
    head = ["sessions", "frames/s", "updates/s", "of the limit", "x 1 session", f"x {processes} sessions"]
    head += ["start, s", "peak memory, GiB"] + ["x stable-baselines3"] * ("sb3" in result)
    alone = [(what, _range(result["parts"][name])) for name, what in _PARTS.items()]
    alone.append(("limit: the three in turn, frames", _range(result["limit"])))
    rows = []
    for n, run in result["runs"].items():
        memory = {name: size / 2**30 for name, size in run["peak"].items()}
        cells = [str(n), _range(run["frames"]), _range(run["updates"])]
        cells += [_range(run[name], 2) if name in run else "" for name in ("fraction", "over_one", "over_all")]
        cells += [_range(run["start"], 1), _range(memory, 1)]
        cells += [_range(run["over_sb3"], 2)] if "sb3" in result else []
        rows.append(cells)
    if "sb3" in result:
        rows.append(["stable-baselines3", _range(result["sb3"]["frames"]), _range(result["sb3"]["updates"])])
    first = [f"alone, in {processes} processes at once", "per second: median (range)"]
    return f"{markdown(first, alone)}\n\n{markdown(head, rows)}"


_PARTS = {"env": "environment steps, frames", "act": "acting, frames", "update": "learning, batches"}


def _range(values: dict[str, float], digits: int | None = None) -> str:
    if digits is None:
        digits = 1 if values["median"] < 100 else 0
    median, low, high = (f"{values[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({low} to {high})"
