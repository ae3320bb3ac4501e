"""The parent of a run: makes the stores, launches the sessions, records and checkpoints."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from asynclab import check, checkpoint, flat
from asynclab.agents import Agent
from asynclab.distributed import Mode, Store, launch
from asynclab.envs import Envs
from asynclab.memory import Memory
from asynclab.precision import Precision
from asynclab.recorder import Recorder
from asynclab.session import Seeds, Session

log = logging.getLogger(__name__)


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
        precision: Of the torsos' arithmetic: auto, fp32 or bf16.
        device: auto, cpu, cuda or cuda:N.
        seed: Of the trial.
        log_every: Seconds between two progress lines.
        checkpoint_every: Seconds between two checkpoints.
        profile: Measure where the sessions' time goes.
        folder: Output folder.

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
        precision: str,
        device: str,
        seed: int,
        log_every: float,
        checkpoint_every: float,
        profile: bool,
        folder: Path,
    ) -> None:
        self.mode = mode
        self.folder = folder
        self.log_every = check.positive("log_every", log_every)
        self.checkpoint_every = check.positive("checkpoint_every", checkpoint_every)
        check.count("env.max_frame", max_frame)
        if seed < 0:
            raise ValueError(f"seed={seed} must be 0 or more")
        if max_grad_norm is not None:
            check.positive("algo.max_grad_norm", max_grad_norm)
        if (folder / "metrics.jsonl").exists():
            raise ValueError(f"the output folder {folder} holds a run already; set hydra.run.dir to another folder")
        devices = _devices(device, mode)
        envs = make_envs()
        envs.close()
        _check_memory(make_memory, envs, mode, max_frame)

        def make_store(rank: int) -> Store:
            torch.manual_seed(Seeds(seed, rank).weights)
            nets = make_agent(envs.obs_space, envs.action_space).nets
            parts = flat.slices(nets)
            return Store(flat.flatten(nets), parts, make_optimizer, max_frame, lr_schedule, mode.writers)

        self.stores = [make_store(rank) for rank in range(mode.num_stores)]
        if (mode.one_store or mode.max_session > 1) and not self.stores[0].is_global:
            raise ValueError(
                f"algo.optimizer {type(self.stores[0].optimizer).__name__} is not global, so with"
                f" distributed={mode.name} and {mode.max_session} sessions its state would be lost between processes;"
                " set algo.optimizer._target_=asynclab.optim.GlobalAdam or GlobalRMSprop"
            )
        self.session = Session(
            make_envs,
            make_agent,
            make_memory,
            mode,
            max_grad_norm,
            Precision(precision),
            devices,
            seed,
            log_every,
            profile,
        )

    def run(self) -> float:
        """Train until the budget is used up and return the mean return of the last 100 episodes (nan if none)."""
        mode = self.mode
        log.info(
            "%d session%s, distributed=%s, %s parameters, output in %s",
            mode.max_session, "s" * (mode.max_session > 1), mode.name, f"{len(self.stores[0].theta):,}", self.folder,
        )  # fmt: skip
        recorder = Recorder(self.folder, mode, self.stores, self.log_every)
        status = "failed"
        saved = time.monotonic()
        try:
            runs = [partial(self.session.run, rank, self.store_of(rank)) for rank in range(mode.max_session)]
            for record in launch(runs, mode.num_threads):
                recorder.write(record)
                if time.monotonic() - saved >= self.checkpoint_every:
                    self.save()
                    saved = time.monotonic()
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            try:
                self.save()
            finally:
                recorder.close(status)
        return recorder.mean_return

    def store_of(self, rank: int) -> Store:
        """Return the store that a session trains."""
        return self.stores[self.mode.store_index(rank)]

    def save(self) -> None:
        """Write ``checkpoints/latest.pt``."""
        checkpoint.save(self.folder / "checkpoints" / "latest.pt", self.stores)


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


def _check_memory(make_memory: Callable[..., Memory], envs: Envs, mode: Mode, max_frame: int) -> None:
    """Say how much the sessions will remember, and refuse what cannot fit or never yields a batch."""
    try:
        memory: Any = make_memory(envs.obs_space, envs.action_space, envs.num_envs)
    except MemoryError as error:
        raise ValueError(f"one session's memory cannot be allocated ({error}); lower algo.memory.capacity") from None
    each, available = memory.nbytes(), psutil.virtual_memory().available
    total = each * mode.max_session
    log.info("memory: %s per session, %s in all, %s available", *map(_size, (each, total, available)))
    if total > available:
        raise ValueError(
            f"the sessions' memories need {_size(total)} ({_size(each)} each) and {_size(available)} are available;"
            " lower algo.memory.capacity, env.num_envs or distributed.max_session"
        )
    if max_frame < (needed := memory.min_frame(mode.writers)):
        raise ValueError(
            f"env.max_frame={max_frame} ends before every session has learned once; set it to {needed} or more"
        )


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
