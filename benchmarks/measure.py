"""Throughput of a configuration, measured beside what limits it.

The parts of the work (environment, acting, updating) are timed alone in one process per core, and the whole with the
real command.  All that is compared is repeated in turn, so that a machine whose speed drifts drifts for all of it.
"""

import ctypes
import json
import math
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

import gymnasium as gym
import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from asynclab.distributed import Store
from asynclab.envs import is_atari
from asynclab.processes.launch import launch
from asynclab.profile import Profile
from asynclab.run.trial import Trial
from asynclab.storage import metrics
from asynclab.storage.names import METRICS
from asynclab.text import markdown
from asynclab.training.session import Session

PEAK_SIZE = 512  # rows and columns of the matrices by which the peak is measured
MAX_FRAME = 1_000_000_000  # of the runs, which are ended before
START_TIMEOUT = 900.0  # seconds in which every session must have learned once, or reported again


class Parts(NamedTuple):
    """What one process does alone, in units per second.

    Attributes:
        env: Frames stepped with random actions.
        act: Frames acted on.
        update: Batches of the memory learned from, always the same one; PPO makes several updates of each.
        raw: Frames of one environment as it comes: of an Atari game without its screens, nothing around any other.
        peak: Floating-point operations of the largest products, in the arithmetic of the torsos.
        frames_per_update: Frames to a batch, of the algorithm; no rate.
        work: Floating-point operations of products to a frame: acting on it, and its share of a batch; no rate.
    """

    env: float
    act: float
    update: float
    raw: float
    peak: float
    frames_per_update: float
    work: float


def limit(parts: Sequence[Parts]) -> float:
    """Return the frames/s of all processes that would do nothing but step, act and update in turn."""
    env, act, update = (sum(getattr(p, name) for p in parts) for name in ("env", "act", "update"))
    return 1 / (1 / env + 1 / act + 1 / (update * parts[0].frames_per_update))


def bound(parts: Sequence[Parts]) -> float:
    """Return the frames/s of all processes that would do nothing but emulate, and multiply at the peak, in turn."""
    raw, peak = (sum(getattr(p, name) for p in parts) for name in ("raw", "peak"))
    return 1 / (1 / raw + parts[0].work / peak)


def measure_parts(trial: Trial, processes: int, seconds: float, frameskip: int) -> list[Parts]:
    """Time the parts in so many processes at once, each for some seconds.

    Args:
        trial: Its first store is trained.
        processes: As many as fill the machine.
        seconds: Of each part.
        frameskip: Screens of an Atari game to a frame.
    """
    barrier = mp.get_context("forkserver").Barrier(processes)
    runs = [
        partial(_parts, trial.session, barrier, seconds, frameskip, trial.store_of(rank), rank)
        for rank in range(processes)
    ]
    return [event for event in launch(runs, trial.probe.num_threads) if isinstance(event, Parts)]


def _parts(session: Session, barrier: Any, seconds: float, frameskip: int, store: Store, rank: int) -> Iterator[Parts]:
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
    raw = rate(raw_step(envs.id, frameskip, rank))
    weights = learner.weights
    arithmetic = weights.full.dtype if weights.low is None else weights.low.dtype
    peak = max(rate(product) * 2 * PEAK_SIZE**3 for product in products(PEAK_SIZE, arithmetic, weights.full.device))
    work = flops(lambda: learner.act(obs)) / envs.num_envs
    work += flops(lambda: _all(learner.learn(batch))) / memory.frames_per_batch
    envs.close()
    yield Parts(env, act, update, raw, peak, memory.frames_per_batch, work)


def raw_step(id: str, frameskip: int, seed: int) -> Callable[[], Any]:
    """Return what steps one environment with random actions and as little else as can be.

    Args:
        id: Of gymnasium.
        frameskip: Screens of an Atari game to a step.
        seed: Of the environment and its actions.
    """
    settings: dict[str, Any] = {"obs_type": "ram"} if is_atari(id) else {}
    env: Any = gym.make(id, **settings).unwrapped
    env.reset(seed=seed)
    env.action_space.seed(seed)
    turn = cycle([env.action_space.sample() for _ in range(512)])
    if not is_atari(id):

        def step() -> None:
            _, _, terminated, truncated, _ = env.step(next(turn))
            if terminated or truncated:
                env.reset()

        return step
    emulator, actions = env.ale, cycle(env.ale.getMinimalActionSet()[i] for i in [next(turn) for _ in range(512)])

    def emulate() -> None:
        action = next(actions)
        for _ in range(frameskip):
            emulator.act(action)
        if emulator.game_over():
            emulator.reset_game()

    return emulate


def products(size: int, dtype: torch.dtype, device: torch.device) -> list[Callable[[], Any]]:
    """Return what multiplies two square matrices, by torch's choice of library and, on a CPU, by oneDNN."""
    a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    knows = dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # oneDNN has no bf16 with AVX2
    on_cpu = device.type == "cpu" and torch.backends.mkldnn.is_available() and knows
    ways: list[Callable[[], Any]] = [lambda: (a @ b)[0, 0].item()]  # waits for a GPU
    if on_cpu:
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise.default(a, b, None, "none", [], ""))
    return ways


