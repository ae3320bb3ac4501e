"""Is a configuration healthy?  What train.py would build of it is checked in seconds, without training.

Every check is a function of the ``Subject``.  It returns what it has seen, or raises ``Wrong``; where there is nothing to
check, ``needs`` says why.  ``faults.py`` plants the errors that the checks are for.
"""

import copy
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from gymnasium.spaces import Box
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from asynclab import audit, build, flat, resources
from asynclab.distributed import Control, Failure, SessionError, Store, launch
from asynclab.faults import FAULTS, Planted, planted
from asynclab.learner import Learner
from asynclab.memory import Memory, Replay, Rollout
from asynclab.optim import GlobalOptimizer
from asynclab.profile import Profile
from asynclab.schedules import Linear
from asynclab.session import Parts, Session
from asynclab.trial import Trial

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
PATIENCE = 60.0  # seconds that one session waits for another, and that a session may be silent
SHORT = 16  # steps of the audit's short episodes, which are truncated
# What a check costs grows with these, and what it finds does not; all else is as the run would have it.
SMALL = {"env.num_envs": 2, "algo.memory.capacity": 2_000, "algo.memory.start": 64}


class Wrong(Exception):  # noqa: N818 - a finding, no error of ours
    """Something is not as it should be; the message says what was seen."""


class Skip(Exception):  # noqa: N818
    """There is nothing to check; the message says why."""


class Finding(NamedTuple):
    """What a check has found; ``status`` is OK, FAILED or SKIPPED."""

    name: str
    status: str
    text: str


class Check(NamedTuple):
    """One question about a configuration.

    Attributes:
        run: Returns what was seen, or raises Wrong.
        needs: Returns why there is nothing to check; empty if there is.
        harm: What it does to training if it is wrong, and where that has happened.
    """

    run: Callable[["Subject"], str]
    needs: Callable[["Subject"], str]
    harm: str


CHECKS: dict[str, Check] = {}


def _check(
    harm: str, needs: Callable[["Subject"], str] = lambda subject: ""
) -> Callable[[Callable[["Subject"], str]], Callable[["Subject"], str]]:
    """Register a check under its function's name."""

    def register(run: Callable[["Subject"], str]) -> Callable[["Subject"], str]:
        CHECKS[run.__name__] = Check(run, needs, harm)
        return run

    return register


def examine(
    cfg: DictConfig, folder: Path, frames: int, inject: str | None = None, names: Sequence[str] | None = None
) -> Iterator[Finding]:
    """Yield what the checks find, as they find it.

    Args:
        cfg: As train.py gets it.
        folder: An empty one.
        frames: That the audit of transitions steps.
        inject: Name of a fault to plant; None for none.
        names: Of the checks; None for all.

    Raises:
        ValueError: There is no such check or fault, or the fault cannot be planted here.
        CompactHydraException: train.py would refuse the configuration.
    """
    _refuse_unknown("inject", [] if inject is None else [inject], list(FAULTS))
    _refuse_unknown("checks", list(names or []), list(CHECKS))
    subject = Subject(cfg, folder, frames, inject)
    if inject is not None:
        fault = FAULTS[inject]
        if reason := fault.needs(subject.real) or CHECKS[fault.check].needs(subject):
            raise ValueError(f"inject={inject} does not apply to this configuration: {reason}")
    with planted(inject):
        for name, check in CHECKS.items():
            if not names or name in names:
                yield _run(name, check, subject)


