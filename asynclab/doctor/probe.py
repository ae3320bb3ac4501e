"""What a trial does in its first moments, seen from inside: in this process, and in its sessions' processes.

Only what train.py itself would call is called; the doctor judges what is reported here.  P: number of parameters.
"""

import copy
import multiprocessing as mp
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from asynclab import flat
from asynclab.distributed import Store
from asynclab.memory import Memory
from asynclab.processes.control import Control
from asynclab.processes.launch import Failure
from asynclab.profile import Profile
from asynclab.run.trial import Trial
from asynclab.schedules import Linear
from asynclab.simulation.simulator import simulate
from asynclab.training.learner import Learner, Turns
from asynclab.training.loop import Loop
from asynclab.training.session import Session

PATIENCE = 60.0  # seconds that one session waits for another

# Runs sessions as the trial would; returns all events, and the error with which it ended.
Launch = Callable[[Sequence[Callable[[], Iterator[Any]]], Control], tuple[list[Any], str | None]]

_is_parent = False  # true only in the process that looks, and in what is forked from it


class Skip(Exception):  # noqa: N818
    """There is nothing to check; the message says why."""


class ProbeError(RuntimeError):
    """A session's process could not be looked at."""


class RollCall(NamedTuple):
    """Of two processes one answers and one dies.

    Attributes:
        is_forked: Whether they have their parent's memory.
        cause: What is reported of the one that died; None if nothing is.
    """

    is_forked: bool
    cause: str | None


def _answer(rank: int) -> Iterator[bool]:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    yield _is_parent


def roll_call(launch: Launch) -> RollCall:
    """Start two processes."""
    global _is_parent
    _is_parent = True
    events, error = launch([partial(_answer, rank) for rank in range(2)], Control(2, stop_seconds=5.0))
    causes = [event.cause for event in events if isinstance(event, Failure) and event.rank == 1]
    return RollCall(True in events, causes[0] if causes and error else None)


class Beginning(NamedTuple):
    """What is random about a session.

    Attributes:
        env_seeds: Of its environments.
        torch_seed: Of its actions.
        memory_seed: Of its sampling.
        stream: Digest of its first observations and actions.
    """

    env_seeds: list[int]
    torch_seed: int
    memory_seed: int
    stream: str


@dataclass
class _SeedOf:
    """Makes a memory and remembers its seed."""

    make: Callable[..., Memory]
    seed: int = -1

    def __call__(self, obs_space: Any, action_space: Any, num_envs: int, seed: int = 0) -> Memory:
        self.seed = seed
        return self.make(obs_space, action_space, num_envs, seed)


def begin(session: Session, store: Store, rank: int) -> tuple[Loop, Beginning]:
    """Set a session up and let it act a few times."""
    make_memory = _SeedOf(session.make_memory)
    loop = replace(session, make_memory=make_memory).set_up(rank, store, Profile(enabled=False))
    seed, obs, content = torch.initial_seed(), loop.obs, blake2b()
    for _ in range(8):
        action = loop.learner.act(obs)
        content.update(np.ascontiguousarray(obs).tobytes() + action.tobytes())
        obs = loop.envs.step(action).obs
    return loop, Beginning(loop.seeds, seed, make_memory.seed, content.hexdigest())


class Look(NamedTuple):
    """What a process sees at one moment: digests of vectors, and counters."""

    theta: str
    weights: str
    state: str
    step: float | None
    updates: int


class Report(NamedTuple):
    """What a session sees in its process.

    Attributes:
        rank: Of the session.
        threads: Of torch.
        beginning: What is random about it.
        start: Before anybody has pushed.
        looks: After the push of each session in turn; nobody has pulled.
        lr_factor: Of a linear decay, when every session has used a quarter of the budget.
        end: After a pull.
    """

    rank: int
    threads: int
    beginning: Beginning
    start: Look
    looks: list[Look]
    lr_factor: float
    end: Look


def _report(session: Session, store: Store, rank: int, sessions: int, barrier: Any) -> Iterator[Report]:
    loop, beginning = begin(session, store, rank)
    mode, vector, slot = session.mode, loop.learner.weights, session.mode.slot(rank)
    threads = torch.get_num_threads()
    lr = store.optimizer.param_groups[0]["lr"]

    def wait() -> None:
        barrier.wait(PATIENCE)

    def look() -> Look:
        state = state_of(store)
        step = next((float(t) for t in state if t.dim() == 0), None)
        return Look(digest(store.theta), digest(vector.full), digest(*state), step, store.total_updates())

    start, looks = look(), []
    for turn in range(sessions):
        wait()
        if rank == turn:
            mode.push(torch.full_like(store.theta, 0.1 * (turn + 1)), store)
            store.updates[slot] += 1
        wait()
        looks.append(look())
    store.lr_schedule = Linear()
    store.frames[slot] = store.max_frame // 4
    wait()
    store.apply(torch.zeros_like(store.theta))
    factor = store.optimizer.param_groups[0]["lr"] / lr
    wait()
    mode.pull(vector, store)
    loop.envs.close()
    yield Report(rank, threads, beginning, start, looks, factor, look())