def flops(work: Callable[[], Any]) -> int:
    """Return how many floating-point operations the products and convolutions of some work take."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _flops_of_onednn})
    with counter:
        work()
    return counter.get_total_flops()


def _flops_of_onednn(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


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
            f"env.max_frame={MAX_FRAME}", "checkpoint_every=1_000_000", f"hydra.run.dir={output}",
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
    processes: int, parts: Sequence[Sequence[Parts]], runs: dict[str, list[Run]], sb3: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    """Return medians and ranges.  Ratios are taken within a repeat, where the machine was most alike.

    Args:
        processes: As many as fill the machine.
        parts: Of all processes, of each repeat.
        runs: Of each repeat, by the number of sessions or by variant.
        sb3: Of stable-baselines3, of each repeat, by its number of threads; it is compared with its better one.
    """
    limits, bounds = [limit(ps) for ps in parts], [bound(ps) for ps in parts]
    names = "env", "act", "update", "raw", "peak"
    result: dict[str, Any] = {
        "processes": processes,
        "parts": {name: spread([sum(getattr(p, name) for p in ps) for ps in parts]) for name in names},
        "work": parts[0][0].work,
        "limit": spread(limits),
        "bound": spread(bounds),
        "runs": {},
    }
    peers = {
        threads: {name: spread([s[name] for s in ss]) for name in ("frames", "updates")} for threads, ss in sb3.items()
    }
    best = max(peers, key=lambda threads: peers[threads]["frames"]["median"], default=None)
    references = {"over_first": runs[next(iter(runs))], "over_all": runs.get(str(processes))}
    for name, measured in runs.items():
        entry = {part: spread([getattr(r, part) for r in measured]) for part in ("frames", "updates", "start", "peak")}
        if not name.isdecimal() or int(name) >= processes:  # the limit is that of a busy machine
            for share, of in (("fraction", limits), ("of_bound", bounds)):
                entry[share] = spread([r.frames / most for r, most in zip(measured, of, strict=True)])
        for ratio, reference in references.items():
            if reference is not None:
                entry[ratio] = spread([r.frames / other.frames for r, other in zip(measured, reference, strict=True)])
        if best is not None:
            entry["over_sb3"] = spread([r.frames / s["frames"] for r, s in zip(measured, sb3[best], strict=True)])
        result["runs"][name] = entry
    if best is not None:
        result |= {"sb3": peers, "sb3_best": best}
    return result


def table(result: dict[str, Any]) -> str:
    """Return the summary as text in Markdown."""
    processes, runs, peers = result["processes"], result["runs"], result.get("sb3", {})
    first, every = next(iter(runs)), str(processes)
    ratios = {"fraction": "of the limit", "of_bound": "of the bound", "over_first": f"x {_name(first)}"}
    if every in runs and every != first:
        ratios["over_all"] = f"x {_name(every)}"
    if peers:
        ratios["over_sb3"] = f"x stable-baselines3, {result['sb3_best']} thread{'s' * (result['sb3_best'] != '1')}"
    head = ["sessions", "frames/s", "updates/s", *ratios.values(), "start, s", "peak memory, GiB"]
    rows = []
    for name, run in runs.items():
        memory = {what: size / 2**30 for what, size in run["peak"].items()}
        cells = [name, _range(run["frames"]), _range(run["updates"])]
        cells += [_range(run[ratio], 2) if ratio in run else "" for ratio in ratios]
        rows.append([*cells, _range(run["start"], 1), _range(memory, 1)])
    for threads, peer in peers.items():
        name = f"stable-baselines3, {threads} thread{'s' * (threads != '1')}"
        rows.append([name, _range(peer["frames"]), _range(peer["updates"])])
    alone = [(what, _range(result["parts"][name])) for name, what in _PARTS.items()]
    alone.insert(3, ("limit: the three in turn, frames", _range(result["limit"])))
    peak = {what: value / 1e9 for what, value in result["parts"]["peak"].items()}
    alone.append((f"products at their peak, GFLOP; a frame takes {result['work'] / 1e9:.3g}", _range(peak)))
    alone.append(("bound: emulator and products in turn, frames", _range(result["bound"])))
    alone_head = [f"alone, in {processes} processes at once", "per second: median (range)"]
    return f"{markdown(alone_head, alone)}\n\n{markdown(head, rows)}"


_PARTS = {
    "env": "environment steps, frames", "act": "acting, frames", "update": "learning, batches",
    "raw": "the emulator without its screens, or the plain environment, frames",
}  # fmt: skip


def _name(run: str) -> str:
    return f"{run} session{'s' * (run != '1')}" if run.isdecimal() else run


def _range(values: dict[str, float], digits: int | None = None) -> str:
    if digits is None:
        digits = 1 if values["median"] < 100 else 0
    median, low, high = (f"{values[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({low} to {high})"