def _refuse_unknown(setting: str, given: list[str], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{setting}={name} is unknown; use one of {', '.join(known)}")


def _run(name: str, check: Check, subject: "Subject") -> Finding:
    if reason := check.needs(subject):
        return Finding(name, SKIPPED, reason)
    try:
        return Finding(name, OK, check.run(subject))
    except Skip as reason:
        return Finding(name, SKIPPED, str(reason))
    except Wrong as seen:
        return Finding(name, FAILED, f"{seen}. {check.harm}")
    except Exception as error:  # what is broken enough to raise is a finding, too
        return Finding(name, FAILED, f"it raised {type(error).__name__}: {error}. {check.harm}")


class Subject:
    """What train.py would make of a configuration, and a smaller trial like it.

    Attributes:
        real: With all sessions and sizes; made before a fault is planted.
        sessions: Of the smaller trial: two, or one if the real one has no more.
        agent: Of the real trial's kind, bound to nothing.
        obs_space: Of the environments.

    Args:
        cfg: The composed config.
        folder: Output folder; nothing is written.
        frames: That the audit of transitions steps.
        fault: That is planted, in the sessions' processes too.
    """

    def __init__(self, cfg: DictConfig, folder: Path, frames: int, fault: str | None = None) -> None:
        self.frames = frames
        self.fault = fault
        self._folder = folder
        self.real = build.make_trial(cfg, folder)
        self.sessions = min(2, self.real.mode.max_session)
        self._cfg = copy.deepcopy(cfg)
        OmegaConf.update(self._cfg, "distributed.max_session", self.sessions)
        for key, size in SMALL.items():
            if isinstance(value := OmegaConf.select(cfg, key), int):
                OmegaConf.update(self._cfg, key, min(value, size))
        envs = self.make().session.make_envs()
        self.obs_space, self.action_space, self.num_envs = envs.obs_space, envs.action_space, envs.num_envs
        envs.close()
        self.agent = self.real.session.make_agent(self.obs_space, self.action_space)
        self.known: dict[str, Any] = {}

    def make(self) -> Trial:
        """Return a new small trial."""
        return build.make_trial(self._cfg, self._folder)

    def launch(self, runs: Sequence[Callable[[], Iterator[Any]]], control: Control) -> tuple[list[Any], str | None]:
        """Run sessions as the trial would, with the fault if there is one.

        Returns:
            All events, and the error with which it ended, if any.
        """
        global _is_doctor
        _is_doctor = True
        events = []
        threads = torch.get_num_threads()
        try:
            for event in launch([Planted(self.fault, run) for run in runs], self.real.mode.num_threads, control):
                events.append(event)
        except SessionError as error:
            return events, str(error)
        finally:
            torch.set_num_threads(threads)  # a single session runs here
        return events, None

    @property
    def roll_call(self) -> "RollCall":
        """What is seen of two processes of which one dies."""
        return self._once("roll_call", lambda: _roll_call(self))

    @property
    def reports(self) -> "list[Report]":
        """What each session sees when they push in turn."""
        return self._once("reports", lambda: _reports(self))

    @property
    def rehearsal(self) -> "Rehearsal":
        """What one session does up to its second update."""
        return self._once("rehearsal", lambda: _rehearse(self))

    @property
    def trial(self) -> Trial:
        """The small trial whose stores the sessions of ``reports`` train."""
        return self._once("trial", self.make)

    def _once(self, name: str, look: Callable[[], Any]) -> Any:
        """Look only once, even if that raises."""
        if name not in self.known:
            try:
                self.known[name] = look()
            except Exception as error:
                self.known[name] = error
        if isinstance(self.known[name], Exception):
            raise self.known[name]
        return self.known[name]


# What applies where


def _several(subject: Subject) -> str:
    return "" if subject.sessions > 1 else "one session, so there is nobody to share with"


def _one_store(subject: Subject) -> str:
    if not subject.real.mode.one_store:
        return f"distributed={subject.real.mode.name} shares nothing"
    return _several(subject)


def _only_off(subject: Subject) -> str:
    if subject.real.mode.name != "off":
        return f"distributed={subject.real.mode.name} has one network for all sessions"
    return _several(subject)


def _optimizer_is_seen(subject: Subject) -> str:
    return "" if subject.real.mode.one_store else _several(subject)


def _targets(subject: Subject) -> str:
    return "" if hasattr(subject.agent, "target_critics") else "this agent has no target critics"


def _temperature(subject: Subject) -> str:
    if not hasattr(subject.agent, "temperature"):
        return "this agent has no temperature"
    return (
        "" if getattr(subject.agent, "shared_temperature", True) else "shared_temperature=false asks for private ones"
    )


def _gae(subject: Subject) -> str:
    return "" if _gae_of(subject.agent) else "this agent's targets look one step ahead, so no trace can leak"


def _gae_of(agent: Any) -> Callable[..., Tensor] | None:
    """Return the function by which an agent estimates advantages, as its module sees it."""
    modules = [vars(sys.modules[kind.__module__]) for kind in type(agent).__mro__ if kind.__module__ in sys.modules]
    return next((names["gae"] for names in modules if "gae" in names), None)


def _float_replay(subject: Subject) -> str:
    if not _is_a(subject.real.session.make_memory, Replay):
        return "there is no replay"
    return "" if subject.obs_space.dtype == np.float32 else "observations are bytes"


def _is_a(make_memory: Callable[..., Memory], kind: type) -> bool:
    made = make_memory.func if isinstance(make_memory, partial) else make_memory
    return isinstance(made, type) and issubclass(made, kind)


def _can_be_audited(subject: Subject) -> str:
    try:
        audit.cut_short(subject.real.session.make_envs, SHORT)
        audit.hands_out_all(subject.real.session.make_memory)
    except ValueError as error:
        return str(error)
    return ""


# Processes


@_check(
    "A process that is forked after a torch operator can hang in its first convolution, for ever and without a word"
    " (SLM Lab's A3C with torch 2.13).",
    _several,
)
def start_method(subject: Subject) -> str:
    """Sessions start in processes that have run no torch operator."""
    if subject.roll_call.is_forked:
        raise Wrong("sessions are forked from the command's own process, which has run torch operators")
    return "sessions come from a fork server that has run no torch operator"


@_check(
    "A run would go on with fewer sessions, or end, as if it had succeeded (SLM Lab joins its processes and ignores"
    " their exit codes).",
    _several,
)
def dead_session(subject: Subject) -> str:
    """A session that dies is reported."""
    cause = subject.roll_call.cause
    if cause is None:
        raise Wrong("a session's process was killed and the run ended without an error")
    return f"a killed session is reported: it {cause}"


@_check("The run would be killed by the kernel, or fail to start, once its memories fill.")
def fits(subject: Subject) -> str:
    """Memory, shared memory and open files suffice for all sessions."""
    trial, mode = subject.real, subject.real.mode
    memory = trial.session.make_memory(subject.obs_space, subject.action_space, _real_envs(subject)).nbytes()
    shared = sum(_shared_bytes(store) for store in trial.stores)
    try:
        resources.check_memory(mode.max_session, memory)
        resources.check_shared_memory(shared)
        resources.check_descriptors(mode.max_session, mode.num_stores)
    except ValueError as error:
        raise Wrong(str(error)) from error
    return (
        f"{mode.max_session} session{'s' * (mode.max_session > 1)}: memories of {resources.size(memory)} each, stores of"
        f" {resources.size(shared)} in shared memory, {resources.size(resources.available_memory())} available"
    )


def _real_envs(subject: Subject) -> int:
    keywords = getattr(subject.real.session.make_envs, "keywords", {})
    return int(keywords.get("num_envs", subject.num_envs))


def _shared_bytes(store: Store) -> int:
    tensors = [store.theta, *_state(store)]
    return sum(t.numel() * t.element_size() for t in tensors)


@_check("Sessions that all use all cores hinder each other and are several times slower together than one thread each.")
def threads(subject: Subject) -> str:
    """Every session has its share of threads."""
    wanted = subject.real.mode.num_threads
    for report in subject.reports:
        if report.threads != wanted:
            raise Wrong(
                f"session {report.rank} computes with {report.threads} threads, and distributed.num_threads={wanted}"
            )
    return f"{wanted} per session"


# Sharing


@_check("Every session would train a network of its own, and the one that is saved would never learn.", _one_store)
def theta_shared(subject: Subject) -> str:
    """What one session pushes, all others and the parent see."""
    reports = subject.reports
    before = {report.start.theta for report in reports}
    for turn in range(subject.sessions):
        seen = {report.looks[turn].theta for report in reports}
        if len(seen) > 1 or seen == before:
            raise Wrong(f"session {turn} has pushed, and not every process sees the same new theta")
        before = seen
    if reports[0].end.theta != _digest(subject.trial.stores[0].theta):
        raise Wrong("the parent does not see what the sessions have pushed")
    return "every push is seen by all sessions and by the parent"


@_check(
    "Global updates with private moments are no Adam at all: nothing is learned and nobody is told.", _optimizer_is_seen
)
def optimizer_global(subject: Subject) -> str:
    """The optimizer's state exists before any process, in shared memory."""
    store = subject.make().stores[0]
    name = type(store.optimizer).__name__
    if not isinstance(store.optimizer, GlobalOptimizer):
        raise Wrong(f"{name} is not global: torch makes its state at the first step, in every process for itself")
    if not (state := _state(store)):
        return f"{name}, which has no state yet; optimizer_shared tells"
    if not all(tensor.is_shared() for tensor in state):
        raise Wrong(f"{name} has state outside shared memory")
    return f"{name}: {len(state)} tensors in shared memory"


@_check(
    "Every session would average its own gradients only while it steps with those of all: Shared RMSProp and Adam share"
    " their statistics (Mnih et al., 2016, section 4).",
    _one_store,
)
def optimizer_shared(subject: Subject) -> str:
    """Moments and the step count are the same memory in all processes."""
    before = {report.start.state for report in subject.reports}
    for turn in range(subject.sessions):
        looks = [report.looks[turn] for report in subject.reports]
        seen = {look.state for look in looks}
        if len(seen) > 1:
            raise Wrong(f"after a push of session {turn} the sessions see different moments or steps")
        if seen == before:
            raise Wrong(f"a push of session {turn} has left the moments as they were")
        if any(look.step not in (None, turn + 1) for look in looks):
            raise Wrong(f"{turn + 1} pushes were counted as {', '.join(str(look.step) for look in looks)} steps")
        before = seen
    return "moments and step are the same in all processes after every push"


@_check("Budget, schedules and staleness are taken from these counters.", _one_store)
def counters_shared(subject: Subject) -> str:
    """Every process sees what each has counted."""
    for turn in range(subject.sessions):
        seen = [report.looks[turn].updates for report in subject.reports]
        if set(seen) != {turn + 1}:
            raise Wrong(f"after {turn + 1} updates the sessions see {seen}")
    return "updates of all sessions are seen by all"


@_check("On-policy algorithms need weights that stand still during a rollout, Hogwild! ones that are never old.")
def weights(subject: Subject) -> str:
    """A session's weights are a copy between pulls in synced and off, and theta itself in shared."""
    live = subject.real.mode.is_live
    for report in subject.reports:
        who = f"session {report.rank}"
        for look in report.looks:
            if live and look.weights != look.theta:
                raise Wrong(f"{who} computes with weights that are not the global network, in distributed=shared")
            if not live and look.weights != report.start.weights:
                raise Wrong(f"the weights of {who} have changed before it pulled: they are no private copy")
        if report.end.weights != report.end.theta:
            raise Wrong(f"{who} has pulled and its weights are not theta")
    return "theta itself in every session" if live else "private, and equal to theta after a pull"


@_check("Repeats that help each other are no repeats, and every comparison drawn from them is wrong.", _only_off)
def stores_separate(subject: Subject) -> str:
    """In off no session sees what another pushes."""
    before = [report.start for report in subject.reports]
    for turn in range(subject.sessions):
        looks = [report.looks[turn] for report in subject.reports]
        for rank, (old, new) in enumerate(zip(before, looks, strict=True)):
            changed = (old.theta, old.state, old.updates) != (new.theta, new.state, new.updates)
            if changed != (rank == turn):
                raise Wrong(f"a push of session {turn} {'reaches' if changed else 'does not change'} session {rank}")
        before = looks
    return "every session has theta, moments and counters of its own"


@_check(
    "With 16 sessions a linear decay on each one's own clock ends at 94 % of where it began; one global clock drives"
    " budget and schedules.",
    _one_store,
)
def global_clock(subject: Subject) -> str:
    """The learning rate follows the frames of all sessions together."""
    expected = 1 - subject.sessions / 4
    for report in subject.reports:
        if not np.isclose(report.lr_factor, expected, atol=1e-3):
            raise Wrong(
                f"each of {subject.sessions} sessions has used a quarter of the budget, and a linear decay has the learning"
                f" rate at {report.lr_factor:.0%} in session {report.rank} instead of {expected:.0%}"
            )
    return "schedules follow the frames of all sessions together"


# The beginning of a session


@_check(
    "Its first gradients would belong to weights that nobody trains (the first pull must precede the first rollout)."
)
def first_pull(subject: Subject) -> str:
    """A session acts for the first time with theta's values, and starting it does not change theta."""
    if not subject.rehearsal.theta_is_kept:
        raise Wrong("starting a session has overwritten the global network")
    if not subject.rehearsal.weights_are_theta:
        raise Wrong("a session acts for the first time with other weights than theta")
    return "a session's first actions come from theta"


@_check(
    "The first targets would come from weights that were thrown away at the first pull, and follow only slowly.",
    _targets,
)
def targets(subject: Subject) -> str:
    """SAC's target critics start as copies of the critics that were pulled."""
    if not subject.rehearsal.targets_are_critics:
        raise Wrong("the target critics do not start as the critics of theta but as discarded random weights")
    return "the target critics start as theta's critics"


@_check("Sessions would train one network towards different objectives, each with its own entropy bonus.", _temperature)
def temperature(subject: Subject) -> str:
    """The temperature is part of theta."""
    trial = subject.make()
    agent: Any = trial.session.make_agent(subject.obs_space, subject.action_space)
    trained = {id(p) for p in agent.nets.parameters()}
    if not all(id(p) in trained for p in agent.temperature.parameters()):
        raise Wrong("the temperature is no part of theta but private to each session")
    return "log alpha is part of theta"


@_check("Sessions that see and draw the same are one session, paid for several times.", _several)
def seeds(subject: Subject) -> str:
    """No two sessions share a random stream."""
    begun = [report.beginning for report in subject.reports]
    env_seeds = [seed for beginning in begun for seed in beginning.env_seeds]
    if len(set(env_seeds)) < len(env_seeds):
        raise Wrong(f"environments of different sessions have the same seeds: {env_seeds}")
    for what in ("torch_seed", "memory_seed", "stream"):
        if len({getattr(beginning, what) for beginning in begun}) < len(begun):
            raise Wrong(f"two sessions have the same {what.replace('_', ' ')}")
    starts = {_digest(store.theta) for store in subject.make().stores}
    if len(starts) < subject.make().mode.num_stores:
        raise Wrong("the repeats of distributed=off start from the same weights")
    return "environments, actions and sampling differ between sessions"


@_check("What cannot be repeated cannot be compared or debugged; seeds must come from the setting, not from the clock.")
def reproducible(subject: Subject) -> str:
    """The same setting gives the same beginning."""
    first, again = (_begin(trial.session, trial.stores[0], 0) for trial in (subject.make(), subject.make()))
    for parts, _ in (first, again):
        parts.envs.close()
    if first[1] != again[1]:
        raise Wrong(f"seed={subject.real.session.seed} begins differently each time")
    return "the same seed begins in the same way"


# Learning


@_check(
    "Gradients that pile up, or stay those of the first rollout, are the classic silent failure: aliased once, they are"
    " cut off by zero_grad(set_to_none=True), torch's default since 2.0 (SLM Lab, pytorch-a3c, rl_a3c_pytorch)."
)
def fresh_gradient(subject: Subject) -> str:
    """The second gradient that is pushed is exactly that of the second batch."""
    second, fresh = subject.rehearsal.second, subject.rehearsal.fresh
    difference = float((second - fresh).norm() / fresh.norm().clamp_min(1e-12))
    if not difference < 1e-3:
        raise Wrong(
            f"the gradient that is pushed after the second batch differs by {difference:.0%} from the one that a session"
            " which never saw the first batch computes"
        )
    return "the second push is what a session that never saw the first batch pushes"


@_check(
    "Rewards of an episode would be credited to actions of the one before it, or what was cut short would count as lost.",
    _gae,
)
def episode_ends(subject: Subject) -> str:
    """Advantages do not leak across episode ends: a case small enough to be worked out by hand."""
    gae = _gae_of(subject.make().session.make_agent(subject.obs_space, subject.action_space))
    assert gae is not None
    reward, zero, v_next = (torch.tensor(x)[:, None] for x in ([0.0, 0.0, 1.0], [0.0] * 3, [0.0, 9.0, 0.0]))
    done = torch.tensor([False, True, False])[:, None]
    for terminated, expected in ((done, [0.0, 0.0, 1.0]), (torch.zeros_like(done), [9.0, 9.0, 1.0])):
        advantage = gae(reward, zero, v_next, terminated, done, 1.0, 1.0).flatten().tolist()
        if advantage != expected:
            how = "terminates" if terminated.any() else "is truncated"
            raise Wrong(f"where an episode {how}, the advantages are {advantage} and should be {expected}")
    return "advantages stop at episode ends; what is cut short is bootstrapped"


@_check(
    "Autoreset (gymnasium >= 1.0) and truncation make wrong targets at every episode's end, which no curve shows.",
    _can_be_audited,
)
def transitions(subject: Subject) -> str:
    """Every transition that is learned from is one that a plain environment makes."""
    session = subject.make().session
    make_memory = audit.hands_out_all(session.make_memory)
    natural = audit.audit(session.make_envs, subject.frames, make_memory)
    # Long episodes do not end in so few frames, and some never are truncated: let them be, soon.
    short = audit.audit(audit.cut_short(session.make_envs, SHORT), subject.frames // 2, make_memory)
    for result in (natural, short):
        if result.bogus:
            raise Wrong(str(result))
    ends = natural.terminated + natural.truncated
    few = "" if ends else f" (none ended by itself: set frames above {subject.frames:,} to see that)"
    return f"{natural}{few}; cut after {SHORT} steps, {short}"


@_check(
    "AtariVectorEnv clips rewards by default, and then the score is nowhere: Pong's rewards are 1 anyway, MsPacman's are"
    " not.",
    _can_be_audited,
)
def raw_returns(subject: Subject) -> str:
    """Episode returns are raw although training is on clipped rewards."""
    make_envs = subject.make().session.make_envs
    id = getattr(make_envs, "keywords", {}).get("id", "")
    others = {"clip_reward": True} | ({"id": "ALE/MsPacman-v5"} if id.startswith("ALE/") else {})
    memory = partial(Rollout, horizon=SHORT)
    result = audit.audit(audit.cut_short(make_envs, 4 * SHORT, **others), 2 * 5 * SHORT, memory)
    if result.bogus:
        raise Wrong(str(result))
    return f"{others.get('id', id)} reports raw returns when its rewards are clipped for training"


@_check("Half precision ends at 65,504: forces of Humanoid overflow to infinity.", _float_replay)
def replay_precision(subject: Subject) -> str:
    """The replay gives back float observations as they were."""
    trial = subject.make()
    envs = trial.session.make_envs()
    memory = trial.session.make_memory(envs.obs_space, envs.action_space, envs.num_envs, 0)
    memory.reset(np.full((envs.num_envs, *envs.obs_space.shape), 70_000.1, np.float32))
    envs.reset(list(range(envs.num_envs)))
    action = np.stack([envs.action_space.sample() for _ in range(envs.num_envs)])
    large = envs.step(action)
    large = large._replace(obs=np.full_like(large.obs, 70_000.1))
    envs.close()
    for _ in range(10_000):
        memory.add(action, large)
        for batch in memory.batches(10**12):
            if batch.obs.dtype != torch.float32 or not bool((batch.obs == np.float32(70_000.1)).all()):
                raise Wrong(f"70,000.1 comes back from the replay as {float(batch.obs.max()):,} in {batch.obs.dtype}")
            return "float32 in, float32 out"
    raise Wrong("the replay gives nothing back after 10,000 steps")


# What the checks look at


_is_doctor = False  # true only in the doctor's own process, and in one that is forked from it


class RollCall(NamedTuple):
    """Of two processes one answers and one dies.

    Attributes:
        is_forked: Whether they have their parent's memory.
        cause: What is reported of the one that died; None if nothing is.
    """

    is_forked: bool
    cause: str | None


def _answer(control: Control, rank: int) -> Iterator[bool]:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    yield _is_doctor
    end = time.monotonic() + 5.0
    while not control.ending() and time.monotonic() < end:
        control.beat(rank)
        time.sleep(0.01)


def _roll_call(subject: Subject) -> RollCall:
    control = Control(2, hang_after=PATIENCE, stop_seconds=5.0)
    events, error = subject.launch([partial(_answer, control, rank) for rank in range(2)], control)
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


def _begin(session: Session, store: Store, rank: int) -> tuple[Parts, Beginning]:
    """Set a session up and let it act a few times."""
    make_memory = _SeedOf(session.make_memory)
    parts = replace(session, make_memory=make_memory).set_up(rank, store, Profile(enabled=False))
    seed, obs, content = torch.initial_seed(), parts.obs, blake2b()
    for _ in range(8):
        action = parts.learner.act(obs)
        content.update(np.ascontiguousarray(obs).tobytes() + action.tobytes())
        obs = parts.envs.step(action).obs
    return parts, Beginning(parts.seeds, seed, make_memory.seed, content.hexdigest())


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
    parts, beginning = _begin(session, store, rank)
    mode, vector, slot = session.mode, parts.learner.weights, session.mode.slot(rank)
    threads = torch.get_num_threads()
    lr = store.optimizer.param_groups[0]["lr"]

    def wait() -> None:
        barrier.wait(PATIENCE)

    def look() -> Look:
        state = _state(store)
        step = next((float(t) for t in state if t.dim() == 0), None)
        return Look(_digest(store.theta), _digest(vector.full), _digest(*state), step, store.total_updates())

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
    parts.envs.close()
    yield Report(rank, threads, beginning, start, looks, factor, look())


def _reports(subject: Subject) -> list[Report]:
    if subject.sessions > 1 and subject.roll_call.is_forked:
        raise Skip("sessions that are forked from this process could hang; see start_method")
    sessions, trial = subject.sessions, subject.trial
    barrier = mp.get_context("forkserver").Barrier(sessions)
    runs = [partial(_report, trial.session, trial.store_of(rank), rank, sessions, barrier) for rank in range(sessions)]
    events, error = subject.launch(runs, Control(sessions, stop_seconds=0.0))
    reports = sorted(event for event in events if isinstance(event, Report))
    if error or len(reports) < sessions:
        raise Wrong(f"the sessions could not be examined: {error or 'they ended without a word'}")
    return reports


class Rehearsal(NamedTuple):
    """What the first steps of a session show.

    Attributes:
        weights_are_theta: When it acts for the first time.
        theta_is_kept: Likewise: theta is what it was before the session began.
        targets_are_critics: Likewise; None if there are no target critics.
        second: [P] the gradient that is pushed first of those from its second batch.
        fresh: [P] what a session that has never seen the first batch pushes instead.
    """

    weights_are_theta: bool
    theta_is_kept: bool
    targets_are_critics: bool | None
    second: Tensor
    fresh: Tensor


class _Enough(Exception):  # noqa: N818
    """Ends a session's run."""


def _rehearse(subject: Subject) -> Rehearsal:
    """Let a session run, as train.py would, until it has learned from its second batch."""
    trial = subject.make()
    store, before = trial.stores[0], trial.stores[0].theta.clone()
    whole = "learn" if hasattr(Learner, "learn") else "update"  # what is done with one batch of the memory
    act, learn = Learner.act, getattr(Learner, whole)
    flags: list[Any] = []
    batches = 0
    saved: dict[str, Any] = {}

    def watch_act(self: Learner, *args: Any, **kwargs: Any) -> Any:
        if not flags:
            agent: Any = self.agent
            bound = flat.is_bound(agent.nets, self.weights, self.grad)
            flags.append(bound and torch.equal(self.weights.full.cpu(), before))
            flags.append(torch.equal(store.theta, before))
            flags.append(None)
            if hasattr(agent, "target_critics"):
                flags[-1] = torch.equal(flat.flatten(agent.target_critics), flat.flatten(agent.critics))
        return act(self, *args, **kwargs)

    def watch_learn(self: Learner, batch: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal batches
        batches += 1
        if batches == 1:
            learn(self, batch, *args, **kwargs)
            return
        saved.update(batch=copy.deepcopy(batch), store=store.state_dict(), agent=self.agent.state_dict())
        saved["pushed"] = _pushed_first(store, lambda: learn(self, batch, *args, **kwargs))
        raise _Enough

    torch.manual_seed(12_345)  # the session's networks are built with other weights than theta's
    with mock.patch.object(Learner, "act", watch_act), mock.patch.object(Learner, whole, watch_learn):
        try:
            for _ in trial.session.run(0, store, Control(1)):
                pass
        except _Enough:
            pass
    twin = subject.make()
    twin.stores[0].load_state_dict(saved["store"])
    parts = twin.session.set_up(0, twin.stores[0], Profile(enabled=False))
    parts.envs.close()
    parts.learner.agent.load_state_dict(saved["agent"])
    fresh = _pushed_first(twin.stores[0], lambda: getattr(parts.learner, whole)(saved["batch"]))
    return Rehearsal(*flags, saved["pushed"], fresh)


def _pushed_first(store: Any, learn: Callable[[], None]) -> Tensor:
    """Return the first gradient that learning pushes, given always the same random numbers."""
    pushed: list[Tensor] = []
    apply = store.apply

    def record(grad: Tensor) -> None:
        pushed.append(grad.detach().cpu().clone())
        apply(grad)

    store.apply = record
    torch.manual_seed(5)
    learn()
    store.apply = apply
    if not pushed:
        raise Wrong("the second batch was learned from and nothing was pushed")
    return pushed[0]


def _state(store: Store) -> list[Tensor]:
    """Return the tensors of the optimizer's state, in order."""
    states = store.optimizer.state_dict()["state"]
    return [states[i][role] for i in sorted(states) for role in sorted(states[i])]


def _digest(*tensors: Tensor) -> str:
    content = blake2b(digest_size=16)
    for tensor in tensors:
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()