def reports(launch: Launch, trial: Trial) -> list[Report]:
    """Let all sessions of a trial begin in their processes, push in turn and look.

    Raises:
        ProbeError: They did not come to their end.
    """
    sessions = trial.mode.max_session
    barrier = mp.get_context("forkserver").Barrier(sessions)
    runs = [partial(_report, trial.session, trial.store_of(rank), rank, sessions, barrier) for rank in range(sessions)]
    events, error = launch(runs, Control(sessions, stop_seconds=0.0))
    found = sorted((event for event in events if isinstance(event, Report)), key=lambda report: report.rank)
    if error or len(found) < sessions:
        lines = (error or "they ended without a word").splitlines()  # with a traceback, if they raised
        raise ProbeError(f"the sessions could not be examined: {' '.join(dict.fromkeys((lines[0], lines[-1])))}")
    return found


class Rehearsal(NamedTuple):
    """What the first steps of a session show.

    Attributes:
        weights_are_theta: When it acts for the first time.
        theta_is_kept: Likewise: theta is what it was before the session began.
        targets_are_theta: Likewise; true if there is no target network.
        second: [P] the gradient that is pushed first of those from its second batch.
        fresh: [P] what a session that has never seen the first batch pushes instead.
    """

    weights_are_theta: bool
    theta_is_kept: bool
    targets_are_theta: bool
    second: Tensor
    fresh: Tensor


class _Enough(Exception):  # noqa: N818
    """Ends a session's run."""


def rehearse(make_trial: Callable[[], Trial]) -> Rehearsal:
    """Let a session run in this process, as train.py would, until it has learned from its second batch.

    Args:
        make_trial: Returns a new trial, the same each time.
    """
    trial = make_trial()
    store, before = trial.stores[0], trial.stores[0].theta.clone()
    act, learn = Learner.act, Learner.learn
    seen: dict[str, Any] = {}
    saved: dict[str, Any] = {}  # before the second batch
    batches = 0

    def watch_act(self: Learner, *args: Any, **kwargs: Any) -> Any:
        if not seen:
            agent = self.agent
            bound = flat.is_bound(agent.nets, self.weights, self.grad)
            seen["weights_are_theta"] = bound and torch.equal(self.weights.full.cpu(), before)
            seen["theta_is_kept"] = torch.equal(store.theta, before)
            networks = [(flat.flatten(target.network), flat.flatten(target.source)) for target in agent.targets]
            seen["targets_are_theta"] = all(torch.equal(target, source) for target, source in networks)
        return act(self, *args, **kwargs)

    def watch_learn(self: Learner, batch: Any) -> Turns:
        nonlocal batches
        batches += 1
        if batches == 1:
            yield from learn(self, batch)
            return
        saved.update(batch=copy.deepcopy(batch), store=store.state_dict(), agent=self.agent.state_dict())
        seen["second"] = _pushed_first(store, lambda: learn(self, batch))
        raise _Enough

    torch.manual_seed(12_345)  # the session's networks are built with other weights than theta's
    with mock.patch.object(Learner, "act", watch_act), mock.patch.object(Learner, "learn", watch_learn):
        try:
            for _ in trial.session.run(0, store, Control(1)):
                if store.is_complete():  # it would rest for ever
                    break
        except _Enough:
            pass
    if not saved:
        raise Skip(f"env.max_frame={trial.cfg.env.max_frame} ends before a second batch; set it higher")
    twin = make_trial()
    twin.stores[0].load_state_dict(saved["store"])
    loop = twin.session.set_up(0, twin.stores[0], Profile(enabled=False))
    loop.envs.close()
    loop.learner.agent.load_state_dict(saved["agent"])
    fresh = _pushed_first(twin.stores[0], lambda: loop.learner.learn(saved["batch"]))
    return Rehearsal(**seen, fresh=fresh)


def _pushed_first(store: Any, learn: Callable[[], Turns]) -> Tensor:
    """Return the first gradient that learning pushes, given always the same random numbers."""
    pushed: list[Tensor] = []
    apply = store.apply

    def record(grad: Tensor, scale: float = 1.0) -> None:
        pushed.append(grad.detach().cpu().clone())
        apply(grad, scale)

    store.apply = record
    torch.manual_seed(5)
    for _ in learn():
        pass
    store.apply = apply
    if not pushed:
        raise ProbeError("the second batch was learned from and nothing was pushed")
    return pushed[0]


def simulated(trial: Trial, updates: int = 20) -> str:
    """Return the digest of theta after so many updates of a simulation."""
    (store,) = trial.stores
    assert trial.clock is not None
    with closing(simulate(trial.session, store, trial.control, trial.clock)) as events:
        while store.total_updates() < updates and not store.is_complete():
            next(events)
    return digest(store.theta)


def state_of(store: Store) -> list[Tensor]:
    """Return the tensors of the optimizer's state, in order."""
    states = store.optimizer.state_dict()["state"]
    return [states[i][role] for i in sorted(states) for role in sorted(states[i])]


def digest(*tensors: Tensor) -> str:
    """Return the same text for the same numbers."""
    content = blake2b(digest_size=16)
    for tensor in tensors:
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()
